"""What ncu and compute-sanitizer run: a few launches of our kernels."""

from __future__ import annotations

import argparse

import torch
from steps import as_it_is

from .cases import HOT, SANITISED
from .measure import COMPARISONS


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("which", choices=("hot", "small"))
    parser.add_argument("--device", default="cuda")
    args = parser.parse_args()
    for op, shape in HOT if args.which == "hot" else SANITISED:
        call = COMPARISONS[op](shape, args.device).ways["ours"](as_it_is)
        call()
        if args.device == "cuda":
            torch.cuda.synchronize()
        if args.which == "hot":  # after the warm-up: ncu counts between start and stop alone
            torch.cuda.profiler.start()
            call()
            torch.cuda.synchronize()
            torch.cuda.profiler.stop()


if __name__ == "__main__":
    main()
