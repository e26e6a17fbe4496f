"""A cheap slice of the hostile trials, and that the trials themselves can tell. ``python tests/hostile`` runs thousands."""

from __future__ import annotations

import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from trial import FAILED, Attempt, Outcome, same, tried

from hrrl_ext.data import load_images

pytest.importorskip("jsonargparse")
import families
from families import FAMILIES, Failure, batches, shares, table, trials

SLICE = 12
"""Trials of a family here; its setting up is most of the time."""


@pytest.mark.parametrize("name", FAMILIES)
def test_slice(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))  # as it was, when a family has set it
    found = [Failure(name, seed, outcome) for seed, outcome in trials(name, range(SLICE), tmp_path)]
    failed = [str(failure) for failure in found if failure.outcome.kind in FAILED]
    assert not failed, "\n".join(failed)


# --- what the trials say of calls whose outcome is known


def attempt(call: Any, **settings: Any) -> Attempt:
    return Attempt(call, [lambda: 1], ["file.csv"], **settings)


def raised(error: Exception) -> Any:
    def call() -> None:
        raise error

    return call


def warned() -> int:
    import warnings

    warnings.warn("file.csv is damaged; the one before is taken", stacklevel=1)
    return 2


@pytest.mark.parametrize(
    ("call", "kind"),
    [
        (lambda: 1, "right"),
        (lambda: 2, "wrong"),
        (lambda: True, "wrong"),
        (warned, "clear"),
        (lambda: load_images("file.csv", image_size=4), "clear"),
        (lambda: load_images("other.csv", image_size=4), "raw"),
        (raised(ValueError("file.csv: not by the package itself")), "raw"),
        (lambda: Path("file.csv").read_bytes(), "raw"),
        (lambda: time.sleep(5), "hung"),
        (raised(MemoryError()), "killed"),
    ],
)
def test_outcomes(call: Any, kind: str) -> None:
    assert tried(attempt(call, told=[lambda: 2]), limit=0.05).kind == kind


def test_same_is_strict() -> None:
    nan = torch.tensor([float("nan")])
    assert same([nan, 1.0, float("nan")], (nan, 1.0, float("nan")))
    for a, b in ((1, 1.0), (True, 1), (nan, nan.double()), ({"a": 1, "b": 2}, {"b": 2, "a": 1})):
        assert not same(a, b)


def test_batches_outlive_what_ends_them(monkeypatch: pytest.MonkeyPatch) -> None:
    """One that is killed is counted, and the others are tried."""
    import os
    from random import Random

    def family(_: Path) -> Any:
        def make(chance: Random) -> Attempt:
            seed = chance.seed_  # type: ignore[attr-defined]
            return attempt((lambda: os._exit(3)) if seed == "x 1" else lambda: 1)

        return make

    class Seeded(Random):
        def __init__(self, seed: str) -> None:
            super().__init__(seed)
            self.seed_ = seed

    monkeypatch.setitem(FAMILIES, "x", family)
    monkeypatch.setattr(families, "Random", Seeded)
    found = dict(batches("x", range(3)))
    assert [found[seed].kind for seed in range(3)] == ["right", "killed", "right"]


def test_the_table_and_how_to_run_one_alone() -> None:
    counts = {"a": Counter(right=2, wrong=1), "b": Counter(clear=3)}
    assert table(counts).splitlines()[-1].split() == [
        "|",
        "all",
        "|",
        "6",
        "|",
        "2",
        "|",
        "3",
        "|",
        "1",
        "|",
        "0",
        "|",
        "0",
        "|",
        "0",
        "|",
    ]
    assert shares(7, ["a", "b", "c"]) == {"a": 3, "b": 2, "c": 2}
    failure = str(Failure("a", 7, Outcome("wrong", "got 2")))
    assert failure.endswith("python tests/hostile --only 'a' --seed 7 --trials 1")
