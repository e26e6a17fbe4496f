"""The page of examples/cheap_directions.py: tables, paired by seed, and the picture of gain and cost."""

from __future__ import annotations

import csv
import io
import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from hrrl_ext._tables import markdown, one_line, with_tables
from hrrl_ext.plots.figures import panels_of, save
from hrrl_ext.storage import write_text
from hrrl_ext.transfer.differences import Difference, paired

BASE, EXACT = "ERM", "Algorithm 1, 0.1"
SECONDS = "training_seconds"
Rows = Sequence[dict[str, Any]]

_PAGE = f"""# The example level for less

What each way of saving the pass for x̃ keeps of Algorithm 1's effect, and costs. Written by
[examples/cheap_directions.py](../../examples/cheap_directions.py), which says what the ways are; the
number after a way is τ.

<!-- table: state -->
<!-- end: state -->

Accuracy in %: on the source's test images, clean and moved by so much along the trained network's
own gradient; of its worst concept; of a linear SVM on the features of a target. Time is the
processor's seconds of training, also over {BASE}'s of the same seed (with the 95 % interval). Mean ±
standard deviation.

Training crops and flips its images, which stored directions undo. They are refused with resized
crops, AugMix, erasing and mixup: of these nothing is said here.

<!-- table: means -->
<!-- end: means -->

## Against {BASE}

Differences of the same seed in points: mean (95 % interval of Student's t; seeds).

<!-- table: base -->
<!-- end: base -->

![Cost against gain](cheap-directions/cost.png)

## Against {EXACT}

<!-- table: exact -->
<!-- end: exact -->
"""


def write_page(rows: Rows, page: Path, of_all: int, settings: Mapping[str, Any]) -> None:
    """Brings the tables up to date, and all that stands between them stays; begins the page where it is
    not there yet."""
    if not rows:
        raise ValueError(f"{page}: no trial is through yet, so there is nothing to write")
    if not page.exists():
        write_text(page, _PAGE)
    images = " or ".join(str(n) for n in sorted({row["images"] for row in rows}))
    told = ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in settings.items())
    state = f"{len(rows)} of {of_all} trials are through, each on {images} images: {told}."
    tables = {
        "state": one_line(state),
        "means": means(rows),
        "base": differences(rows, BASE),
        "exact": differences(rows, EXACT),
    }
    out = page.with_suffix("")
    out.mkdir(exist_ok=True)
    text = io.StringIO()
    writer = csv.DictWriter(text, rows[0])
    writer.writeheader()
    writer.writerows(rows)
    write_text(out / "trials.csv", text.getvalue())
    plot(rows, out / "cost.png")
    write_text(page, with_tables(page, tables))


def moved_by(step: float) -> str:
    """The name of a measure."""
    return f"moved by {step:g}" if step else "clean"


def ways(rows: Rows) -> list[str]:
    return list(dict.fromkeys(row["way"] for row in rows))


def measures(rows: Rows) -> list[str]:
    """The accuracies, in their order."""
    return [k for k in rows[0] if k not in ("way", "seed", "images", SECONDS, "processor_seconds")]


def of_way(rows: Rows, way: str, measure: str) -> dict[int, float]:
    return {row["seed"]: row[measure] for row in rows if row["way"] == way}


def against(rows: Rows, way: str, base: str, measure: str) -> Difference | None:
    return paired(of_way(rows, way, measure), of_way(rows, base, measure))


def cost(rows: Rows, way: str) -> Difference | None:
    ours, theirs = (of_way(rows, name, SECONDS) for name in (way, BASE))
    return paired(ours, theirs, lambda value, base: value / base)


def means(rows: Rows) -> str:
    lines = [["way", "seeds", "s", f"time of {BASE}", *measures(rows)]]
    for way in ways(rows):
        seconds, ratio = of_way(rows, way, SECONDS), cost(rows, way)
        cells = [way, str(len(seconds)), f"{statistics.fmean(seconds.values()):.0f}"]
        cells.append("" if ratio is None else _ratio(ratio))
        for measure in measures(rows):
            cells.append(mean_of(of_way(rows, way, measure).values()))
        lines.append(cells)
    return markdown(lines)


def mean_of(shares: Iterable[float]) -> str:
    """In %: mean ± standard deviation, where there are several."""
    values = [100 * share for share in shares]
    spread = f" ± {statistics.stdev(values):.1f}" if len(values) > 1 else ""
    return f"{statistics.fmean(values):.1f}{spread}"


def _ratio(found: Difference) -> str:
    interval = "" if found.seeds == 1 else f" ({found.low:.2f} to {found.high:.2f})"
    return f"{found.mean:.2f}{interval}"


def differences(rows: Rows, base: str) -> str:
    lines = [["way", *measures(rows)]]
    for way in ways(rows):
        if way != base:
            found = (against(rows, way, base, measure) for measure in measures(rows))
            lines.append([way, *("" if one is None else str(one) for one in found)])
    return markdown(lines)


def plot(rows: Rows, path: Path) -> None:
    """What is gained where images are moved, and what is lost where they are not, against the time."""
    shown = (moved_by(0.2), moved_by(0.0))
    figure, panels = panels_of(len(shown), width=6.0, sharey=False)
    for panel, measure in zip(panels, shown, strict=True):
        for number, way in enumerate(name for name in ways(rows) if name != BASE):
            gain, time = against(rows, way, BASE, measure), cost(rows, way)
            if gain is None or time is None:
                continue
            half = 0.0 if math.isnan(gain.high) else 100 * (gain.high - gain.mean)
            at = {"marker": "os^Dv"[number // 10], "color": f"C{number % 10}", "label": way}
            panel.errorbar(time.mean, 100 * gain.mean, yerr=half, capsize=2, linestyle="", **at)
        panel.axhline(0, color="black", linewidth=0.8)
        panel.set(title=measure, xlabel=f"processor time of training / {BASE}'s")
    panels[0].set_ylabel(f"points above {BASE}")
    panels[0].legend(fontsize="x-small")
    save(figure, path)
