"""The demo as a whole: trains, compares with plain training by seed, and says what the intervals say."""

from __future__ import annotations

import math
import os
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from statistics import fmean

from .._tables import aligned, markdown
from ..plots import plot_histories
from ..storage import write_text
from ..transfer.study import Difference, difference
from ..transfer.study.parts import Part, Parts
from .groups import WAYS, one_thread, worst_groups
from .levels import CONFIG, MEASURES, PURPOSE, SOURCE, Levels
from .picture import draw

Report = Callable[[str], None]

BASE = "ERM"
GROUP_SEEDS = 5
"""Of the hidden groups, at most: their effect is larger."""
_WIDTH = 80
_SAID = {"gain": "pays here", "loss": "costs here", "open": "not told from 0"}
_HOW = (
    "In %. A difference is to ERM, plain training, of the same seed: mean ± half of the 95 % interval, "
    "or mean (interval; seeds). Of twenty intervals one leaves out 0 by chance."
)


def run_demo(out: str | os.PathLike[str], *, report: Report = print, seeds: int = 8) -> None:
    """Trains ERM, EL, CL and HRRL with each seed and shifts what each level is for; then hidden groups.

    Writes demo.md, demo.png, the pictures of the first seed's runs and, in parts/, every number; what is
    there is not made again. On the CPU, in two processes of one thread: the numbers do not depend on how
    many there are.
    """
    if seeds < 1:
        raise ValueError(f"demo: seeds must be at least 1, to have at least one seed, got {seeds}")
    out = Path(out)
    group_seeds = min(seeds, GROUP_SEEDS)
    with one_thread():
        with _ahead(out, group_seeds):
            trials = _trials(out, report, seeds)
        groups = _groups(out, report, group_seeds)
    levels = {
        method: {name: _above(trials, method, name) for name in MEASURES}
        for method in trials
        if method != BASE
    }
    base = {name: fmean(part[name] for part in trials[BASE]) for name in MEASURES}
    found = {name: [part[name] for part in groups] for name in WAYS}
    tables = [_levels_table(base, levels), _groups_table(found)]
    said = [list(_of_levels(levels)), list(_of_groups(groups))]
    for table, lines in zip(tables, said, strict=True):
        report(f"\n{aligned(table)}\n")
        for line in lines:
            report(textwrap.fill(line, _WIDTH, subsequent_indent="  "))
    report("\n" + textwrap.fill(_HOW, _WIDTH) + "\n")
    pictures = plot_histories({m: parts[0]["history"] for m, parts in trials.items()}, out)
    picture = draw(levels, found, out / "demo.png")
    write_text(out / "demo.md", _page(tables, said, picture.name))
    report(f"saved {picture}, {out / 'demo.md'} and {len(pictures)} pictures of the runs")
    models = " ".join(str(out / "models" / f"{method}-0") for method in (BASE, "HRRL"))
    report(
        f"how do they hold up?\n  hrrl evaluate {models} \\\n    --data digits --out {out / 'report'}"
    )


def _trials(out: Path, report: Report, seeds: int) -> dict[str, list[Part]]:
    """By method, a part per seed."""
    report(f"{SOURCE}\nlevels, by their score on held-out images of the source:")
    levels = Levels(out, report)
    chosen = levels.search()
    report("accuracies of each network:")
    trials: dict[str, list[Part]] = {method: [] for method in CONFIG.methods}
    for seed in range(seeds):
        for method, parts in trials.items():
            parts.append(levels.trial(method, seed, chosen, keep=seed == 0))
            shown = "  ".join(f"{name} {100 * parts[-1][name]:5.1f}" for name in MEASURES)
            report(f"{method:4}  seed {seed}  {shown}")
    return trials


def _groups(out: Path, report: Report, seeds: int) -> list[Part]:
    report("hidden groups, accuracy of the worst:")
    found = []
    for seed in range(seeds):
        part = worst_groups(Parts(out / "parts"), seed)
        found.append(part)
        shown = "  ".join(f"{name} {100 * part[name]:5.1f}" for name in WAYS)
        lam = "plain training" if part["lam"] is None else f"lam {part['lam']:g}"
        report(f"seed {seed}  {shown}  ({lam})")
    return found


