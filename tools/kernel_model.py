"""What the kernels should take on an H100, from their bytes, their instructions and their latencies.

    python tools/kernel_model.py      # the table of docs/kernels.md, of the library as it is built

Nothing is measured here. A call takes its launches, the longer of what it moves and what it issues, and
the steps that wait for one another: loads that need what another brought, barriers, rounds of a solver.
The instructions of a thread are those that tools/sass.py counts, slow paths and all: an upper bound where
no loop runs often, for which ``visits`` stands. A copy is modelled in the same way.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import sass

COPY = 3.0e6  # bytes per µs
ISSUE = 2.9e7  # instructions of a thread per µs: 132 multiprocessors x 4 schedulers x 32 lanes x 1.7 GHz
LAUNCH = 1.0  # µs each, from the end of the one before, in a graph
FOLLOWING = 0.5  # of one that begins while the one before ends, from that end on
STEPS = {"load": 0.8, "cluster": 0.8, "grid": 1.8, "warp round": 0.4, "block round": 0.6}  # µs each
ROWS = r"wide_rows_kernel<{}, {}, RegisterRow<{}, {}, .* false"


@dataclass(frozen=True)
class Case:
    kernel: str  # the pattern of its name
    case: str
    bytes: float
    threads: float
    bar: float  # µs, or the part of a copy if below 1; 0: none
    steps: dict[str, int]
    following: int = 0  # launches after the first
    visits: float = 1.0
    executed: Callable[[sass.Kernel], float] | None = None  # by a thread, where loops are known

    def row(self) -> str:
        (kernel,) = sass.kernels(self.kernel)
        moved = self.bytes / COPY
        executed = self.executed(kernel) if self.executed else kernel.instructions * self.visits
        issued = executed * self.threads / ISSUE
        waits = LAUNCH + self.following * FOLLOWING
        waits += sum(STEPS[step] * n for step, n in self.steps.items())
        bar = self.bar
        if 0 < bar < 1:
            bar = (LAUNCH + STEPS["load"] + moved) / bar
        time = waits + max(moved, issued)
        numbers = [f"{number:.1f}" for number in (moved, issued, waits, time)]
        against = ["–", "–"]
        if self.bar:
            against = [f"{bar:.1f}", "met" if time <= bar else f"{time / bar:.2f}"]
        cells = [self.case, kernel.registers, kernel.instructions, *numbers, *against, ""]
        return f"| {' | '.join(map(str, cells))} |"


def cross_entropy(
    batch: int, classes: int, size: int, kernel: str, threads: float, bar: float
) -> Case:
    """Labels, then what they point at; losses, their sums by concept, and sums of segments, which blocks
    have to count where there are several."""
    moved = 2.0 * batch * classes * size + 32.0 * batch
    name = f"cross-entropy {batch}×{classes} {'float32' if size == 4 else 'bfloat16'}"
    steps = {"load": 4 if batch <= 1024 else 5, "block round": 1}
    return Case(kernel, name, moved, threads, bar, steps, following=1)


DEVICE = 132 * 128.0
"""Threads that a multiprocessor starts at once, over all of them: with fewer, the others idle."""


def tiles(of_block: int, size: int) -> Callable[[sass.Kernel], float]:
    """Tiles of scores, 16 entries of the embeddings in each turn of the innermost loop."""

    def executed(k: sass.Kernel) -> float:
        once = (k.loop if k.loop > k.inner else k.instructions) - k.inner
        return of_block * (size / 16 * k.inner + once)

    return executed


WARP, BLOCK, WIDEST = "LaneTeam<32>", "BlockOf<256>", "BlockOf<1024>"
FLOAT, HALF = ("float", 4), ("__nv_bfloat16", 8)


def rows(team: str, dtype: tuple[str, int]) -> str:
    return ROWS.format(dtype[0], team, *dtype)


SIMPLEX = r"project_simplex_kernel<GivenRows<float>, HeldEntries\S+ {}>"
IMAGE = 3 * 224 * 224
CASES = [
    cross_entropy(256, 10, 4, "few_classes_kernel<float, false>", 256, 6),
    cross_entropy(65536, 10, 4, "few_classes_kernel<float, false>", 65536, 6),
    cross_entropy(256, 1000, 4, rows(WARP, FLOAT), 256 * 32, 6),
    cross_entropy(8192, 1000, 4, rows(WARP, FLOAT), 8192 * 32, 0.85),
    cross_entropy(32768, 1000, 2, rows(WARP, HALF), 32768 * 32, 0.85),
    cross_entropy(8192, 8192, 2, rows(BLOCK, HALF), 8192 * 256, 0.85),
    cross_entropy(16384, 32768, 2, rows(WIDEST, HALF), 16384 * 1024, 0.85),
    Case(
        "scale_gradient_kernel<float>", "its backward pass, from 1", 4.0, 0, 6, {"load": 1}
    ),
    Case(
        r"perturb_kernel<float, 4, BlockTeam", "perturb 256×3×32×32 float32",
        *(12.0 * 256 * 3072, 256 * 256, 4), {"load": 1, "block round": 1},
    ),
    Case(
        r"perturb_slices_kernel<float, 4>", "perturb 256×3×224×224 float32",
        *(12.0 * 256 * IMAGE, 256 * 8 * 512, 0.85), {"load": 2, "cluster": 2},
    ),
    Case(
        r"perturb_slices_kernel<__nv_bfloat16, 8>", "perturb 256×3×224×224 bfloat16",
        *(6.0 * 256 * IMAGE, 256 * 4 * 512, 0.85), {"load": 2, "cluster": 2},
    ),
    Case(
        SIMPLEX.format("OneBlock"), "project_simplex K = 1000",
        *(8e3, 128, 4), {"load": 1, "warp round": 6, "block round": 3},
    ),
    Case(
        SIMPLEX.format("OneBlock"), "project_simplex K = 10000",
        *(8e4, 1024, 6), {"load": 1, "warp round": 7, "block round": 4}, visits=2,
    ),
    Case(
        SIMPLEX.format("ClusterOfBlocks"), "project_simplex K = 100000",
        *(8e5, 8 * 1024, 10), {"load": 1, "warp round": 7, "block round": 4, "cluster": 4}, visits=2,
    ),
    Case(
        SIMPLEX.format("GridOfBlocks"), "project_simplex K = 1e6",
        *(8e6, 80 * 1024, 30), {"load": 1, "warp round": 7, "block round": 4, "grid": 4}, visits=2,
    ),
    Case(
        "rank1_dot_kernel<float, 4, LaneTeam<32>", "rank1_dot 64×128×1024 float32",
        *(67.6e6, 64 * 128 * 32, 0.75), {"load": 1}, visits=1,
    ),
    Case(
        "rank1_argmin_kernel<LaneTeam<32>", "rank1_argmin 512×1000",
        *(4.1e6, 512 * 32, 8), {"load": 2}, visits=2,
    ),
    Case(
        "hardest_kernel<float, false>", "hardest_negatives 4096×1024 float32",
        *(33.6e6, 1024 * 128, 0), {"load": 2}, following=1, executed=tiles(4, 1024),
    ),
    Case(
        "hardest_kernel<float, true>", "hardest_negatives 4096×1024, order",
        *(33.6e6, 1024 * 128, 0), {"load": 2}, following=1, executed=tiles(4, 1024),
    ),
    Case(
        "hardest_kernel<float, true>", "hardest_negatives 128×1024, order",
        *(1e6, DEVICE, 0), {"load": 2}, following=1, executed=tiles(1, 1024),
    ),
    Case(
        "hinge_kernel<float>", "hinge_coefficients 4096×1024 float32",
        *(101e6, 4096 * 128, 0), {"load": 2}, following=1, executed=tiles(1, 1024),
    ),
    Case(  # 512 blocks of 8 tiles: 32 turns of the innermost loops, and 1400 to load and for exponentials
        "attend_kernel<float>", "InfoNCE 256×65,536×128 float32",
        *(33.6e6 + 2 * 17e6, 512 * 128, 0), {"load": 2}, following=1,
        executed=lambda k: 8 * (32 * 288.0 + 1400),
    ),
    Case(
        "pair_kernel<float, false>", "pair_gradients 4096×1024 float32, 12,288 pairs",
        *(67e6, 1024 * 128, 0), {"load": 48}, executed=lambda k: 24 * (k.loop - k.inner) + 24 * 8 * 10,
    ),
    Case(
        "perturb_stored_kernel<float>", "perturb_stored 256×3×32×32 float32, 8 bits",
        *(9.0 * 256 * 3072, 256 * 512, 0), {"load": 3, "block round": 1}, executed=lambda k: 2 * 6 * 95,
    ),
    Case(
        "mix_chains_kernel<unsigned char>", "mix_chains 256×3×32×32",
        *(2.0 * 256 * 3072, 256 * 256, 256), {"load": 2, "block round": 60},
        executed=lambda k: 1.5e6 / 256,
    ),
]  # fmt: skip


def main() -> None:
    heads = [
        *("case", "registers", "instructions of a thread", "moved, µs", "issued, µs", "waits, µs"),
        *("predicted, µs", "bar, µs", "of the bar", "measured"),
    ]
    print(f"| {' | '.join(heads)} |\n| --- |" + " ---: |" * (len(heads) - 1))
    for case in CASES:
        print(case.row())


if __name__ == "__main__":
    main()
