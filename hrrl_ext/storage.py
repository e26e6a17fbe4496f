"""Files that are there whole or not at all, and folders of work that can be taken up again.

Text is UTF-8 whatever the locale, and has the line ends that it was given. JSON has no number for NaN or
an infinity: where one is written, null is, which readers know as "no number". Names of files need not be
valid Unicode; what is not stands in a file as \\udcff, which in JSON is the very same name.
"""

from __future__ import annotations

import csv
import errno
import hashlib
import json
import math
import os
import pickle
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ._regular import regular
from ._shapes import Shape
from ._tables import as_cell
from .locks import FolderLock, require_folder
from .spec import plain

FilePath = str | os.PathLike[str]

_NO_ROOM = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


# --- writing


@contextmanager
def replacing(path: FilePath) -> Iterator[Path]:
    """Yields a path to write to, beside ``path``, and renames it to ``path`` when all went well.

    A reader, or whoever comes after a crash or a full disk, finds the old file or the new one.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        with written_whole(path):
            yield partial
            sync(partial)
            os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


@contextmanager
def written_whole(path: Path) -> Iterator[None]:
    """Says in one way that there is no room, which writers of archives and tensors say in ways of their
    own: OSError with the path and what to do."""
    try:
        yield
    except Exception as error:
        if (number := _no_room(error)) is None:
            raise
        full = OSError(
            f"could not write {path}: {os.strerror(number)}. What was there is as it was; free some "
            "space and do the same again"
        )
        full.errno = number
        raise full from error


def _no_room(error: BaseException | None) -> int | None:
    """Its number, where that is behind an error: what closes an archive then fails for another reason."""
    text = str(error)
    while error is not None:
        if isinstance(error, OSError) and error.errno in _NO_ROOM:
            return error.errno
        error = error.__cause__ or error.__context__
    if any(said in text for said in ("PytorchStreamWriter failed", "unexpected pos")):  # torch.save
        return errno.ENOSPC
    of_rust = re.search(r"code: (\d+)|os error (\d+)", text)  # of safetensors
    number = int(of_rust[1] or of_rust[2]) if of_rust else None
    return number if number in _NO_ROOM else None


def sync(path: Path) -> None:
    """Waits until ``path`` (a file or a folder) is on the disk, so that a rename cannot overtake it."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_text(path: FilePath, text: str) -> None:
    _write_bytes(path, _encoded(text))


def write_json(path: FilePath, value: Mapping[str, Any]) -> None:
    """One object, indented, for people to read as well."""
    _write_bytes(path, _encoded(_json(dict(value), indent=1, ensure_ascii=False) + "\n"))


def write_rows(path: FilePath, rows: Iterable[Mapping[str, Any]]) -> None:
    """JSON lines: an object in each."""
    _write_bytes(path, b"".join(map(_line, rows)))


def append_row(path: FilePath, row: Mapping[str, Any]) -> None:
    """One more line of :func:`write_rows`; those that are there stay as they are."""
    path = Path(path)
    _write_bytes(path, (regular(path).read_bytes() if path.exists() else b"") + _line(row))


def write_csv(
    path: FilePath,
    names: Sequence[str],
    rows: Iterable[Mapping[str, Any]],
    *,
    line_end: str = "\r\n",
) -> None:
    """A table with a header. A cell is empty where its row has no such name, or no number for it; none is
    a formula (`as_cell`)."""
    lines = _Lines()
    # A cell with a carriage return is quoted where the line end has one, and readers would break there.
    writer = csv.DictWriter(lines, fieldnames=names, lineterminator="\r\n")
    writer.writerow({name: as_cell(name) for name in names})
    for row in rows:
        writer.writerow({name: as_cell(value) for name, value in _with_nulls(row).items()})
    write_text(path, "".join(line.removesuffix("\r\n") + line_end for line in lines))


class _Lines(list[str]):
    """What csv writes to, a row at a time."""

    def write(self, line: str) -> None:
        self.append(line)


def _write_bytes(path: FilePath, content: bytes) -> None:
    with replacing(path) as partial:
        partial.write_bytes(content)


def _encoded(text: str) -> bytes:
    return text.encode("utf-8", errors="backslashreplace")


def _line(row: Mapping[str, Any]) -> bytes:
    return _encoded(_json(dict(row)) + "\n")


def _json(value: Any, **form: Any) -> str:
    try:
        return json.dumps(value, allow_nan=False, **form)
    except (TypeError, ValueError):  # rare: a number of NumPy's, or one that is not finite
        return json.dumps(_with_nulls(plain(value)), allow_nan=False, **form)


