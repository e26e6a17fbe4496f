"""The folder of an evaluation, so that one which was interrupted goes on.

evaluation.json           what is evaluated: the model's weights, data, order of classes, points, seed
parts/accuracy.json ...   each part, as soon as it is measured
report.json               all of them
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ..processes import ALONE, Processes
from ..storage import WorkFolder, read_json, write_json
from .parts import Part
from .schema import of_part


class EvaluationFolder:
    """Measures a part, or reads what an earlier start has measured; ``path`` None keeps nothing.

    Of several processes the first alone has the folder, and what it reads there is so for all.
    """

    def __init__(
        self,
        path: str | os.PathLike[str] | None,
        processes: Processes = ALONE,
    ) -> None:
        self.path = Path(path) if path is not None and processes.main else None
        self._processes = processes
        self._work = None
        if self.path is not None:
            self._work = WorkFolder(self.path, "an evaluation", "evaluation.json")

    @contextmanager
    def held(self) -> Iterator[None]:
        """No other process writes to it meanwhile."""
        if self._work is None:
            yield
        else:
            with self._work.held():
                yield

    def begin(
        self, description: Mapping[str, Any], *, resume: bool, older: Mapping[str, Any]
    ) -> None:
        """Refuses a folder that holds another evaluation, or this one without ``resume``; ``older``
        is what one had of the entries that it does not have yet."""
        if self._work is None:
            return
        if resume and self._work.taken:
            self._work.require_same(description, older)
            return
        self._work.require_free()
        self._work.describe(description)

    def parts(
        self, measures: Mapping[str, Callable[[], Part]], progress: Callable[[str], None] | None
    ) -> dict[str, Part]:
        """All of them in their order, by name; ``progress`` is told of each that is done."""
        done: dict[str, Part] = {}
        for name, measure in measures.items():
            done[name] = self._part(name, measure)
            if progress is not None:
                progress(f"{len(done)}/{len(measures)}  {name}  {done[name]['seconds']:.1f} s")
        return done

    def _part(self, name: str, measure: Callable[[], Part]) -> Part:
        """With the seconds that it took."""
        file = None if self.path is None else self.path / "parts" / f"{_file_name(name)}.json"
        known = read_json(file, of_part(name)) if file is not None and file.exists() else None
        if (known := self._processes.gather(known)[0]) is not None:
            return known
        started = time.monotonic()
        part = measure()
        part["seconds"] = round(time.monotonic() - started, 2)
        if file is not None:
            write_json(file, part)
        return part


def _file_name(name: str) -> str:
    """attack linf:8/255 → attack-linf-8-255."""
    return re.sub(r"[^\w.]+", "-", name)
