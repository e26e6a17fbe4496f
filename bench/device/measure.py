"""A stage: one group of operators, verified and then timed, case by case."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from typing import Any

import augmix_comparisons
import comparisons
import contrastive_comparisons
import rank1_comparisons
import retrieval_comparisons
import stored_comparisons
import torch
from comparisons import Call, Comparison, Compiler, Way
from places import Place
from steps import as_it_is

from . import cases, timing
from .cases import Measured
from .records import emit, turn

COMPARISONS: dict[str, Callable[..., Comparison]] = {
    "perturb": comparisons.perturb,
    "perturb_stored": stored_comparisons.perturb_stored,
    "store_directions": stored_comparisons.store_directions,
    "mix_chains": augmix_comparisons.mix_chains,
    "concept_cross_entropy": comparisons.concept_cross_entropy,
    "concept_cross_entropy forward": comparisons.concept_cross_entropy_forward,
    "project_simplex": comparisons.project_simplex,
    "project_simplex_backward": comparisons.project_simplex_backward,
    "update_distribution": comparisons.update_distribution,
    "step_distribution": comparisons.step_distribution,
    "chi_square_response": comparisons.chi_square_response,
    "rank1_dot": rank1_comparisons.rank1_dot,
    "rank1_argmin": rank1_comparisons.rank1_argmin,
    "hardest_negatives": retrieval_comparisons.hardest_negatives,
    "hinge_coefficients": retrieval_comparisons.hinge_coefficients,
    "pair_gradients": retrieval_comparisons.pair_gradients,
    "rank1_assign": rank1_comparisons.assignment,
    "info_nce": contrastive_comparisons.negatives,
}
SAMPLES, DRY_SAMPLES = 60, 3
_WITH_MEMORY = ("ours", "explicit")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("call", choices=("a", "b"))
    parser.add_argument("group", choices=cases.CALL_A)
    parser.add_argument("--dry-run", action="store_true")
    args = parser.parse_args()
    dry = args.dry_run
    clock = timing.clock("cpu" if dry else "cuda")
    compiler = as_it_is if dry else Place("cuda", 1).compiled
    wrong = 0
    for measured in cases.of(args.call, args.group, dry):
        wrong += not measure(measured, clock, compiler, DRY_SAMPLES if dry else SAMPLES)
        COMPARISONS[measured.op].cache_clear()  # type: ignore[attr-defined]
        clock.forget()
    sys.exit(wrong > 0)


def measure(measured: Measured, clock: timing.Clock, compiler: Compiler, samples: int) -> bool:
    """Whether every provider that is installed ran, and gave what float64 gives."""
    of_case: dict[str, Any] = {"op": measured.op, "case": str(measured.shape)}
    of_case |= {"device": clock.device, **measured.shape.facts}
    calls: dict[str, Call] = {}
    beyond: dict[str, int | None] = {}
    failed = False
    with turn(alone=False):
        try:
            comparison = COMPARISONS[measured.op](measured.shape, clock.device)
        except Exception as error:
            _say_failed(error, of_case, "ours")
            return False
        for provider in measured.providers:
            try:
                if provider == "liger" and clock.device == "cpu":
                    emit("unmeasured", **of_case, provider=provider, reason="it needs a GPU")
                    continue
                if comparison.held and provider in _WITH_MEMORY:
                    beyond[provider] = clock.beyond(_all_of(comparison.ways[provider], compiler))
                calls[provider] = comparison.checked_call(provider, compiler)
                clock.wait()
            except ModuleNotFoundError as error:
                reason = f"{error.name} is not installed"
                emit("unmeasured", **of_case, provider=provider, reason=reason)
            except Exception as error:
                failed = True
                _say_failed(error, of_case, provider)
    if "ours" not in calls:
        return False
    held = sum(t.nbytes for t in comparison.held) or None
    with turn(alone=True) as alone:
        times = clock.kernels(calls, samples)
        walls = clock.wall(calls)
    for provider, kernels in times.items():
        emit(
            "time",
            **of_case,
            provider=provider,
            us=kernels.microseconds,
            launches=kernels.launches,
            by=kernels.source,
            wall_us=walls[provider],
            alone=alone,
            held_bytes=held,
            beyond_bytes=beyond.get(provider),
        )
    with turn(alone=True):
        try:
            graph = clock.graph(calls["ours"])
        except RuntimeError as error:
            _say_failed(error, of_case, "ours, captured")
            return False
    if graph is not None:
        emit("graph", **of_case, us=graph)
    return not failed


def _all_of(way: Way, compiler: Compiler) -> Call:
    """The call with what comes before it."""
    return lambda: way(compiler)()


def _say_failed(error: Exception, of_case: dict[str, Any], provider: str) -> None:
    """A wrong result costs its provider; an error of the device costs what is left of the process."""
    kind = "wrong" if isinstance(error, AssertionError) else "error"
    text = f"{type(error).__name__}: {error}".strip()[:500]
    emit(kind, **of_case, provider=provider, message=text)
    print(text, file=sys.stderr)
    if isinstance(error, getattr(torch, "AcceleratorError", ())) or "CUDA error" in text:
        sys.exit(1)


if __name__ == "__main__":
    main()
