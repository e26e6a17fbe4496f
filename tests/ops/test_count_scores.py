"""_count_scores, what recall counts by on the CPU: edges, bounds that are met, bad input."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.library import opcheck

from hrrl_ext.ops._library import operator

count_scores = operator("_count_scores")

# Around a vector (2 to 16 columns), the rows at once (4) and a part of the rows (32); two threads.
SHAPES = [(0, 3), (3, 0), (1, 1), (4, 16), (5, 17), (3, 67), (33, 31), (130, 133), (515, 70)]
DTYPES = [torch.float32, torch.float64]


def problem(rows: int, columns: int, dtype: torch.dtype) -> list[Tensor]:
    """Scores and bounds of few values, so that many meet; one is -inf, and one not a number."""
    g = torch.Generator().manual_seed(rows + columns)
    score, of_rows, of_columns = (
        torch.randint(-2, 3, shape, generator=g).to(dtype)
        for shape in ((rows, columns), (2, rows), (2, columns))
    )
    if score.numel():
        score.view(-1)[-1], score.view(-1)[0] = -torch.inf, torch.nan
        of_rows[0, 0] = torch.inf
    return [score, of_rows, of_columns]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("rows", "columns"), SHAPES)
def test_counts_are_added_up(rows: int, columns: int, dtype: torch.dtype) -> None:
    score, of_rows, of_columns = problem(rows, columns, dtype)
    counts = [torch.full(t.shape, 2**33) for t in (of_rows, of_columns)]
    count_scores(score, of_rows, of_columns, *counts)
    for count, bound, s in zip(counts, (of_rows, of_columns), (score, score.T), strict=True):
        above, reached = (s > bound[0, :, None]).sum(1), (s >= bound[1, :, None]).sum(1)
        assert torch.equal(count - 2**33, torch.stack([above, reached]))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_parts_of_a_side(dtype: torch.dtype) -> None:
    """As blocks of scores meet them: columns of bounds and counts, whose neighbours stay."""
    score, of_rows, of_columns = problem(9, 21, dtype)
    wide = [torch.cat([t, t, t], 1) for t in (of_rows, of_columns)]
    counts = [torch.zeros(t.shape, dtype=torch.int64) for t in wide]
    parts = [slice(n, 2 * n) for n in score.shape]
    of = [t[:, at] for t, at in zip(wide + counts, parts * 2, strict=True)]
    count_scores(score, *of)
    counted = [t.clone() for t in counts]
    alone = [torch.zeros(t.shape, dtype=torch.int64) for t in (of_rows, of_columns)]
    count_scores(score, of_rows, of_columns, *alone)
    checks = ["test_schema", "test_faketensor"]
    opcheck(torch.ops.hrrl_ext._count_scores.default, (score, *of), test_utils=checks)
    for count, at, want in zip(counted, parts, alone, strict=True):
        assert torch.equal(count[:, at], want) and want.any()
        assert count.sum() == want.sum()


@pytest.mark.parametrize(
    ("name", "given", "message"),
    [
        ("score", torch.zeros(4, 3).T, r"score must be \[I, C\], contiguous"),
        ("score", torch.zeros(3, 4).half(), "float32 or float64"),
        ("image_bounds", torch.zeros(2, 4), r"image_bounds must have shape \[2, 3\], got \[2, 4\]"),
        (
            "caption_bounds",
            torch.zeros(2, 4).double(),
            "caption_bounds must be of the dtype of score",
        ),
        ("image_counts", torch.zeros(2, 3), "image_counts must be int64"),
        (
            "caption_counts",
            torch.zeros(4, 2).long().T,
            "caption_counts must have rows without gaps",
        ),
    ],
)
def test_bad_input(name: str, given: Tensor, message: str) -> None:
    arguments = {"score": torch.zeros(3, 4)}
    for side, n in (("image", 3), ("caption", 4)):
        arguments[f"{side}_bounds"] = torch.zeros(2, n)
        arguments[f"{side}_counts"] = torch.zeros(2, n, dtype=torch.int64)
    names = ("score", "image_bounds", "caption_bounds", "image_counts", "caption_counts")
    with pytest.raises(ValueError, match=f"^_count_scores: .*{message}"):
        count_scores(*((arguments | {name: given})[n] for n in names))
