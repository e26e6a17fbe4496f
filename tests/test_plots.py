"""Pictures from rows alone: what is on them, and what is refused."""

from __future__ import annotations

import itertools
import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from hrrl_ext.clustering import GradientClustering
from hrrl_ext.data import ArrayImages
from hrrl_ext.evaluation.page.svg import legend_mark
from hrrl_ext.plots import (
    plot_clusters,
    plot_errors,
    plot_histories,
    plot_runs,
    plot_variances,
    read_history,
)
from hrrl_ext.plots import runs as of_runs
from hrrl_ext.plots.figures import of_run
from hrrl_ext.robust import variance_gain

figure = pytest.importorskip("matplotlib.figure")
cbook = pytest.importorskip("matplotlib.cbook")
FixedFormatter = pytest.importorskip("matplotlib.ticker").FixedFormatter


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


def test_the_error_over_epochs(drawn: dict[str, Any], tmp_path: Path) -> None:
    """A panel per method, whose scale is shared; a line per run, of its own length."""
    long, short = (
        [{"epoch": e, "accuracy": a} for e, a in enumerate(accuracies, 1)]
        for accuracies in ((0.25, 0.5, 1.0), (0.75,))
    )
    path = plot_errors(
        {"plain": {"ERM": long, "HRRL": short}, "L2-SP": {"ERM": short}}, tmp_path / "e.png"
    )
    assert path == tmp_path / "e.png"
    plain, l2sp = drawn["e.png"].axes
    assert [line.get_ydata().tolist() for line in plain.lines] == [[75, 50, 0], [25]]
    assert [ax.get_title() for ax in (plain, l2sp)] == ["plain", "L2-SP"]
    assert plain.get_ylim() == l2sp.get_ylim()
    with pytest.raises(ValueError, match="ERM has no accuracy over epochs"):
        plot_errors({"plain": {"ERM": rows(2)}}, tmp_path / "none.png")


# Runs of other methods, which have no concepts


def other(**columns: list[Any]) -> list[dict[str, Any]]:
    """Rows of a run that knows its loss, and what else is given; what is ... is not in a row."""
    length = max(map(len, columns.values()), default=3)
    return [
        {"epoch": e, "loss": 1 / e}
        | {name: values[e - 1] for name, values in columns.items() if values[e - 1] is not ...}
        for e in range(1, length + 1)
    ]


def test_a_run_without_q_or_concepts(drawn: dict[str, Any], tmp_path: Path) -> None:
    told: list[str] = []
    runs = {"ERM": other(accuracy=[0.25, 0.5])}
    paths = plot_histories(runs, tmp_path, report=told.append)
    assert [p.name for p in paths] == list(drawn) == ["loss.png", "accuracy.png", "error.png"]
    assert told == ["left out: q.png (no q); concept_accuracy.png (no concept_accuracy)"]
    (average,) = drawn["accuracy.png"].axes[0].lines
    assert (average.get_label(), average.get_ydata().tolist()) == ("ERM, average", [25, 50])
    assert drawn["loss.png"].axes[0].lines[0].get_ydata().tolist() == [1, 0.5]
    told.clear()
    assert [p.name for p in plot_histories({"bare": other()}, tmp_path, report=told.append)] == [
        "loss.png"
    ]
    (line,) = told
    assert all(name in line for name in ("q.png", "accuracy.png (no accuracy)", "error.png"))


def test_runs_of_which_some_have_q(drawn: dict[str, Any], tmp_path: Path) -> None:
    """Every picture has the runs that have its column, in their order."""
    validated = rows(2, accuracy=0.5, worst_concept_accuracy=0.4)
    for row in validated:
        row["concept_accuracy"] = {"concept 0": 0.6, "concept 1": 0.4}
    runs = {"ERM": other(accuracy=[0.25, 0.5]), "HRRL": validated, "bare": other(), "EL": rows(3)}
    told: list[str] = []
    plot_histories(runs, tmp_path, report=told.append)
    labels = {n: [line.get_label() for line in f.axes[0].lines] for n, f in drawn.items()}
    assert labels["loss.png"] == list(runs)
    assert [axes.get_title() for axes in drawn["q.png"].axes] == ["HRRL", "EL"]
    assert labels["accuracy.png"] == ["ERM, average", "HRRL, average", "HRRL, worst concept"]
    assert labels["error.png"] == ["ERM", "HRRL"]
    assert labels["concept_accuracy.png"] == ["HRRL"]
    assert told == [
        "left out: ERM, bare in q.png (no q); bare, EL in accuracy.png (no accuracy); bare, EL in "
        "error.png (no accuracy); ERM, bare, EL in concept_accuracy.png (no concept_accuracy)"
    ]


