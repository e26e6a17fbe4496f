#!/usr/bin/env python3
"""Inner products of many rows with many: torch's own, and what inner_products chooses, taking turns.

    python bench/products.py

Both are checked against float64 first. A ratio is torch's time over ours, of the fastest turns.
"""

from __future__ import annotations

import time
from functools import partial

import torch
from memory import keep_freed_memory
from turns import measured

from hrrl_ext._products import inner_products

SHAPES = [(128, 128, 512), (256, 384, 128), (512, 512, 256), (512, 1024, 1024), (1024, 1024, 128)]
TURNS = 60


def main() -> None:
    keep_freed_memory()
    g = torch.Generator().manual_seed(0)
    print(
        "| N, M, D | threads | torch, ms | ours, ms | ratio |\n| --- | ---: | ---: | ---: | ---: |"
    )
    for n, m, d in SHAPES:
        x, y = torch.randn(n, d, generator=g), torch.randn(m, d, generator=g)
        exact = x.double() @ y.double().T
        ways = {"torch": partial(torch.matmul, x, y.T), "ours": partial(inner_products, x, y)}
        for way in ways.values():
            torch.testing.assert_close(way().double(), exact, rtol=0, atol=1e-5 * d**0.5)
        for threads in (1, 2):
            torch.set_num_threads(threads)
            seconds = measured(ways, TURNS, time.perf_counter)
            of = {name: min(turns) for name, turns in seconds.items()}
            ratio = of["torch"] / of["ours"]
            cells = (f"{n}, {m}, {d}", threads, *(f"{1e3 * s:.3g}" for s in of.values()))
            print(f"| {' | '.join(map(str, cells))} | {ratio:.2f} |", flush=True)


if __name__ == "__main__":
    main()
