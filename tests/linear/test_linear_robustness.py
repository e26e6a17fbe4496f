"""examples/linear_robustness.py: its data and tables, on a small problem, and the page as committed."""

from __future__ import annotations

import csv
from pathlib import Path

import linear_page
import linear_robustness as example
import pytest
from problems_linear import largest_radius, noise_rows
from torch.testing import assert_close

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "docs" / "results" / "linear"
METHODS = 4 + 5 + 8 + 4


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("linear")
    page = folder / "page.md"
    names = ("panels", "shares", "course", "agreement", "times")
    page.write_text("".join(f"<!-- table: {n} -->\n<!-- end: {n} -->\n" for n in names))
    settings = "--seeds 0 --ratios 2 4 --swept-ratio 4 --d 8 --steps 40"
    example.main(["--out", str(folder), "--page", str(page), *settings.split()])
    return folder


def read(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_the_data_are_the_thesis() -> None:
    problem = example.Problem([1], 20, 4, example.Clock())
    assert_close(problem.rows[0], noise_rows(5, 20, seed=1))
    for norm in ("l1", "l2", "linf"):
        best = problem.best[linear_page.NORMS[norm]].item()
        assert best == pytest.approx(largest_radius(problem.rows[0], norm), rel=1e-7)
    assert (len(example.RATES), len(example.LAMS)) == (19, 15)


def test_every_method_is_measured_by_every_attack(out: Path) -> None:
    rows = read(out / "trials.csv")
    assert len(rows) == METHODS * 4 * 2
    for row in rows:
        eps, star = float(row["eps"]), float(row["eps_star"])
        assert eps <= star * (1 + 1e-5)  # as printed, with six digits
        assert float(row["share_own"]) <= float(row["share"]) + 1e-5
        if eps > 0:
            assert float(row["eps_by_attack"]) == pytest.approx(eps, rel=1e-4)
    exact = [r for r in rows if r["method"].startswith("exact") and r["matches"] == "1"]
    assert len(exact) == 4 * 2 and {r["share"] for r in exact} == {"1.00000"}
    assert {path.name for path in out.glob("*.png")} == {
        *("attack.png", "margin.png", "sweep-a.png", "sweep-b.png")
    }


def test_the_page_gets_its_tables(out: Path) -> None:
    text = (out / "page.md").read_text()
    assert text.count("| coordinate descent |") >= 3 and "Of " in text and "| all |" in text


def test_the_sweeps_know_where_they_turn(out: Path) -> None:
    sweep = [r for r in read(out / "sweep.csv") if r["share"]]
    trained = {float(r["value"]): float(r["share"]) for r in sweep if r["figure"] == "a"}
    assert set(trained) <= {round(k, 2) for k in example.SWEPT}
    hinge = [float(r["share"]) for r in sweep if r["loss"] == "hinge"]
    assert max(hinge) == pytest.approx(1, abs=1e-5) and hinge[0] == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize(
    ("own", "others", "faults"),
    [
        ({1: 0.96, 32: 0.99}, {1: 0.9, 32: 0.5}, []),
        ({1: 0.94, 32: 0.99}, {1: 0.9, 32: 0.5}, ["below 0.95"]),
        ({1: 0.96, 32: 0.99}, {1: 0.96, 32: 0.5}, ["another is as good"]),
        ({1: 0.99, 32: 0.96}, {1: 0.5, 32: 0.5}, ["the gap does not grow"]),
    ],
)
def test_a_verdict(own: dict[int, float], others: dict[int, float], faults: list[str]) -> None:
    assert linear_page.verdict(own, others) == faults


@pytest.mark.skipif(not RESULTS.exists(), reason="needs the source tree")
def test_the_committed_page_is_that_of_its_rows() -> None:
    """Its tables, made anew from trials.csv and course.csv."""
    rows = [
        r | {"d/n": int(r["d/n"]), "matches": int(r["matches"])}
        for r in read(RESULTS / "trials.csv")
    ]
    course = [
        r | {"d/n": int(r["d/n"]), "steps": int(r["steps"])} for r in read(RESULTS / "course.csv")
    ]
    page = (ROOT / "docs" / "results" / "linear.md").read_text(encoding="utf-8")
    for table in (linear_page.panels(rows), linear_page.shares(rows), linear_page.agreement(rows)):
        assert table in page
    assert linear_page.speeds(course) in page
    assert len(rows) == METHODS * 4 * 6 * 3
