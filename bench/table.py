"""Markdown from the JSON of the benchmarks.

    pytest bench --benchmark-only --benchmark-json=results.json
    python bench/table.py results.json > bench/results/NAME.md

A ratio is the other's time over ours: above 1 we are faster. What misses its bar (bars.py) is bold, and
listed at the end.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bars import (
    ATTACK_BAR,
    LOOP_BAR,
    MEMORY_BAR,
    QUEUE_MEMORY_BAR,
    STEP_BAR,
    STORED_BAR,
    TRANSFER_BARS,
    by_wall_clock,
    least_ratio,
    most_microseconds,
)

STATISTICS = {"min": "fastest round", "median": "median round"}
PEERS = {
    "eager": "eager",
    "compile": "torch.compile",
    "gather": "the gather form",
    "eager32": "eager, sums in float32",
    "compile32": "torch.compile, sums in float32",
    "torchattacks": "torchattacks",
    "entmax": "entmax",
    "attention": "attention over the queue",
    "lightly": "lightly",
    "Pillow": "Pillow",
    "torchvision": "torchvision",
    "products": "its two products alone",
    "copy": "a copy",
}


@dataclass
class Case:
    """One case at one place: its facts, and the seconds of each provider."""

    facts: dict[str, Any]
    seconds: dict[str, float]
    spread: float
    """Interquartile range of ours over its median."""
    peak: dict[str, int] = field(default_factory=dict)
    """The peak memory of each provider, in bytes, where it was taken."""
    wall: dict[str, float] = field(default_factory=dict)
    """The seconds of a call from Python, where ``seconds`` are the GPU's own."""

    @property
    def op(self) -> str:
        return str(self.facts["op"])

    @property
    def peak_over_arguments(self) -> float | None:
        return self.facts.get("peak_over_arguments")

    @property
    def place(self) -> str:
        return "GPU" if self.facts["device"] == "cuda" else str(self.facts["threads"])

    def ratio(self, provider: str) -> float | None:
        """Their time over ours: by the wall clock where the bar is."""
        seconds = self.wall if by_wall_clock(self.facts, provider) else self.seconds
        return _over(seconds.get(provider), seconds.get("ours"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("results", type=Path, help="what --benchmark-json wrote")
    parser.add_argument("--statistic", choices=STATISTICS, default="min", help="of the rounds")
    args = parser.parse_args()
    print(report(json.loads(args.results.read_text()), args.statistic))


def report(results: dict[str, Any], statistic: str) -> str:
    cases = read_cases(results["benchmarks"], statistic)
    steps = [case for case in cases if case.op == "training_step"]
    loops = [case for case in cases if case.op == "training_loop"]
    attacks = [case for case in cases if case.op == "apgd_step"]
    scaled = [b["extra_info"] for b in results["benchmarks"] if b["extra_info"]["op"] == "scaling"]
    parts_of_round = [
        b for b in results["benchmarks"] if b["extra_info"]["op"] == "clustering_step"
    ]
    transfers = [case for case in cases if case.op in TRANSFER_BARS]
    compared = [case for case in cases if case not in steps + loops + transfers + attacks]
    parts = [header(results, statistic)]
    if compared:
        parts += ["## Summary", summary(compared)]
    for op in dict.fromkeys(case.op for case in compared):
        parts += [f"## {op}", op_table([case for case in compared if case.op == op])]
    if steps:
        parts += ["## Training step", step_table(steps)]
    if loops:
        parts += ["## Training loop", loop_table(loops)]
    if transfers:
        parts += ["## Transfer", transfer_table(transfers)]
    if attacks:
        parts += ["## Steps of APGD", attack_table(attacks)]
    if parts_of_round:
        parts += ["## A round of gradient clustering", clustering_table(parts_of_round, statistic)]
    if scaled:
        parts += ["## Several processes", scaling_table(scaled)]
    if compared:
        parts += ["## Below the bar", misses(compared)]
    return "\n\n".join(parts)


def read_cases(benchmarks: Iterable[dict[str, Any]], statistic: str) -> list[Case]:
    """In the order of the run. A case whose own provider did not run (-k) has no ratio: left out."""
    groups: dict[str, list[dict[str, Any]]] = {}
    for benchmark in benchmarks:
        groups.setdefault(benchmark["group"], []).append(benchmark)
    cases = []
    for group in groups.values():
        by_provider = {one["extra_info"]["provider"]: one for one in group}
        if "ours" in by_provider:
            ours = by_provider["ours"]
            seconds = {name: _seconds(one, statistic) for name, one in by_provider.items()}
            spread = ours["stats"]["iqr"] / ours["stats"]["median"]
            facts = {name: one["extra_info"] for name, one in by_provider.items()}
            peak = {name: f["peak_bytes"] for name, f in facts.items() if "peak_bytes" in f}
            wall = {name: float(one["stats"][statistic]) for name, one in by_provider.items()}
            cases.append(Case(ours["extra_info"], seconds, spread, peak, wall))
    return cases


def header(results: dict[str, Any], statistic: str) -> str:
    machine, ours = results["machine_info"], results["machine_info"]["hrrl_ext"]
    device = ours["cuda_device"] or machine["cpu"].get("brand_raw", machine["processor"])
    load = [ours["load_before"], ours["load_after"]]
    if None not in load:
        load = [f"{value:.1f}" for value in load]
    return "\n".join(
        [
            f"# hrrl_ext {ours['version']} on {device}",
            "",
            f"- {results['datetime'][:10]}, {ours['cores']} cores, {ours['instructions']} kernels, "
            f"{ours['compiler']}, torch {ours['torch']}, Python {machine['python_version']}, "
            f"{machine['system']} {machine['machine']}",
            f"- load before and after: {load[0]}, {load[1]} (the benchmarks are themselves 1 to "
            f"{ours['cores']} of it)",
            "- command: `pytest bench --benchmark-only --benchmark-json=results.json`, then "
            f"`python bench/table.py results.json --statistic {statistic}`",
            f"- times: {STATISTICS[statistic]}; IQR: interquartile range of our rounds over their median",
            "- ratios: the other's time over ours in the same run, above 1 we are faster; a copy moves "
            "as many bytes as we must. **Bold** is below the bar",
        ]
    )


def summary(cases: list[Case]) -> str:
    rows = []
    for op in dict.fromkeys(case.op for case in cases):
        for provider, name in PEERS.items():
            ratios = [
                (ratio, case)
                for case in cases
                if case.op == op and (ratio := case.ratio(provider)) is not None
            ]
            if ratios:
                least, worst = min(ratios, key=lambda pair: pair[0])
                mean = math.exp(sum(math.log(ratio) for ratio, _ in ratios) / len(ratios))
                bars = sorted({least_ratio(case.facts, provider) for _, case in ratios})
                below = sum(ratio < least_ratio(case.facts, provider) for ratio, case in ratios)
                where = f"{worst.facts['case']}, {_threads(worst.place)}"
                row = [op, name, len(ratios), _ratio(mean), _ratio(least), where]
                rows.append([*row, " or ".join(f"{bar:g}" for bar in bars), below])
    names = ["op", "against", "cases", "geometric mean", "worst", "worst case", "bar", "below"]
    return markdown(names, rows)


def op_table(cases: list[Case]) -> str:
    peers = [name for name in PEERS if any(name in case.seconds for case in cases)]
    rows = [
        [
            case.facts["case"],
            "×".join(map(str, case.facts["shape"])),
            case.facts["dtype"],
            case.place,
            _microseconds(case.seconds["ours"]),
            f"{100 * case.spread:.0f} %",
            *(_ratio(case.ratio(name), least_ratio(case.facts, name)) for name in peers),
        ]
        for case in cases
    ]
    columns = [
        "case",
        "shape",
        "dtype",
        "threads",
        "ours µs",
        "IQR",
        *(PEERS[name] for name in peers),
    ]
    if any(case.peak_over_arguments is not None for case in cases):
        columns.append("peak over arguments")
        for row, case in zip(rows, cases, strict=True):
            row.append(_at_most(case.peak_over_arguments, 1 + QUEUE_MEMORY_BAR))
    return markdown(columns, rows)


def step_table(cases: list[Case]) -> str:
    """HRRL costs two forward passes and 5/3 of ERM at least."""
    rows = []
    for case in cases:
        memory = _over(case.peak.get("ours"), case.peak.get("erm"))
        compiled = _over(case.seconds.get("compile"), case.seconds.get("erm_compile"))
        row = [case.facts["case"], "×".join(map(str, case.facts["shape"])), case.place]
        row += [f"{1e3 * case.seconds['ours']:.1f}", f"{100 * case.spread:.0f} %"]
        row += [
            _at_most(_over(case.seconds["ours"], case.seconds.get("erm")), STEP_BAR),
            _ratio(_over(case.seconds.get("passes"), case.seconds.get("erm"))),
            _at_most(_over(case.seconds.get("stored"), case.seconds.get("erm")), STORED_BAR),
            _at_most(memory, MEMORY_BAR),
            _ratio(case.ratio("by_hand")),
            _ratio(_over(case.seconds["ours"], case.seconds.get("compile"))),
            _ratio(compiled),
        ]
        rows.append(row)
    columns = [
        "case",
        "images",
        "threads",
        "HRRL ms",
        "IQR",
        "HRRL / ERM",
        "its passes / ERM",
        "stored / ERM",
        "memory / ERM",
    ]
    columns += ["EL by hand / HRRL", "HRRL / HRRL compiled", "HRRL / ERM, both compiled"]
    return (
        f"HRRL / ERM has its floor at 5/3 and its bar at {STEP_BAR}, its peak memory the bar "
        f"{MEMORY_BAR}, the step with stored directions {STORED_BAR}; above is **bold**. Its passes "
        "alone, with nothing between them, are the floor where a forward pass takes more than a third "
        "of ERM's step.\n\n" + markdown(columns, rows)
    )


def loop_table(cases: list[Case]) -> str:
    rows = [
        [
            case.facts["case"],
            case.place,
            f"{1e3 * case.seconds['ours']:.1f}",
            f"{100 * case.spread:.0f} %",
            _at_most(_over(case.seconds["ours"], case.seconds.get("bare")), LOOP_BAR, digits=3),
        ]
        for case in cases
    ]
    return (
        "An epoch of HRRLTrainer, data in memory, over the bare steps on the same batches made "
        f"beforehand; the bar is {LOOP_BAR}.\n\n"
        + markdown(["case", "threads", "epoch ms", "IQR", "trainer / bare steps"], rows)
    )


def transfer_table(cases: list[Case]) -> str:
    rows = []
    for case in cases:
        base, bar = TRANSFER_BARS[case.op]
        for name in case.seconds.keys() - {base}:
            ratio = _over(case.seconds[name], case.seconds.get(base))
            ms = f"{1e3 * case.seconds[name]:.1f}"
            rows.append(
                [case.op, case.facts["case"], case.place, name, ms, _at_most(ratio, bar, 3)]
            )
    text = (
        "Features (ours; file: to a file) over the bare forward passes, bar 1/0.95; a step of "
        "similarity regularisation (ours) and of L2-SP over a plain one, bar 1.4."
    )
    columns = ["what", "case", "threads", "provider", "ms", "over its base"]
    return f"{text}\n\n" + markdown(columns, sorted(rows))


def attack_table(cases: list[Case]) -> str:
    rows = [
        [
            case.facts["case"],
            case.place,
            f"{1e3 * case.seconds['ours']:.1f}",
            f"{100 * case.spread:.0f} %",
            _at_most(_over(case.seconds["ours"], case.seconds.get("passes")), ATTACK_BAR),
        ]
        for case in cases
    ]
    return (
        "Five steps of APGD over the forward and backward passes they contain; the bar is "
        f"{ATTACK_BAR}.\n\n"
        + markdown(["case", "threads", "attack ms", "IQR", "attack / passes"], rows)
    )


def clustering_table(found: list[dict[str, Any]], statistic: str) -> str:
    """Time and allocated memory over those of one back-propagation of the same batch."""
    base = {b["group"]: b for b in found if b["extra_info"]["provider"] == "back-propagation"}
    rows = []
    for b in found:
        facts, whole = b["extra_info"], base.get(b["group"])
        threads = "GPU" if facts["device"] == "cuda" else facts["threads"]
        seconds = _seconds(b, statistic)
        row = [facts["case"], threads, facts["provider"], f"{1e3 * seconds:.0f}"]
        row.append(_ratio(None if whole is None else seconds / _seconds(whole, statistic)))
        row.append(f"{facts['allocated'] / 2**20:.0f}")
        rows.append(row)
    columns = ["case", "threads", "part", "ms", "over back-propagation", "memory MiB"]
    return (
        "Back-propagation is a forward pass and the gradients of all weights. Memory is the peak of "
        "what torch allocates, with the network and the batch.\n\n" + markdown(columns, rows)
    )


def scaling_table(found: list[dict[str, Any]]) -> str:
    """Efficiency: images per second over those of one process, over the number of processes."""
    one = {f["case"]: f["images_per_second"] for f in found if f["processes"] == 1}
    rows = []
    for f in found:
        gain = _over(f["images_per_second"], one.get(f["case"]))
        share = "–" if gain is None else f"{100 * gain / f['processes']:.0f} %"
        row = [f["case"], f["processes"], f"{f['images_per_second']:.0f}", _ratio(gain), share]
        rows.append(row)
    columns = ["case", "processes", "images/s", "over one process", "efficiency"]
    return "One thread each, gloo, the same batch per process.\n\n" + markdown(columns, rows)


def misses(cases: list[Case]) -> str:
    """By how much, the worst first."""
    missed: list[tuple[float, list[Any]]] = []
    for case in cases:
        row = [case.op, case.facts["case"], case.place]
        for provider, name in PEERS.items():
            ratio, bar = case.ratio(provider), least_ratio(case.facts, provider)
            if ratio is not None and ratio < bar:
                missed.append((ratio / bar, [*row, name, _ratio(ratio), f"≥ {bar:g}"]))
        limit, us = most_microseconds(case.facts), 1e6 * case.seconds["ours"]
        if limit is not None and us > limit:
            missed.append((limit / us, [*row, "µs", f"{us:.2f}", f"≤ {limit:g}"]))
        peak, most = case.peak_over_arguments, 1 + QUEUE_MEMORY_BAR
        if peak is not None and peak > most:
            missed.append((most / peak, [*row, "its arguments", f"{peak:.2f}", f"≤ {most:g}"]))
    if not missed:
        return "Nowhere in this run."
    rows = [row for _, row in sorted(missed, key=lambda item: item[0])]
    return markdown(["op", "case", "threads", "against", "measured", "bar"], rows)


def _seconds(benchmark: dict[str, Any], statistic: str) -> float:
    """On a GPU its own time of a call, the median; the rounds there time the host as well."""
    on_device = benchmark["extra_info"].get("device_seconds")
    return float(on_device[1] if on_device else benchmark["stats"][statistic])


def markdown(columns: list[str], rows: list[list[Any]]) -> str:
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines)


def _over(a: float | None, b: float | None) -> float | None:
    return None if a is None or b is None else a / b


def _at_most(ratio: float | None, bar: float, digits: int = 2) -> str:
    if ratio is None:
        return "–"
    return f"{ratio:.{digits}f}" if ratio <= bar else f"**{ratio:.{digits}f}**"


def _ratio(ratio: float | None, bar: float = 0.0) -> str:
    if ratio is None:
        return "–"
    text = f"{ratio:.2f}" if ratio < 10 else f"{ratio:.1f}" if ratio < 100 else f"{ratio:.0f}"
    return f"**{text}**" if ratio < bar else text


def _microseconds(seconds: float) -> str:
    us = 1e6 * seconds
    return f"{us:.2f}" if us < 100 else f"{us:,.0f}"


def _threads(place: str) -> str:
    return {"GPU": "GPU", "1": "1 thread"}.get(place, f"{place} threads")


if __name__ == "__main__":
    main()
