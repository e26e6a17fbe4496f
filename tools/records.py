"""The finished trials of a study as one file, small enough to stay beside its page.

    python tools/records.py pack runs/vse docs/results/retrieval/trials.jsonl.gz
    python tools/records.py unpack docs/results/retrieval/trials.jsonl.gz runs/vse

A line is a part: a JSON file that says what it is "of" (hrrl_ext/transfer/study/parts.py), with its path
in the study's folder. Where they are unpacked, the study's command goes on, or writes the page again.
The same parts give the same bytes.
"""

from __future__ import annotations

import argparse
import gzip
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from hrrl_ext.storage import read_json, replacing, write_json


def parts(study: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """By path; a run's own files are none."""
    for path in sorted(study.rglob("*.json")):
        content = read_json(path)
        if "of" in content:
            yield path.relative_to(study).as_posix(), content


def pack(study: Path, records: Path) -> int:
    """How many there are. ValueError where there is none."""
    found = list(parts(study))
    if not found:
        raise ValueError(f"{study} holds no part of a study: is it the folder given as --out?")
    lines = [json.dumps({"path": path, "part": part}) for path, part in found]
    records.parent.mkdir(parents=True, exist_ok=True)
    with replacing(records) as new:
        new.write_bytes(gzip.compress("".join(f"{line}\n" for line in lines).encode(), mtime=0))
    return len(found)


def unpack(records: Path, study: Path) -> int:
    """How many were not there yet. ValueError: one is there that says something else."""
    try:
        with gzip.open(records, "rt", encoding="utf-8") as file:
            found = [json.loads(line) for line in file]
    except (gzip.BadGzipFile, EOFError, ValueError) as error:
        raise ValueError(f"{records} is no file that pack has written: {error}") from error
    new = {}
    for record in found:
        path = study / record["path"]
        if not path.resolve().is_relative_to(study.resolve()):
            raise ValueError(f"{records}: {record['path']} lies outside the study")
        if not path.exists():
            new[path] = record["part"]
        elif read_json(path) != record["part"]:
            raise ValueError(f"{path} is not what {records} has; choose another folder")
    for path, part in new.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, part)
    return len(new)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    verbs = parser.add_subparsers(dest="verb", required=True)
    for verb, names in (("pack", ("study", "records")), ("unpack", ("records", "study"))):
        of = verbs.add_parser(verb)
        for name in names:
            of.add_argument(name, type=Path)
    args = parser.parse_args(argv)
    try:
        if args.verb == "pack":
            print(f"{pack(args.study, args.records)} parts in {args.records}")
        else:
            print(f"{unpack(args.records, args.study)} new parts in {args.study}")
    except (OSError, ValueError) as error:
        parser.error(str(error))


if __name__ == "__main__":
    main()
