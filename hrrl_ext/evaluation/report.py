"""A report: everything that was measured of one model, as a table of text and as JSON."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from .._regular import regular
from .._tables import aligned, one_line
from ..storage import read_json, write_json
from .parts import Part
from .schema import check_report

_FORMAT = 1


@dataclass(frozen=True)
class Report:
    """Plain numbers and texts throughout; ``None`` is what was not measured.

    docs/evaluation.md says what each number means. Shares are in [0, 1], with Wilson's 95 % interval
    "low" to "high".
    """

    name: str
    about: Part
    """what was evaluated: model, data, points, seed, versions, seconds"""
    accuracy: Part
    """average, by concept from the hardest on, and the averages over concepts"""
    perturbation_curve: Part
    calibration: Part
    corruptions: Part | None
    attacks: list[Part]
    max_epsilon: list[Part]
    warnings: list[dict[str, str]]
    """"name", which EXPLANATIONS explains, and "text" """

    def to_dict(self) -> dict[str, Any]:
        return {"format": _FORMAT, **asdict(self)}

    def to_json(self, path: str | os.PathLike[str]) -> None:
        """Writes one file, whole or not at all; :meth:`from_json` reads it."""
        write_json(path, self.to_dict())

    @classmethod
    def from_json(cls, path: str | os.PathLike[str]) -> Report:
        """Raises FileNotFoundError without the file, ValueError where it is no report."""
        path = Path(path)
        if path.is_dir():
            path = path / "report.json"
        if not regular(path).is_file():
            raise FileNotFoundError(f"{path} does not exist; hrrl evaluate writes a report")
        value = read_json(path)
        names = {field.name for field in fields(cls)}
        if value.pop("format", None) != _FORMAT or value.keys() != names:
            raise ValueError(f"{path} is no report of this version; evaluate again")
        try:
            check_report(value)
        except ValueError as error:
            raise ValueError(
                f"{path} is no report as it was written: {error}; evaluate again"
            ) from error
        return cls(**value)

    def rows(self) -> list[tuple[str, float | None, str]]:
        """What a comparison of models begins with: name, share in [0, 1], and what it is of."""
        accuracy, calibration = self.accuracy, self.calibration
        worst = accuracy["worst"]
        rows = [
            ("accuracy", accuracy["accuracy"], interval(accuracy)),
            ("worst concept", worst["accuracy"], f"{interval(worst)} ({worst['name']})"),
            ("mean over concepts", accuracy["concept_mean"], ""),
        ]
        if accuracy["train_weighted"] is not None:
            rows.append(("weighted by training counts", accuracy["train_weighted"], ""))
        last = self.perturbation_curve["points"][-1]
        rows.append((f"at step {last['step']:.3g}", last["accuracy"], interval(last)))
        rows += [
            (f"attack {a['spec']}", a["accuracy"], f"{interval(a)} of {a['count']}")
            for a in self.attacks
        ]
        if self.corruptions is not None:
            rows.append(("corruptions, mean error", self.corruptions["mean_error"], ""))
        if self.corruptions is not None and self.corruptions["mce"] is not None:
            rows.append(("corruptions, mCE", self.corruptions["mce"] / 100, "AlexNet's is 100 %"))
        rows.append(("RMS calibration error, bins of 100", calibration["rms"], ""))
        rows.append(("ECE, 15 bins", calibration["ece"], ""))
        if (t := calibration["temperature"]) is not None:
            note = f"T = {t['value']:.3g}; before {percent(t['before']['ece'])}"
            rows.append(("ECE, temperature fitted", t["after"]["ece"], note))
        return rows

    def __str__(self) -> str:
        about = self.about
        head = (
            f"{self.name}: {about['data']}, {about['points']} images of {about['classes']} classes"
        )
        table = aligned([[name, percent(value)] for name, value, _ in self.rows()])
        notes = [note for _, _, note in self.rows()]
        lines = [
            f"{line}  {one_line(note)}".rstrip()
            for line, note in zip(table.splitlines(), notes, strict=True)
        ]
        warned = [one_line(f"warning: {w['text']}") for w in self.warnings]
        return "\n".join([one_line(head), *lines, *warned])


EXPLANATIONS: Mapping[str, str] = {
    "few points": (
        "A calibration error is a mean over bins of examples; with less than one full bin it is the "
        "gap between mean confidence and accuracy alone, and small by lack of data."
    ),
    "left out": (
        "Images that cannot be read, or that a list leaves out, were so before anything was measured; "
        "about names all of them."
    ),
    "by class": (
        "No concepts were given and the data carry none: every class counts as a concept of its own."
    ),
    "absent concept": (
        "A concept without an example has no accuracy: it is neither 0 % nor the worst, and counts in "
        "no average."
    ),
    "random predictions": (
        "Two passes over the same images gave different logits, by more than rounding. Averages of a "
        "random model are not reproducible, and attacks by gradient overestimate its robustness."
    ),
    "temperature": (
        "The likelihood is best at a limit of the search: the logits separate the fitted half "
        "perfectly (smallest T), or say no more than chance (largest T). The temperature means little."
    ),
    "attack": "The attack found a reason to doubt its own result; robust accuracy may be overstated.",
}
"""Why each warning is raised, and what follows, by its name."""


def percent(value: float | None) -> str:
    return "–" if value is None else f"{100 * value:.1f} %"


def interval(part: Part) -> str:
    return f"[{100 * part['low']:.1f}, {100 * part['high']:.1f}]"
