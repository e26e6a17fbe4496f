"""Every bar of every case that a call was to measure, and what became of it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

from bars import MEMORY_BAR, STEP_BAR, TIMES, Bar, bars

from . import cases

Record = dict[str, Any]
# Peers that the bars name and that no call can have: they are built for a device, or for another end.
ABSENT = {"flash_attn", "quack", "quack_fused", "opacus"}


# torch.compile and other libraries are tried on fewer cases, and in call b alone.
ELSEWHERE = "not in this call"


class Verdict(NamedTuple):
    op: str
    case: str
    bar: str
    measured: str
    outcome: str
    """met, "missed by ...", or "not measured: ..."."""


class Results:
    """The records of one or both calls, by what they are about."""

    def __init__(self, records: list[Record]) -> None:
        self.plans = [(r["call"], r["dry"]) for r in records if r["record"] == "plan"]
        self.stages = {r["stage"]: r["outcome"] for r in records if r["record"] == "stage"}
        self.times: dict[tuple[str, str, str], list[Record]] = {}
        self.failures: dict[tuple[str, str, str], str] = {}
        for r in records:
            if r["record"] == "time":
                self.times.setdefault((r["op"], r["case"], r["provider"]), []).append(r)
            if r["record"] in ("wrong", "error", "unmeasured") and "op" in r:
                reason = r.get("reason") or f"{r['record']}: {r['message'].splitlines()[0][:80]}"
                self.failures[r["op"], r["case"], r["provider"]] = reason

    def planned(self) -> Iterator[tuple[str, cases.Measured]]:
        """What the calls were to measure, with the stage."""
        for call, dry in self.plans:
            for group in cases.CALL_A:
                stage = group if call == "a" else f"{group}, peers"
                yield from ((stage, measured) for measured in cases.of(call, group, dry))

    def pair(self, op: str, case: str, provider: str) -> tuple[Record, Record] | None:
        """Ours and theirs of one process; the same twice where theirs is ours."""
        for theirs in self.times.get((op, case, provider), []):
            for ours in self.times.get((op, case, "ours"), []):
                if ours["stage"] == theirs["stage"]:
                    return ours, theirs
        return None

    def why_not(self, op: str, case: str, provider: str) -> str:
        for who in ("ours", provider):
            if reason := self.failures.get((op, case, who)):
                return reason if who == provider else f"ours: {reason}"
        for stage, m in self.planned():
            if (m.op, str(m.shape)) == (op, case) and provider in m.providers:
                outcome = self.stages.get(stage, "not begun")
                return "not reached" if outcome == "passed" else outcome
        return "no call has this peer" if provider in ABSENT else ELSEWHERE


def verdicts(records: list[Record]) -> list[Verdict]:
    """A dry run is held to a GPU's bars as well: so all of this is tried."""
    results, found = Results(records), []
    shapes = {(m.op, str(m.shape)): m.shape for _, m in results.planned()}
    for (op, case), shape in shapes.items():
        facts = {"op": op, "device": "cuda", **shape.facts}
        found += [_verdict(bar, op, case, results) for bar in bars(facts)]
    return [v for v in found if not v.outcome.endswith(ELSEWHERE)] + list(_of_steps(records))


def _verdict(bar: Bar, op: str, case: str, results: Results) -> Verdict:
    pair = results.pair(op, case, bar.against or "ours")
    if pair is None:
        why = results.why_not(op, case, bar.against or "ours")
        return Verdict(op, case, str(bar), "–", f"not measured: {why}")
    ours, theirs = pair
    value = _value(bar, ours, theirs)
    if value is None:
        return Verdict(op, case, str(bar), "–", f"not measured: {ours['by']} does not show it")
    shown = f"{value:.3g}" + ("×" if bar.against else " µs" if bar.quantity in TIMES else "")
    if not (ours["alone"] and theirs["alone"]):
        shown += " (not alone)"
    if bar.or_microseconds:
        shown += f", {ours['us'][1]:.3g} µs"
    met = value >= bar.limit if bar.against else value <= bar.limit
    met = met or 0 < ours["us"][1] <= bar.or_microseconds
    return Verdict(op, case, str(bar), shown, _outcome(met, value, bar.limit))


def _outcome(met: bool, value: float, limit: float) -> str:
    """By how much: what is too slow, too many or too large, over what was asked."""
    more, less = max(value, limit), min(value, limit)
    return "met" if met else f"missed by {100 * (more / less - 1):.0f} %" if less else "missed"


def _value(bar: Bar, ours: Record, theirs: Record) -> float | None:
    match bar.quantity:
        case "launches":
            return ours["launches"]
        case "memory":
            beyond, held = ours["beyond_bytes"], ours["held_bytes"]
            if beyond is None or not held:
                return None
            return theirs["beyond_bytes"] / (held + beyond) if bar.against else beyond / held
        case "wall":
            return theirs["wall_us"] / ours["wall_us"] if bar.against else ours["wall_us"]
    return theirs["us"][1] / ours["us"][1] if bar.against else ours["us"][1]


def steps_by_case(records: list[Record]) -> dict[str, dict[str, Record]]:
    found: dict[str, dict[str, Record]] = {}
    for r in records:
        if r["record"] == "step":
            found.setdefault(r["case"], {})[r["provider"]] = r
    return found


def _of_steps(records: list[Record]) -> Iterator[Verdict]:
    pairs = (
        ("erm", "ours", ""),
        ("erm_graph", "ours_graph", ", as a graph"),
        ("erm_compile", "compile", ", both compiled"),
    )
    for case, by_provider in steps_by_case(records).items():
        for base, ours, how in pairs:
            if base in by_provider and ours in by_provider:
                erm, hrrl = by_provider[base], by_provider[ours]
                ratio = hrrl["us"][1] / erm["us"][1]
                bar, outcome = (
                    f"≤ {STEP_BAR:g}× ERM{how}",
                    _outcome(ratio <= STEP_BAR, ratio, STEP_BAR),
                )
                yield Verdict("training step", case, bar, f"{ratio:.3g}×", outcome)
                if erm["peak_bytes"] and hrrl["peak_bytes"]:
                    more = hrrl["peak_bytes"] / erm["peak_bytes"]
                    outcome = _outcome(more <= MEMORY_BAR, more, MEMORY_BAR)
                    bar = f"memory ≤ {MEMORY_BAR:g}× ERM"
                    yield Verdict("training step", case, bar, f"{more:.3g}×", outcome)
