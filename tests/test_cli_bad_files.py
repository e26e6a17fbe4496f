"""hrrl report and hrrl plot on files that are none of theirs: one line that names the file, and no output."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from test_cli import run

ROW = {"epoch": 1, "loss": 0.5, "q": {"a": 1.0}}
KEYS = (
    "name", "about", "accuracy", "perturbation_curve", "calibration", "corruptions", "attacks",
    "max_epsilon", "warnings",
)  # fmt: skip


def refused(capsys: pytest.CaptureFixture[str], command: str, what: Path, out: Path) -> str:
    """The line; nothing is written, and nothing else is said."""
    status, stdout, stderr = run(capsys, command, what, "--out", out)
    assert (status, stdout) == (1, "")
    assert not out.exists()
    assert stderr.count("\n") == 1
    assert len(stderr) < 500
    line = stderr.removeprefix(f"hrrl {command}: error: ")
    assert line != stderr
    return line


def report(**changes: Any) -> bytes:
    return json.dumps({"format": 1, **dict.fromkeys(KEYS), **changes}).encode()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is not valid JSON"),
        (report()[:100], "is not valid JSON"),
        (b"\xff\xfe{}", "is not valid JSON"),
        (b"[" * 100_000, "is not valid JSON"),
        (b"[1]", "must hold an object, got list"),
        (b"{}", "is no report of this version; evaluate again"),
        (report(format=2), "is no report of this version; evaluate again"),
        (report(format="1"), "is no report of this version"),
        (report(fairness={}), "is no report of this version"),
        (report(), "name must be text, got None; evaluate again"),
        (report(name="a", about={"data": 3}), "about.data must be text, got 3; evaluate again"),
        (
            report(name="a", about=dict.fromkeys(("data", "hrrl_ext"), "x") | {"points": "ten"}),
            "about.points must be a count, got 'ten'",
        ),
    ],
    ids=lambda value: str(value[:30]),
)
def test_no_report(
    content: bytes, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The folder itself, and one that holds it."""
    file = tmp_path / "evaluation" / "model" / "report.json"
    file.parent.mkdir(parents=True)
    file.write_bytes(content)
    for folder in (file.parent, file.parent.parent):
        line = refused(capsys, "report", folder, tmp_path / "page.html")
        assert line.startswith(str(file))
        assert message in line


@pytest.mark.parametrize("kind", ["nothing", "an empty folder", "a file"])
def test_no_folder_of_an_evaluation(
    kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    what = tmp_path / "x"
    if kind == "an empty folder":
        what.mkdir()
    elif kind == "a file":
        what.write_text("{}")
    line = refused(capsys, "report", what, tmp_path / "page.html")
    assert line.startswith(f"{what} holds no report.json")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty: none of the run's epochs is over yet"),
        (json.dumps(ROW).encode()[:20], "line 1 is not valid JSON"),
        (json.dumps(ROW).encode() + b"\n{", "line 2 is not valid JSON"),
        (b"\xff\xfe", "is not text in UTF-8"),
        (b"[" * 100_000, "line 1 is not valid JSON"),
        (b"epoch,loss\n1,0.5\n", "line 1 is not valid JSON"),
        (report(), "line 1 is no row of a run: epoch and loss belong there"),
        (json.dumps(ROW | {"accuracy": "0.5"}).encode(), 'accuracy must be a number, got "0.5"'),
        (json.dumps(ROW | {"q": 1}).encode(), "q must be an object of numbers, got 1"),
    ],
    ids=lambda value: str(value[:30]),
)
def test_no_metrics(
    content: bytes, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The folder of a run, and the file itself."""
    file = tmp_path / "run" / "metrics.jsonl"
    file.parent.mkdir()
    file.write_bytes(content)
    for what in (file.parent, file):
        line = refused(capsys, "plot", what, tmp_path / "pictures")
        assert line.startswith(str(file))
        assert message in line


def test_no_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for what in (tmp_path, tmp_path / "nothing"):
        line = refused(capsys, "plot", what, tmp_path / "pictures")
        assert line.startswith(f"{what / 'metrics.jsonl'} does not exist: no run, or none")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"step": 1}', "line 1 is no row of a VarianceRecorder"),
        ('{"step": 1, "estimator": "GC", "average_variance": "1"}', "average_variance must be a"),
    ],
)
def test_no_recording_beside_a_run(
    content: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """It is refused before anything is drawn."""
    (tmp_path / "metrics.jsonl").write_text(json.dumps(ROW))
    (tmp_path / "variance.jsonl").write_text(content)
    line = refused(capsys, "plot", tmp_path, tmp_path / "pictures")
    assert line.startswith(str(tmp_path / "variance.jsonl"))
    assert message in line


def test_what_is_left_out_is_a_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("matplotlib")
    (tmp_path / "metrics.jsonl").write_text('{"epoch": 1, "loss": 0.5, "accuracy": 0.25}\n')
    status, stdout, stderr = run(capsys, "plot", tmp_path, "--out", tmp_path / "out")
    assert (status, stderr) == (0, "")
    pictures = [f"saved {tmp_path / 'out' / name}.png" for name in ("loss", "accuracy", "error")]
    left_out = "left out: q.png (no q); concept_accuracy.png (no concept_accuracy)"
    assert stdout.splitlines() == [left_out, *pictures]
