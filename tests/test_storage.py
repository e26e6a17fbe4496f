"""Files whole or not at all, in UTF-8 everywhere; folders that are free or hold the same work."""

from __future__ import annotations

import contextlib
import csv
import json
import math
import os
import resource
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hrrl_ext.storage import (
    WorkFolder,
    append_row,
    read_json,
    read_rows,
    replacing,
    write_csv,
    write_json,
    write_rows,
    write_text,
)

PACKAGE = str(Path(__file__).resolve().parents[1] / "hrrl_ext")
WRITERS: dict[str, Callable[[Path, str], None]] = {
    "text": write_text,
    "json": lambda path, text: write_json(path, {"a": text}),
    "rows": lambda path, text: write_rows(path, [{"a": text}]),
    "append": lambda path, text: append_row(path, {"a": text}),
    "csv": lambda path, text: write_csv(path, ["a"], [{"a": text}]),
}
"""Each writes a text to a path."""


# --- writing


def test_the_bytes_of_each_format(tmp_path: Path) -> None:
    """As files have them that older versions wrote: formats do not change."""
    value = {"name": "Zürich", "n": 3, "x": [0.1, 1e-9], "none": None, "by": {"a": True}}
    write_json(tmp_path / "a", value)
    assert (tmp_path / "a").read_bytes() == (
        '{\n "name": "Zürich",\n "n": 3,\n "x": [\n  0.1,\n  1e-09\n ],\n "none": null,\n'
        ' "by": {\n  "a": true\n }\n}\n'
    ).encode()
    write_rows(tmp_path / "b", [value, {}])
    line = '{"name": "Z\\u00fcrich", "n": 3, "x": [0.1, 1e-09], "none": null, "by": {"a": true}}\n'
    assert (tmp_path / "b").read_bytes() == line.encode() + b"{}\n"
    append_row(tmp_path / "b", {"last": 1})
    assert (tmp_path / "b").read_bytes() == line.encode() + b'{}\n{"last": 1}\n'
    write_csv(tmp_path / "c", ["x", "y"], [{"x": 0.5, "y": 'a,"b"'}, {"y": None}, {"x": "ü"}])
    assert (tmp_path / "c").read_bytes() == 'x,y\r\n0.5,"a,""b"""\r\n,\r\nü,\r\n'.encode()
    write_csv(tmp_path / "c", ["x"], [{"x": 1}], line_end="\n")
    assert (tmp_path / "c").read_bytes() == b"x\n1\n"
    write_text(tmp_path / "d", "ü\r\n\n")
    assert (tmp_path / "d").read_bytes() == "ü\r\n\n".encode()


def test_nothing_to_write(tmp_path: Path) -> None:
    write_text(tmp_path / "a", "")
    write_rows(tmp_path / "b", [])
    write_json(tmp_path / "c", {})
    write_csv(tmp_path / "d", ["x"], [])
    written = [(tmp_path / name).read_bytes() for name in "abcd"]
    assert written == [b"", b"", b"{}\n", b"x\r\n"]
    assert read_rows(tmp_path / "b", ["x", "y"], of="a test") == []


def test_folders_are_made_and_nothing_else_is_left(tmp_path: Path) -> None:
    for name, write in WRITERS.items():
        for text in ("first", "second"):
            write(tmp_path / "in" / name / "file", text)
        assert [p.name for p in (tmp_path / "in" / name).iterdir()] == ["file"]
        assert b"second" in (tmp_path / "in" / name / "file").read_bytes()


@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf])
def test_numbers_that_json_does_not_have_are_null(number: float, tmp_path: Path) -> None:
    value = {"a": number, "b": [number, 1.5], "c": {"d": (number,)}, "e": "NaN", "f": -0.0}
    known = {"a": None, "b": [None, 1.5], "c": {"d": [None]}, "e": "NaN", "f": -0.0}
    write_json(tmp_path / "a", value)
    write_rows(tmp_path / "b", [value])
    append_row(tmp_path / "b", value)
    write_csv(tmp_path / "c", ["x", "y"], [{"x": number, "y": 1.5}])

    def never(constant: str) -> None:
        raise AssertionError(f"{constant} is no JSON")

    for text in [(tmp_path / "a").read_text(), *(tmp_path / "b").read_text().splitlines()]:
        assert json.loads(text, parse_constant=never) == known
    assert list(csv.reader((tmp_path / "c").open())) == [["x", "y"], ["", "1.5"]]
    assert math.copysign(1, read_json(tmp_path / "a")["f"]) == -1


