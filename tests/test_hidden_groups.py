"""examples/hidden_groups.py: the data are what it says, and it runs and writes its page."""

from __future__ import annotations

import csv
from pathlib import Path
from types import ModuleType

import hidden_groups
import pytest
import torch

from hrrl_ext.demo.groups import found_share
from hrrl_ext.transfer.study import difference

ROOT = Path(__file__).parents[1]
SMALL = ["--epochs", "2", "--warm-up", "1", "--clusters", "3", "--width", "2"]


@pytest.fixture
def example(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.setattr(hidden_groups, "LAM_GRID", (50.0,))
    monkeypatch.setattr(hidden_groups, "K_GRID", (3,))
    return hidden_groups


def test_the_data(example: ModuleType) -> None:
    sets = example.coloured_digits(seed=1)
    for name, share in (("train", 0.05), ("validation", 0.5), ("test", 0.5)):
        images, group = sets[name].images, sets[name].group
        count = torch.bincount(group, minlength=4).view(2, 2)  # class, colour
        other = torch.stack([count[0, 1], count[1, 0]])
        assert torch.equal(other, torch.round(share * count.sum(1)).long())
        assert sets[name].minority.sum() == other.sum()
        assert torch.equal(images.target, group // 2)
        red, green, blue = images.images.flatten(2).sum(2).T
        assert torch.equal(green > 0, group % 2 == 1)
        assert torch.equal(red > 0, group % 2 == 0)
        assert blue.sum() == 0
    assert len(sets["train"].images) + len(sets["validation"].images) == 1347


def test_what_was_found() -> None:
    """Six of the minority: three alone, one in two halves (not most), two outnumbered."""
    group = torch.tensor([1, 1, 2, 1, 0, 2, 1, 0, 3, 3])
    concept = torch.tensor([0, 0, 0, 1, 1, 2, 2, 2, 2, 2])
    assert found_share(concept, (group == 1) | (group == 2)) == 0.5


def test_it_compares_and_writes_its_page(
    example: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    page = tmp_path / "page.md"
    old = (ROOT / "docs/results/hidden-groups.md").read_text(encoding="utf-8")
    page.write_text(old, encoding="utf-8")
    example.main([*SMALL, "--seeds", "0", "1", "--page", str(page)])
    printed = capsys.readouterr().out
    new = page.read_text(encoding="utf-8")
    for shown in printed.split("\n\n")[1:]:
        assert shown.strip() in new
    rows = list(csv.DictReader((tmp_path / "page/trials.csv").open(encoding="utf-8")))
    worst = {(row["way"], row["seed"]): float(row["worst_group"]) for row in rows}
    above = difference([worst[example.FOUND, s] - worst[example.ERM, s] for s in "01"])
    assert "| CL, discovered − ERM | " in new and f" | {above} |" in new
    for way in example.WAYS:
        assert f"| {way} |" in new
    assert new.split("<!-- table: accuracy -->")[0] == old.split("<!-- table: accuracy -->")[0]
    assert new.split("<!-- end: difference -->")[1] == old.split("<!-- end: difference -->")[1]
    assert len(rows) == 2 * 4
    page.write_text("no place", encoding="utf-8")
    with pytest.raises(ValueError, match="no place for the table"):
        example.write_page([], page)


def test_it_searches(example: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    example.main([*SMALL, "--search"])
    lines = capsys.readouterr().out.splitlines()
    assert [line.split("|")[1].strip() for line in lines[2:]] == ["true groups", "clusters:3"]
