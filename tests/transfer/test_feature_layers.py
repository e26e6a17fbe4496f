"""Features of any layer, and features that go to a file batch by batch."""

from __future__ import annotations

import os
import tracemalloc

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from torch.testing import assert_close

from hrrl_ext.models import resnet18
from hrrl_ext.transfer import (
    Features,
    extract_features,
    load_features,
    save_features,
    stream_features,
)


def images(n: int, size: int = 8) -> tuple[torch.Tensor, torch.Tensor]:
    g = torch.Generator().manual_seed(1)
    return torch.randint(0, 256, (n, 3, size, size), dtype=torch.uint8, generator=g), torch.arange(
        n
    )


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(0)
    return resnet18(4, stem="small", width=2).eval()


def walk(network, x):
    """Output of every stage, by hand."""
    x = torch.relu(network.bn1(network.conv1(network.normalise(x))))
    outputs = {}
    for name in ("layer1", "layer2", "layer3", "layer4"):
        x = outputs[name] = getattr(network, name)(x)
    return outputs | {"fc": network.fc(x.mean((2, 3)))}


@pytest.mark.parametrize("pool", [True, False])
@pytest.mark.parametrize("layer", ["layer1", "layer2", "layer3", "layer4", "fc"])
def test_output_of_every_stage(network, layer, pool):
    x, target = images(5)
    out = extract_features(network, (x, target), layer=layer, pool=pool, batch_size=2)
    with torch.no_grad():
        expected = walk(network, x.float() / 255)[layer]
    expected = expected.mean((2, 3)) if pool and expected.ndim == 4 else expected.flatten(1)
    # Another batch size may sum the same float32 products in another order.
    assert_close(out.features, expected, rtol=1e-4, atol=1e-5)
    assert torch.equal(out.labels, target)


def test_the_last_stage_pooled_is_the_input_of_the_classifier(network):
    data = images(3)
    by_layer = extract_features(network, data, layer=network.layer4)
    assert_close(by_layer.features, extract_features(network, data).features)


class Parts(nn.Module):
    """A layer whose output the tests choose."""

    def __init__(self, give) -> None:
        super().__init__()
        self.layer, self.give = nn.Identity(), give
        self.layer.forward = lambda x: self.give(x)  # type: ignore[assignment]

    def forward(self, x):
        self.layer(x)
        return x.mean((1, 2, 3))


@pytest.mark.parametrize(
    ("give", "pooled"),
    [
        (lambda x: x.flatten(2), lambda x: x.flatten(2).mean(1)),  # tokens [B, T, D]
        (lambda x: x[..., None], lambda x: x.mean((2, 3))),  # [B, C, H, W, T]
        (lambda x: (x.flatten(1), None), lambda x: x.flatten(1)),
        (lambda x: {"last_hidden_state": x, "pooled": None}, lambda x: x.mean((2, 3))),
        (lambda x: x.double(), lambda x: x.mean((2, 3))),
    ],
    ids=["tokens", "volumes", "tuple", "mapping", "double"],
)
def test_the_rule_of_pooling(give, pooled):
    x = torch.rand(3, 3, 5, 4)
    out = extract_features(Parts(give), (x, torch.zeros(3).long()), layer="layer")
    assert_close(out.features, pooled(x))
    assert out.features.dtype == torch.float32


def test_maps_whose_channels_come_last_are_not_pooled_over_them():
    """As those of Swin; (2, 3) would be a mean over columns and channels."""
    model, data = Parts(lambda x: x.permute(0, 2, 3, 1)), images(2)
    with pytest.raises(ValueError, match=r"\[2, 8, 8, 3\], looks as if its channels.*pool=False"):
        extract_features(model, data, layer="layer")
    assert extract_features(model, data, layer="layer", pool=False).features.shape == (2, 192)


def test_halves_are_pooled_in_float32():
    x = torch.ones(1, 3, 64, 64)
    x[..., ::2] += 2**-10
    out = extract_features(Parts(torch.Tensor.half), (x, torch.zeros(1).long()), layer="layer")
    assert out.features.tolist() == [[1 + 2**-11] * 3]  # which float16 does not have


def test_a_layer_that_is_overwritten_in_place_later():
    model = nn.Sequential(nn.Flatten(), nn.Identity(), nn.ReLU(inplace=True), nn.Linear(12, 2))
    x = torch.rand(2, 3, 2, 2) - 0.5
    out = extract_features(model, (x.clone(), torch.zeros(2).long()), layer="1")
    assert torch.equal(out.features, x.flatten(1))


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        (
            {"layer": "layer9"},
            ValueError,
            "layer: ResNet18's layer 'layer9' is not known; did you mean 'layer",
        ),
        ({"layer": nn.ReLU()}, ValueError, r"layer \(ReLU\) is not a layer of the model"),
        ({"layer": 3}, TypeError, "layer must be a layer of the model or its name, got int"),
        ({"layer": "fc", "classifier": "fc"}, ValueError, "give one of the two"),
    ],
)
def test_refused_layers(network, options, error, message):
    with pytest.raises(error, match=message):
        extract_features(network, images(2), **options)


def test_outputs_that_are_no_rows():
    data = images(2, 4)
    with pytest.raises(TypeError, match=r"output of layer must be a tensor.*got int"):
        extract_features(Parts(lambda x: {"x": 1}), data, layer="layer")
    with pytest.raises(ValueError, match=r"output of the layer must be \[2, D\].*got \[96\]"):
        extract_features(Parts(lambda x: x.flatten()), data, layer="layer")
    with pytest.raises(ValueError, match="feature of example 1 is not finite"):
        extract_features(
            Parts(lambda x: x.flatten(1) / torch.tensor([[1.0], [0.0]])), data, layer="layer"
        )
    twice = nn.Sequential(nn.ReLU(), nn.Flatten(), nn.Linear(48, 2))
    twice.insert(1, twice[0])
    with pytest.raises(ValueError, match="called its layer 2 times"):
        extract_features(twice, data, layer="0")


