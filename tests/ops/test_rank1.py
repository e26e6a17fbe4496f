"""rank1_dot and rank1_argmin: edges, exact values, ties, numbers that are not finite, and the distances
of real per-example gradients.

What holds for every input, with problems drawn by hypothesis, is in test_properties.py.
"""

from __future__ import annotations

import math

import cases
import pytest
import torch
import torch.nn.functional as F
from cases import LAYOUTS, POINT_CASES, PRODUCT_CASES, PointCase, ProductCase, raw
from torch import Tensor

from hrrl_ext import ops
from hrrl_ext.ops import reference

NAN, INF = math.nan, math.inf
RTOLS = [0.0, 2.0**-20, 2.0**-5]

# --- rank1_dot


def dot(cross: Tensor, p: Tensor, q: Tensor) -> Tensor:
    """The new cross, and the old one left as it is."""
    cross = cross.clone()
    ops.rank1_dot(cross, p, q)
    return cross


@pytest.mark.parametrize("case", PRODUCT_CASES, ids=str)
def test_rank1_dot(case: ProductCase, device: str) -> None:
    arguments = {name: t.to(device) for name, t in case.arguments().items()}
    case.check(arguments, dot(**arguments))
    reference.rank1_dot(**arguments)
    case.check({**arguments, "cross": case.arguments()["cross"].to(device)}, arguments["cross"])


def test_adds_in_place_and_borrows_the_rest() -> None:
    a = ProductCase(3, 2, 5, 7).arguments()
    p, q, place = a["p"].clone(), a["q"].clone(), a["cross"].data_ptr()
    first = dot(**a)
    for _ in range(2):  # a second layer with the same products
        assert ops.rank1_dot(**a) is None  # type: ignore[func-returns-value]
    assert a["cross"].data_ptr() == place
    assert torch.equal(a["cross"] - first, first - ProductCase(3, 2, 5, 7).arguments()["cross"])
    assert torch.equal(a["p"], p) and torch.equal(a["q"], q)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("size", [1, 6])
def test_products_in_any_layout(layout: str, size: int) -> None:
    a = ProductCase(3, 2, 5, size).arguments()
    p, q = LAYOUTS[layout](a["p"]), LAYOUTS[layout](a["q"])
    cross = a["cross"][: len(p)]
    assert torch.equal(dot(cross, p, q), cross + (p.double() * q.double()).sum((1, 3)))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("size", [1, 5, 64, 1009])
def test_bits_depend_on_the_example_alone(size: int, dtype: torch.dtype, device: str) -> None:
    """Not on its batch, and not on the number of threads: 41 examples of 700 terms wake them."""
    case = ProductCase(41, 2, 100 if size < 64 else 7, size, dtype, whole=False)
    a = {name: t.to(device) for name, t in case.arguments().items()}
    whole = dot(**a)
    for b in (0, 17, 40):
        assert torch.equal(dot(*(t[b : b + 1] for t in a.values())), whole[b : b + 1])
    before = torch.get_num_threads()
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            assert torch.equal(dot(**a), whole)
    finally:
        torch.set_num_threads(before)


def test_products_of_any_scale() -> None:
    """Where float32 would overflow or vanish: 1e76 and 1e-90."""
    info = torch.finfo(torch.float32)
    tiny = info.smallest_normal * info.eps
    for size in (1, 3, 40):
        for value in (info.max, tiny):
            p = torch.full((2, 1, 3, size), value, dtype=torch.float32)
            got = dot(torch.zeros(2, 3, dtype=torch.float64), p, -p)
            assert got.unique().tolist() == [pytest.approx(-size * value**2, rel=1e-14)]
    # A large product and its opposite leave a small one: nothing is rounded to float32 in between.
    p = torch.tensor([1e8, 1.0, 1e8]).view(1, 1, 1, 3)
    q = torch.tensor([1e7, 0.125, -1e7]).view(1, 1, 1, 3)
    assert dot(torch.zeros(1, 1, dtype=torch.float64), p, q).item() == 0.125


@pytest.mark.parametrize("size", [1, 3, 40])
def test_a_bad_term_spoils_its_own_sum(size: int) -> None:
    a = ProductCase(3, 2, 21, size).arguments()
    clean = dot(**a)
    a["p"][1, 1, 20, -1], a["q"][2, 0, 0, 0], a["p"][2, 0, 0, 0] = NAN, INF, 1.0
    got = dot(**a)
    assert got[1, 20].isnan() and got[2, 0] == INF
    got[1, 20], got[2, 0] = clean[1, 20], clean[2, 0]
    assert torch.equal(got, clean)


