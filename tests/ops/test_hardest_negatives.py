"""hardest_negatives: edges, three loops, gradients, bad numbers, bad input."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from cases import FLOATS, LAYOUTS
from hardest_cases import SIMILARITIES, HardestCase
from torch import Tensor

from hrrl_ext import ops
from hrrl_ext.ops import Similarity, reference

INF, NAN = torch.inf, torch.nan
both = pytest.mark.parametrize("similarity", SIMILARITIES)

# Around a tile (6 rows, up to 64 columns), a part of the rows (192), and a square of lanes (4, 8, 16).
SHAPES = [
    *((1, 1, 1), (2, 1, 3), (1, 2, 0), (5, 7, 2), (6, 64, 16), (7, 65, 17), (12, 8, 33)),
    *((13, 131, 5), (191, 3, 4), (193, 66, 9), (400, 20, 3)),
]


def on(device: str, *arguments: Tensor) -> list[Tensor]:
    return [t.to(device) for t in arguments]


def find(case: HardestCase, device: str, *arguments: Tensor) -> list[Tensor]:
    given = on(device, *(arguments or case.arguments()))
    return [t.cpu() for t in ops.hardest_negatives(*given, similarity=case.similarity)]  # type: ignore[misc]


@both
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_three_loops(shape: tuple[int, int, int], similarity: Similarity, device: str) -> None:
    case = HardestCase(*shape, similarity)
    case.check(find(case, device))
    case.check(reference.hardest_negatives(*case.arguments(), similarity))


@both
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_every_type(dtype: torch.dtype, similarity: Similarity, device: str) -> None:
    for shape in ((9, 70, 21), (200, 33, 6)):
        case = HardestCase(*shape, similarity, dtype)
        case.check(find(case, device))


@both
def test_nobody_to_choose_from(similarity: Similarity, device: str) -> None:
    for images, captions in ((0, 0), (0, 3), (3, 0)):
        case = HardestCase(images, captions, 4, similarity)
        case.check(find(case, device))
    alone = HardestCase(9, 7, 4, similarity, groups=1)
    caption_index, caption_score, image_index, image_score = find(alone, device)
    assert caption_index.tolist() == [-1] * 9 and image_index.tolist() == [-1] * 7
    assert (caption_score == -INF).all() and (image_score == -INF).all()


@both
def test_equal_scores_give_the_lowest_index(similarity: Similarity, device: str) -> None:
    """Across tiles and parts, too: the same row a thousand times."""
    image, caption = torch.ones(1000, 5), torch.ones(999, 5)
    group = torch.arange(1000)
    index = on(
        "cpu",
        *ops.hardest_negatives(  # type: ignore[misc]
            *on(device, image, caption, group, group[:999]), similarity=similarity
        ),
    )
    assert index[0].tolist() == [1] + [0] * 999
    assert index[2].tolist() == [1] + [0] * 998


@both
@pytest.mark.parametrize("layout", [name for name in LAYOUTS if name != "empty"])
def test_any_layout(layout: str, similarity: Similarity, device: str) -> None:
    case = HardestCase(9, 12, 7, similarity)
    image, caption, *groups = case.arguments()
    laid = [LAYOUTS[layout](t.clone()) for t in (image, caption)]
    dense = [t.contiguous().clone() for t in laid]
    for got, want in zip(
        find(case, device, *laid, *groups), find(case, device, *dense, *groups), strict=True
    ):
        assert torch.equal(got, want)


@both
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_a_nan_is_told(dtype: torch.dtype, similarity: Similarity, device: str) -> None:
    """Those that met it, and nobody else: an image and a caption of one group do not meet."""
    case = HardestCase(70, 131, 9, similarity, dtype)
    image, caption, image_group, caption_group = case.arguments()
    clean = find(case, device)
    image[66, 8] = NAN
    got = find(case, device, image, caption, image_group, caption_group)
    met = caption_group != image_group[66]
    assert got[0][66] == -1 and got[1][66].isnan()
    assert (got[2][met] == -1).all() and got[3][met].isnan().all()
    assert met.any() and not met.all()
    for t, before, hit in zip(got, clean, [torch.arange(70) == 66] * 2 + [met] * 2, strict=True):
        assert torch.equal(t[~hit], before[~hit])


def test_infinite_scores(device: str) -> None:
    """-Inf is nobody's, Inf the hardest of all."""
    image = torch.tensor([[1.0], [-1.0], [0.5]])
    caption = torch.tensor([[2.0], [INF]])
    groups = torch.arange(3), torch.tensor([7, 8])
    got = on("cpu", *ops.hardest_negatives(*on(device, image, caption, *groups)))
    assert got[0].tolist() == [1, 0, 1] and got[1].tolist() == [INF, -2.0, INF]
    assert got[2].tolist() == [0, 0] and got[3].tolist() == [2.0, INF]
    got = on(
        "cpu",
        *ops.hardest_negatives(*on(device, image[1:2], caption[1:], *(g[:1] for g in groups))),
    )
    assert got[0].tolist() == [-1] and got[1].tolist() == [-INF]


