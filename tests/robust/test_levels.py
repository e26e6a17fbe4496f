"""levels="auto": what it sets, what it leaves, and that a run keeps it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from hrrl_ext import HRRLTrainer
from hrrl_ext.data import load_images
from hrrl_ext.robust.config import with_levels

SET = {"tau": "theorem2", "adversary": "chi_square", "lam": 1.0}
RUN: dict[str, Any] = {
    "data": load_images("digits", split="train").subset(range(64)), "concepts": "classes",
    "batch_size": 32, "width": 4, "progress": "plain", "device": "cpu",
}  # fmt: skip


@pytest.mark.parametrize(
    ("given", "settings"),
    [
        ({}, SET),
        ({"tau": 0.1}, SET | {"tau": 0.1}),
        ({"tau": 0.0, "lr": 0.5}, SET | {"tau": 0.0, "lr": 0.5}),
        ({"tau_multiple": 3.0}, SET | {"tau_multiple": 3.0}),
        ({"lam": 10.0}, {"tau": "theorem2", "lam": 10.0}),
        ({"lam": None}, {"tau": "theorem2", "lam": None}),
        ({"adversary": "chi_square"}, SET),
        ({"adversary": "chi_square", "lam": 0.3}, SET | {"lam": 0.3}),
        ({"adversary": "cvar"}, {"tau": "theorem2", "adversary": "cvar"}),
        ({"max_weight": 2.0}, SET | {"max_weight": 2.0}),
        ({"tau": 0.03, "lam": 10.0}, {"tau": 0.03, "lam": 10.0}),
    ],
    ids=str,
)
def test_what_is_given_is_kept(given: dict[str, Any], settings: dict[str, Any]) -> None:
    assert with_levels("auto", given)[0] == settings
    assert with_levels("given", given) == (given, None)


def test_the_line_names_what_was_set_and_no_more() -> None:
    line = with_levels("auto", {})[1] or ""
    assert line.startswith("levels=auto: tau=theorem2, tau_multiple=1: ")
    assert "adversary=chi_square, lam=1: " in line
    line = with_levels("auto", {"tau": 0.1})[1] or ""
    assert "tau" not in line and "lam=1" in line
    assert with_levels("auto", {"tau": 0.1, "lam": 10.0})[1] is None


def test_a_run_says_it_once_and_keeps_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    HRRLTrainer(**RUN, levels="auto", epochs=2, out=tmp_path / "run").fit(until=1)
    assert capsys.readouterr().err.count("levels=auto: ") == 1
    kept = json.loads((tmp_path / "run/config.json").read_text())["training"]
    assert {name: kept[name] for name in SET} == SET
    with pytest.raises(ValueError, match=r"other settings .*tau.*lam.*adversary|other settings"):
        HRRLTrainer(**RUN, epochs=2, out=tmp_path / "run", resume=True)
    again = HRRLTrainer(**RUN, levels="auto", epochs=2, out=tmp_path / "run", resume=True)
    assert again.history[0]["l_x"] > 0
    assert again.objective.perturbation.l_x == again.history[0]["l_x"]
    again.fit()
    assert "levels=auto" not in capsys.readouterr().err


def test_bad_levels() -> None:
    with pytest.raises(ValueError, match="levels: 'atuo' is not known; did you mean 'auto'"):
        HRRLTrainer(**RUN, levels="atuo")
    with pytest.raises(ValueError, match="example_level='stored' keeps directions alone; give tau"):
        HRRLTrainer(**RUN, levels="auto", example_level="stored")
