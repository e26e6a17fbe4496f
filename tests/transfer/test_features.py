"""Features are the classifier's input, row by row, and the borrowed model comes back unchanged."""

from __future__ import annotations

import os
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from torch.testing import assert_close
from torch.utils.data import DataLoader, Dataset, Subset, TensorDataset

from hrrl_ext.data import ArrayImages
from hrrl_ext.models import resnet18
from hrrl_ext.transfer import (
    Features,
    extract_features,
    find_classifier,
    load_features,
    save_features,
)


class Images(Dataset[Any]):
    """What an image set offers, with a record of the indices asked for."""

    def __init__(self, images, target):
        self.images, self.target, self.asked = images, target, []

    def __len__(self):
        return len(self.target)

    def __getitem__(self, i):
        return self.images[i], int(self.target[i])

    def __getitems__(self, indices):
        self.asked.append(list(indices))
        return self.images[indices], self.target[indices]


class Head(nn.Module):
    """A flat model with the parts that the tests vary."""

    def __init__(self, calls=1):
        super().__init__()
        self.norm = nn.BatchNorm2d(3)
        self.drop = nn.Dropout(0.5)
        self.hidden = nn.Linear(12, 5)
        self.last = nn.Linear(5, 2)
        self.calls = calls

    def forward(self, x):
        f = torch.tanh(self.hidden(self.drop(self.norm(x)).flatten(1)))
        for _ in range(self.calls):
            out = self.last(f)
        return out if self.calls else f


def uint8_images(n, size=8):
    generator = torch.Generator().manual_seed(1)
    images = torch.randint(0, 256, (n, 3, size, size), dtype=torch.uint8, generator=generator)
    return images, torch.arange(n) % 3


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(0)
    return resnet18(4, stem="small", width=2)


def hooks(model):
    return sum(
        len(module._forward_pre_hooks) + len(module._forward_hooks) for module in model.modules()
    )


# Values


@pytest.mark.parametrize("batch_size", [1, 3, 7, 8, 100])
def test_features_are_the_pre_logits(network, batch_size):
    images, target = uint8_images(7)
    out = extract_features(network, Images(images, target), batch_size=batch_size)
    with torch.no_grad():
        expected = network.eval().pre_logits(images.float() / 255)
    # Another batch size may sum the same float32 products in another order: a few ulp per layer.
    assert_close(out.features, expected, rtol=1e-4, atol=1e-6)
    assert torch.equal(out.labels, target)
    assert out.features.dtype == torch.float32
    assert out.labels.dtype == torch.int64
    assert out.features.shape == (7, network.num_features)


def test_every_kind_of_data_gives_the_same_bits(network):
    images, target = uint8_images(7)
    floats = images.float() / 255
    kinds = [
        Images(images, target),
        Images(floats, target),
        ArrayImages(images, target),
        (images, target),
        (floats, target),
        DataLoader(TensorDataset(images, target), batch_size=3),
        DataLoader(Images(images, target), batch_size=3, collate_fn=lambda batch: batch),
        ((x, y, y) for x, y in zip(images.split(3), target.split(3), strict=True)),
        [[x, y.int()] for x, y in zip(images.split(3), target.split(3), strict=True)],
    ]
    first, *others = [extract_features(network, data, batch_size=3) for data in kinds]
    for other in others:
        assert torch.equal(first.features, other.features)
        assert torch.equal(first.labels, other.labels)
        assert other.labels.dtype == torch.int64


def test_an_image_set_is_asked_in_order_and_once():
    data = Images(*uint8_images(5, size=2))
    extract_features(Head(), data, batch_size=2)
    assert data.asked == [[0, 1], [2, 3], [4]]


def test_rows_follow_a_loader_that_shuffles(network):
    images, target = uint8_images(6)
    generator = torch.Generator().manual_seed(0)
    ids = torch.arange(6)
    loader = DataLoader(TensorDataset(images, ids), 6, shuffle=True, generator=generator)
    out = extract_features(network, loader)
    assert out.labels.tolist() != ids.tolist()
    plain = extract_features(network, (images[out.labels], target[out.labels]))
    assert torch.equal(out.features, plain.features)


