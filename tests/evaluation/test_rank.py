"""RankMe against its definition, and where it must be a whole number."""

from __future__ import annotations

import math

import pytest
import torch

from hrrl_ext.evaluation.rank import rank_me


@pytest.mark.parametrize(("n", "d"), [(1, 1), (1, 7), (7, 1), (5, 5), (31, 7), (7, 31)])
def test_orthogonal_features_use_every_direction(n: int, d: int) -> None:
    assert rank_me(torch.eye(n, d)) == pytest.approx(min(n, d), rel=1e-12)


@pytest.mark.parametrize("kind", [torch.float16, torch.float32, torch.float64])
def test_multiples_of_one_direction_are_one(kind: torch.dtype) -> None:
    """Whatever their scales: the others' singular values are of rounding alone, here of none."""
    direction = torch.tensor([1.0, -2.0, 4.0], dtype=kind)
    assert rank_me(torch.tensor([[0.5], [1.0], [-8.0]], dtype=kind) * direction) == pytest.approx(
        1.0, abs=1e-12
    )


def test_the_definition_by_eigenvalues() -> None:
    """Singular values are roots of the eigenvalues of XᵀX; its rounding is 1e-16 of the largest."""
    x = torch.randn(40, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    sigma = torch.linalg.eigvalsh(x.T @ x).clamp(min=0).sqrt()
    p = (sigma / sigma.sum()).tolist()
    expected = math.exp(-sum(q * math.log(q) for q in p))
    assert rank_me(x) == pytest.approx(expected, rel=1e-9)
    assert rank_me(1e-20 * x) == pytest.approx(expected, rel=1e-9)


def test_what_has_no_rank() -> None:
    assert math.isnan(rank_me(torch.tensor([[1.0, float("nan")]])))
    with pytest.raises(ValueError, match="all features are 0"):
        rank_me(torch.zeros(3, 2))
    with pytest.raises(ValueError, match=r"must be \[N, D\], not empty, got \[0, 4\]"):
        rank_me(torch.zeros(0, 4))