# Files


SUFFIXES = pytest.mark.parametrize("suffix", [".safetensors", ".npz"])


@SUFFIXES
@pytest.mark.parametrize("batch_size", [1, 3, 7, 100])
def test_a_streamed_file_holds_what_is_extracted(network, tmp_path, suffix, batch_size):
    path = tmp_path / "new" / f"f{suffix}"
    assert stream_features(path, network, images(7), batch_size=batch_size) == (7, 16)
    expected = extract_features(network, images(7), batch_size=batch_size)
    for ours, theirs in zip(load_features(path), expected, strict=True):
        assert torch.equal(ours, theirs)
        assert ours.dtype == theirs.dtype
    assert os.listdir(tmp_path / "new") == [path.name]


@SUFFIXES
@pytest.mark.parametrize("n", [0, 1, 3])
@pytest.mark.parametrize("d", [1, 5])
def test_files_are_of_the_formats(tmp_path, suffix, n, d):
    """As their own packages read them; odd sizes leave neither array out of alignment."""
    saved = Features(torch.randn(n, d), torch.arange(n) - 5)
    path = tmp_path / f"f{suffix}"
    save_features(path, saved)
    if suffix == ".npz":
        with np.load(path) as arrays:
            found = {name: torch.from_numpy(arrays[name]) for name in arrays.files}
    else:
        found = load_file(path)
        assert path.read_bytes()[0] % 8 == 0  # the header's length: the arrays are aligned
    assert found.keys() == {"features", "labels"}
    assert torch.equal(found["features"], saved.features)
    assert torch.equal(found["labels"], saved.labels)
    assert torch.equal(load_features(path).features, saved.features)


def test_npz_files_of_others_are_read(tmp_path):
    x, y = np.random.RandomState(0).randn(3, 2).astype(np.float32), np.arange(3)
    for save in (np.savez, np.savez_compressed):
        save(tmp_path / "f.npz", features=x, labels=y)
        assert torch.equal(load_features(tmp_path / "f.npz").features, torch.from_numpy(x))
    np.savez(tmp_path / "f.npz", features=x)
    with pytest.raises(ValueError, match=r"lacks \['labels'\]"):
        load_features(tmp_path / "f.npz")
    np.savez(tmp_path / "f.npz", features=np.array([{}]), labels=y)
    with pytest.raises(ValueError, match=r"is not an \.npz of numbers"):
        load_features(tmp_path / "f.npz")
    (tmp_path / "f.npz").write_bytes(b"not an archive")
    with pytest.raises(ValueError, match=r"is not an \.npz of numbers"):
        load_features(tmp_path / "f.npz")


def test_another_suffix_is_refused_before_any_work(network, tmp_path):
    def data():
        raise AssertionError("asked for images")
        yield

    for save in (lambda p: stream_features(p, network, data()), lambda p: save_features(p, None)):
        with pytest.raises(ValueError, match=r"\.safetensors or \.npz, by the suffix.*f\.pt"):
            save(tmp_path / "f.pt")
    assert os.listdir(tmp_path) == []


@SUFFIXES
@pytest.mark.parametrize("where", ["data", "file"])
def test_an_error_leaves_the_old_file_and_the_model(network, tmp_path, monkeypatch, suffix, where):
    path = tmp_path / f"f{suffix}"
    stream_features(path, network, images(3))

    def data():
        yield images(2)
        if where == "data":
            raise RuntimeError("data")

    def broken(source, destination):
        raise OSError("disk")

    if where == "file":
        monkeypatch.setattr(os, "replace", broken)
    network.train()
    with pytest.raises((RuntimeError, OSError), match=r"data|disk"):
        stream_features(path, network, data())
    assert all(m.training for m in network.modules())
    assert not any(m._forward_pre_hooks for m in network.modules())
    assert torch.is_grad_enabled()
    network.eval()
    assert os.listdir(tmp_path) == [path.name]
    assert len(load_features(path).labels) == 3


@SUFFIXES
def test_a_full_disk_gives_the_model_back(network, tmp_path, monkeypatch, suffix):
    import hrrl_ext.transfer.feature_files as module

    class Full:
        def __enter__(self):
            return self

        def __exit__(self, *error):
            return None

        def write(self, data):
            raise OSError("no space left")

    monkeypatch.setattr(module.tempfile, "TemporaryFile", lambda dir: Full())
    network.train()
    with pytest.raises(OSError, match="no space") as held:  # and with it everything in its frames
        stream_features(tmp_path / f"f{suffix}", network, images(3))
    assert held and all(m.training for m in network.modules())
    assert torch.is_grad_enabled()
    network.eval()


@SUFFIXES
def test_memory_does_not_grow_with_the_number_of_images(tmp_path, suffix):
    """NumPy's and Python's own; torch's batches are gone, or the count of live ones would grow."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(3 * 16 * 16, 2))
    x = torch.rand(64, 3, 16, 16)
    peaks = []
    for batches in (2, 40):  # of 196 KB each, 8 MB in the end
        data = ((x, torch.zeros(64).long()) for _ in range(batches))
        tracemalloc.start()
        stream_features(tmp_path / f"f{suffix}", model, data)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < peaks[0] + 300_000  # labels: 20 KB; a copying buffer: 64 KB at a time
