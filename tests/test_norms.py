"""Norms of vectors: by their definition, against their duals, and what projections and proxes solve."""

from __future__ import annotations

import math

import pytest
import torch
from torch.testing import assert_close

from hrrl_ext.norms import vector_norm

NAMES = ["l1", "l2", "linf", "fourier-l1", "fourier-linf"]
SIZES = [1, 2, 3, 8, 9]  # alone, even, odd


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def by_definition(name: str, v: torch.Tensor) -> torch.Tensor:
    d = v.shape[-1]
    k = torch.arange(d, dtype=torch.float64)
    f = torch.exp(-2j * math.pi * k[:, None] * k / d) / math.sqrt(d)
    if name.startswith("fourier"):
        v = v.to(torch.complex128) @ f.T
    kind = name.removeprefix("fourier-")
    size = v.abs()
    return (
        size.amax(-1)
        if kind == "linf"
        else (size ** float(kind[1:])).sum(-1) ** (1 / float(kind[1:]))
    )


@pytest.mark.parametrize("d", SIZES)
@pytest.mark.parametrize("name", [*NAMES, "l1.5", "l4"])
def test_size_is_the_definition(name: str, d: int) -> None:
    v = draw(4, d)
    assert_close(vector_norm(name).size(v), by_definition(name, v))


@pytest.mark.parametrize("name", [*NAMES, "l1.5", "l4"])
def test_every_norm_is_a_norm(name: str) -> None:
    """R-T9. A p-norm without its root would fail here."""
    norm, a, b = vector_norm(name), draw(50, 7), draw(50, 7, seed=1)
    assert_close(norm.size(-3 * a), 3 * norm.size(a))
    assert (norm.size(a + b) <= norm.size(a) + norm.size(b) + 1e-12).all()
    assert norm.size(torch.zeros(7)) == 0


@pytest.mark.parametrize("d", SIZES)
@pytest.mark.parametrize("name", [*NAMES, "l1.5", "l4"])
def test_the_steepest_direction_attains_the_dual_norm(name: str, d: int) -> None:
    """R-T1: it is in the ball and gains ‖g‖*, and no other direction of the ball gains more."""
    norm, g = vector_norm(name), draw(6, d)
    v = norm.steepest(g)
    assert_close(norm.size(v), torch.ones(6, dtype=torch.float64))
    assert_close((g * v).sum(-1), norm.dual.size(g))
    others = draw(200, 1, d, seed=2)
    others = others / norm.size(others).unsqueeze(-1)
    assert ((g * others).sum(-1) <= norm.dual.size(g) + 1e-12).all()
    assert not norm.steepest(torch.zeros(d)).any()


def test_ties_go_to_the_lowest_index() -> None:
    assert vector_norm("l1").steepest(torch.tensor([1.0, -2.0, 2.0])).tolist() == [0, -1, 0]


@pytest.mark.parametrize("name", ["l2", "l1.5", "l4"])
def test_huge_and_tiny_gradients_have_a_direction(name: str) -> None:
    norm = vector_norm(name)
    for scale in (1e-300, 1e300):
        assert_close(norm.steepest(scale * draw(5)), norm.steepest(draw(5)))


@pytest.mark.parametrize("d", SIZES)
@pytest.mark.parametrize("name", NAMES)
def test_projections_are_the_nearest_points(name: str, d: int) -> None:
    """In the ball, idempotent, and ⟨v - Pv, u - Pv⟩ ≤ 0 for each u of the ball (R-T4)."""
    norm, v = vector_norm(name), 3 * draw(6, d)
    radius = torch.tensor([0.0, 0.3, 1.0, 2.0, 5.0, 100.0], dtype=torch.float64).unsqueeze(-1)
    nearest = norm.project(v, radius)
    assert (norm.size(nearest) <= radius.squeeze(-1) * (1 + 1e-12)).all()
    assert_close(norm.project(nearest, radius), nearest)
    u = draw(200, 1, d, seed=3)
    u = radius * u / norm.size(u).unsqueeze(-1)
    assert (((v - nearest) * (u - nearest)).sum(-1) <= 1e-10).all()
    assert_close(nearest[-1], v[-1])
    assert_close(norm.project(v, 0.7), torch.stack([norm.project(one, 0.7) for one in v]))


@pytest.mark.parametrize("d", SIZES)
@pytest.mark.parametrize("name", NAMES)
def test_prox_is_optimal_and_moreau_holds(name: str, d: int) -> None:
    norm, v, step = vector_norm(name), draw(d), 0.4
    u = norm.prox(v, step)
    assert_close(u + norm.dual.project(v, step), v)

    def objective(z: torch.Tensor) -> torch.Tensor:
        return (z - v).square().sum(-1) / 2 + step * norm.size(z)

    for scale in (1e-4, 1e-2, 1.0):
        assert (objective(u + scale * draw(300, d, seed=4)) >= objective(u) - 1e-13).all()
    if name == "l1":
        assert_close(u, v.sign() * (v.abs() - step).clamp(min=0))


@pytest.mark.parametrize("d", SIZES)
@pytest.mark.parametrize("name", NAMES)
def test_prox_is_firmly_non_expansive(name: str, d: int) -> None:
    """‖Pu - Pv‖² ≤ ⟨Pu - Pv, u - v⟩ (R-T4)."""
    norm, u, v = vector_norm(name), draw(100, d), draw(100, d, seed=1)
    moved = norm.prox(u, 0.4) - norm.prox(v, 0.4)
    assert (moved.square().sum(-1) <= (moved * (u - v)).sum(-1) + 1e-12).all()


def test_names_and_duals() -> None:
    for name, dual in (
        ("l1", "linf"),
        ("l2", "l2"),
        ("fourier-l1", "fourier-linf"),
        ("l3", "l1.5"),
    ):
        assert vector_norm(name).dual.name == dual
        assert vector_norm(name).dual.dual.name == name
    for unknown in ("l0.5", "fourier", "max", "lp"):
        with pytest.raises(ValueError, match="not known"):
            vector_norm(unknown)
    with pytest.raises(NotImplementedError, match="no closed form"):
        vector_norm("l3").prox(draw(3), 1.0)
