"""bench/linear_bars.py: a bar that is missed says so, and what it measures is what the room computes."""

from __future__ import annotations

import linear_bars
import numpy as np
import pytest
from linear_bars import Bar, below, first_order, peers, table, thesis
from margins import Line


def test_verdicts() -> None:
    said = table([below("gap", 1e-9, 1e-8), below("time", 7, 5, "s"), Bar("peer", "all", "none")])
    rows = [row.strip("| ").split(" | ") for row in said.splitlines()[2:]]
    assert rows == [
        ["gap", "at most 1e-08", "1.0e-09", "met"],
        ["time", "at most 5 s", "7.0 s", "missed"],
        ["peer", "all", "none", "not measured"],
    ]
    assert not below("NaN", np.nan, 1).met


def test_peers_are_held_against_the_exact_solver_of_the_same_problem() -> None:
    names = ("nnls", "LinearSVC", "SVC")
    margins = {"normal": (1.0, 0.99, 0.99), "breast cancer": (0.1, -1.0, -2.0)}
    lines = [
        Line(problem, "l2", name, 1.0, margin)
        for problem, own in margins.items()
        for name, margin in zip(names, own, strict=True)
    ]
    assert [bar.met for bar in peers(lines)] == [True, True, None, True]
    better = [one._replace(margin=1.01) if one.name == "SVC" else one for one in lines]
    assert [bar.met for bar in peers(better)] == [True, False, None, False]


def test_descent_that_is_cut_short_misses_its_bars() -> None:
    bars = {bar.bar: bar for bar in thesis([32], 60)}
    assert bars["hinge: missing for lam up to 0.999 lam_exact"].met
    assert bars["hinge: missing at 1.1 lam_exact"].met
    for method in linear_bars.DESCENT:
        share = float(bars[f"{method}: missing after 60 steps"].measured.split(" at ")[0])
        assert 1e-3 < share < 1
    assert not bars["gradient descent: missing after 60 steps"].met
    assert bars["Fig. 5.2, 5.3: panels confirmed"].asked == "13 of 13"


def test_without_its_data_a_bar_is_not_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(linear_bars.margins, "large_runs", list)
    bar = next(first_order(None))
    assert bar.met is None and bar.measured == "no --cifar"
