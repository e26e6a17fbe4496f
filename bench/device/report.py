"""The report of one call, or of both, made from their records alone: whatever there is so far."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

from .verdicts import steps_by_case, verdicts

Record = dict[str, Any]
_NO_SECONDS = "–"


def render(records: list[Record]) -> str:
    parts = [
        heading(records),
        section("Stages", stages(records)),
        section("Bars", bar_table(records)),
        section("Tests", tests(records)),
        section("What went wrong", failures(records)),
        section("Times", times(records)),
        section("Counters", counters(records)),
        section("Sanitizers", sanitizers(records)),
        section("Training steps", steps(records)),
        section("Transfer", transfer(records)),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def section(title: str, text: str) -> str:
    return f"## {title}\n\n{text}" if text else ""


def table(columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join("| " + " | ".join(map(_cell, line)) + " |" for line in lines)


def _cell(value: Any) -> str:
    return str(value).replace("|", "\\|").replace("\n", " ")


def of_kind(records: list[Record], *kinds: str) -> list[Record]:
    return [record for record in records if record["record"] in kinds]


def heading(records: list[Record]) -> str:
    devices = of_kind(records, "device")
    name = devices[0]["name"] if devices else "a device not reached"
    lines = [f"# hrrl_ext on {name}\n"]
    if any(plan["dry"] for plan in of_kind(records, "plan")):
        lines.append("**A dry run: not one of these numbers is a GPU's.**\n")
    for plan in of_kind(records, "plan"):
        calls = f"`python bench/device_check.py {plan['call']}`"
        lines.append(f"- {calls}, {plan['date']}, commit {plan['commit']}")
    for facts in [*devices[:1], *of_kind(records, "built")[:1]]:
        shown = (f"{k.replace('_', ' ')} {v}" for k, v in facts.items() if k not in _SHOWN_APART)
        lines.append(f"- {', '.join(shown)}")
    if len({d["name"] for d in devices}) > 1:
        lines.append(f"- **not one device**: {', '.join(d['name'] for d in devices)}")
    return "\n".join(lines)


_SHOWN_APART = ("record", "stage", "name")


def stages(records: list[Record]) -> str:
    done = {(r["stage"]): r for r in of_kind(records, "stage")}
    rows = []
    for plan in of_kind(records, "plan"):
        for name, limit, estimate in plan["stages"]:
            ended = done.get(name)
            result = ended["outcome"] if ended else "not ended"
            seconds = f"{ended['seconds']:.0f}" if ended else _NO_SECONDS
            rows.append([plan["call"], name, result, seconds, f"{limit:.0f}", f"{estimate:.0f}"])
    return table(["call", "stage", "result", "seconds", "limit", "expected"], rows)


def bar_table(records: list[Record]) -> str:
    found = verdicts(records)
    if not found:
        return ""
    count = Counter(verdict.outcome.split(" ")[0] for verdict in found)
    text = f"{count['met']} met, {count['missed']} missed, {count['not']} not measured."
    rows = [[*v[:4], v.outcome if v.outcome == "met" else f"**{v.outcome}**"] for v in found]
    return f"{text}\n\n" + table(["op", "case", "bar", "measured", "outcome"], rows)


def tests(records: list[Record]) -> str:
    """The last line about a test is what became of it: one that only began took its process along."""
    last = {(r["stage"], r["test"]): r for r in of_kind(records, "test")}
    if not last:
        return ""
    count = Counter(record["outcome"] for record in last.values())
    parts = [f"{count['passed']} passed, {count['failed']} failed, {count['skipped']} skipped."]
    parts += [
        f"- `{test}`: {record['outcome']}, and its process ended"
        if record["outcome"] == "begun"
        else f"- `{test}`: {record.get('message', 'failed')}"
        for (_, test), record in last.items()
        if record["outcome"] in ("failed", "begun")
    ]
    return "\n".join([parts[0], "", *parts[1:]]).strip()


def failures(records: list[Record]) -> str:
    lines = [
        f"- {r['op']} {r['case']}, {r['provider']}: {r['record']}, {_cell(r['message'])[:200]}"
        for r in of_kind(records, "wrong", "error")
    ]
    return "\n".join(lines)


def times(records: list[Record]) -> str:
    """Of one process each; a ratio is the other's time over ours."""
    graphs = {(r["stage"], r["op"], r["case"]): r["us"] for r in of_kind(records, "graph")}
    ours = {
        (r["stage"], r["op"], r["case"]): r
        for r in of_kind(records, "time")
        if r["provider"] == "ours"
    }
    rows = []
    for r in of_kind(records, "time"):
        key = r["stage"], r["op"], r["case"]
        base = ours.get(key)
        low, middle, high = r["us"]
        own = r["provider"] == "ours"
        ratio = f"{middle / base['us'][1]:.2f}" if base and not own and base["us"][1] else "–"
        launches = "–" if r["launches"] is None else r["launches"]
        graph = graphs.get(key, "–") if own else "–"
        wall = f"{r['wall_us']:.1f}"
        spread = f"{low:.1f} to {high:.1f}"
        rows.append([r["op"], r["case"], r["provider"], f"{middle:.2f}", spread])
        rows[-1] += [ratio, launches, graph, wall]
    if not rows:
        return ""
    by = " and ".join(dict.fromkeys(r["by"] for r in of_kind(records, "time")))
    text = (
        f"Microseconds of the kernels of a call ({by}), the cache emptied before each: the median, the "
        "20th and the 80th percentile; per call of a replayed CUDA graph, its cache warm; of the wall "
        "clock of a call from Python, one enqueued after the other."
    )
    columns = [
        "op",
        "case",
        "provider",
        "µs",
        "20 to 80 %",
        "over ours",
        "launches",
        "graph",
        "wall",
    ]
    return f"{text}\n\n" + table(columns, rows)


