"""tools/records.py: what is packed is unpacked, the same parts give the same bytes, and nothing is written over."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest
import records

from hrrl_ext.storage import read_json, write_json
from hrrl_ext.transfer.study.parts import Parts


@pytest.fixture
def study(tmp_path: Path) -> Path:
    folder = tmp_path / "study"
    for seed in (1, 0):
        parts = Parts(folder / "trials" / f"ERM {seed}")
        parts.keep("training", {"seed": seed}, lambda: {"accuracy": 0.5, "steps": {"0": 1.5}})
    write_json(folder / "trials/ERM 0/run/config.json", {"epochs": 3})  # a run's own
    return folder


def contents(folder: Path) -> dict[str, object]:
    return {p.relative_to(folder).as_posix(): read_json(p) for p in folder.rglob("training.json")}


def test_there_and_back(study: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file, other = tmp_path / "docs/trials.jsonl.gz", tmp_path / "other"
    records.main(["pack", str(study), str(file)])
    records.main(["unpack", str(file), str(other)])
    assert capsys.readouterr().out == f"2 parts in {file}\n2 new parts in {other}\n"
    assert contents(other) == contents(study) and not list(other.rglob("config.json"))
    made = [p.read_bytes() for p in sorted(study.rglob("training.json"))]
    assert [p.read_bytes() for p in sorted(other.rglob("training.json"))] == made
    again = tmp_path / "again.gz"
    records.pack(other, again)
    assert again.read_bytes() == file.read_bytes()
    assert records.unpack(file, other) == 0  # they are there


def test_what_is_there_stays(study: Path, tmp_path: Path) -> None:
    file, other = tmp_path / "trials.jsonl.gz", tmp_path / "other"
    records.pack(study, file)
    Parts(other / "trials" / "ERM 1").keep("training", {"seed": 7}, dict)
    with pytest.raises(ValueError, match=r"is not what .* has; choose another folder"):
        records.unpack(file, other)
    assert len(contents(other)) == 1  # nothing of the others either


def test_bad_input(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="holds no part of a study"):
        records.pack(tmp_path / "empty", tmp_path / "trials.jsonl.gz")
    line = json.dumps({"path": "../beside.json", "part": {"of": {}}})
    (tmp_path / "bad.gz").write_bytes(gzip.compress(line.encode()))
    with pytest.raises(ValueError, match="lies outside the study"):
        records.unpack(tmp_path / "bad.gz", tmp_path / "study")
    assert not (tmp_path / "beside.json").exists()


def test_a_file_of_another_kind_is_told_in_a_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "notes.txt"
    file.write_text("no trials")
    with pytest.raises(SystemExit):
        records.main(["unpack", str(file), str(tmp_path / "study")])
    said = capsys.readouterr().err.splitlines()[-1]
    assert f"error: {file} is no file that pack has written: " in said
    assert not (tmp_path / "study").exists()
