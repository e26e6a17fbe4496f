#!/usr/bin/env python3
"""What a training step takes over one of ERM, of steps that take turns: for a machine shared with others.

    python bench/step_turns.py --width 16 --rounds 30

Other load meets neighbouring steps alike, so each step is divided by the step of ERM beside it; printed
are the quartiles of these ratios, and the ratio of the fastest steps. Every provider's first loss is
checked as in test_training_step.py.
"""

from __future__ import annotations

import argparse
import statistics
import time

import memory
import torch
from steps import STEPS, StepCase, as_it_is, expected_losses, tolerance


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--width", type=int, default=16)
    parser.add_argument("--dtype", choices=("fp32", "bf16"), nargs="+", default=["fp32", "bf16"])
    parser.add_argument("--providers", choices=STEPS, nargs="+", default=["stored", "ours"])
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    print("| network, precision, layout | provider | ms | fastest | quartiles | memory |")
    print("| --- | --- | ---: | ---: | ---: | ---: |")
    for dtype in args.dtype:
        for channels_last in (False, True):
            take_turns(StepCase(args.width, dtype, channels_last), args.providers, args.rounds)


def take_turns(case: StepCase, providers: list[str], rounds: int) -> None:
    here = {name: case.setting("cpu") for name in ("erm", *providers)}
    steps = {name: STEPS[name](setting, as_it_is) for name, setting in here.items()}
    plain, perturbed = expected_losses(case)
    for name, step in steps.items():
        expected = plain if name.startswith("erm") else perturbed
        if not abs(step().item() - expected) <= tolerance(case, "cpu") * expected:
            raise AssertionError(f"{name}: the first loss is not {expected}")
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(rounds):
        for name, step in steps.items():
            begun = time.perf_counter()
            step()
            seconds[name].append(time.perf_counter() - begun)
    peak = {n: memory.peak_bytes(s, here[n].held, here[n].optimizer) for n, s in steps.items()}
    for name in providers:
        ratios = [a / b for a, b in zip(seconds[name], seconds["erm"], strict=True)]
        low, middle, high = statistics.quantiles(ratios, n=4)
        fastest = min(seconds[name]), min(seconds["erm"])
        cells = [case, name, f"{1e3 * fastest[0]:.1f}", f"{fastest[0] / fastest[1]:.3f}"]
        cells += [f"{low:.3f}, {middle:.3f}, {high:.3f}", f"{peak[name] / peak['erm']:.2f}"]
        print("| " + " | ".join(map(str, cells)) + " |", flush=True)


if __name__ == "__main__":
    main()