def test_more_than_two_dimensions_are_flattened_from_dim_1():
    class Tokens(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(4, 2)

        def forward(self, x):
            return self.fc(x.mean(1))  # [B, 5, 4] → [B, 5, 2]

    images = torch.rand(3, 3, 5, 4)
    out = extract_features(Tokens(), (images, torch.zeros(3, dtype=torch.int64)))
    assert torch.equal(out.features, images.mean(1).reshape(3, 20))


def test_inputs_take_the_models_dtype():
    images, target = uint8_images(4, size=2)
    torch.manual_seed(0)
    model = Head()
    single = extract_features(model, (images, target))
    double = extract_features(model.double(), (images, target))
    assert double.features.dtype == torch.float32
    assert_close(single.features, double.features)  # two roundings of the same numbers


def test_features_survive_a_classifier_that_overwrites_its_input():
    model = nn.Sequential(nn.Flatten(), nn.Sequential(nn.ReLU(inplace=True), nn.Linear(12, 2)))
    images = torch.rand(2, 3, 2, 2) - 0.5
    out = extract_features(model, (images, torch.zeros(2).long()), classifier="1")
    assert (out.features < 0).any()


def test_keyword_call_of_the_classifier():
    class Keyword(Head):
        def forward(self, x):
            return self.last(input=self.hidden(x.flatten(1)))

    images, target = uint8_images(2, size=2)
    assert extract_features(Keyword(), (images, target)).features.shape == (2, 5)


# Classifier


def test_find_classifier_is_the_last_linear(network):
    assert find_classifier(network) is network.fc
    model = Head()
    assert find_classifier(model) is model.last


def test_find_classifier_without_linear():
    with pytest.raises(ValueError, match=r"Conv2d has no nn\.Linear.*classifier="):
        find_classifier(nn.Conv2d(3, 1, 1))


def test_classifier_by_name_and_by_module():
    model = Head().eval()
    images, target = uint8_images(3, size=2)
    by_name = extract_features(model, (images, target), classifier="hidden")
    by_module = extract_features(model, (images, target), classifier=model.hidden)
    assert by_name.features.shape == (3, 12)
    assert torch.equal(by_name.features, by_module.features)


@pytest.mark.parametrize(
    ("classifier", "error", "message"),
    [
        ("hiden", ValueError, "layer 'hiden' is not known; did you mean 'hidden'"),
        ("", ValueError, "layer '' is not known"),
        (nn.Linear(5, 2), ValueError, r"classifier \(Linear\) is not a layer of the model"),
        (3, TypeError, "got int"),
    ],
)
def test_refused_classifiers(classifier, error, message):
    with pytest.raises(error, match=message):
        extract_features(Head(), uint8_images(2, size=2), classifier=classifier)


@pytest.mark.parametrize("calls", [0, 2])
def test_classifier_must_be_called_once(calls):
    with pytest.raises(ValueError, match=f"called its classifier {calls} times"):
        extract_features(Head(calls), uint8_images(2, size=2), classifier="last")


def test_classifier_must_see_one_row_per_example():
    class Pooled(Head):
        def forward(self, x):
            return self.last(self.hidden(x.flatten(1)).mean(0, keepdim=True))

    with pytest.raises(ValueError, match=r"must be \[2, D\], one row per example, got \[1, 5\]"):
        extract_features(Pooled(), uint8_images(2, size=2))


# The model comes back as it was


def test_every_training_flag_is_restored():
    model = Head().train()
    model.norm.eval()  # frozen on purpose: train() at the end would thaw it
    before = {name: module.training for name, module in model.named_modules()}
    statistics = model.norm.running_mean.clone()
    extract_features(model, uint8_images(4, size=2))
    assert {name: module.training for name, module in model.named_modules()} == before
    assert torch.equal(model.norm.running_mean, statistics)
    assert hooks(model) == 0


def test_the_model_runs_in_eval_mode_without_gradients_and_draws_nothing():
    model = Head().train()  # dropout and batch statistics would make two passes differ
    data = uint8_images(4, size=2)
    state = torch.get_rng_state()
    first, second = extract_features(model, data), extract_features(model, data)
    assert torch.equal(first.features, second.features)
    assert torch.equal(torch.get_rng_state(), state)
    assert not first.features.requires_grad
    assert torch.is_grad_enabled()


def test_no_graph_is_recorded():
    """But one of two images, by which the classifier is found, where none is named."""

    class Watched(Head):
        def forward(self, x):
            assert len(x) == 2 or not torch.is_grad_enabled()
            return super().forward(x)

    extract_features(Watched(), uint8_images(4, size=2), batch_size=4)
    extract_features(Watched(), uint8_images(4, size=2), batch_size=4, classifier="last")


def test_empty_batches_are_passed_over():
    class Largest(Head):
        def forward(self, x):
            x.amax()  # fails on an empty batch
            return super().forward(x)

    images, target = uint8_images(2, size=2)
    batches = [(images[:0], target[:0]), (images, target), (images[:0], target[:0])]
    assert len(extract_features(Largest(), batches).labels) == 2


def test_gradients_that_the_model_turns_on_stay_inside():
    class Attacked(Head):
        def forward(self, x):
            with torch.enable_grad():
                return super().forward(x.clone().requires_grad_())

    assert not extract_features(Attacked(), uint8_images(2, size=2)).features.requires_grad


@pytest.mark.parametrize("where", ["forward", "data"])
def test_an_exception_leaves_the_model_as_it_was(where):
    class Failing(Head):
        def forward(self, x):
            super().forward(x)
            raise RuntimeError("forward")

    def failing_data():
        yield uint8_images(2, size=2)
        raise RuntimeError("data")

    model = (Failing if where == "forward" else Head)().train()
    own = model.last.register_forward_pre_hook(lambda *_: None)
    with pytest.raises(RuntimeError, match=where):
        extract_features(model, failing_data())
    assert all(module.training for module in model.modules())
    assert hooks(model) == 1  # the user's own
    own.remove()


def test_the_data_are_not_changed():
    images, target = uint8_images(4, size=2)
    copy = images.clone()
    out = extract_features(Head(), (images, target))
    out.labels.add_(1)
    assert torch.equal(images, copy)
    assert target.tolist() == [0, 1, 2, 0]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_model_moved_for_the_call_is_moved_back(network):
    data = uint8_images(7)
    there = extract_features(network, data, device="cuda")
    assert {p.device.type for p in network.parameters()} == {"cpu"}
    assert there.features.device.type == there.labels.device.type == "cpu"
    # Convolutions on the device may run in TF32, with 10 bits of mantissa.
    assert_close(there.features, extract_features(network, data).features, rtol=2e-2, atol=2e-2)


def test_device_of_the_model_is_restored_after_an_error():
    class Recorded(Head):
        moves: list[str] = []  # noqa: RUF012

        def to(self, device):  # type: ignore[override]
            self.moves.append(str(device))
            if str(device) == "meta":
                raise RuntimeError("out of memory")
            return self

    with pytest.raises(RuntimeError, match="out of memory"):
        extract_features(Recorded(), uint8_images(2, size=2), device="meta")
    assert Recorded.moves == ["meta", "cpu"]


# Refusals


@pytest.mark.parametrize(
    "data",
    [(torch.zeros(0, 3, 2, 2), torch.zeros(0).long()), [], iter(())],
    ids=["tensors", "list", "iterator"],
)
def test_empty_data(data):
    with pytest.raises(ValueError, match="data has no examples"):
        extract_features(Head(), data)


def test_empty_image_set():
    with pytest.raises(ValueError, match="data has no examples"):
        extract_features(Head(), Images(*uint8_images(0, size=2)))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_features_that_are_not_finite_name_the_example(value):
    images = torch.rand(7, 3, 2, 2)
    images[5, 0, 0, 0] = value
    model = nn.Sequential(nn.Flatten(), nn.Linear(12, 2))
    with pytest.raises(ValueError, match="feature of example 5 is not finite"):
        extract_features(model, (images, torch.zeros(7).long()), batch_size=2)


@pytest.mark.parametrize(
    ("data", "error", "message"),
    [
        (7, TypeError, "got int"),
        (TensorDataset(*uint8_images(2)), ValueError, r"got \[3, 8, 8\] and \[\]"),
        (Subset(TensorDataset(*uint8_images(2)), [0]), TypeError, "DataLoader"),
        ([{"image": 1}], TypeError, "a batch of dict"),
        ([(torch.rand(2, 3, 2, 2),)], TypeError, "a batch of"),
        ([(torch.rand(2, 3, 2, 2), [0, 1])], TypeError, "'list'"),
        ((torch.rand(2, 3, 2, 2), torch.zeros(3).long()), ValueError, r"got \[3\] for \[2, 3"),
        ([(torch.rand(2, 3, 2, 2), torch.zeros(3).long())], ValueError, r"and \[3\]"),
        ([(torch.rand(2, 3, 2, 2), torch.zeros(2))], ValueError, "integer labels"),
        ([(torch.ones(2, 3, 2, 2).long(), torch.zeros(2).long())], TypeError, "torch.int64"),
    ],
    ids=range(10),
)
def test_refused_data(data, error, message):
    with pytest.raises(error, match=message):
        extract_features(Head(), data)


def test_refused_batch_size():
    with pytest.raises(ValueError, match="batch_size must be at least 1, got 0"):
        extract_features(Head(), uint8_images(2, size=2), batch_size=0)


# Files


def some_features(n=3):
    return Features(torch.randn(n, 4), torch.arange(n))


def test_a_file_round_trips_bit_for_bit(tmp_path):
    saved = some_features()
    path = tmp_path / "new" / "f.safetensors"
    save_features(str(path), saved)
    loaded = load_features(path)
    assert torch.equal(loaded.features, saved.features)
    assert torch.equal(loaded.labels, saved.labels)
    assert set(load_file(path)) == {"features", "labels"}


def test_strided_features_are_saved_by_value(tmp_path):
    x = torch.randn(4, 6)
    save_features(tmp_path / "f.safetensors", Features(x.T[::2], torch.arange(6)[::2]))
    loaded = load_features(tmp_path / "f.safetensors")
    assert torch.equal(loaded.features, x.T[::2])
    assert loaded.labels.tolist() == [0, 2, 4]


def test_saving_replaces_and_leaves_nothing_else(tmp_path):
    path = tmp_path / "f.safetensors"
    for n in (3, 2):
        save_features(path, some_features(n))
    assert os.listdir(tmp_path) == ["f.safetensors"]
    assert len(load_features(path).labels) == 2


def test_a_failed_save_keeps_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "f.safetensors"
    save_features(path, some_features(3))

    def broken(source, destination):
        raise OSError("disk")

    monkeypatch.setattr(os, "replace", broken)
    with pytest.raises(OSError, match="disk"):
        save_features(path, some_features(2))
    assert os.listdir(tmp_path) == ["f.safetensors"]
    assert len(load_features(path).labels) == 3


def test_saved_files_have_the_usual_permissions(tmp_path):
    save_features(tmp_path / "f.safetensors", some_features())
    (tmp_path / "other").touch()
    assert (tmp_path / "f.safetensors").stat().st_mode == (tmp_path / "other").stat().st_mode


@pytest.mark.parametrize(
    ("features", "message"),
    [
        (Features(torch.zeros(3), torch.zeros(3).long()), r"features must be \[N, D\]"),
        (Features(torch.zeros(3, 2).double(), torch.zeros(3).long()), "float64"),
        (Features(torch.zeros(3, 2), torch.zeros(2).long()), r"labels must be \[3\] int64"),
        (Features(torch.zeros(3, 2), torch.zeros(3)), "float32"),
    ],
    ids=["1-d", "double", "length", "float labels"],
)
def test_save_refuses(tmp_path, features, message):
    with pytest.raises(ValueError, match=message):
        save_features(tmp_path / "f.safetensors", features)
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(
    ("precision", "integers"), [("float16", "int32"), ("float64", "uint8"), ("float32", "uint32")]
)
def test_load_takes_what_others_wrote(tmp_path, precision, integers):
    """In their types, and beside whatever else they kept."""
    rows = np.array([[0.5, 1.0], [2.0, -3.0]], precision)
    labels = np.array([1, 0], integers)
    paths = np.array(["a.png", "b.png"])
    np.savez(tmp_path / "f.npz", features=rows, labels=labels, paths=paths)
    loaded = load_features(tmp_path / "f.npz")
    assert (loaded.features.dtype, loaded.labels.dtype) == (torch.float32, torch.int64)
    assert (loaded.features.tolist(), loaded.labels.tolist()) == (rows.tolist(), [1, 0])
    np.savez(tmp_path / "f.npz", features=rows, paths=paths)
    with pytest.raises(ValueError, match=r"lacks \['labels'\], it holds \['features', 'paths'\]"):
        load_features(tmp_path / "f.npz")
    np.savez(tmp_path / "f.npz", features=rows, labels=labels * 0.5)
    with pytest.raises(ValueError, match=r"labels must be \[2\] int64, .* torch\.float"):
        load_features(tmp_path / "f.npz")


def test_load_without_a_file(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no file .*f\.safetensors"):
        load_features(tmp_path / "f.safetensors")


def test_load_of_another_file(tmp_path):
    path = tmp_path / "f.safetensors"
    path.write_bytes(b"not a header")
    with pytest.raises(ValueError, match="is not a safetensors file"):
        load_features(path)


def test_load_of_a_truncated_file(tmp_path):
    path = tmp_path / "f.safetensors"
    save_features(path, some_features())
    path.write_bytes(path.read_bytes()[:-4])
    with pytest.raises(ValueError, match="is not a safetensors file"):
        load_features(path)


def test_load_names_what_is_missing(tmp_path):
    path = tmp_path / "f.safetensors"
    save_file({"features": torch.zeros(2, 3), "weight": torch.zeros(1)}, path)
    with pytest.raises(ValueError, match=r"lacks \['labels'\], it holds \['features', 'weight'\]"):
        load_features(path)


def test_load_refuses_the_wrong_shapes(tmp_path):
    path = tmp_path / "f.safetensors"
    save_file({"features": torch.zeros(2, 3), "labels": torch.zeros(3).long()}, path)
    with pytest.raises(ValueError, match=r"labels must be \[2\] int64"):
        load_features(path)