def test_nothing_is_said_where_nothing_is_left_out(drawn: dict[str, Any], tmp_path: Path) -> None:
    run = rows(2, accuracy=0.5, worst_concept_accuracy=0.4, concept_accuracy={"concept 0": 0.4})
    told: list[str] = []
    assert len(plot_histories({"run": run}, tmp_path, report=told.append)) == 5
    assert told == []


def test_values_of_some_epochs_only(drawn: dict[str, Any], tmp_path: Path) -> None:
    """A line has gaps, and what stands alone between them is a dot; q is that of the last epoch with one."""
    accuracy = [0.1, ..., 0.3, 0.4, None, 0.6, ...]
    q = [{"a": 1.0}, {}, ..., {"b": 0.7, "a": 0.3}, {"b": 0.5}, None, ...]
    run = other(accuracy=accuracy, q=q, concept_accuracy=[{"a": 0.5}, *[...] * 6])
    plot_histories({"run": run}, tmp_path)
    (line,) = drawn["accuracy.png"].axes[0].lines
    known = [10, math.nan, 30, 40, math.nan, 60, math.nan]
    assert line.get_ydata() == pytest.approx(known, nan_ok=True)
    assert (line.get_marker(), line.get_markevery()) == ("o", [0, 5])
    (error,) = drawn["error.png"].axes[0].lines
    assert error.get_ydata() == pytest.approx([100 - a for a in known], nan_ok=True)
    a, b = drawn["q.png"].axes[0].lines
    assert (a.get_markevery(), b.get_marker()) == ([0, 3], "None")
    assert drawn["concept_accuracy.png"].axes[0].lines[0].get_ydata().tolist() == [50]
    with pytest.raises(ValueError, match="bare has no accuracy over epochs"):
        plot_errors({"": {"run": run, "bare": other()}}, tmp_path / "e.png")


# Names

ODD = {
    "formula": r"$\notacommand{$",
    "dollars": r"a$b$c \$d\$",
    "dollar": "5 $",
    "underscore": "_hidden",
    "lines": "one\ntwo\x1b",
    "markup": "<b> & {0} %s {{x}}",
    "long": "long " * 100,
}


def told_by(figure: Any) -> list[str]:
    """The texts of a picture but the numbers of its ticks, as they are shown."""
    found = []
    for axes in figure.axes:
        legend = axes.get_legend()
        texts = [axes.title, *axes.texts, *(legend.get_texts() if legend else ())]
        if isinstance(axes.xaxis.get_major_formatter(), FixedFormatter):
            texts += axes.get_xticklabels()
        for text in texts:
            assert not cbook.is_math_text(text.get_text()), text.get_text()
            found.append(text.get_text().replace(r"\$", "$"))
    return found