def _with_nulls(value: Any) -> Any:
    """``value`` with None in place of every number that JSON does not have."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: _with_nulls(entry) for key, entry in value.items()}
    return [_with_nulls(entry) for entry in value] if isinstance(value, list | tuple) else value


# --- reading


def read_json(path: Path, shape: Shape | None = None) -> dict[str, Any]:
    """FileNotFoundError without the file, ValueError where it is no JSON object, or none of ``shape``,
    which names the field."""
    regular(path)
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not valid JSON: {error}") from error
    if not isinstance(value, dict):
        raise ValueError(f"{path} must hold an object, got {type(value).__name__}")
    if shape is not None:
        require_shape(value, shape, path)
    return value


def require_shape(value: Any, shape: Shape, where: FilePath) -> None:
    """ValueError naming the file and the field."""
    try:
        shape(value, "")
    except ValueError as error:
        raise ValueError(f"{where} is not as it was written: {error}") from error


def read_rows(
    file: Path,
    keys: Sequence[str],
    of: str,
    *,
    numbers: Sequence[str] = (),
    named: Sequence[str] = (),
    shape: Shape | None = None,
) -> list[dict[str, Any]]:
    """The objects of a JSONL file, each of which has ``keys``. ValueError naming a bad line.

    What a row has of ``numbers`` are numbers or null, of ``named`` objects of such; it fits ``shape``.
    """
    regular(file)
    try:
        text = file.read_text(encoding="utf-8")
    except ValueError as error:
        raise ValueError(f"{file} is not text in UTF-8: {error}") from error
    rows = []
    for number, line in enumerate(text.removesuffix("\n").split("\n") if text else (), 1):
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{file}, line {number} is not valid JSON: {error}") from error
        if not isinstance(row, dict) or not set(keys) <= row.keys():
            raise ValueError(
                f"{file}, line {number} is no row of {of}: {', '.join(keys[:-1])} and {keys[-1]} "
                "belong there"
            )
        for name in (*numbers, *named):
            if name in row and not _fits(row[name], name in named):
                what = "an object of numbers" if name in named else "a number"
                raise ValueError(
                    f"{file}, line {number}: {name} must be {what}, got {json.dumps(row[name])[:40]}"
                )
        if shape is not None:
            require_shape(row, shape, f"{file}, line {number}")
        rows.append(row)
    return rows


def _fits(value: Any, named: bool) -> bool:
    """Whether it is a number or null, or an object of such."""
    if named:
        return value is None or (
            isinstance(value, dict) and all(_fits(inner, False) for inner in value.values())
        )
    return value is None or (isinstance(value, int | float) and not isinstance(value, bool))


def file_digest(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    with regular(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def digest_of(description: Mapping[str, Any]) -> str:
    """SHA-256 of what a JSON object says, however it is written."""
    return hashlib.sha256(_encoded(_json(dict(description), sort_keys=True))).hexdigest()


def why_unreadable(error: Exception) -> str:
    """In a line. torch's own advice for a pickle that it refuses is to load it and let it run code."""
    if isinstance(error, pickle.UnpicklingError):
        return (
            "not of torch.save, or holding more than tensors and plain values, which could run code"
        )
    return str(error).partition("\n")[0] or type(error).__name__


# --- folders


class WorkFolder:
    """A folder that is free, or holds one piece of work, which can be continued there.

    What the work is of stands in a file of the folder, a description as JSON. Work is continued as it
    was begun: by whoever gives the same description. Whoever writes takes the folder first.

    Args:
        path: of the folder; it is made when the first file is written.
        work: what it holds, in messages, such as "a run".
        file: name of the file with the description.
        moves: entries of the description that may have changed meanwhile, as where another folder is.
    """

    def __init__(self, path: FilePath, work: str, file: str, *, moves: Sequence[str] = ()) -> None:
        if not os.fspath(path):
            raise ValueError("out must name a folder, got ''")
        self.path = Path(path)
        self._work, self._moves = work, moves
        self._description = self.path / file
        self._lock = FolderLock(self.path)

    # --- who writes to it

    def take(self) -> None:
        """For this process, until :meth:`release` or its end. FolderInUseError: another one has it."""
        self._lock.take()

    def release(self) -> None:
        self._lock.release()

    @contextmanager
    def held(self) -> Iterator[None]:
        self.take()
        try:
            yield
        finally:
            self.release()

    # --- what is in it

    @property
    def taken(self) -> bool:
        """Whether there is work in it."""
        return self._description.exists()

    def require_free(self) -> None:
        """NotADirectoryError: it is a file. FileExistsError: there is work in it."""
        require_folder(self.path)
        if self.taken:
            raise FileExistsError(
                f"{self.path} already holds {self._work}; continue it with resume, or choose another out"
            )

    def require_same(
        self, description: Mapping[str, Any], defaults: Mapping[str, Any] | None = None
    ) -> None:
        """That it holds work, and of this description.

        ``defaults`` are of entries that are newer than the folder may be: it had these values then. A
        mapping among them is of settings that are compared one by one. FileNotFoundError: there is no
        work. ValueError: other work; it names what differs.
        """
        if not self.taken:
            none = self._work.partition(" ")[2]
            raise FileNotFoundError(
                f"resume: {self.path} holds no {none}; leave resume out to begin one"
            )
        here, there = as_read(description), as_read(self.description())
        changed = [
            k for k in _differing(here, there, as_read(defaults or {})) if k not in self._moves
        ]
        if changed:
            raise ValueError(
                f"resume: {self.path} is {self._work} with other settings ({', '.join(changed)} "
                f"differ); {self._work} is continued as it was begun, another goes to another out"
            )

    def description(self) -> dict[str, Any]:
        return read_json(self._description)

    def describe(self, description: Mapping[str, Any]) -> None:
        """Writes what the work is of, where that is not written yet."""
        self._lock.keep()
        if not self._description.exists():
            write_json(self._description, description)


def as_read(value: Mapping[str, Any]) -> dict[str, Any]:
    """As it comes back from a file: lists for tuples, text for keys."""
    return json.loads(_json(dict(value)))


def _differing(
    here: Mapping[str, Any], there: Mapping[str, Any], defaults: Mapping[str, Any]
) -> Iterator[str]:
    """Names in ``here`` whose value was another one ``there``."""
    for name, value in here.items():
        old, default = there.get(name), defaults.get(name)
        if isinstance(value, dict) and isinstance(default, dict) and isinstance(old, dict | None):
            yield from _differing(value, old or {}, default)
        elif value != there.get(name, default):
            yield name
