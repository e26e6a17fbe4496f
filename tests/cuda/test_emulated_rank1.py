"""The CUDA kernels of rank1_dot and rank1_argmin, emulated on the host."""

from __future__ import annotations

import kernel_cases as kc
import pytest
import torch
from cases import PointCase, ProductCase
from emulated import Emulation, same_bits
from kernel_cases import INF, NAN


@pytest.mark.parametrize("case", kc.PRODUCT_CASES, ids=str)
def test_rank1_dot(emulation: Emulation, case: ProductCase) -> None:
    arguments = case.arguments()
    case.check(arguments, emulation.rank1_dot(**arguments))
    assert emulation.launches == 1


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("size", [1, 8, 128, 2048])
def test_rank1_dot_at_any_alignment(emulation: Emulation, size: int, dtype: torch.dtype) -> None:
    case = ProductCase(2, 2, 3, size, dtype)
    arguments = case.arguments()
    for offset in (1, 2, 3):
        case.check(arguments, emulation.rank1_dot(**arguments, offset=offset))


@pytest.mark.parametrize("size", [1, 40, 400, 1100])
def test_a_sum_does_not_depend_on_its_batch(emulation: Emulation, size: int) -> None:
    a = ProductCase(7, 3, 5, size, whole=False).arguments()
    whole = emulation.rank1_dot(**a)
    for b in range(7):
        alone = emulation.rank1_dot(**{name: t[b : b + 1] for name, t in a.items()})
        assert same_bits(alone, whole[b : b + 1])


@pytest.mark.parametrize("size", [1, 40, 400, 1100])
def test_a_bad_term_spoils_its_own_sum(emulation: Emulation, size: int) -> None:
    a = ProductCase(3, 2, 5, size).arguments()
    clean = emulation.rank1_dot(**a)
    a["p"][1, 1, 3, -1], a["q"][2, 0, 0, 0] = NAN, INF
    a["p"][2, 0, 0, 0] = 1
    expected = clean.clone()
    expected[1, 3], expected[2, 0] = NAN, INF
    bad = expected != clean
    got = emulation.rank1_dot(**a)
    assert same_bits(got[~bad], clean[~bad])
    assert got[1, 3].isnan()
    assert got[2, 0] == INF


@pytest.mark.parametrize("rtol", kc.RTOLS)
@pytest.mark.parametrize("case", kc.POINT_CASES, ids=str)
def test_rank1_argmin(emulation: Emulation, case: PointCase, rtol: float) -> None:
    got = emulation.rank1_argmin(**case.arguments(), rtol=rtol)
    assert emulation.launches == 1
    for result, expected in zip(got, case.nearest(rtol), strict=True):
        assert torch.equal(result, expected)


@pytest.mark.parametrize("clusters", [5, 100, 1100])
def test_bad_numbers_cost_their_own_example(emulation: Emulation, clusters: int) -> None:
    a = PointCase(11, clusters).arguments()
    clean = emulation.rank1_argmin(**a, rtol=1e-6)
    a["cross"][1, 0], a["cross"][3, -1], a["cross"][4, clusters // 2] = NAN, INF, -INF
    a["square"][6], a["square"][7] = NAN, INF
    a["cross"][9, 2] = -1e308  # a score that overflows
    got = emulation.rank1_argmin(**a, rtol=1e-6)
    bad = torch.zeros(11, dtype=torch.bool)
    bad[[1, 3, 4, 6, 7, 9]] = True
    assert got[0][bad].tolist() == [-1] * 6
    assert got[1][bad].isnan().all() and got[2][bad].isnan().all()
    for result, expected in zip(got, clean, strict=True):
        assert torch.equal(result[~bad], expected[~bad])


@pytest.mark.parametrize("clusters", [5, 100, 1100])
@pytest.mark.parametrize("name", ["centre_square", "weight"])
def test_a_bad_centre_costs_all_examples(emulation: Emulation, name: str, clusters: int) -> None:
    for bad in (NAN, INF, -INF):
        a = PointCase(3, clusters).arguments()
        a[name][clusters - 2] = bad
        assignment, distance, gap = emulation.rank1_argmin(**a, rtol=1e-6)
        assert assignment.tolist() == [-1] * 3
        assert distance.isnan().all() and gap.isnan().all()


@pytest.mark.parametrize("clusters", [5, 100, 1100])
def test_rounding_makes_no_negative_distance(emulation: Emulation, clusters: int) -> None:
    a = PointCase(3, clusters).arguments()
    for name in ("square", "centre_square"):
        a[name][:] = 1.0
    a["cross"][:] = 0.5
    a["cross"][:, 2], a["cross"][:, 3] = 1 + 1e-15, 1 + 1e-12
    a["weight"][:] = 1.0
    assignment, distance, gap = emulation.rank1_argmin(**a, rtol=0.0)
    assert assignment.tolist() == [2] * 3
    assert distance.tolist() == gap.tolist() == [0.0] * 3


@pytest.mark.parametrize("clusters", [5, 100, 1100])
def test_terms_that_overflow(emulation: Emulation, clusters: int) -> None:
    """A distance of 1e308 is finite, the sum of its squares is not."""
    a = PointCase(3, clusters).arguments()
    a["square"][:], a["centre_square"][:], a["cross"][:], a["weight"][:] = 1e308, 1e308, 5e307, 1
    assert emulation.rank1_argmin(**a, rtol=0.5)[0].tolist() == [-1] * 3


@pytest.mark.parametrize("clusters", [5, 100, 1100])
def test_squares_that_are_none_give_no_place_outside(emulation: Emulation, clusters: int) -> None:
    a = PointCase(3, clusters).arguments()
    a["square"][1] = -1e6
    assert emulation.rank1_argmin(**a, rtol=1e-3)[0][1] == -1