@pytest.mark.parametrize("name", ODD)
def test_a_name_is_shown_as_it_is(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No formula, no name that a legend hides, no name that needs more than its place; all are drawn."""
    odd = ODD[name]
    figures: dict[str, Any] = {}
    save = figure.Figure.savefig

    def keep(self: Any, path: Path, **_: Any) -> None:
        figures[path.name] = self
        save(self, path, dpi=20)

    monkeypatch.setattr(figure.Figure, "savefig", keep)
    concepts = {odd: 0.6, **{f"{k}": 0.04 * k for k in range(11)}}
    run = rows(1, accuracy=0.5, worst_concept_accuracy=0.4, mu=40.0, lam=2.0, s=100, c=3.0)
    few = [row | {"q": {odd: 0.5}, "concept_accuracy": {odd: 0.5}} for row in run]
    many = [row | {"q": concepts, "concept_accuracy": concepts} for row in run]
    pictures = plot_histories({odd: few}, tmp_path)
    assert len(pictures) == 6
    expected = " ".join(odd.split()).replace("\x1b", r"\x1b")
    for picture in pictures:
        found = told_by(figures[picture.name])
        assert any(expected[:40] in text and len(text) < 80 for text in found), picture
    assert len(figures["q.png"].axes[0].get_legend().get_texts()) == 1
    plot_histories({"many": many}, tmp_path)
    assert any(expected[:40] in text for text in told_by(figures["q.png"]))
    plot_variances({odd: [row | {"estimator": odd} for row in recording(GC=[1.0, 2.0])]}, tmp_path)
    assert sum(expected[:40] in text for text in told_by(figures["variance.png"])) == 3


# On disk


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


def test_runs_that_are_files_of_one_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They are called by their files; what was recorded beside them belongs to none."""
    seen: list[list[str]] = []

    def named(histories: dict[str, Any], *_: object, **__: object) -> list[Path]:
        seen.append(list(histories))
        return []

    monkeypatch.setattr(of_runs, "plot_histories", named)
    line = json.dumps(rows(1)[0]) + "\n"
    write(tmp_path / "erm", line)
    for name in ("erm.jsonl", "hrrl.jsonl", "metrics.jsonl"):
        (tmp_path / name).write_text(line)
    (tmp_path / "variance.jsonl").write_text("")
    monkeypatch.chdir(tmp_path)
    both = [Path("erm.jsonl"), Path("hrrl.jsonl")]
    assert plot_runs(both, tmp_path) == []
    plot_runs([*both, "erm"], tmp_path)
    assert seen == [["erm", "hrrl"], ["erm.jsonl", "hrrl.jsonl", "erm"]]
    with pytest.raises(ValueError, match="nothing has been recorded"):
        plot_runs([tmp_path, *both], tmp_path)
    with pytest.raises(ValueError, match="the same run is given twice"):
        plot_runs([both[0], tmp_path / "erm.jsonl"], tmp_path)


# --- gradients


def clustered(sizes: list[int], side: int = 4) -> tuple[GradientClustering, ArrayImages]:
    """As if these had been found: example i is an image of brightness i, at distance -i."""
    clustering = GradientClustering(torch.nn.Linear(2, 2), len(sizes))
    clustering.cluster_size = torch.tensor(sizes)
    clustering.assignment = torch.arange(len(sizes)).repeat_interleave(clustering.cluster_size)
    count = sum(sizes)
    clustering.distance = -torch.arange(count).double()
    clustering.history = [{"round": r, "objective": 1 / r, "explained": 0.1 * r} for r in (1, 2, 3)]
    pixels = torch.arange(count, dtype=torch.uint8).view(-1, 1, 1, 1).expand(-1, 3, side, side + 1)
    return clustering, ArrayImages(pixels.contiguous(), torch.zeros(count, dtype=torch.int64))


def test_pictures_of_a_clustering(drawn: dict[str, Any], tmp_path: Path) -> None:
    """The largest cluster first, ties by number; in each the nearest first, and 8 at most."""
    clustering, images = clustered([2, 0, 9, 2])
    assert [p.name for p in plot_clusters(clustering, tmp_path)] == ["sizes.png", "rounds.png"]
    plot_clusters(clustering, tmp_path, images)
    (sizes,) = drawn["sizes.png"].axes
    assert [bar.get_height() for bar in sizes.patches] == [9, 2, 2, 0]
    assert sizes.lines[0].get_ydata()[0] == 13 / 4
    objective, explained = drawn["rounds.png"].axes
    assert list(objective.lines[0].get_ydata()) == [1, 1 / 2, 1 / 3]
    assert list(explained.lines[0].get_ydata()) == pytest.approx([10, 20, 30])
    assert "Eq. 4.2" in objective.get_ylabel()

    (axes,) = drawn["examples.png"].axes
    assert [t.get_text() for t in axes.get_yticklabels()] == ["2 (9)", "0 (2)", "3 (2)"]
    grid = torch.tensor(axes.images[0].get_array())
    assert grid.shape == (3 * 5, 8 * 6, 3)
    shown = (grid[::5, ::6, 0] * 255).round().int().tolist()  # a corner of each image; 255 is none
    assert shown[0] == [10, 9, 8, 7, 6, 5, 4, 3]
    assert shown[1] == [1, 0] + [255] * 6
    assert shown[2] == [12, 11] + [255] * 6
    for row, tick in enumerate(axes.get_yticks()):
        assert tick == 5 * row + 2


def test_no_more_than_eight_clusters_are_shown(drawn: dict[str, Any], tmp_path: Path) -> None:
    clustering, images = clustered([3] * 11)
    plot_clusters(clustering, tmp_path, images)
    labels = [t.get_text() for t in drawn["examples.png"].axes[0].get_yticklabels()]
    assert labels == [f"{k} (3)" for k in range(8)]


def test_clusters_of_other_images(tmp_path: Path) -> None:
    clustering, _ = clustered([2, 2])
    with pytest.raises(ValueError, match="images are 3, and 4 examples were clustered"):
        plot_clusters(clustering, tmp_path, clustered([3])[1])
    clustering.history = []
    with pytest.raises(ValueError, match="call fit first"):
        plot_clusters(clustering, tmp_path)


def recording(**values: list[float | None]) -> list[dict[str, Any]]:
    """Of each estimator the average variance at steps 0, 10, ..., ± a tenth of it."""
    return [
        {
            "step": 10 * i, "estimator": name.replace("_", "-"), "average_variance": value,
            "standard_error": None if value is None else value / 10,
            "normalised_variance": None if value is None else value / 2,
        }
        for name, row in values.items() for i, value in enumerate(row)
    ]  # fmt: skip


def test_variance_over_steps(drawn: dict[str, Any], tmp_path: Path) -> None:
    """A line and a band per estimator; 1e-4 of the largest and below, as rounding is, is not shown."""
    rows = recording(SG_B=[8.0, 4.0], SVRG=[1e-20, 2.0], GC=[0.0, None])
    plot_variances({"run": rows}, tmp_path)
    average, normalised = drawn["variance.png"].axes
    assert [list(line.get_ydata()) for line in average.lines[:2]] == [[8.0, 4.0], [1e-20, 2.0]]
    assert math.isnan(average.lines[2].get_ydata()[1])
    assert list(normalised.lines[0].get_ydata()) == [4.0, 2.0]
    assert list(average.lines[0].get_xdata()) == [0, 10]
    assert (len(average.collections), len(normalised.collections)) == (3, 0)
    band = average.collections[0].get_paths()[0].vertices[:, 1]
    assert (band.min(), band.max()) == pytest.approx((3.6, 8.8))
    low, high = average.get_ylim()
    assert (low, high) == pytest.approx((8e-4 / 1.5, 8 * 1.5))
    names = [t.get_text() for t in normalised.get_legend().get_texts()]
    assert names == ["SG-B", "SVRG", "GC"]


def test_variance_of_two_runs_and_of_zeros_alone(drawn: dict[str, Any], tmp_path: Path) -> None:
    plot_variances({"a": recording(GC=[1.0]), "b": recording(GC=[0.0, 0.0])}, tmp_path)
    panels = drawn["variance.png"].axes
    assert [p.get_title() for p in panels] == ["a", "a", "b", "b"]
    assert panels[0].lines[0].get_marker() == "o"  # a single point still shows
    assert [p.get_yscale() for p in panels] == ["log", "log", "linear", "linear"]
    with pytest.raises(ValueError, match="nothing has been recorded"):
        plot_variances({"a": []}, tmp_path)


def test_a_recording_beside_a_run_is_drawn_too(tmp_path: Path) -> None:
    run = write(tmp_path / "run", json.dumps(rows(2)[0]) + "\n")
    other = write(tmp_path / "other", json.dumps(rows(2)[0]) + "\n")
    lines = [json.dumps(row) + "\n" for row in recording(GC=[1.0, 2.0])]
    (run / "variance.jsonl").write_text("".join(lines))
    names = [p.name for p in plot_runs([run, other], tmp_path / "out")]
    assert names == ["loss.png", "q.png", "variance.png"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "none of the run's epochs is over yet"),
        ('{"epoch": 1}\n', "line 1 is no row of a run"),
        ("[1]\n", "line 1 is no row"),
        (json.dumps(rows(1)[0]) + '\n{"epoch": 2, "lo', "line 2 is not valid JSON"),
        ('{"epoch": 1, "loss": "0.5"}', 'line 1: loss must be a number, got "0.5"'),
        (
            '{"epoch": 1, "loss": 0.5}\n{"epoch": [2], "loss": 0.5}',
            r"line 2: epoch must be a number, got \[2\]",
        ),
        ('{"epoch": 1, "loss": 0.5, "q": [0.5, 0.5]}', "line 1: q must be an object of numbers"),
        ('{"epoch": 1, "loss": 0.5, "q": {"a": true}}', "line 1: q must be an object of numbers"),
        ('{"epoch": 1, "loss": 0.5}\n\n', "line 2 is not valid JSON"),
    ],
)
def test_files_that_are_no_metrics(text: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        read_history(write(tmp_path / "run", text) / "metrics.jsonl")


def test_a_folder_without_a_run(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"metrics\.jsonl does not exist"):
        plot_runs([tmp_path], tmp_path)


def test_twenty_runs_look_different(drawn: dict[str, Any], tmp_path: Path) -> None:
    both = {"accuracy": 0.5, "worst_concept_accuracy": 0.25}
    plot_histories({f"run {k}": rows(3, **both) for k in range(20)}, tmp_path)
    for name, lines in {"loss.png": 20, "accuracy.png": 40}.items():
        looks = {
            str((line.get_color(), line._dash_pattern, line.get_linewidth()))
            for line in drawn[name].axes[0].lines
        }
        assert len(looks) == lines, name
    assert len({str(of_run(k)) for k in range(60)}) == 60
    assert len({str(legend_mark(k)) for k in range(64)}) == 64
