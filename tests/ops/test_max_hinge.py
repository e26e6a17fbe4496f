"""_max_hinge, what the max of hinges is made of on the CPU: its twin, edges, bad input."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.library import opcheck

from hrrl_ext.ops._library import operator
from hrrl_ext.retrieval.hinges import _constant_scores, max_hinge_by_torch, pair_scores

max_hinge = operator("_max_hinge")

# Around a vector (4 to 16 columns), a tile of images (6) and a panel of captions (64); two threads.
SHAPES = [(0, 3), (1, 1), (2, 0), (5, 16), (7, 17), (67, 31), (130, 70)]
DTYPES = [torch.float32, torch.float64]


def problem(pairs: int, size: int, dtype: torch.dtype, *, listed: bool) -> list[Tensor | None]:
    """Row n and row n, or a list of pairs in which rows come again and again, or never."""
    g = torch.Generator().manual_seed(pairs + size)
    images, captions = (pairs // 2 + 1, pairs // 3 + 1) if listed else (pairs, pairs)
    f, c = (torch.randn(n, size, generator=g).to(dtype) for n in (images, captions))
    groups = (torch.arange(n) // 3 for n in (images, captions))
    if not listed:
        return [f, c, None, None, *groups]
    return [f, c, *(torch.arange(pairs) * 7 % n for n in (images, captions)), *groups]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("listed", [False, True])
@pytest.mark.parametrize("similarity", ["cosine", "order"])
@pytest.mark.parametrize(("pairs", "size"), SHAPES)
def test_is_its_twin(
    pairs: int, size: int, similarity: str, listed: bool, dtype: torch.dtype
) -> None:
    given: list[Any] = problem(pairs, size, dtype, listed=listed)
    hinge, rows, columns, weight = max_hinge(*given, 0.3, similarity == "order")
    want, *pairs_of_torch, _ = max_hinge_by_torch(*given, 0.3, similarity)  # type: ignore[call-arg]
    # Scores of up to D rounded D times, in another order, and the root of their squares
    tolerance = 4 * max(size, 1) * torch.finfo(dtype).eps
    torch.testing.assert_close(hinge, want, rtol=tolerance, atol=tolerance * max(size, 1) ** 0.5)
    assert torch.equal(rows, pairs_of_torch[0]) and torch.equal(columns, pairs_of_torch[1])
    active = (hinge > 0).to(dtype)
    assert torch.equal(weight.view(3, -1), torch.stack([-active.sum(0), *active]))
    checks = ["test_schema", "test_faketensor"]
    arguments = (*given, 0.3, similarity == "order")
    opcheck(torch.ops.hrrl_ext._max_hinge.default, arguments, test_utils=checks)


@pytest.mark.parametrize("similarity", ["cosine", "order"])
def test_any_layout_and_any_number_of_threads(similarity: str) -> None:
    """The same bits."""
    given = problem(700, 70, torch.float32, listed=True)
    apart = [torch.stack([t, t], -1)[..., 0] for t in given if t is not None]
    assert not any(t.is_contiguous() for t in apart)
    before = torch.get_num_threads()
    found = []
    for threads, arguments in ((1, given), (3, given), (1, apart)):
        torch.set_num_threads(threads)
        found.append(max_hinge(*arguments, 0.3, similarity == "order"))
    torch.set_num_threads(before)
    for other in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(found[0], other, strict=True))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("similarity", ["cosine", "order"])
@pytest.mark.parametrize(("pairs", "size"), SHAPES)
def test_pair_scores(pairs: int, size: int, similarity: Any, dtype: torch.dtype) -> None:
    f, g = (
        torch.cat([t, t]) for t in problem(pairs, size, dtype, listed=False)[:2] if t is not None
    )
    f = f.T.contiguous().T
    for found in (_constant_scores, pair_scores):  # the operator, and torch's
        got = found(f, g, similarity)
        square = (g.double() - f.double()).clamp(min=0).square().sum(1)
        want = (f.double() * g.double()).sum(1) if similarity == "cosine" else -square.sqrt()
        tolerance = 4 * max(size, 1) * torch.finfo(dtype).eps
        torch.testing.assert_close(
            got.double(), want, rtol=tolerance, atol=tolerance * max(size, 1) ** 0.5
        )
    f[-1:, -1:] = torch.nan
    with torch.no_grad():
        assert _constant_scores(f, g, similarity)[-1:].isnan().all() or size == 0
        opcheck(
            torch.ops.hrrl_ext._pair_scores.default, (f, g, similarity == "order"),
            test_utils=["test_schema", "test_faketensor"],
        )  # fmt: skip


def test_pair_scores_of_halves() -> None:
    """Also where no gradient is asked for: the operator is for what was widened."""
    f = torch.ones(3, 2, dtype=torch.bfloat16)
    with torch.no_grad():
        assert pair_scores(f, f, "cosine").tolist() == [2, 2, 2]


@pytest.mark.parametrize(
    ("image", "caption", "message"),
    [
        (torch.zeros(3, 2), torch.zeros(2, 2), "as many captions as images"),
        (torch.zeros(3, 2), torch.zeros(3, 1), r"caption must have shape \[C, 2\]"),
        (torch.zeros(3, 2).half(), torch.zeros(3, 2).half(), "image must be float32 or float64"),
    ],
)
def test_bad_pairs(image: Tensor, caption: Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=f"^_pair_scores: .*{message}"):
        operator("_pair_scores")(image, caption, False)


@pytest.mark.parametrize("similarity", ["cosine", "order"])
def test_no_negative_and_no_number(similarity: str) -> None:
    """Hinges at 0 have no weight, a negative that is none neither; NaN stays in the hinge."""
    f = torch.tensor([[1.0, 0.0], [0.0, 1.0], [torch.nan, 0.0]])
    one = torch.zeros(3, dtype=torch.int64)
    hinge, rows, columns, weight = max_hinge(f, f, None, None, one, one, 0.2, similarity == "order")
    assert hinge[:, :2].eq(0).all() and weight.eq(0).all()
    assert columns[3:6].eq(-1).all() and rows[6:].eq(-1).all()
    hinge, _, _, weight = max_hinge(
        f, f, None, None, torch.arange(3), torch.arange(3), 0.2, similarity == "order"
    )
    assert hinge.isnan().all() and weight.eq(0).all()


PAIR = {"row": torch.tensor([0, 2]), "column": torch.tensor([1, 0])}


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"image": torch.zeros(3, 2).half(), "caption": torch.zeros(2, 2).half()}, ValueError, "image must be float32 or"),
        ({"caption": torch.zeros(2, 3)}, ValueError, r"caption must have shape \[C, 2\]"),
        ({"image_group": torch.zeros(3)}, ValueError, "image_group must be int64"),
        ({"column": None}, ValueError, "row and column go together"),
        ({"row": None, "column": None}, ValueError, "as many captions as images"),
        ({"row": torch.tensor([0])}, ValueError, r"int64 of one shape \[P\]"),
        ({"row": torch.tensor([0.0, 1.0])}, ValueError, r"int64 of one shape \[P\]"),
        ({"row": torch.tensor([0, 3])}, IndexError, r"row must lie in \[0, 3\), got 3 at 1"),
        ({"column": torch.tensor([-1, 0])}, IndexError, r"column must lie in \[0, 2\), got -1 at 0"),
    ],
)  # fmt: skip
def test_bad_input(change: dict[str, Tensor], error: type[Exception], message: str) -> None:
    arguments = {
        "image": torch.zeros(3, 2),
        "caption": torch.zeros(2, 2),
        **PAIR,
        "image_group": torch.arange(3),
        "caption_group": torch.arange(2),
    }
    with pytest.raises(error, match=f"^_max_hinge: .*{message}"):
        max_hinge(*(arguments | change).values(), 0.2, False)
