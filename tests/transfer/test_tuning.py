"""tune: which trainings it does and stops, what it chooses, a search that is killed; bad grids."""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, get_args

import pytest
import torch

from hrrl_ext import HRRLTrainer, tune
from hrrl_ext.data import load_images
from hrrl_ext.robust.config import Adversary
from hrrl_ext.robust.recipe import HRRL
from hrrl_ext.transfer import tuning
from hrrl_ext.transfer.study.images import split_rows
from hrrl_ext.transfer.tuning import standard_error

TINY: dict[str, Any] = {
    "data": load_images("digits", split="train").subset(range(80)), "concepts": "classes",
    "grid": {"tau": [0.05], "lam": [30.0]}, "epochs": 3, "width": 4, "batch_size": 32, "lr": 0.05,
    "crop_padding": 1, "device": "cpu",
}  # fmt: skip


def pretended(
    monkeypatch: pytest.MonkeyPatch, accuracy: Mapping[str, Any]
) -> list[tuple[str, int]]:
    """Trainings that reach ``accuracy`` of their level, a number or one by epochs; what was trained."""
    trained: list[tuple[str, int]] = []

    def train(self: Any, folder: Path, settings: Mapping[str, Any], epochs: int) -> dict[str, Any]:
        level = folder.name
        trained.append((level, epochs))
        found = accuracy[level]
        found = found[epochs] if isinstance(found, dict) else found
        if found is None:
            return {"failed": "the loss is not finite"}
        return {
            "accuracy": found, "worst_concept_accuracy": found, "concept_accuracy": {"a": found},
            "effective_concepts": 1.0, "largest_weight": 1.0, "held_out": 1000,
            "seconds_per_epoch": 2.0 if "tau" in level else 1.0,
        }  # fmt: skip

    monkeypatch.setattr(tuning._Search, "_train", train)
    return trained


def whats(found: tuning.Tuning) -> dict[str, tuple[int, str]]:
    return {row["level"]: (row["epochs"], row["what"]) for row in found.rows}


# --- what it does


def test_the_best_of_each_setting_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """30 images of 1000 are more than three errors behind at 0.5: (0.016 + 0.032) / 2 · 3 = 0.071."""
    trained = pretended(
        monkeypatch,
        {
            "as-given": 0.5,
            "tau-0.03": {1: 0.5, 2: 0.5, 3: 0.52},
            "tau-0.3": 0.42,
            "lam-30": {1: 0.51, 2: 0.1, 3: 0.9},
            "lam-10": 0.51,
            "tau-0.03-lam-10": 0.53,
        },
    )
    found = tune(**TINY | {"grid": ["tau=0.03,0.3", "lam=30,10"]}, out=tmp_path / "out")
    assert whats(found) == {
        "as given": (3, ""),
        "tau=0.03": (3, ""),
        "tau=0.3": (1, "stopped"),
        "lam=30": (2, "stopped"),
        "lam=10": (3, ""),
        "tau=0.03 lam=10": (3, "chosen"),
    }
    assert trained.index(("lam-10", 1)) < trained.index(("as-given", 2))  # they are compared there
    assert (found.settings["tau"], found.settings["lam"]) == (0.03, 10.0)
    assert [row["cost"] for row in found.rows] == [1, 2, 2, 1, 1, 2]
    assert json.loads((tmp_path / "out/chosen.yaml").read_text()) == found.settings
    with (tmp_path / "out/levels.csv").open() as file:
        assert [row["score"] for row in csv.DictReader(file)] == [
            str(row["score"]) for row in found.rows
        ]
    text = (tmp_path / "out/levels.md").read_text()
    assert text == found.table
    assert "| tau=0.03 lam=10 | 3 | 53.0 | 53.0 | 53.0 | 53.0 | 1.0 | 1.0 | 2.00 | chosen |" in text


