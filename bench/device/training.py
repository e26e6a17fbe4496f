"""A stage: training steps of ResNet-18, plain and HRRL's, as they are, as a CUDA graph, or compiled."""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from typing import Any

import memory
import torch
from places import Place
from steps import STEPS, Step, StepCase, as_it_is, expected_losses, tolerance

from . import timing
from .records import emit

CASES = [
    StepCase(64, "bf16", True, batch=256, side=32),
    StepCase(64, "fp32", False, batch=256, side=32),
    StepCase(64, "bf16", True, batch=128, side=224),
    StepCase(64, "fp32", False, batch=128, side=224),
    StepCase(64, "bf16", False, batch=256, side=32),
    StepCase(64, "fp32", True, batch=256, side=32),
]
COMPILED = CASES[:1]  # each compilation takes the better part of a minute
DRY = [StepCase(2, "fp32", False, batch=4, side=16)]
ROUNDS, STEPS_PER_ROUND = 5, 8


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--compiled", action="store_true", help="through torch.compile")
    parser.add_argument("--dry-run", action="store_true")
    args = parser.parse_args()
    clock = timing.clock("cpu" if args.dry_run else "cuda")
    cases = DRY if args.dry_run else COMPILED if args.compiled else CASES
    wrong = [not measure(case, clock, args.compiled, args.dry_run) for case in cases]
    sys.exit(any(wrong))


def measure(case: StepCase, clock: timing.Clock, compiled: bool, dry: bool) -> bool:
    compiler = as_it_is if dry else Place("cuda", 1).compiled
    passed = True
    for name in ("erm_compile", "compile") if compiled else ("erm", "ours"):
        plain, perturbed = expected_losses(case, clock.device)
        expected = plain if name.startswith("erm") else perturbed
        of_case = {"case": str(case), "device": clock.device, **case.facts}
        try:
            here = case.setting(clock.device)
            step = STEPS[name](here, compiler)
            loss = step().item()
            if not abs(loss - expected) <= tolerance(case, clock.device) * expected:
                raise AssertionError(f"the first loss is {loss}, expected {expected}")
            _emit(of_case, name, step, clock, memory.peak_bytes(step, here.held, here.optimizer))
            if not compiled and clock.device == "cuda":
                _emit(of_case, f"{name}_graph", captured(step), clock, None)
        except (AssertionError, RuntimeError) as error:
            kind = "wrong" if isinstance(error, AssertionError) else "error"
            emit(kind, op="step", provider=name, **of_case, message=str(error)[:500])
            print(error, file=sys.stderr)
            passed = False
        clock.forget()
    return passed


def captured(step: Step) -> Step:
    """The whole step, optimiser and q included, as one replay."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            step()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=stream):
        loss = step()

    def replay() -> torch.Tensor:
        graph.replay()
        return loss

    return replay


def _emit(
    of_case: dict[str, Any], name: str, step: Step, clock: timing.Clock, peak: int | None
) -> None:
    step()
    seconds = []
    for _ in range(ROUNDS):
        clock.wait()
        begun = time.perf_counter()
        for _ in range(STEPS_PER_ROUND):
            step()
        clock.wait()
        seconds.append((time.perf_counter() - begun) / STEPS_PER_ROUND)
    rate = of_case["shape"][0] / statistics.median(seconds)
    us = timing.summary(seconds)
    emit("step", provider=name, **of_case, us=us, images_per_second=round(rate), peak_bytes=peak)


if __name__ == "__main__":
    main()
