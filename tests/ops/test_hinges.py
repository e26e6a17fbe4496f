"""hinge_coefficients and pair_gradients: edges, loops, gradients, bad numbers, bad input."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from cases import FLOATS, LAYOUTS
from hardest_cases import SIMILARITIES
from hinge_cases import HingeCase, PairCase
from torch import Tensor

from hrrl_ext import ops
from hrrl_ext.ops import Similarity, reference

NAN = torch.nan
both = pytest.mark.parametrize("similarity", SIMILARITIES)

# Around a tile (6 rows, up to 64 columns), a part of the rows (192), and a square of lanes (4, 8, 16).
HINGES = [
    *((0, 0, 2), (0, 3, 4), (3, 0, 4), (1, 1, 1), (1, 2, 0), (5, 7, 2), (6, 64, 16), (7, 65, 17)),
    *((13, 131, 5), (193, 66, 9), (200, 20, 3)),
]
# Columns are parted at 64; 600 pairs of 67 columns are worth two threads.
PAIRS = [(1, 1, 1, 1), (2, 3, 0, 4), (3, 2, 5, 0), (0, 3, 4, 2), (7, 5, 17, 30), (40, 30, 67, 600)]


def on(device: str, arguments: list[Tensor]) -> list[Tensor]:
    return [t.to(device) for t in arguments]


def pairs_of(case: PairCase, device: str, arguments: list[Tensor]) -> list[Tensor]:
    found = ops.pair_gradients(*on(device, arguments), similarity=case.similarity)  # type: ignore[misc]
    return [t.cpu() for t in found]


@pytest.mark.parametrize("shape", HINGES, ids=str)
def test_hinges_by_loops(shape: tuple[int, int, int], device: str) -> None:
    case = HingeCase(*shape)
    case.check([t.cpu() for t in ops.hinge_coefficients(*on(device, case.arguments()))])
    case.check(reference.hinge_coefficients(*case.arguments()))


@both
@pytest.mark.parametrize("shape", PAIRS, ids=str)
def test_pairs_by_loops(
    shape: tuple[int, int, int, int], similarity: Similarity, device: str
) -> None:
    case = PairCase(*shape, similarity)
    case.check(pairs_of(case, device, case.arguments()))
    case.check(reference.pair_gradients(*case.arguments(), similarity=similarity))  # type: ignore[misc]


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_every_type(dtype: torch.dtype, device: str) -> None:
    hinges = HingeCase(20, 70, 21, dtype)
    hinges.check([t.cpu() for t in ops.hinge_coefficients(*on(device, hinges.arguments()))])
    for similarity in SIMILARITIES:
        case = PairCase(9, 7, 21, 40, similarity, dtype)
        case.check(pairs_of(case, device, case.arguments()))


@pytest.mark.parametrize("layout", [name for name in LAYOUTS if name != "empty"])
def test_any_layout(layout: str, device: str) -> None:
    for arguments in (HingeCase(9, 12, 7).arguments(), PairCase(9, 12, 7, 20).arguments()):
        operator = ops.hinge_coefficients if len(arguments) == 8 else ops.pair_gradients
        laid = [LAYOUTS[layout](t.clone()) if t.dim() == 2 else t for t in arguments]
        spread = [t if t.dim() == 2 else torch.stack((t, t), 1)[:, 0] for t in laid]
        dense = [t.contiguous().clone() for t in laid]
        got, want = operator(*on(device, spread)), operator(*on(device, dense))
        for a, b in zip(got, want, strict=True):
            assert torch.equal(a, b)


def test_threads_change_nothing(device: str) -> None:
    g = torch.Generator().manual_seed(3)
    image, caption = torch.randn(300, 145, generator=g), torch.randn(280, 145, generator=g)
    sides = [torch.rand(n, generator=g) for n in (300, 280)]
    hinges = [image, caption, *sides, *sides, torch.arange(300), torch.arange(280)]
    row, column = (torch.randint(n, (900,), generator=g) for n in (300, 280))
    pairs = [image, caption, row, column, torch.randn(900, generator=g)]
    threads, results = torch.get_num_threads(), []
    try:
        for n in (1, 2):
            torch.set_num_threads(n)
            found = [*ops.hinge_coefficients(*on(device, hinges))]
            for similarity in SIMILARITIES:
                found += ops.pair_gradients(*on(device, pairs), similarity=similarity)  # type: ignore[misc]
            results.append(found)
    finally:
        torch.set_num_threads(threads)
    for a, b in zip(*results, strict=True):
        assert torch.equal(a, b)


@both
def test_the_reference_has_every_derivative(similarity: Similarity) -> None:
    """And is what hardest_negatives, and a loss, are differentiated by twice."""
    g = torch.Generator().manual_seed(1)
    image, caption = (
        torch.randn(n, 3, generator=g, dtype=torch.float64).requires_grad_() for n in (4, 5)
    )
    weight = torch.randn(6, generator=g, dtype=torch.float64).requires_grad_()
    row, column = torch.tensor([0, 1, 1, -1, 3, 3]), torch.tensor([4, 2, 2, 0, 1, 0])
    assert torch.autograd.gradcheck(
        lambda f, g, w: ops.pair_gradients(f, g, row, column, w, similarity),
        (image, caption, weight),
    )


@both
def test_pairs_are_the_gradient_of_their_scores(similarity: Similarity) -> None:
    image, caption, row, column, weight = PairCase(7, 5, 9, 30, dtype=torch.float64).arguments()
    image.requires_grad_(), caption.requires_grad_()
    there = (row >= 0) & (column >= 0)
    f, g = image[row[there]], caption[column[there]]
    scores = (f * g).sum(1) if similarity == "cosine" else -(g - f).relu().norm(dim=1)
    want = torch.autograd.grad((weight[there] * scores).sum(), (image, caption))
    with torch.no_grad():
        got = ops.pair_gradients(image, caption, row, column, weight, similarity)
    for a, b in zip(got, want, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


def test_a_nan_is_told(device: str) -> None:
    for row in (0, 66):
        image, *others = HingeCase(70, 131, 9).arguments()
        image[row, 8] = NAN
        found = ops.hinge_coefficients(*on(device, [image, *others]))
        assert found.loss.isnan()
    others[-1][:] = others[-2][66]  # in its own group it is nobody's negative
    others[-2][:] = others[-2][66]
    assert ops.hinge_coefficients(*on(device, [image, *others])).loss.item() == 0.0


@both
def test_a_pair_of_no_weight_adds_nothing(similarity: Similarity, device: str) -> None:
    image, caption = torch.full((2, 17), NAN), torch.ones(2, 17)
    row, column = torch.tensor([0, 1, -1]), torch.tensor([0, -1, 1])
    arguments = on(device, [image, caption, row, column, torch.tensor([0.0, 1.0, 1.0])])
    for found in (
        ops.pair_gradients(*arguments, similarity=similarity),  # type: ignore[misc]
        reference.pair_gradients(*arguments, similarity=similarity),  # type: ignore[misc]
    ):
        assert not any(t.any() for t in found)
    arguments[-1][0] = 1.0
    to_image, to_caption = ops.pair_gradients(*arguments, similarity=similarity)  # type: ignore[misc]
    assert to_caption[0].isnan().all() and not to_caption[1].any() and not to_image[1].any()


# --- bad input


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"image": torch.ones(3)}, ValueError, r"image must have shape \[I, D\], got \[3\]"),
        ({"image": torch.ones(3, 4).int()}, ValueError, "image must be a floating-point tensor"),
        ({"caption": torch.ones(5, 3)}, ValueError, r"caption must have shape \[C, 4\]"),
        (
            {"caption": torch.ones(5, 4).double()},
            ValueError,
            "caption must have the dtype of image",
        ),
        ({"weight": torch.ones(2, 1)}, ValueError, r"weight must have shape \[N\], got \[2, 1\]"),
        ({"weight": torch.ones(2).double()}, ValueError, "weight must be float32"),
        ({"row": torch.arange(3)}, ValueError, r"row must have the shape of weight, \[2\]"),
        ({"column": torch.arange(2).int()}, ValueError, "column must be int64"),
        ({"row": torch.tensor([0, 3])}, IndexError, "row must lie below 3, got 3 at 1"),
        ({"column": torch.tensor([5, 0])}, IndexError, "column must lie below 5, got 5 at 0"),
        ({"similarity": "l2"}, ValueError, "similarity must be .cosine. or .order., got .l2."),
    ],
)
def test_bad_pairs(change: dict[str, Any], error: type[Exception], message: str) -> None:
    arguments = {
        "image": torch.ones(3, 4),
        "caption": torch.ones(5, 4),
        "row": torch.arange(2),
        "column": torch.arange(2),
        "weight": torch.ones(2),
    }
    with pytest.raises(error, match=message):
        ops.pair_gradients(**(arguments | change))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"caption": torch.ones(5, 3)}, r"caption must have shape \[C, 4\]"),
        ({"image_below": torch.ones(2)}, r"image_below must have shape \[3\].*got \[2\]"),
        ({"caption_weight": torch.ones(5).half()}, "caption_weight must be float32"),
        ({"image_group": torch.arange(3).int()}, "image_group must be int64"),
    ],
)
def test_bad_hinges(change: dict[str, Any], message: str) -> None:
    names = ("image", "caption"), ("_below", "_weight")
    arguments = {side + what: torch.ones(n) for what in names[1] for side, n in zip(names[0], (3, 5), strict=True)}  # fmt: skip
    arguments |= {"image": torch.ones(3, 4), "caption": torch.ones(5, 4)}
    arguments |= {"image_group": torch.arange(3), "caption_group": torch.arange(5)}
    with pytest.raises(ValueError, match=message):
        ops.hinge_coefficients(**(arguments | change))