def counters(records: list[Record]) -> str:
    found = of_kind(records, "counters")
    refused = [r for r in of_kind(records, "unmeasured") if r.get("tool") == "ncu"]
    if not found:
        return f"Not measured: {refused[0]['reason']}." if refused else ""
    names = [k for k in found[0] if k not in ("record", "stage", "number")]
    return table(names, ([r.get(name, "–") for name in names] for r in found))


def sanitizers(records: list[Record]) -> str:
    lines = [f"- {r['tool']}: {r['summary']}" for r in of_kind(records, "sanitizer")]
    lines += [
        f"- {r['tool']}: not measured, {r['reason']}"
        for r in of_kind(records, "unmeasured")
        if r.get("tool") not in (None, "ncu")
    ]
    return "\n".join(lines)


def steps(records: list[Record]) -> str:
    rows = []
    for case, by_provider in steps_by_case(records).items():
        for provider, r in by_provider.items():
            erm = by_provider.get(
                provider.replace("ours", "erm").replace("compile", "erm_compile", 1)
            )
            own = provider.startswith(("ours", "compile"))
            over = f"{r['us'][1] / erm['us'][1]:.2f}" if own and erm else "–"
            memory = "–" if r["peak_bytes"] is None else f"{r['peak_bytes'] / 2**20:.0f}"
            rows.append(
                [case, provider, f"{r['us'][1] / 1e3:.2f}", over, r["images_per_second"], memory]
            )
    columns = ["case", "step", "ms", "over ERM", "images/s", "peak MiB"]
    return table(columns, rows) if rows else ""


def transfer(records: list[Record]) -> str:
    """Mean and standard deviation over the seeds, and of the differences to ERM, seed by seed."""
    values: dict[str, dict[str, dict[int, float]]] = {}
    for r in of_kind(records, "trained", "probed"):
        if r["record"] == "probed":
            columns = {r["target"]: r["accuracy"]}
        else:
            columns = {"accuracy": r["accuracy"], "worst concept": r["worst_concept"]}
        for column, value in columns.items():
            of_variant = values.setdefault(column, {}).setdefault(r["variant"], {})
            of_variant[r["seed"]] = 100 * value
    if not values:
        begun = of_kind(records, "transfer")
        return "No model was trained before its time was up." if begun else ""
    variants = list(dict.fromkeys(r["variant"] for r in of_kind(records, "trained")))
    rows, differences = [], []
    for column, by_variant in values.items():
        rows.append([column, *(_mean(by_variant.get(v, {}).values()) for v in variants)])
        erm = by_variant.get("ERM", {})
        paired = [
            [x - erm[seed] for seed, x in by_variant.get(v, {}).items() if seed in erm]
            for v in variants[1:]
        ]
        differences.append([column, *(_mean(d, "+") for d in paired)])
    setting = of_kind(records, "transfer")[0]
    text = (
        f"Accuracy in %, {setting['images']} images, {setting['config']['epochs']} epochs, width "
    )
    text += f"{setting['config']['width']}; mean ± standard deviation (seeds)."
    parts = [text, table(["", *variants], rows)]
    if len(variants) > 1:
        parts += ["Minus ERM of the same seed:", table(["", *variants[1:]], differences)]
    return "\n\n".join(parts)


def _mean(values: Iterable[float], sign: str = "") -> str:
    values = list(values)
    if not values:
        return "–"
    spread = f" ± {statistics.stdev(values):.1f}" if len(values) > 1 else ""
    return f"{statistics.fmean(values):{sign}.1f}{spread} ({len(values)})"
