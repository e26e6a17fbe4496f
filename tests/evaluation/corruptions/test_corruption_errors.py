"""mCE, relative mCE and the plain mean, and that they cannot be mistaken for each other."""

from __future__ import annotations

import pytest
import torch

from hrrl_ext.evaluation.corruptions import (
    ALEXNET,
    CORRUPTIONS,
    mean_corruption_error,
    relative_mean_corruption_error,
    unnormalised_corruption_error,
)


def test_alexnet_has_a_hundred():
    assert tuple(ALEXNET) == CORRUPTIONS
    assert mean_corruption_error(ALEXNET) == pytest.approx(100, abs=1e-10)
    relative = relative_mean_corruption_error(ALEXNET, 0.43, baseline_clean_error=0.43)
    assert relative == pytest.approx(100, abs=1e-10)


def test_errors_by_hand():
    error = {"fog": [0.1, 0.2, 0.3, 0.4, 0.5], "snow": 0.2}
    baseline = {"snow": torch.full((5,), 0.8), "fog": 0.6}
    # fog 1.5 / 3, snow 1 / 4, mean of the two; without the clean errors 0.1 and 0.4: 0.2 / 0.2, 0.1 / 0.4.
    assert mean_corruption_error(error, baseline) == pytest.approx(37.5)
    relative = relative_mean_corruption_error(
        error, 0.1, baseline_clean_error=0.4, baseline=baseline
    )
    assert relative == pytest.approx(62.5)
    assert unnormalised_corruption_error(error) == pytest.approx(0.25)


def test_severities_are_summed_before_they_are_divided():
    error, baseline = {"fog": [0.0, 0, 0, 0, 1]}, {"fog": [0.2, 0.2, 0.2, 0.2, 0.9]}
    assert mean_corruption_error(error, baseline) == pytest.approx(100 / 1.7)


@pytest.mark.parametrize("scale", [0.5, 1.0])
def test_mce_is_linear_in_the_errors(scale):
    error = {kind: scale * e for kind, e in ALEXNET.items()}
    assert mean_corruption_error(error) == pytest.approx(100 * scale)
    mean = sum(ALEXNET.values()) / 15
    assert unnormalised_corruption_error(error) == pytest.approx(scale * mean)


def test_a_model_may_gain_by_corruption():
    error = dict.fromkeys(CORRUPTIONS, 0.3)
    assert relative_mean_corruption_error(error, 0.4, baseline_clean_error=0.4) < 0


FULL = dict.fromkeys(CORRUPTIONS, 0.5)


@pytest.mark.parametrize(
    ("error", "message"),
    [
        ({k: e for k, e in FULL.items() if k != "fog"}, "lacks 'fog'"),
        (FULL | {"speckle_noise": 0.5}, "kinds without a baseline: 'speckle_noise'"),
        (FULL | {"fog": 50.0}, r"in \[0, 1\], got 50 for fog; of percents"),
        (FULL | {"fog": float("nan")}, "got nan for fog"),
        (
            FULL | {"fog": [0.1] * 4},
            r"for each of the 5 severities, or their mean, got shape \[4\]",
        ),
    ],
)
def test_refusals(error, message):
    for call in (
        mean_corruption_error,
        lambda e: relative_mean_corruption_error(e, 0.1, baseline_clean_error=0.4),
    ):
        with pytest.raises(ValueError, match=message):
            call(error)


def test_more_refusals():
    with pytest.raises(
        ValueError, match=r"baseline must be .alexnet. or errors by kind, got 'vgg'"
    ):
        mean_corruption_error(FULL, "vgg")
    with pytest.raises(ValueError, match="loses nothing by fog"):
        mean_corruption_error({"fog": 0.1}, {"fog": 0.0})
    with pytest.raises(ValueError, match=r"loses nothing by brightness \(-0.0354"):
        relative_mean_corruption_error(FULL, 0.1, baseline_clean_error=0.6)
    with pytest.raises(ValueError, match=r"baseline_clean_error must lie in \[0, 1\], got 43.5"):
        relative_mean_corruption_error(FULL, 0.1, baseline_clean_error=43.5)
    with pytest.raises(ValueError, match="baseline: errors must lie"):
        mean_corruption_error({"fog": 0.1}, {"fog": 82.0})
    for call in (lambda e: mean_corruption_error(e, {}), unnormalised_corruption_error):
        with pytest.raises(ValueError, match="has no kinds"):
            call({})