def test_products_carry_no_gradient() -> None:
    a = ProductCase(3, 2, 5, 4).arguments()
    expected = dot(**a)
    ops.rank1_dot(a["cross"], a["p"].requires_grad_(), a["q"].requires_grad_())
    assert torch.equal(a["cross"], expected) and not a["cross"].requires_grad
    with pytest.raises(ValueError, match=r"^rank1_dot: cross is written to.*cross\.detach\(\)"):
        ops.rank1_dot(a["cross"].requires_grad_(), a["p"], a["q"])


def test_autograd_notices_that_cross_has_changed() -> None:
    a = ProductCase(3, 2, 5, 4).arguments()
    theta = torch.ones(5, dtype=torch.float64, requires_grad=True)
    loss = (a["cross"] * theta).sum()  # keeps cross for the gradient of theta
    ops.rank1_dot(**a)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()
    with torch.inference_mode():
        cross = a["cross"].clone()
        ops.rank1_dot(cross, a["p"], a["q"])
    expected = dot(**a)
    assert torch.equal(cross, expected)


CROSS, P = torch.zeros(2, 4, dtype=torch.float64), torch.zeros(2, 3, 4, 5)
BAD_PRODUCTS = {
    "p dim": ((CROSS, P[0], P[0]), r"p must have shape \[B, G, K, M\], got \[3, 4, 5\]"),
    "p dtype": ((CROSS, P.half(), P.half()), "p must be float32 or float64; convert it"),
    "p ids": ((CROSS, P.long(), P.long()), "p must be float32 or float64"),
    "q shape": ((CROSS, P, P[:, :2]), r"q must have the shape of p, \[2, 3, 4, 5\], got \[2, 2, 4, 5\]"),
    "q dtype": ((CROSS, P, P.double()), "q must have the dtype of p"),
    "cross shape": ((CROSS.T, P, P), r"cross must have shape \[B, K\] = \[2, 4\] for p \[2, 3, 4, 5\], got \[4, 2\]"),
    "cross dim": ((CROSS[0], P, P), r"cross must have shape \[B, K\] = \[2, 4\]"),
    "cross dtype": ((CROSS.float(), P, P), "cross must be float64"),
    "cross layout": ((CROSS.T.contiguous().T, P, P), "cross must be contiguous"),
    "cross expanded": ((CROSS[:1].expand(2, 4), P, P), "cross must be contiguous"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD_PRODUCTS)
def test_bad_products(name: str) -> None:
    arguments, message = BAD_PRODUCTS[name]
    with pytest.raises(ValueError, match=f"^rank1_dot: {message}"):
        ops.rank1_dot(*arguments)


# --- rank1_argmin


@pytest.mark.parametrize("rtol", RTOLS)
@pytest.mark.parametrize("case", POINT_CASES, ids=str)
def test_rank1_argmin(case: PointCase, rtol: float, device: str) -> None:
    """Exact, against the differences themselves."""
    arguments = {name: t.to(device) for name, t in case.arguments().items()}
    for function in (ops.rank1_argmin, reference.rank1_argmin):
        got = function(**arguments, rtol=rtol)
        for name, result, expected in zip(got._fields, got, case.nearest(rtol), strict=True):
            assert torch.equal(result.cpu(), expected), (function, name)


def nearest(
    gradients: list[list[float]], centres: list[list[float]], weight: list[float], rtol: float = 0.0
) -> ops.NearestCentre:
    g, c = (torch.tensor(rows, dtype=torch.float64) for rows in (gradients, centres))
    w = torch.tensor(weight, dtype=torch.float64)
    return ops.rank1_argmin(g @ c.T, g.square().sum(1), c.square().sum(1), w, rtol=rtol)


def test_numbers_by_hand() -> None:
    """On a line: gradients at 0, 1 and 3, centres at 0 and 4. A cluster of 9 repels: Eq. 4.3."""
    alike = nearest([[0.0], [1.0], [3.0]], [[0.0], [4.0]], [1.0, 1.0])
    assert alike.assignment.tolist() == [0, 0, 1]
    assert alike.distance.tolist() == [0.0, 1.0, 1.0]
    assert alike.gap.tolist() == [INF, 8.0, 8 / 25]  # 16 / 0, (9 - 1) / 1, (9 - 1) / (16 + 9)
    heavy = nearest([[0.0], [1.0], [3.0]], [[0.0], [4.0]], [10.0, 1.0])
    assert heavy.assignment.tolist() == [0, 1, 1]  # 10 * 1 > 1 * 9
    assert heavy.distance.tolist() == [0.0, 9.0, 1.0]
    assert heavy.gap.tolist() == [INF, 1 / 17, 89 / 25]


def test_edges_of_the_gap() -> None:
    assert nearest([[3.0]], [[1.0]], [2.0]).gap.tolist() == [INF]  # no other cluster
    assert nearest([[0.0]], [[0.0]], [2.0]).gap.tolist() == [INF]
    assert nearest([[0.0]], [[0.0], [0.0]], [2.0, 1.0]).gap.tolist() == [0.0]  # 0 / 0
    assert nearest([[0.0]], [[0.0], [1.0]], [2.0, 1.0]).gap.tolist() == [INF]
    tie = nearest([[1.0, 0.0]], [[0.0, 0.0], [2.0, 0.0], [1.0, 1.0]], [1.0] * 3)
    assert (tie.assignment.item(), tie.gap.item()) == (0, 0.0)
    # Within rounding of the best is good enough, and then the best is ahead: a negative gap.
    near = nearest([[1.0]], [[0.0], [1.5]], [1.0, 1.0], rtol=1.0)
    assert (near.assignment.item(), near.gap.item()) == (0, -0.75)


@pytest.mark.parametrize("clusters", [2, 7, 40, 501])
def test_a_tie_goes_to_the_lowest(clusters: int, device: str) -> None:
    """Every centre stands twice; rounding of float32 products moves the second copy a little."""
    g = cases.generator(clusters)
    vectors = torch.randn(23, 6, generator=g, dtype=torch.float64)
    once = torch.randn(clusters, 6, generator=g, dtype=torch.float64)
    centres = torch.cat([once, once])
    noise = 1 + 1e-7 * (2 * torch.rand(23, 2 * clusters, generator=g, dtype=torch.float64) - 1)
    arguments = (
        (vectors @ centres.T) * noise,
        vectors.square().sum(1),
        centres.square().sum(1),
        torch.randint(1, 9, (clusters,), generator=g).double().repeat(2),
    )
    got = ops.rank1_argmin(*(t.to(device) for t in arguments))
    assert (got.assignment < clusters).all()
    assert (got.gap.abs() < 1e-6).all()
    exact = ops.rank1_argmin(*(t.to(device) for t in arguments), rtol=0.0)
    assert (exact.assignment >= clusters).any()  # the noise does decide where it may
    assert torch.equal(exact.assignment % clusters, got.assignment)


@pytest.mark.parametrize("power", [-300, -40, 40, 300])
def test_the_scale_of_the_gradients_does_not_matter(power: int) -> None:
    a = PointCase(40, 50, spread=5).arguments()
    plain = ops.rank1_argmin(**a, rtol=1e-3)
    scale = 2.0**power
    larger = {name: a[name] * scale for name in ("cross", "square", "centre_square")}
    scaled = ops.rank1_argmin(**larger, weight=a["weight"], rtol=1e-3)
    assert torch.equal(scaled.assignment, plain.assignment)
    assert torch.equal(scaled.gap, plain.gap)
    assert torch.equal(scaled.distance, plain.distance * scale)


def test_as_many_centres_as_points() -> None:
    """Each on its own gradient: the terms cancel, and the distance is 0, not below."""
    g = 1e3 + torch.randn(300, 20, generator=cases.generator(0), dtype=torch.float64)
    square, sizes = g.square().sum(1), torch.ones(300, dtype=torch.float64)
    got = ops.rank1_argmin(g @ g.T, square, square, sizes, rtol=1e-12)
    assert got.assignment.tolist() == list(range(300))
    assert (got.distance >= 0).all()
    assert (got.distance <= 1e-14 * square).all()
    assert (got.gap > 1e-12).all()


@pytest.mark.parametrize("clusters", [5, 40, 1100])
def test_bad_numbers_cost_their_own_example(clusters: int, device: str) -> None:
    a = {name: t.to(device) for name, t in PointCase(11, clusters).arguments().items()}
    clean = ops.rank1_argmin(**a)
    a["cross"][1, 0], a["cross"][3, -1], a["cross"][4, clusters // 2] = NAN, INF, -INF
    a["square"][6], a["square"][7] = NAN, INF
    a["cross"][9, 2] = -1e308  # a score that overflows
    bad = torch.zeros(11, dtype=torch.bool, device=device)
    bad[[1, 3, 4, 6, 7, 9]] = True
    for function in (ops.rank1_argmin, reference.rank1_argmin):
        got = function(**a)
        assert got.assignment[bad].tolist() == [-1] * 6
        assert got.distance[bad].isnan().all() and got.gap[bad].isnan().all()
        for result, expected in zip(got, clean, strict=True):
            assert torch.equal(result[~bad], expected[~bad])


@pytest.mark.parametrize("clusters", [1, 9, 37, 131])
def test_a_bad_number_is_seen_at_every_place(clusters: int) -> None:
    for bad in (NAN, INF, -INF):
        a = PointCase(clusters + 1, clusters).arguments()
        a["cross"].fill_diagonal_(bad)
        got = ops.rank1_argmin(**a).assignment
        assert got[:-1].tolist() == [-1] * clusters
        assert got[-1] >= 0


@pytest.mark.parametrize("clusters", [5, 40, 1100])
@pytest.mark.parametrize("bad", [NAN, INF, -INF])
@pytest.mark.parametrize("name", ["centre_square", "weight"])
def test_a_bad_centre_costs_all_examples(name: str, bad: float, clusters: int) -> None:
    for place in range(0, clusters, max(clusters // 40, 1)):
        a = PointCase(3, clusters).arguments()
        a[name][place] = bad
        for function in (ops.rank1_argmin, reference.rank1_argmin):
            got = function(**a)
            assert got.assignment.tolist() == [-1] * 3
            assert got.distance.isnan().all() and got.gap.isnan().all()


@pytest.mark.parametrize("clusters", [5, 40])
def test_terms_that_overflow_and_squares_that_are_none(clusters: int) -> None:
    """A distance of 1e308 is finite, the sum of its squares is not. And no place outside the row."""
    a = PointCase(3, clusters).arguments()
    a["square"][:], a["centre_square"][:], a["cross"][:], a["weight"][:] = 1e308, 1e308, 5e307, 1
    assert ops.rank1_argmin(**a).assignment.tolist() == [-1] * 3
    a = PointCase(3, clusters).arguments()
    a["square"][1] = -1e6
    assert ops.rank1_argmin(**a).assignment[1] == -1


@pytest.mark.parametrize("clusters", [5, 40])
def test_rounding_makes_no_negative_distance(clusters: int) -> None:
    one, cross = torch.ones(clusters).double(), torch.full((3, clusters), 0.5).double()
    for first in (2, clusters - 2):  # in a whole vector, and behind them
        cross[:, first], cross[:, first + 1] = 1 + 1e-15, 1 + 1e-12
        for function in (ops.rank1_argmin, reference.rank1_argmin):
            got = function(cross, one[:3], one, one, rtol=0.0)
            assert got.assignment.tolist() == [2] * 3
            assert got.distance.tolist() == got.gap.tolist() == [0.0] * 3


def test_choices_depend_on_the_example_alone(device: str) -> None:
    a = {n: t.to(device) for n, t in PointCase(900, 40, spread=5).arguments().items()}
    whole = ops.rank1_argmin(**a, rtol=1e-3)
    before = torch.get_num_threads()
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            assert all(map(torch.equal, ops.rank1_argmin(**a, rtol=1e-3), whole))
    finally:
        torch.set_num_threads(before)
    part = a | {"cross": a["cross"][7:9], "square": a["square"][7:9]}
    for one, all_of_them in zip(ops.rank1_argmin(**part, rtol=1e-3), whole, strict=True):
        assert torch.equal(one, all_of_them[7:9])


def test_choices_in_any_layout_without_gradient() -> None:
    a = PointCase(6, 9).arguments()
    expected = ops.rank1_argmin(**a)
    contents = [raw(t) for t in a.values()]
    for layout in ("transposed", "batch inside", "every second", "offset"):
        moved = {name: LAYOUTS[layout](t).requires_grad_() for name, t in a.items()}
        got = ops.rank1_argmin(**moved)
        assert all(map(torch.equal, got, expected))
        assert not any(t.requires_grad for t in got)
    assert all(map(torch.equal, map(raw, a.values()), contents))


GOOD = PointCase(2, 3).arguments()
BAD_POINTS = {
    "cross": ({"cross": torch.zeros(3).double()}, r"cross must have shape \[B, K\] with K >= 1, got \[3\]"),
    "no cluster": ({"cross": torch.zeros(2, 0).double()}, r"cross must have shape.*got \[2, 0\]"),
    "square": ({"square": torch.zeros(3).double()}, r"square must have shape \[2\].*got \[3\]"),
    "centre_square": ({"centre_square": torch.zeros(2).double()}, r"centre_square must have shape \[3\].*got \[2\]"),
    "weight": ({"weight": torch.zeros(3, 1).double()}, r"weight must have shape \[3\].*got \[3, 1\]"),
    **{f"{name} dtype": ({name: t.float()}, f"{name} must be float64; convert it") for name, t in GOOD.items()},
    "negative rtol": ({"rtol": -1e-9}, "rtol must be finite and not negative, got -1e-09"),
    "rtol": ({"rtol": NAN}, "rtol must be finite and not negative, got nan"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD_POINTS)
def test_bad_points(name: str) -> None:
    change, message = BAD_POINTS[name]
    with pytest.raises(ValueError, match=f"^rank1_argmin: {message}"):
        ops.rank1_argmin(**(GOOD | change))


# --- The A step on gradients of layers (thesis, Eq. 4.5 and A.3), against the gradients themselves


def test_distances_of_two_layers() -> None:
    """A convolution in two groups, then a linear layer: rank-1 centres, and every per-example gradient
    from autograd. The distance is the sum over the layers."""
    g = cases.generator(3)
    draw = lambda *shape: torch.randn(*shape, generator=g, dtype=torch.float64)  # noqa: E731
    batch, clusters = 6, 4
    x = draw(batch, 4, 5, 5)
    kernel, matrix = draw(6, 2, 3, 3).requires_grad_(), draw(3, 6 * 9).requires_grad_()
    convolved = F.conv2d(x, kernel, stride=2, padding=1, groups=2)  # [B, 6, 3, 3]
    hidden = convolved.tanh().flatten(1)
    out = hidden @ matrix.T
    loss = F.cross_entropy(out, torch.arange(batch) % 3, reduction="none")
    gradients = [torch.autograd.grad(one, (kernel, matrix), retain_graph=True) for one in loss]
    at_convolved, at_out = torch.autograd.grad(loss.sum(), (convolved, out))

    centre_a, centre_d = draw(clusters, 2, 18), draw(clusters, 2, 3)  # per group: I = 2 * 9, O = 3
    linear_a, linear_d = draw(clusters, 54), draw(clusters, 3)
    weight = torch.tensor([3.0, 1.0, 2.0, 5.0], dtype=torch.float64)

    cross = torch.zeros(batch, clusters, dtype=torch.float64)
    patches = F.unfold(x, 3, stride=2, padding=1).view(batch, 2, 18, 9)  # [B, G, I, T]
    d_conv = at_convolved.view(batch, 2, 3, 9)  # [B, G, O, T]
    ops.rank1_dot(
        cross,
        torch.einsum("bgit,kgi->bgkt", patches, centre_a),
        torch.einsum("bgot,kgo->bgkt", d_conv, centre_d),
    )
    ops.rank1_dot(
        cross,
        (hidden.detach() @ linear_a.T)[:, None, :, None],
        (at_out @ linear_d.T)[:, None, :, None],
    )

    flat = torch.stack([torch.cat([t.flatten() for t in pair]) for pair in gradients])  # [B, P]
    centres = torch.cat(
        [
            torch.einsum("kgo,kgi->kgoi", centre_d, centre_a).flatten(1),
            torch.einsum("ko,ki->koi", linear_d, linear_a).flatten(1),
        ],
        dim=1,
    )  # [K, P]
    torch.testing.assert_close(cross, flat @ centres.T, rtol=1e-12, atol=1e-12)
    got = ops.rank1_argmin(cross, flat.square().sum(1), centres.square().sum(1), weight)
    distance = (flat[:, None] - centres).square().sum(2)
    assert torch.equal(got.assignment, (weight * distance).argmin(1))
    own = distance.gather(1, got.assignment[:, None])[:, 0]
    torch.testing.assert_close(got.distance, own, rtol=1e-12, atol=1e-12)
