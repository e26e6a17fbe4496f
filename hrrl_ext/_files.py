"""Files that are there whole or not at all, JSON, and why a file cannot be read."""

from __future__ import annotations

import json
import os
import pickle
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any


@contextmanager
def replacing(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yields a path to write to, beside ``path``, and renames it to ``path`` when all went well.

    A reader, or whoever comes after a crash or a full disk, finds the old file or the new one.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        yield partial
        sync(partial)
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def sync(path: Path) -> None:
    """Waits until ``path`` (a file or a folder) is on the disk, so that a rename cannot overtake it."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def read_json(path: Path) -> dict[str, Any]:
    """FileNotFoundError without the file, ValueError where it is no JSON object."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not valid JSON: {error}") from error
    if not isinstance(value, dict):
        raise ValueError(f"{path} must hold an object, got {type(value).__name__}")
    return value


def read_rows(
    file: Path,
    keys: Sequence[str],
    of: str,
    *,
    numbers: Sequence[str] = (),
    named: Sequence[str] = (),
) -> list[dict[str, Any]]:
    """The objects of a JSONL file, each of which has ``keys``. ValueError naming a bad line.

    What a row has of ``numbers`` are numbers or null, of ``named`` objects of such.
    """
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
        rows.append(row)
    return rows


def _fits(value: Any, named: bool) -> bool:
    """Whether it is a number or null, or an object of such."""
    if named:
        return value is None or (
            isinstance(value, dict) and all(_fits(inner, False) for inner in value.values())
        )
    return value is None or (isinstance(value, int | float) and not isinstance(value, bool))


def why_unreadable(error: Exception) -> str:
    """In a line. torch's own advice for a pickle that it refuses is to load it and let it run code."""
    if isinstance(error, pickle.UnpicklingError):
        return (
            "not of torch.save, or holding more than tensors and plain values, which could run code"
        )
    return str(error).partition("\n")[0] or type(error).__name__
