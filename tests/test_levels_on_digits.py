"""examples/levels_on_digits.py: what it holds out and chooses by, that it goes on and writes the page."""

from __future__ import annotations

import itertools
from dataclasses import replace
from pathlib import Path

import levels_on_digits as example
import pytest

PAGE = Path(__file__).parents[1] / "docs/tuning.md"
SMALL = {
    "chi-square": ["ERM", "lam=1", "chi_square lam=0.3, horizon 3"],
    "auto": ["ERM", "levels=auto"],
}


@pytest.fixture
def args(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A few levels of each table, of width 2 and one epoch; that of lam is searched, and collapses."""
    for name, names in SMALL.items():
        whole = example.EXPERIMENTS[name]
        levels = {level: whole.levels[level] for level in names}
        levels |= {level: {**levels[level], "lam": 0.01} for level in names if level == "lam=1"}
        training = {**whole.training, "width": 2, "batch_size": 256, "epochs": 1}
        chosen = {choice: ["lam=1"] for choice in whole.chosen}
        small = replace(whole, levels=levels, training=training, chosen=chosen)
        monkeypatch.setitem(example.EXPERIMENTS, name, small)
    return ["--out", str(tmp_path / "out"), "--seeds", "0"]


@pytest.mark.filterwarnings("ignore:in epoch")  # of a lam that collapses
def test_it_goes_on_and_writes_its_tables(
    args: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    page, old = tmp_path / "page.md", PAGE.read_text(encoding="utf-8")
    page.write_text(old, encoding="utf-8")
    example.main([*args, "--tables", "chi-square"])
    kept = {path: path.read_bytes() for path in tmp_path.rglob("trial.json")}
    example.main([*args, "--page", str(page)])
    assert len(kept) == 3 and len(capsys.readouterr().out.splitlines()) == 4 + 2
    assert all(path.read_bytes() == before for path, before in kept.items())  # not made again
    new = page.read_text(encoding="utf-8")
    assert "3 of 3 trials are through: 3 steps on 716 images, the smallest class of 8." in new
    for way in ("lam chosen", *itertools.chain(*SMALL.values())):
        assert f"| {way} | 1 | " in new
    assert "1 of 1 |" in new  # of lam the trainer warned
    assert new.split("<!-- table:")[0] == old.split("<!-- table:")[0]
    assert "levels=auto,0,," in (tmp_path / "results/levels/auto.csv").read_text(encoding="utf-8")


def test_the_best_on_held_out_images_is_chosen() -> None:
    """Whatever the test images say, and only where all were trained."""
    experiment = replace(example.EXPERIMENTS["auto"], chosen={"best": ["weak", "strong"]})
    score = {
        ("weak", 0): 0.2,
        ("strong", 0): 0.3,
        ("weak", 1): 0.3,
        ("strong", 1): 0.2,
        ("weak", 2): 0.9,
    }
    rows = [
        {"way": way, "seed": seed, "held-out score": value, "score": -value}
        for (way, seed), value in score.items()
    ]
    found = example.chosen_of(rows, experiment)
    assert [(row["way"], row["seed"], row["chosen"]) for row in found] == [
        ("best", 0, "strong"),
        ("best", 1, "weak"),
    ]