def test_equal_ones_and_failures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first of equal ones, which may be no level at all. One whose loss overflows has no score, and
    who was stopped on its account goes on."""
    accuracy = {"as-given": 0.5, "tau-0.03": 0.5, "tau-0.3": {1: 0.6, 2: None}}
    trained = pretended(monkeypatch, accuracy)
    found = tune(**TINY | {"grid": ["tau=0.03,0.3"]}, out=tmp_path / "out")
    assert whats(found) == {
        "as given": (3, "chosen"),
        "tau=0.03": (3, ""),
        "tau=0.3": (2, "failed"),
    }
    assert trained[3:5] == [("tau-0.3", 2), ("as-given", 2)]
    assert found.rows[2]["score"] is None
    assert (found.settings["tau"], found.settings["lam"]) == (0.0, None)
    pretended(monkeypatch, dict.fromkeys(accuracy))
    with pytest.raises(ValueError, match="every training failed"):
        tune(**TINY | {"grid": ["tau=0.03,0.3"]}, out=tmp_path / "failed")


def test_a_larger_grid_adds_to_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trained = pretended(monkeypatch, {"as-given": 0.5, "tau-0.03": 0.51, "tau-0.1": 0.52})
    tune(**TINY | {"grid": ["tau=0.03"]}, out=tmp_path / "out")
    before = len(trained)
    found = tune(**TINY | {"grid": ["tau=0.03,0.1"]}, out=tmp_path / "out")
    assert trained[before:] == [("tau-0.1", 1), ("tau-0.1", 2), ("tau-0.1", 3)]
    assert found.settings["tau"] == 0.1
    with pytest.raises(ValueError, match=r"a search with other settings \(settings"):
        tune(**TINY | {"grid": ["tau=0.03"], "lr": 0.1}, out=tmp_path / "out")


def test_the_error_of_a_score() -> None:
    """Against its simulation, where average and quarter are of different images: then it is at most as
    large. 20,000 draws give the deviation to 1 %."""
    by_concept = {"a": 0.3, "b": 0.6, "c": 0.7, "d": 0.8}
    part = {"accuracy": 0.6, "concept_accuracy": by_concept, "held_out": 400}
    g = torch.Generator().manual_seed(0)
    rates = torch.tensor(list(by_concept.values())).repeat(20_000, 1)
    right = torch.binomial(torch.full_like(rates, 100.0), rates, generator=g) / 100
    simulated = ((right.mean(1) + right[:, 0]) / 2).std().item()
    assert simulated * 0.99 < standard_error(part) < simulated * 1.25
    assert standard_error(part | {"accuracy": 1.0, "concept_accuracy": {"a": 1.0}}) == 0


@pytest.mark.parametrize(
    ("settings", "grid"),
    [
        ({}, {"tau": [0.01, 0.03, 0.1, 0.3], "lam": [100, 30, 10, 3]}),
        (
            {"tau": "theorem2", "adversary": "chi_square"},
            {"tau_multiple": [0.3, 1, 3], "lam": [3, 1, 0.3]},
        ),
        (
            {"tau": 0.1, "adversary": "cvar"},
            {"tau": [0.01, 0.03, 0.1, 0.3], "alpha": [0.9, 0.7, 0.5]},
        ),
    ],
    ids=str,
)
def test_the_grid_where_none_is_given(settings: dict[str, Any], grid: dict[str, Any]) -> None:
    """It fits what is trained, and all of it can be trained."""
    base = {"tau": 0.0, "lam": None} | settings
    assert tuning.read_grid(tuning.default_grid(base), base) == grid
    assert set(tuning.BY_ADVERSARY) == set(get_args(Adversary))


# --- real trainings


def test_a_search_that_is_killed_ends_with_the_same_table(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    search = TINY | {"grid": ["tau=0.05"]}
    whole = tune(**search, out=tmp_path / "whole")
    step, left = HRRL.step, [0]

    def killed(*arguments: Any) -> Any:
        if left[0] == 0:
            raise KeyboardInterrupt
        left[0] -= 1
        return step(*arguments)

    monkeypatch.setattr(HRRL, "step", killed)
    for _ in range(12):  # 5 steps at a time, where an epoch has 2 or 3
        left[0] = 5
        try:
            found = tune(**search, out=tmp_path / "cut")
            break
        except KeyboardInterrupt:
            continue

    def numbers(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
        return [{k: v for k, v in row.items() if k != "cost"} for row in rows]

    assert numbers(found.rows) == numbers(whole.rows)
    assert [row["what"] for row in whole.rows].count("chosen") == 1
    assert not list((tmp_path / "cut").rglob("checkpoints"))


def test_a_level_is_trained_as_a_run_of_its_own(tmp_path: Path) -> None:
    """What it is compared by is what HRRLTrainer reaches on the same images, without looks."""
    found = tune(**TINY | {"grid": ["tau=0.05"]}, out=tmp_path / "out")
    images = TINY["data"]
    train, held = split_rows(images.target, 0.2, 0)
    assert set(train.tolist()) | set(held.tolist()) == set(range(80))
    assert len(train) + len(held) == 80
    settings = {k: v for k, v in TINY.items() if k not in ("data", "grid", "concepts")}
    trainer = HRRLTrainer(
        data=images.subset(train), concepts="classes", validation=images.subset(held),
        **settings, tau=0.05, lam=None, progress="off",
    )  # fmt: skip
    assert found.rows[1]["accuracy"] == trainer.fit().last["accuracy"]


# --- bad input


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"grid": []}, "grid is empty"),
        ({"grid": ["tua=0.1"]}, "'tua' is not known; did you mean 'tau'"),
        ({"grid": ["tau"]}, "tau must list finite numbers"),
        ({"grid": "tau=0.1,much"}, "tau must list finite numbers, such as .* got '0.1,much'"),
        ({"grid": ["tau=0.1,0.1"]}, "tau must list different numbers"),
        ({"grid": ["tau=0.1", "tau=0.2"]}, "tau is given twice"),
        ({"grid": ["width=4,8"]}, "'width' is not known"),
        ({"grid": ["alpha=0.5"]}, "alpha is without effect but for adversary='cvar'"),
        ({"grid": ["c=2,10"]}, "c is without effect but for lam=a number; give it"),
        (
            {"grid": ["c=2"], "lam": 1.0, "adversary": "chi_square"},
            "c is without .* adversary='hrrl'",
        ),
        (
            {"grid": ["max_weight=2,4"], "adversary": "chi_square"},
            "max_weight is without .* lam=a num",
        ),
        ({"grid": ["lam=3"], "adversary": "cvar"}, "adversary='hrrl' or 'chi_square'; give it"),
        (
            {"grid": ["balance=0.5"]},
            "balance is without effect but for sampling='class' or 'concept'",
        ),
        ({"grid": ["tau_multiple=1,3"]}, "tau_multiple is without effect but for tau='theorem2'"),
        ({"grid": ["tau_multiple=0"], "tau": "theorem2"}, "tau_multiple=0: a level is positive"),
        ({"grid": ["lam=30,-1"]}, "lam=-1: a level is positive"),
        (
            {"grid": {"label_smoothing": [0.1], "tau": [float("nan")]}},
            "tau=nan: a level is positive",
        ),
        ({"held_out": 1.0}, "held_out must lie between 0 and 1"),
        ({"patience": 3}, "patience is set by the search"),
        ({"levels": "auto"}, "levels is set by the search"),
        ({"tau": "theorm2"}, "tune: tau must be .* did you mean 'theorem2'"),
        ({"precision": "half"}, "tune: precision must be one of"),
    ],
)
def test_bad_arguments(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        tune(**TINY | changes, out=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_arguments_of_a_wrong_kind(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="needs model by name, got Linear"):
        tune(torch.nn.Linear(2, 2), **TINY, out=tmp_path / "out")
    with pytest.raises(TypeError, match=r"'learning_rate' is not known"):
        tune(**TINY, learning_rate=0.1, out=tmp_path / "out")
