"""predict: the logits as the model gives them, whoever holds the images, and refusals by name."""

from __future__ import annotations

import weakref
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from hrrl_ext.data import ArrayImages
from hrrl_ext.evaluation import Predictions, parts, predict, predictions
from hrrl_ext.evaluation.predictions import are_probabilities, difference


def images(n: int = 7) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    x = torch.randint(0, 256, (n, 3, 2, 2), dtype=torch.uint8, generator=generator)
    return x, torch.arange(n) % 3


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.BatchNorm2d(3), nn.Dropout(0.5), nn.Flatten(), nn.Linear(12, 3))


@pytest.mark.parametrize("batch_size", [1, 3, 7, 100])
def test_the_logits_of_every_example_in_order(batch_size: int) -> None:
    x, target = images()
    model = network()
    found = predict(model, (x, target), batch_size=batch_size)
    with torch.no_grad():
        expected = model.eval()(x / 255)
    torch.testing.assert_close(found.logits, expected)
    assert torch.equal(found.labels, target)
    assert found.logits.dtype == torch.float32


def test_every_kind_of_data_gives_the_same_bits() -> None:
    x, target = images()
    model = network()
    kinds = [
        (x, target.to(torch.int32)),
        (x.float() / 255, target),
        ((x.float() / 255).to(memory_format=torch.channels_last), target),
        ArrayImages(x, target),
        DataLoader(TensorDataset(x, target), batch_size=3),
    ]
    first, *others = [predict(model, data, batch_size=3) for data in kinds]
    for other in others:
        assert torch.equal(first.logits, other.logits)
        assert other.labels.dtype == torch.int64


def test_the_model_comes_back_as_it_was() -> None:
    model = network()
    model[1].eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    random = torch.get_rng_state()
    assert not predict(model, images()).logits.requires_grad
    assert [m.training for m in model.children()] == [True, False, True, True]
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(p.grad is None and p.requires_grad for p in model.parameters())
    assert torch.equal(torch.get_rng_state(), random)


def test_half_precision() -> None:
    model = network().bfloat16()
    found = predict(model, images())
    assert found.logits.dtype == torch.float32
    assert torch.equal(found.logits, found.logits.bfloat16().float())


def test_what_is_correct_and_how_confident() -> None:
    logits = torch.tensor([[0.0, 0.0], [200.0, 0.0], [-1.0, 1.0]])
    found = Predictions(logits, torch.tensor([1, 0, 1]))
    assert found.correct.tolist() == [False, True, True]  # of equal ones the first class counts
    assert found.confidence[0] == 0.5
    assert found.confidence[1] == 1.0  # exactly: e^-200 is lost beside 1
    assert found.confidence[2] == pytest.approx(1 / (1 + torch.e**-2), rel=1e-15)


def test_probabilities_are_told_from_logits() -> None:
    logits = 5 * torch.randn(50, 10, generator=torch.Generator().manual_seed(0))
    assert are_probabilities(logits.softmax(1))
    assert are_probabilities(logits.half().softmax(1).half())
    assert are_probabilities(torch.eye(3))
    assert not are_probabilities(logits)
    assert not are_probabilities(logits.log_softmax(1))  # these are logits as good as any
    assert not are_probabilities(logits.sigmoid())
    assert not are_probabilities(torch.ones(5, 1))
    one_off = logits.softmax(1)
    one_off[7] *= 1.01
    assert not are_probabilities(one_off)


def test_two_passes_differ_by_more_than_rounding() -> None:
    logits = torch.tensor([[1.0, -20.0, -torch.inf], [0.0, 3.0, -torch.inf]])
    assert difference(logits, logits) == 0
    moved = logits.clone()
    moved[1, 1] += 1e-3
    assert difference(logits, moved) == 0
    moved[1, 1] += 0.5
    assert difference(logits, moved) == pytest.approx(0.501)
    moved[0, 2] = 0
    assert difference(logits, moved) == torch.inf


def test_confidences_are_found_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    found = Predictions(torch.randn(11, 3), torch.zeros(11).long())
    whole = found.confidence
    monkeypatch.setattr(predictions, "_CHUNK", 12)
    assert torch.equal(found.confidence, whole)


def test_logits_of_corruptions_are_not_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """Several GB of a large set: of one severity, what is counted is left when the next one is measured."""
    kept: list[weakref.ref[Tensor]] = []

    def counted(*args: Any, **settings: Any) -> Predictions:
        assert all(logits() is None for logits in kept)
        found = predict(*args, **settings)
        kept.append(weakref.ref(found.logits))
        return found

    monkeypatch.setattr(parts, "predict", counted)
    part = parts.corruption_part(network(), "fog", [ArrayImages(*images(4))] * 5, batch_size=4)
    assert len(kept) == 5
    assert [s["count"] for s in part["severities"]] == [4] * 5


@pytest.mark.parametrize(
    ("model", "target", "message"),
    [
        (nn.Identity(), [0, 1], r"must return logits \[2, C\], got \[2, 3, 2, 2\]"),
        (nn.Flatten(0), [0, 1], r"must return logits \[2, C\], got \[24\]"),
        (nn.Flatten(), [0, 12], r"labels must lie in 0\.\.11, the model's classes, got 0\.\.12"),
        (nn.Flatten(), [-1, 0], r"got -1\.\.0"),
    ],
)
def test_refusals(model: nn.Module, target: list[int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        predict(model, (images(2)[0], torch.tensor(target)))


def test_a_tuple_without_logits_is_refused_by_its_type() -> None:
    class Two(nn.Module):
        def forward(self, x: Tensor) -> tuple[None, Tensor]:
            return None, x

    with pytest.raises(ValueError, match="got tuple"):
        predict(Two(), images())


def test_the_example_whose_logits_are_not_finite_is_named() -> None:
    x = torch.rand(5, 3, 2, 2)
    x[3, 0, 0, 0] = torch.nan
    with pytest.raises(ValueError, match="logits of example 3 are not finite"):
        predict(nn.Flatten(), (x, torch.zeros(5).long()), batch_size=2)


def test_no_data() -> None:
    with pytest.raises(ValueError, match="predict: data has no examples"):
        predict(network(), images(0))