@both
def test_both_sides_have_the_bits_of_one_score(similarity: Similarity, device: str) -> None:
    """On any number of threads, as well."""
    g = torch.Generator().manual_seed(3)
    image, caption = torch.randn(300, 45, generator=g), torch.randn(280, 45, generator=g)
    arguments = on(device, image, caption, torch.arange(300), torch.arange(280))
    threads, results = torch.get_num_threads(), []
    try:
        for n in (1, 2):
            torch.set_num_threads(n)
            results.append(on("cpu", *ops.hardest_negatives(*arguments, similarity=similarity)))  # type: ignore[misc]
    finally:
        torch.set_num_threads(threads)
    for a, b in zip(*results, strict=True):
        assert torch.equal(a, b)
    caption_index, caption_score, image_index, image_score = results[0]
    mutual = image_index[caption_index] == torch.arange(300)
    assert mutual.sum() > 10
    assert torch.equal(caption_score[mutual], image_score[caption_index[mutual]])


# --- gradients


@both
def test_gradients(similarity: Similarity, device: str) -> None:
    g = torch.Generator().manual_seed(1)
    image, caption = (
        torch.randn(n, 4, generator=g, dtype=torch.float64).to(device).requires_grad_()
        for n in (7, 9)
    )
    group = torch.tensor([0, 0, 1, 1, 2, 2, 3, 3, 3], device=device)

    def scores(f: Tensor, g: Tensor) -> tuple[Tensor, ...]:
        return ops.hardest_negatives(f, g, group[:7], group, similarity)[1::2]

    assert torch.autograd.gradcheck(scores, (image, caption))
    assert torch.autograd.gradgradcheck(scores, (image, caption))


@both
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_gradients_of_the_reference(
    dtype: torch.dtype, similarity: Similarity, device: str
) -> None:
    """Whole numbers again. Of a row, up to C + 1 terms are added, in float32 at least, and rounded once."""
    case = HardestCase(14, 70, 6, similarity, dtype)
    grads = []
    for function in (ops.hardest_negatives, reference.hardest_negatives):
        image, caption, *groups = on(device, *case.arguments())
        leaves = image.requires_grad_(), caption.requires_grad_()
        out = function(*leaves, *groups, similarity=similarity)  # type: ignore[misc]
        weights = torch.arange(14.0, device=device), torch.arange(70.0, device=device)
        total = (weights[0] * out[1]).sum() + (weights[1] * out[3]).sum()
        grads.append(torch.autograd.grad(total, leaves))
    eps = torch.finfo(dtype).eps
    for got, want in zip(*grads, strict=True):
        assert got.dtype == dtype
        torch.testing.assert_close(got, want, rtol=2 * eps, atol=1e-5 * want.abs().max().item())


@both
def test_the_gradient_touches_the_chosen_pairs_alone(similarity: Similarity) -> None:
    case = HardestCase(20, 30, 8, similarity, torch.float64)
    image, caption, *groups = case.arguments()
    image.requires_grad_(), caption.requires_grad_()
    out = ops.hardest_negatives(image, caption, *groups, similarity=similarity)  # type: ignore[misc]
    g_image, g_caption = torch.autograd.grad(out.caption_score[3], (image, caption))
    assert g_image.any(1).nonzero().flatten().tolist() == [3]
    assert g_caption.any(1).nonzero().flatten().tolist() == [out.caption_index[3].item()]


def test_order_has_a_gradient_where_the_caption_lies_below(device: str) -> None:
    """A root at 0: the subgradient 0, and not 0 times infinity."""
    image = torch.ones(3, 4, device=device, requires_grad=True)
    caption = torch.zeros(3, 4, device=device, requires_grad=True)
    group = torch.arange(3, device=device)
    out = ops.hardest_negatives(image, caption, group, group, "order")
    assert out.caption_score.tolist() == out.image_score.tolist() == [0.0] * 3
    for grad in torch.autograd.grad(out[1].sum() + out[3].sum(), (image, caption)):
        assert grad.tolist() == torch.zeros(3, 4).tolist()


@both
def test_no_pair_no_gradient(similarity: Similarity) -> None:
    image, caption = torch.ones(2, 3, requires_grad=True), torch.zeros(2, 3, requires_grad=True)
    group = torch.zeros(2, dtype=torch.int64)
    out = ops.hardest_negatives(image, caption, group, group, similarity)
    for grad in torch.autograd.grad(out[1].sum() + out[3].sum(), (image, caption)):
        assert not grad.any()
    image = torch.ones(0, 3, requires_grad=True)
    out = ops.hardest_negatives(image, caption, group[:0], group, similarity)
    for grad in torch.autograd.grad(out[1].sum() + out[3].sum(), (image, caption)):
        assert not grad.any()


# --- bad input


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"image": torch.ones(3)}, r"image must have shape \[I, D\], got \[3\]"),
        ({"image": torch.ones(3, 4).int()}, "image must be a floating-point tensor"),
        ({"caption": torch.ones(5, 3)}, r"caption must have shape \[C, 4\].*got \[5, 3\]"),
        ({"caption": torch.ones(5, 4).double()}, "caption must have the dtype of image"),
        ({"image_group": torch.arange(4)}, r"image_group must have shape \[3\].*got \[4\]"),
        ({"caption_group": torch.arange(5).int()}, "caption_group must be int64"),
        ({"similarity": "euclid"}, "similarity must be .cosine. or .order., got .euclid."),
    ],
)
def test_bad_input(change: dict[str, Any], message: str) -> None:
    arguments = {
        "image": torch.ones(3, 4),
        "caption": torch.ones(5, 4),
        "image_group": torch.arange(3),
        "caption_group": torch.arange(5),
    }
    with pytest.raises(ValueError, match=message):
        ops.hardest_negatives(**(arguments | change))
