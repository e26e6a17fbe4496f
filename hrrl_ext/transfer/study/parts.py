"""Finished pieces of a study's work, a JSON file each."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ..._shapes import (
    count,
    entries,
    having,
    mapping,
    maybe,
    number,
    number_as_text,
    record,
    text,
)
from ...storage import read_json, write_json
from .config import file_name

Part = dict[str, Any]

_KNOWN = maybe(number)
_NUMBERED = mapping(_KNOWN, number_as_text)
_PART = record(
    having(
        **dict.fromkeys(("failed", "skipped", "rule"), text),
        **dict.fromkeys(("images", "examples", "epochs", "threads"), count),
        **dict.fromkeys(("accuracy", "worst_concept_accuracy", "corrupted", "mu", "value"), _KNOWN),
        **dict.fromkeys(("seconds_per_epoch", "processor_seconds_per_epoch"), _KNOWN),
        **dict.fromkeys(("concept_accuracy", "attacks"), mapping(_KNOWN)),
        **dict.fromkeys(("by_epoch", "steps"), _NUMBERED),
        **dict.fromkeys(("svm", "sgd", "knn"), record(accuracy=number)),
    ),
    of=entries,
)
"""What is read of any part again: of training, of a target's features, of fine-tuning, of robustness."""


class Parts:
    """Those in a folder. A part says what it is of, and is taken up only as that."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def read(
        self, name: str, of: Mapping[str, Any] | None = None, needs: Sequence[str] = ()
    ) -> Part | None:
        """None where it is not there yet. ValueError: it is of something else than ``of``, an entry is of
        a wrong type, or one that it ``needs`` is not there, though it says of no failure."""
        path = self._path(name)
        if not path.exists():
            return None
        part = read_json(path, _PART)
        missing = [name for name in needs if name not in part]
        if missing and not {"failed", "skipped"} & part.keys():
            raise ValueError(f"{path} is not as it was written: {missing[0]} is missing")
        if of is not None and part["of"] != json.loads(json.dumps(of)):
            changed = sorted(k for k, v in of.items() if part["of"].get(k) != v)
            raise ValueError(
                f"{path} was made with other settings ({', '.join(changed)}); choose another out, "
                "another name, or remove the file to make it again"
            )
        return part

    def keep(self, name: str, of: Mapping[str, Any], make: Callable[[], Part]) -> Part:
        """What ``make`` gives, with the seconds that it took (by the clock, and of the processor, which
        other work on the machine hardly touches); made once, and kept at once."""
        if (part := self.read(name, of)) is not None:
            return part
        begun, worked = time.monotonic(), time.process_time()
        part = {"of": dict(of), **make()}
        part["seconds"] = round(time.monotonic() - begun, 2)
        part["processor_seconds"] = round(time.process_time() - worked, 2)
        write_json(self._path(name), part)
        return part

    def _path(self, name: str) -> Path:
        return self.folder / f"{file_name(name)}.json"