# --- what they come to


def _above(trials: Mapping[str, Sequence[Part]], method: str, name: str) -> Difference:
    pairs = zip(trials[method], trials[BASE], strict=True)
    return difference([ours[name] - base[name] for ours, base in pairs])


def _levels_table(
    base: Mapping[str, float], levels: Mapping[str, Mapping[str, Difference]]
) -> list[list[str]]:
    rows = [["accuracy", BASE, *(f"{method} above it" for method in levels)]]
    for name, what in MEASURES.items():
        cells = [_shown(of[name]) for of in levels.values()]
        rows.append([what, f"{100 * base[name]:.1f}", *cells])
    return rows


def _groups_table(found: Mapping[str, Sequence[float]]) -> list[list[str]]:
    rows = [["accuracy of the worst group", "mean", f"above {BASE}"]]
    for name, what in WAYS.items():
        above = "" if name == BASE else _shown(_between(found, name, BASE))
        rows.append([what, f"{100 * fmean(found[name]):.1f}", above])
    return rows


def _between(found: Mapping[str, Sequence[float]], name: str, base: str) -> Difference:
    return difference([a - b for a, b in zip(found[name], found[base], strict=True)])


def _shown(one: Difference) -> str:
    half = "" if math.isnan(one.high) else f" ± {100 * (one.high - one.mean):.1f}"
    return f"{100 * one.mean:+.1f}{half}"


def _of_levels(levels: Mapping[str, Mapping[str, Difference]]) -> Iterator[str]:
    """What each level does for what it is for, and what it costs elsewhere."""
    for method, (purpose, names, page) in PURPOSE.items():
        of = levels[method]
        yield f"{method} is for {purpose}."
        for name in names:
            yield f"- {MEASURES[name]}: {_SAID[of[name].verdict]}, {of[name]}"
        for name, one in of.items():
            if name not in names and one.verdict != "open":
                yield f"- besides, {MEASURES[name]}: {_SAID[one.verdict]}, {one}"
        if any(of[name].verdict != "gain" for name in names):
            yield f"- on other images: {page}"


def _of_groups(groups: Sequence[Part]) -> Iterator[str]:
    found = {name: [part[name] for part in groups] for name in WAYS}
    gain = _between(found, "found", BASE)
    share = fmean(part["share found"] for part in groups)
    yield "CL with groups that gradient clustering finds is for groups that nobody has labelled."
    yield f"- the worst group: {_SAID[gain.verdict]}, {gain}"
    yield f"- {100 * share:.0f} % of the hidden images are in clusters of which they are most"
    other = _between(found, "batch norm", "found")
    told = {
        "gain": "does better without any groups",
        "loss": "does not do as well",
        "open": "is not told from it",
    }
    yield f"- a network with batch normalisation, plainly trained, {told[other.verdict]}: {other}"
    yield "- with its controls: docs/results/hidden-groups.md"


def _page(tables: Sequence[list[list[str]]], said: Sequence[Sequence[str]], picture: str) -> str:
    text = ["# What each level is for", SOURCE, _HOW, f"![]({picture})"]
    for table, lines in zip(tables, said, strict=True):
        text += [markdown(table), "\n".join(lines)]
    return "\n\n".join(text) + "\n"


@contextmanager
def _ahead(out: Path, seeds: int) -> Iterator[subprocess.Popen[bytes]]:
    """While within, another process makes the parts of the hidden groups; it is waited for.

    What it fails at is made, or told, when the parts are asked for. Not by multiprocessing, which would
    run the caller's script again.
    """
    code = "import sys; from hrrl_ext.demo.groups import make; make(sys.argv[1], int(sys.argv[2]))"
    child = subprocess.Popen(
        [sys.executable, "-c", code, str(out), str(seeds)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        yield child
        child.wait()
    finally:
        child.kill()  # of one that has ended, nothing
        child.wait()
