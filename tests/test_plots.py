"""Pictures from rows alone: what is on them, and what is refused."""

from __future__ import annotations

import itertools
import json
import math
from pathlib import Path
from typing import Any

import pytest

from hrrl_ext.plots import plot_histories, plot_runs, read_history
from hrrl_ext.robust import variance_gain

figure = pytest.importorskip("matplotlib.figure")


def rows(concepts: int, **more: Any) -> list[dict[str, Any]]:
    names = [f"concept {k}" for k in range(concepts)]
    return [
        {"epoch": e, "loss": 1 / e, "q": {k: (i + e) / 100 for i, k in enumerate(names)}} | more
        for e in (1, 2, 3)
    ]


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Figures by file name; nothing is written."""
    figures: dict[str, Any] = {}

    def keep(self: Any, path: Path, **_: Any) -> None:
        figures[path.name] = self

    monkeypatch.setattr(figure.Figure, "savefig", keep)
    return figures


def test_h_of_the_measured_mu_and_of_the_one_that_c_stands_for(
    drawn: dict[str, Any], tmp_path: Path
) -> None:
    lam, s, c = 2.0, 100, 3.0
    history = rows(3, mu=40.0, lam=lam, s=s, c=c)
    plot_histories({"run": history}, tmp_path)
    (axes,) = drawn["h.png"].axes
    points = [line for line in axes.lines if len(line.get_xdata()) == 1]
    assert [p.get_xdata()[0] for p in points] == [s, s]
    measured, implied = (p.get_ydata()[0] for p in points)
    assert measured == pytest.approx(variance_gain(s, 40.0, lam))
    assert implied == pytest.approx((c - 1) * math.sqrt(s * lam))  # h at its best c
    assert "λ = 2, s = 100, c = 3" in axes.get_title()
    assert any("μ = 40" in text.get_text() for text in axes.get_legend().get_texts())


@pytest.mark.parametrize("change", [{"s": 1}, {"s": 0}, {"mu": None}], ids=str)
def test_no_h_without_a_slow_phase(
    change: dict[str, Any], drawn: dict[str, Any], tmp_path: Path
) -> None:
    history = rows(3, **({"mu": 40.0, "lam": 2.0, "s": 100, "c": 1.0} | change))
    if "mu" in change:
        for row in history:
            del row["mu"]
    plot_histories({"run": history}, tmp_path)
    assert "h.png" not in drawn


def test_few_concepts_have_a_legend_and_many_the_names_of_the_largest(
    drawn: dict[str, Any], tmp_path: Path
) -> None:
    plot_histories({"few": rows(10)}, tmp_path)
    assert len(drawn["q.png"].axes[0].get_legend().get_texts()) == 10
    plot_histories({"many": rows(11)}, tmp_path)
    (axes,) = drawn["q.png"].axes
    assert axes.get_legend() is None
    assert [t.get_text() for t in axes.texts] == [f"concept {k}" for k in (10, 9, 8, 7, 6)]
    heights = [t.xy[1] for t in axes.texts]
    low, high = axes.get_ylim()
    assert all(a - b >= 0.049 * (high - low) for a, b in itertools.pairwise(heights))


def test_a_concept_that_was_not_measured_leaves_a_gap(
    drawn: dict[str, Any], tmp_path: Path
) -> None:
    history = rows(3, accuracy=0.5, worst_concept_accuracy=0.4)
    for row in history:
        row["concept_accuracy"] = {"concept 0": 0.6, "concept 1": None, "concept 2": 0.4}
    plot_histories({"run": history}, tmp_path)
    (axes,) = drawn["concept_accuracy.png"].axes
    assert [t.get_text() for t in axes.get_xticklabels()] == ["concept 2", "concept 0"]
    average, worst = drawn["accuracy.png"].axes[0].lines
    assert (average.get_ydata()[-1], worst.get_ydata()[-1]) == (50.0, 40.0)


def write(folder: Path, text: str) -> Path:
    folder.mkdir(parents=True)
    (folder / "metrics.jsonl").write_text(text, encoding="utf-8")
    return folder


def test_runs_on_disk(tmp_path: Path) -> None:
    """A folder or the file itself, one epoch or many; runs of the same name are told apart."""
    one = "".join(json.dumps(row) + "\n" for row in rows(2))
    a = write(tmp_path / "a/run", one)
    b = write(tmp_path / "b/run", one.partition("\n")[0])
    out = plot_runs([a, b / "metrics.jsonl"], tmp_path / "out")
    assert [p.name for p in out] == ["loss.png", "q.png"]
    assert all(p.read_bytes().startswith(b"\x89PNG") for p in out)
    with pytest.raises(ValueError, match="the same run is given twice"):
        plot_runs([a, a / "metrics.jsonl"], tmp_path)
    with pytest.raises(ValueError, match="at least one"):
        plot_runs([], tmp_path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "none of the run's epochs is over yet"),
        ('{"epoch": 1}\n', "line 1 is no row of a run"),
        ("[1]\n", "line 1 is no row"),
        (json.dumps(rows(1)[0]) + '\n{"epoch": 2, "lo', "line 2 is not valid JSON"),
    ],
)
def test_files_that_are_no_metrics(text: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        read_history(write(tmp_path / "run", text) / "metrics.jsonl")


def test_a_folder_without_a_run(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"metrics\.jsonl does not exist"):
        plot_runs([tmp_path], tmp_path)
