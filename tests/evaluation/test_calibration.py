"""Calibration errors: closed forms, a plain loop, torchmetrics where it is right; the temperature's optimum."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from hrrl_ext.evaluation import (
    Predictions,
    equal_mass_bins,
    equal_width_bins,
    expected_calibration_error,
    fit_temperature,
    negative_log_likelihood,
    rms_calibration_error,
)
from hrrl_ext.evaluation.calibration import LIMITS


def groups(*of: tuple[int, float, float]) -> tuple[Tensor, Tensor]:
    """Examples of (count, confidence, accuracy)."""
    confidence = torch.cat([torch.full((n,), c, dtype=torch.float64) for n, c, _ in of])
    correct = torch.cat([torch.arange(n) < round(n * a) for n, _, a in of])
    return confidence, correct


def random(n: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    confidence = torch.rand(n, generator=generator, dtype=torch.float64)
    return confidence, torch.rand(n, generator=generator) < confidence.square()


class Elsewhere(Tensor):
    """Stands for a tensor of a GPU: no operation takes it with one of the CPU."""

    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None):
        found = super().__torch_function__(func, types, args, kwargs or {})
        if func is Tensor.cpu:
            return found.as_subclass(Tensor)
        assert all(isinstance(x, cls) for x in args if isinstance(x, Tensor)), "two devices"
        return found


def test_tensors_of_a_gpu() -> None:
    confidence, correct = random(230)
    there = [x.as_subclass(Elsewhere) for x in (confidence, correct)]
    for bins in (equal_mass_bins, equal_width_bins):
        found, expected = bins(*there), bins(confidence, correct)
        assert type(found.count) is type(found.confidence) is Tensor
        assert torch.equal(found.confidence, expected.confidence)
        assert torch.equal(found.accuracy, expected.accuracy)


# Equal mass


def test_two_bins_in_closed_form() -> None:
    """(0.6, 0.5) and (0.9, 0.7): √0.025 with all bins, √0.005 without the last."""
    bins = equal_mass_bins(*groups((100, 0.6, 0.5), (100, 0.9, 0.7)))
    assert bins.count.tolist() == [100, 100]
    assert rms_calibration_error(bins) == pytest.approx(math.sqrt(0.025), rel=1e-12)
    assert rms_calibration_error(bins, drop_last_bin=True) == pytest.approx(math.sqrt(0.005))


@pytest.mark.parametrize(
    ("n", "sizes"),
    [(1, [1]), (99, [99]), (100, [100]), (199, [199]), (200, [100, 100]), (357, [100, 100, 157])],
)
def test_the_remainder_is_in_the_last_bin(n: int, sizes: list[int]) -> None:
    assert equal_mass_bins(*random(n)).count.tolist() == sizes


@pytest.mark.parametrize("drop", [False, True])
@pytest.mark.parametrize(("n", "size"), [(357, 100), (357, 7), (1000, 100), (13, 1), (500, 251)])
def test_against_a_loop(n: int, size: int, drop: bool) -> None:
    """Sorted examples, slices of a list; the last slice takes the rest, and may be left out."""
    confidence, correct = random(n)
    pairs = sorted(zip(confidence.tolist(), correct.tolist(), strict=True))
    starts = [i * size for i in range(max(n // size, 1))]
    slices = [pairs[a:b] for a, b in zip(starts, [*starts[1:], n], strict=True)]
    total = 0.0
    for piece in slices[:-1] if drop else slices:
        gap = math.fsum(c for c, _ in piece) / len(piece) - sum(k for _, k in piece) / len(piece)
        total += len(piece) / n * gap**2
    bins = equal_mass_bins(confidence, correct, size)
    if drop and len(slices) == 1:
        assert math.isnan(rms_calibration_error(bins, drop_last_bin=True))
    else:
        assert rms_calibration_error(bins, drop_last_bin=drop) == pytest.approx(math.sqrt(total))


def test_only_the_most_confident_are_wrong() -> None:
    """Nine bins are calibrated, the last is not: the quirk of the lineage does not see it."""
    calibrated = [(100, c / 100, c / 100) for c in range(10, 100, 10)]
    bins = equal_mass_bins(*groups(*calibrated, (100, 0.99, 0.5)))
    assert rms_calibration_error(bins, drop_last_bin=True) == pytest.approx(0, abs=1e-12)
    assert rms_calibration_error(bins) == pytest.approx(math.sqrt(0.49**2 / 10))


def test_a_single_bin_leaves_nothing_without_the_last() -> None:
    bins = equal_mass_bins(*random(50))
    assert math.isnan(rms_calibration_error(bins, drop_last_bin=True))
    assert rms_calibration_error(bins) > 0


def test_equal_confidences_do_not_depend_on_the_order() -> None:
    confidence, correct = groups((130, 0.7, 0.5), (250, 1.0, 0.9), (20, 0.2, 0.5))
    first = equal_mass_bins(confidence, correct)
    for seed in range(3):
        order = torch.randperm(400, generator=torch.Generator().manual_seed(seed))
        other = equal_mass_bins(confidence[order], correct[order])
        assert torch.allclose(first.accuracy, other.accuracy, rtol=1e-14, atol=0)
    # 20 of 0.2 and 80 of 0.7; 50 of 0.7 and 50 of 1.0; 100 and 100 of 1.0
    assert first.accuracy.tolist() == pytest.approx([0.5, 0.7, 0.9, 0.9])
    assert first.confidence.tolist() == pytest.approx([0.6, 0.85, 1.0, 1.0])


@pytest.mark.montecarlo
def test_ties_count_as_the_mean_over_their_orders() -> None:
    """Of the accuracy of each bin: 2000 orders, its standard error √(0.25/100/2000)."""
    confidence, correct = groups((300, 0.8, 0.5))
    generator = torch.Generator().manual_seed(0)
    first = [
        correct[torch.randperm(300, generator=generator)][:100].double().mean() for _ in range(2000)
    ]
    found = equal_mass_bins(confidence, correct).accuracy[0]
    assert abs(torch.stack(first).mean() - found) < 5 * math.sqrt(0.25 / 100 / 2000)


# Equal width


def test_edges_belong_to_the_bin_below() -> None:
    confidence = torch.tensor([0.0, 0.25, 0.2500001, 0.5, 1.0], dtype=torch.float64)
    bins = equal_width_bins(confidence, torch.ones(5, dtype=torch.bool), 4)
    assert bins.count.tolist() == [2, 2, 1]  # the third bin is empty, and left out


def test_a_confidence_of_1_is_in_the_last_bin_with_its_neighbours() -> None:
    confidence, correct = groups((50, 0.98, 1.0), (50, 1.0, 0.5))
    bins = equal_width_bins(confidence, correct)
    assert bins.count.tolist() == [100]
    assert expected_calibration_error(bins) == pytest.approx(0.99 - 0.75)


def test_ece_by_hand() -> None:
    bins = equal_width_bins(*groups((10, 0.3, 0.5), (30, 0.9, 0.8)), 10)
    assert expected_calibration_error(bins) == pytest.approx(0.25 * 0.2 + 0.75 * 0.1)


@pytest.mark.parametrize("num_bins", [1, 2, 15, 100])
@pytest.mark.parametrize("n", [1, 17, 1000])
def test_against_torchmetrics(n: int, num_bins: int) -> None:
    """It is right away from the edges of the bins; its float32 edges take no part there."""
    metrics = pytest.importorskip("torchmetrics.functional.classification")
    confidence, correct = random(n)
    bins = equal_width_bins(confidence, correct, num_bins)
    errors = {"l1": expected_calibration_error(bins), "l2": rms_calibration_error(bins)}
    errors["max"] = bins.gap.abs().max().item()
    for norm, ours in errors.items():
        # Its binary form is of a confidence that the label is 1: no complement is taken.
        theirs = metrics.binary_calibration_error(confidence, correct.long(), num_bins, norm)
        assert ours == pytest.approx(theirs.item(), rel=1e-5)


def test_calibrated_is_0() -> None:
    confidence, correct = groups(*((100, c / 10, c / 10) for c in range(11)))
    assert rms_calibration_error(equal_mass_bins(confidence, correct)) == pytest.approx(
        0, abs=1e-12
    )
    assert expected_calibration_error(equal_width_bins(confidence, correct)) < 1e-12


@pytest.mark.parametrize("bins_of", [equal_mass_bins, equal_width_bins])
def test_what_is_no_confidence(bins_of: object) -> None:
    right = torch.ones(2, dtype=torch.bool)
    for confidence in ([0.5, 1.1], [-0.1, 0.5], [0.5, math.nan]):
        with pytest.raises(ValueError, match=r"confidence must lie in \[0, 1\]"):
            bins_of(torch.tensor(confidence), right)
    with pytest.raises(ValueError, match="no examples"):
        bins_of(torch.zeros(0), right[:0])
    with pytest.raises(ValueError, match=r"got \[2\] and \[2\] torch.int64"):
        bins_of(torch.zeros(2), right.long())
    with pytest.raises(ValueError, match="must be at least 1, got 0"):
        bins_of(torch.zeros(2), right, 0)


# Temperature


def drawn(n: int, scale: float, classes: int = 10, seed: int = 0) -> Predictions:
    """Labels drawn from the softmax of logits, which are then scaled: the best T is near scale."""
    generator = torch.Generator().manual_seed(seed)
    logits = 2 * torch.randn(n, classes, generator=generator)
    labels = torch.multinomial(logits.softmax(1), 1, generator=generator)[:, 0]
    return Predictions(logits * scale, labels)


@pytest.mark.parametrize("scale", [0.05, 0.5, 1.0, 3.0, 50.0])
def test_nothing_near_it_is_better(scale: float) -> None:
    predictions = drawn(500, scale)
    t = fit_temperature(predictions)
    best = negative_log_likelihood(predictions, t)
    for factor in (0.5, 0.99, 1.01, 2):
        assert negative_log_likelihood(predictions, t * factor) > best
    # The derivative in log T, by central differences, whose error is of the order h².
    h = 1e-4
    up, down = (negative_log_likelihood(predictions, t * math.exp(s * h)) for s in (1, -1))
    assert abs(up - down) / (2 * h) < 1e-6


def test_it_scales_with_the_logits() -> None:
    one = fit_temperature(drawn(300, 1.0))
    for scale in (0.125, 8.0):  # exact in binary
        assert fit_temperature(drawn(300, scale)) == pytest.approx(one * scale, rel=1e-9)


def test_a_constant_added_to_an_examples_logits_does_not_count() -> None:
    predictions = drawn(300, 1.0)
    moved = predictions._replace(
        logits=predictions.logits.double() + 1000 * torch.arange(300)[:, None]
    )
    assert fit_temperature(moved) == pytest.approx(fit_temperature(predictions), rel=1e-9)


@pytest.mark.montecarlo
def test_it_finds_the_scale_that_labels_were_drawn_at() -> None:
    """Its standard error is √(1/(n Var z)) in β, below 1 % here; five of them."""
    assert fit_temperature(drawn(20_000, 3.0)) == pytest.approx(3.0, rel=0.05)


def test_two_classes_in_closed_form() -> None:
    """Margins of ±1, a share of 3/4 right: log-odds 1/T = log 3."""
    logits = torch.tensor([[1.0, 0.0]] * 4)
    found = fit_temperature(Predictions(logits, torch.tensor([0, 0, 0, 1])))
    assert found == pytest.approx(1 / math.log(3), rel=1e-10)


def test_it_mends_an_overconfident_model() -> None:
    predictions = drawn(4000, 4.0)
    t = fit_temperature(predictions)
    mended = predictions._replace(logits=predictions.logits / t)
    errors = [
        expected_calibration_error(equal_width_bins(p.confidence, p.correct))
        for p in (predictions, mended)
    ]
    assert errors[1] < 0.03 < 0.15 < errors[0]
    assert torch.equal(mended.correct, predictions.correct)


@pytest.mark.parametrize(
    ("logits", "labels", "expected"),
    [
        ([[1.0, 0.0], [0.0, 1.0]], [0, 1], LIMITS[0]),  # all right: surer is better, for ever
        ([[1.0, 0.0], [0.0, 1.0]], [1, 0], LIMITS[1]),  # all wrong
        ([[1.0, 0.0], [1.0, 0.0]], [0, 1], LIMITS[1]),  # chance
        ([[0.0, 0.0]], [0], LIMITS[1]),  # T does not matter
        ([[5.0], [-3.0]], [0, 0], LIMITS[1]),  # one class: nor here
    ],
)
def test_where_there_is_no_optimum(
    logits: list[list[float]], labels: list[int], expected: float
) -> None:
    assert fit_temperature(Predictions(torch.tensor(logits), torch.tensor(labels))) == expected


def test_extreme_logits() -> None:
    """No overflow on the way: 30 wrong of 100 at a margin of 1e30 leave the largest T."""
    logits = torch.tensor([[1e30, 0.0]] * 100)
    labels = (torch.arange(100) < 30).long()
    assert fit_temperature(Predictions(logits, labels)) == LIMITS[1]
    assert fit_temperature(Predictions(torch.tensor([[1e-30, 0.0]] * 100), labels)) == LIMITS[0]
    with pytest.raises(ValueError, match="no examples"):
        fit_temperature(Predictions(torch.zeros(0, 3), torch.zeros(0).long()))


def test_the_likelihood_is_the_cross_entropy() -> None:
    predictions = drawn(50, 1.0)
    expected = torch.nn.functional.cross_entropy(predictions.logits / 1.7, predictions.labels)
    assert negative_log_likelihood(predictions, 1.7) == pytest.approx(expected.item(), rel=1e-5)
