"""Files that belong together, with the digests that they were written with.

``digests.json`` in a folder has the SHA-256 of each: what changed since, be it by a bit, is named and not
used. A folder of an older version has none, and is opened as it is.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from ._regular import regular
from .storage import file_digest, read_json, sync, write_json, written_whole

FILE = "digests.json"


@contextmanager
def replacing_together(folder: Path) -> Iterator[Path]:
    """Yields a folder to write files to, which then take their places in ``folder``, with their digests.

    Of each file there is the old one or the new one; until all are the new ones, both are as written.
    """
    partial = folder / f".{os.getpid()}.partial"
    shutil.rmtree(partial, ignore_errors=True)  # of a process that was killed
    partial.mkdir(parents=True)
    try:
        with written_whole(folder):
            yield partial
        new = {path.name: file_digest(path) for path in sorted(partial.iterdir())}
        for name in new:
            sync(partial / name)
        known = _written(folder)
        both = {name: [*known.get(name, _of_older(folder / name)), new[name]] for name in new}
        write_json(folder / FILE, known | both)
        for name in new:
            os.replace(partial / name, folder / name)
        write_json(folder / FILE, known | new)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def check_digests(folder: Path, names: Sequence[str] | None = None) -> None:
    """That the files are as they were written: those of ``names``, or all that have a digest.

    ValueError naming the file, what was expected and what was got.
    """
    while (written := _written(folder)) and (wrong := _wrong(folder, written, names)):
        if _written(folder) == written:  # and no new ones were put there just now
            raise ValueError(wrong)


def _wrong(folder: Path, written: dict[str, list[str]], names: Sequence[str] | None) -> str | None:
    for name in written if names is None else names:
        path, expected = folder / name, written.get(name, [])
        got = file_digest(path) if regular(path).is_file() else "no such file"
        if got not in expected:
            wanted = " or ".join(expected) or "none"
            return (
                f"{path} is not as it was written: expected the SHA-256 {wanted} ({FILE}), got {got}; "
                f"put a copy of it back, or delete {FILE} to take it as it is"
            )
    return None


def _written(folder: Path) -> dict[str, list[str]]:
    """The digests of each file; of one that is being replaced there are two."""
    if not (folder / FILE).is_file():
        return {}
    of = {n: [d] if isinstance(d, str) else d for n, d in read_json(folder / FILE).items()}
    for name, digests in of.items():
        if not (isinstance(digests, list) and all(_is_digest(d) for d in digests)):
            raise ValueError(f"{folder / FILE}: {name!r} must have a SHA-256, got {digests!r}")
    return {name: digests for name, digests in of.items() if name != "run"}


def _is_digest(value: object) -> bool:
    return isinstance(value, str) and re.fullmatch("[0-9a-f]*", value) is not None


def _of_older(path: Path) -> list[str]:
    return [file_digest(path)] if path.is_file() else []
