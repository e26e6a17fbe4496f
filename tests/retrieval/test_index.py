"""The k nearest: against a full sort, ties by row, and faiss where it is installed."""

from __future__ import annotations

import sys

import numpy as np
import pytest
import torch
from oracle import all_scores

from hrrl_ext.retrieval import Index
from hrrl_ext.retrieval import index as searching


@pytest.mark.parametrize("similarity", ["cosine", "dot", "order"])
@pytest.mark.parametrize("of", ["captions", "images"])
@pytest.mark.parametrize("k", [1, 6, 7, 100])
def test_found_are_the_first_of_a_stable_sort(monkeypatch, similarity, of, k) -> None:
    monkeypatch.setattr(searching, "_QUERIES", 4)
    monkeypatch.setattr(searching, "_ROWS", 7)
    random = np.random.default_rng(0)
    rows, query = random.integers(-2, 3, (60, 3)).astype(float), random.standard_normal((11, 3))
    rows[30:] = rows[:30]  # every score is there twice
    if of == "captions":
        score = all_scores(query, rows, similarity)
    else:
        score = all_scores(rows, query, similarity).T
    found = Index(rows, similarity=similarity, of=of).search(query, k)
    best = np.argsort(-score.round(9), axis=1, kind="stable")[:, :k]
    assert found.row.shape == (11, min(k, 60))
    # Rounding may part equal scores of different rows, but never those of equal ones.
    np.testing.assert_allclose(found.score.numpy(), np.take_along_axis(score, best, 1), atol=1e-9)
    place = {(q, r): at for q, row in enumerate(found.row.tolist()) for at, r in enumerate(row)}
    assert all(place[q, r - 30] < at for (q, r), at in place.items() if r >= 30)


def test_of_equal_rows_the_first_are_found() -> None:
    found = Index(torch.ones(50_000, 2)).search(torch.ones(3, 2), 4)
    assert found.row.tolist() == [[0, 1, 2, 3]] * 3
    # Few scores, each many times, and the last place undisputed.
    rows = torch.arange(400).remainder(4).double()[:, None]
    found = Index(rows, similarity="dot").search(torch.ones(1, 1), 300)
    assert found.row.tolist()[0] == [at for score in (3, 2, 1) for at in range(score, 400, 4)]


def test_no_query_finds_nothing() -> None:
    assert Index(torch.ones(5, 2)).search(torch.ones(0, 2), 4).row.shape == (0, 4)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: Index(np.ones((0, 2))), "empty"),
        (lambda: Index(np.ones(3)), r"must be \[N, D\], got \[3\]"),
        (lambda: Index(np.full((2, 2), np.inf)), "finite"),
        (lambda: Index(np.ones((2, 2)), similarity="l2"), "similarity 'l2' is not known"),
        (lambda: Index(np.ones((2, 2)), of="caption"), "captions or images"),
        (lambda: Index(np.ones((2, 2))).search(np.ones((1, 3))), "3 columns, the index 2"),
        (lambda: Index(np.ones((2, 2))).search(np.ones((1, 2)), 0), "k must be"),
        (lambda: Index(np.ones((2, 2)), similarity="order", faiss="Flat"), "faiss has no order"),
    ],
)
def test_what_is_wrong_is_said(call, message) -> None:
    with pytest.raises(ValueError, match=message):
        call()


def test_without_faiss_the_extra_is_named(monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "faiss", None)
    with pytest.raises(ImportError, match=r"hrrl_ext\[faiss\]"):
        Index(np.ones((2, 2)), faiss="Flat")


def test_faiss_finds_the_same() -> None:
    pytest.importorskip("faiss")
    random = np.random.default_rng(0)
    rows, query = random.standard_normal((500, 8)), random.standard_normal((9, 8))
    exact = Index(rows).search(query, 5)
    found = Index(rows, faiss="Flat").search(query, 5)
    assert found.row.tolist() == exact.row.tolist()
    # float32 against float64: of unit rows a few 1e-8.
    torch.testing.assert_close(found.score.double(), exact.score, atol=1e-6, rtol=0)
    near = Index(rows, faiss="HNSW32").search(query, 5)
    assert (
        np.mean(
            [len({*a} & {*b}) for a, b in zip(near.row.tolist(), exact.row.tolist(), strict=True)]
        )
        > 4
    )
    with pytest.raises(ValueError, match="no index 'Tree'"):
        Index(rows, faiss="Tree")