NAMES = st.text(
    st.one_of(st.characters(), st.sampled_from("\udc80\udcff\u2028\x85\x00é")), max_size=8
).filter(lambda text: text == json.loads(json.dumps(text)))  # no two halves that are one character


NUMBERS = st.floats(allow_nan=False, allow_infinity=False)


@given(value=st.dictionaries(NAMES, NAMES | NUMBERS | st.lists(NAMES), min_size=1))
def test_what_is_written_is_read(value: dict[str, Any], tmp_path_factory: Any) -> None:
    """Names that are not Unicode (the bytes of a file's name that Python could not read) too."""
    folder = tmp_path_factory.mktemp("any")
    write_json(folder / "a", value)
    assert read_json(folder / "a") == value
    write_rows(folder / "b", [value, value])
    assert read_rows(folder / "b", [*value], of="a test") == [value, value]


def test_a_name_that_is_not_unicode_can_be_told_in_text(tmp_path: Path) -> None:
    write_text(tmp_path / "a", "\udcff.png and \udcfe.png")
    assert (tmp_path / "a").read_bytes() == b"\\udcff.png and \\udcfe.png"


def test_utf_8_whatever_the_locale(tmp_path: Path) -> None:
    """Python takes ASCII for text files where the locale is C and its UTF-8 mode is off."""
    program = f"""
import locale, sys
from pathlib import Path
import types
sys.modules["hrrl_ext"] = types.ModuleType("hrrl_ext")  # which would load torch
sys.modules["hrrl_ext"].__path__ = [{PACKAGE!r}]
from hrrl_ext.storage import *
assert locale.getpreferredencoding(False) != "UTF-8", "the test says nothing"
here = Path({str(tmp_path)!r})
write_text(here / "text", "Zürich ± 1")
write_json(here / "json", {{"a": "Zürich"}})
write_rows(here / "rows", [{{"a": "Zürich", "b": 1}}])
append_row(here / "rows", {{"a": "été", "b": 2}})
write_csv(here / "csv", ["Zürich"], [{{"Zürich": "été"}}])
assert read_json(here / "json") == {{"a": "Zürich"}}
assert read_rows(here / "rows", ["a", "b"], of="a test")[1]["a"] == "été"
WorkFolder(here, "a test", "json").require_same({{"a": "Zürich"}})
"""
    script = tmp_path / "program.py"
    script.write_text(program, encoding="utf-8")
    environment = os.environ | {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    subprocess.run([sys.executable, script], env=environment, check=True)
    assert (tmp_path / "text").read_text("utf-8") == "Zürich ± 1"
    assert (tmp_path / "csv").read_text("utf-8") == "Zürich\nété\n"


# --- whole or not at all


@contextlib.contextmanager
def little_space() -> Iterator[None]:
    """A process that may not write files over 1 kB stands for the full disk. No fixture: pytest prints
    before it ends one, maybe to a file."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, ignored)


@pytest.mark.parametrize("kind", WRITERS)
@pytest.mark.parametrize("there", [True, False])
def test_a_full_disk_leaves_what_was_there(kind: str, there: bool, tmp_path: Path) -> None:
    file = tmp_path / "file"
    if there:
        WRITERS[kind](file, "old")
    before = file.read_bytes() if there else None
    with little_space(), pytest.raises(OSError, match="File too large"):
        WRITERS[kind](file, "new" * 1000)
    assert [p.name for p in tmp_path.iterdir()] == (["file"] if there else [])
    assert not there or file.read_bytes() == before


def test_an_error_in_the_middle_leaves_what_was_there(tmp_path: Path) -> None:
    def rows() -> Iterator[Mapping[str, Any]]:
        yield {"a": 1}
        raise KeyError("b")

    for write in (write_rows, lambda path, rows: write_csv(path, ["a"], rows)):
        write(tmp_path / "file", [{"a": 0}])
        before = (tmp_path / "file").read_bytes()
        with pytest.raises(KeyError):
            write(tmp_path / "file", rows())
        assert (tmp_path / "file").read_bytes() == before
    with pytest.raises(TypeError, match="not JSON serializable"):
        write_json(tmp_path / "file", {"a": object()})
    with pytest.raises(ValueError, match="fields not in fieldnames"):
        write_csv(tmp_path / "file", ["a"], [{"b": 1}])
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


def test_a_process_killed_in_the_middle_leaves_what_was_there(tmp_path: Path) -> None:
    """SIGKILL, so that nothing is cleaned up, after half of the bytes are on their way."""
    file = tmp_path / "metrics.jsonl"
    write_rows(file, [{"epoch": 1}])
    program = f"""
import os, signal, sys
import types
sys.modules["hrrl_ext"] = types.ModuleType("hrrl_ext")  # which would load torch
sys.modules["hrrl_ext"].__path__ = [{PACKAGE!r}]
from hrrl_ext.storage import replacing
with replacing({str(file)!r}) as partial, partial.open("wb") as f:
    f.write(b'{{"epoch": 1}}\\n{{"ep')
    f.flush()
    os.kill(os.getpid(), signal.SIGKILL)
"""
    killed = subprocess.run([sys.executable, "-c", program], check=False)
    assert killed.returncode == -signal.SIGKILL
    assert read_rows(file, ["epoch", "epoch"], of="a run") == [{"epoch": 1}]
    write_rows(file, [{"epoch": 1}, {"epoch": 2}])  # what is left over is in nobody's way
    assert len(read_rows(file, ["epoch", "epoch"], of="a run")) == 2


def test_two_processes_never_write_to_the_same_partial_file(tmp_path: Path) -> None:
    with replacing(tmp_path / "file") as partial:
        assert str(os.getpid()) in partial.name
        assert partial.parent == tmp_path  # a rename does not cross file systems
        partial.write_text("x")
    assert (tmp_path / "file").read_text() == "x"


# --- reading


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is not valid JSON"),
        (b"{", "is not valid JSON"),
        (b'{"a": "\xff"}', "is not valid JSON"),
        (b"[" * 100_000, "is not valid JSON"),
        (b"[]", "must hold an object, got list"),
        (b"null", "must hold an object, got NoneType"),
    ],
)
def test_no_object(content: bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / "a.json").write_bytes(content)
    with pytest.raises(ValueError, match=rf"a\.json {message}"):
        read_json(tmp_path / "a.json")
    with pytest.raises(FileNotFoundError):
        read_json(tmp_path / "none.json")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'{"a": 1, "b": 2}\n{', "line 2 is not valid JSON"),
        (b'{"a": 1, "b": 2}\n\n', "line 2 is not valid JSON"),
        (b"\xff", "is not text in UTF-8"),
        (b'{"a": 1}', "line 1 is no row of a test: a and b belong there"),
        (b'{"a": 1, "b": "2"}', 'line 1: b must be a number, got "2"'),
        (b'{"a": 1, "b": true}', "line 1: b must be a number, got true"),
        (b'{"a": 1, "b": 2, "c": {"x": "y"}}', "line 1: c must be an object of numbers"),
    ],
)
def test_no_rows(content: bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(content)
    with pytest.raises(ValueError, match=rf"a\.jsonl,? {message}"):
        read_rows(tmp_path / "a.jsonl", ["a", "b"], of="a test", numbers=["b"], named=["c"])


def test_rows_as_they_may_be(tmp_path: Path) -> None:
    """null is no number that is known; the last line may end without a break; other keys are free."""
    rows = [{"a": 1, "b": None, "c": {"x": 1.5, "y": None}, "d": ["\u2028"]}, {"a": "x", "b": 2.5}]
    write_rows(tmp_path / "a", rows)
    (tmp_path / "b").write_bytes((tmp_path / "a").read_bytes()[:-1])
    for name in "ab":
        got = read_rows(tmp_path / name, ["a", "b"], of="a test", numbers=["b"], named=["c"])
        assert got == rows


# --- folders


BEGUN = {"model": "net", "size": (8, 8), "training": {"lr": 0.1, "epochs": 2}}


def folder(path: Path, **options: Any) -> WorkFolder:
    return WorkFolder(path, "an experiment", "what.json", **options)


def begun(path: Path, **options: Any) -> WorkFolder:
    work = folder(path, **options)
    work.describe(BEGUN)
    return work


def test_a_free_folder(tmp_path: Path) -> None:
    (tmp_path / "other.txt").write_text("not of us")
    for path in (tmp_path, tmp_path / "none", tmp_path / "not" / "there"):
        folder(path).require_free()
        assert not folder(path).taken
        with pytest.raises(
            FileNotFoundError, match=r"resume: .* holds no experiment; leave resume"
        ):
            folder(path).require_same(BEGUN)
    assert [p.name for p in tmp_path.iterdir()] == ["other.txt"]  # asking makes nothing


def test_a_file_is_no_folder(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(NotADirectoryError, match=r"out must be a folder, got the file .*file"):
        folder(tmp_path / "file").require_free()
    assert not folder(tmp_path / "file").taken


def test_a_folder_that_is_taken_and_continued(tmp_path: Path) -> None:
    work = begun(tmp_path / "out")
    assert work.taken
    with pytest.raises(
        FileExistsError,
        match="out already holds an experiment; continue it with resume, or choose another out",
    ):
        work.require_free()
    work.require_same(BEGUN)
    work.require_same({"training": BEGUN["training"]})  # an older description has less
    assert work.description() == BEGUN | {"size": [8, 8]}
    work.describe({"model": "other"})  # the first one stays
    assert work.description()["model"] == "net"


def test_what_differs_is_named(tmp_path: Path) -> None:
    work = begun(tmp_path)
    changed = {"model": "other", "size": [8, 9], "training": {"lr": 0.1, "epochs": 3}}
    with pytest.raises(ValueError, match=r"other settings \(model, size, training differ\)"):
        work.require_same(changed)
    with pytest.raises(
        ValueError,
        match=r"^resume: .* is an experiment with other settings \(model, size, epochs differ\); "
        "an experiment is continued as it was begun, another goes to another out$",
    ):
        work.require_same(changed, {"training": {}})
    with pytest.raises(ValueError, match=r"\(size differ\)"):
        begun(tmp_path, moves=["model"]).require_same(BEGUN | {"model": "x", "size": None})


def test_a_setting_newer_than_the_folder_had_its_default(tmp_path: Path) -> None:
    work = begun(tmp_path)
    newer = {"training": {**BEGUN["training"], "ema": None, "parts": (1, 2)}, "tau": 0.5}  # type: ignore[dict-item]
    defaults = {"training": {"lr": 7.0, "ema": None, "parts": [1, 2]}, "tau": 0.5}
    work.require_same(newer, defaults)
    with pytest.raises(ValueError, match=r"\(parts differ\)"):
        work.require_same(newer | {"training": newer["training"] | {"parts": [2]}}, defaults)
    with pytest.raises(ValueError, match=r"\(tau differ\)"):
        work.require_same(newer | {"tau": 0.6}, defaults)
    with pytest.raises(ValueError, match=r"\(lr, epochs differ\)"):  # what it has is no default
        work.require_same({"training": {"lr": 7.0, "epochs": 1}}, defaults)


def test_settings_of_another_shape_differ(tmp_path: Path) -> None:
    write_json(tmp_path / "what.json", {"training": "none"})
    with pytest.raises(ValueError, match=r"\(training differ\)"):
        folder(tmp_path).require_same(BEGUN, {"model": "net", "size": [8, 8], "training": {}})
    write_json(tmp_path / "what.json", {})
    settings = BEGUN["training"]
    folder(tmp_path).require_same({"training": settings}, {"training": settings})


def test_nan_in_a_description_is_itself(tmp_path: Path) -> None:
    """As a number it would differ from itself, and the work could never be continued."""
    work = folder(tmp_path)
    work.describe({"lr": math.nan})
    work.require_same({"lr": math.nan})
    (tmp_path / "what.json").write_text('{"lr": NaN}')  # as an older version wrote it
    work.require_same({"lr": math.nan})


def test_a_description_that_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / "what.json").write_text("{")
    with pytest.raises(ValueError, match=r"what\.json is not valid JSON"):
        folder(tmp_path).require_same(BEGUN)
