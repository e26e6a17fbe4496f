"""What we ask of ourselves, in one place. A missed bar fails no run: the tables say where it was missed.

A case is a dictionary of facts: op, device ("cpu" or "cuda"), shape, dtype; for images and vectors their
layout, for the A step of gradient clustering its kind.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

STEP_BAR = 1.75
"""HRRL's training step over ERM's; the floor is 5/3."""
STORED_BAR = 1.05
"""The step with stored directions over ERM's, which it adds the first layer's gradient to."""
MEMORY_BAR = 1.1
"""Its peak memory over ERM's."""
LOOP_BAR = 1.05
"""An epoch of HRRLTrainer over the bare steps on the same batches, made beforehand; and a step of
RetrievalTrainer over its lines by hand."""
TRANSFER_BARS = {"extraction": ("bare", 1 / 0.95), "finetuning_step": ("plain", 1.4)}
"""Over the provider's time: features over the bare forward passes, similarity over a plain step."""
RECALL_BAR = 1.1
"""retrieval.evaluate over the matrix product of all scores."""
QUEUE_MEMORY_BAR = 0.02
"""What info_nce allocates beyond its arguments, over them."""
VIEWS_BAR = 0.1
"""Both views of URRL over a step of pretraining on as many images."""
ATTACK_BAR = 1.1
"""Steps of APGD over the forward and backward passes they contain."""

ITEMSIZE = {"uint8": 1, "fp32": 4, "bf16": 2, "fp16": 2, "fp64": 8}
LARGE, SMALL = 64e6, 10e6
"""Bytes moved: from LARGE on the bandwidth is what counts, up to SMALL the launch."""
# Of one row of the simplex, by its length: microseconds, over the sort (compiled or not), over entmax.
ROWS = {1024: (4, 10, 12), 10_000: (6, 10, 10), 100_000: (10, 7, 7), math.inf: (30, 5, 5)}


class Bar(NamedTuple):
    """One thing that a case is held to: at least ``limit`` times better than a peer, or at most it."""

    against: str
    """A provider, whose number is divided by ours; or "" where the bar is on our own number."""
    quantity: str
    """"device": the device's own time (a CPU's is the wall clock), in microseconds; "wall": that of a
    call from Python; "launches"; "memory": the bytes that a call has at most beyond its arguments,
    where the bar is our own as a share of theirs."""
    limit: float
    or_microseconds: float = 0.0
    """The bar is cleared as well by a device time up to this."""

    def __str__(self) -> str:
        if not self.against:
            return f"{self.quantity} ≤ {self.limit:g}{' µs' * (self.quantity in TIMES)}"
        wall = ", wall clock" * (self.quantity == "wall")
        also = f", or ≤ {self.or_microseconds:g} µs" * bool(self.or_microseconds)
        what = "memory of " * (self.quantity == "memory")
        return f"{what}{self.against}{wall} ≥ {self.limit:g}×{also}"


TIMES = ("device", "wall")


def bars(facts: dict[str, Any]) -> list[Bar]:
    """All that hold for a case. A copy moves as many bytes as we must, so its bar is a share."""
    if facts["op"] == "joint_embedding_step":
        return _ratios(gather=1 / LOOP_BAR)
    if facts["device"] != "cuda":
        return _cpu_bars(facts)
    shape, size = facts["shape"], ITEMSIZE[facts["dtype"]]
    match facts["op"]:
        case "perturb":
            return _perturb_bars(shape, facts["dtype"], facts.get("layout") == "channels_last")
        case "concept_cross_entropy":
            return _concept_bars(shape, 2 * math.prod(shape) * size)
        case "concept_cross_entropy forward":
            kept = ("copy", "")
            both = _concept_bars(shape, 2 * math.prod(shape) * size)
            return [bar for bar in both if bar.against in kept]
        case "project_simplex" | "update_distribution" if len(shape) == 1:
            limit, sort, entmax = next(row for most, row in ROWS.items() if shape[0] <= most)
            return [*_own(limit, 1), *_ratios(eager=sort, compile=sort, entmax=entmax)]
        case "project_simplex":
            return _ratios(liger=4, eager=1, compile=1, entmax=1)
        case "project_simplex_backward" if 3 * math.prod(shape) * size >= LARGE:
            return _ratios(copy=0.8, eager=3, compile=1.2, entmax=3)
        case "hardest_negatives":
            return _ratios(gather=1, compile=1)
        case "info_nce":
            return _ratios(attention=1.2, eager=5, compile=2)
        case "mix_chains":  # a million images of 32 pixels a second, 30,000 of 224
            return [Bar("", "device", shape[0] / (1 if shape[-1] <= 32 else 0.03))]
        case "rank1_assign":
            return _assignment_bars(facts["kind"], clusters=shape[-1])
    return _ratios(eager=1, compile=1)


def _ratios(quantity: str = "device", **limits: float) -> list[Bar]:
    return [Bar(provider, quantity, limit) for provider, limit in limits.items()]


def _own(microseconds: float, launches: int) -> list[Bar]:
    return [Bar("", "device", microseconds), Bar("", "launches", launches)]


def _perturb_bars(shape: tuple[int, ...], dtype: str, channels_last: bool) -> list[Bar]:
    elements = math.prod(shape)
    moved, long = 3 * elements * ITEMSIZE[dtype], elements // max(shape[0], 1) > 2**14
    # No copy is made for a memory format: it takes the same time, and one launch.
    same = [Bar("contiguous", "device", 0.97), Bar("", "launches", 1)] if channels_last else []
    if moved >= LARGE:
        eager = 1.9 if dtype == "fp32" else 2.5
        compiled = 1.25 if long else 1.0
        return [*_ratios(copy=0.85, eager=eager, compile=compiled, torchattacks=1.9), *same]
    if moved <= SMALL:
        return [*_own(4, 1), *_ratios("wall", eager=4, compile=1.3)]
    return [*_ratios(eager=1, compile=1), *same]


def _concept_bars(shape: Sequence[int], moved: int) -> list[Bar]:
    batch, classes = shape
    if batch * classes <= 1e6:
        walls = _ratios("wall", eager=5, compile=2)
        return [*_own(6, 2), *walls, *_ratios(liger=5, flash_attn=2)]
    if moved >= LARGE and classes > 2**15:
        return _ratios(copy=0.75, eager=2.5, compile=1.5, quack=0.95)
    if moved >= LARGE and classes >= 256:
        peers = _ratios(flash_attn=1.35, quack=1.35, liger=2, quack_fused=0.97)
        return [*_ratios(copy=0.85, eager=2.7, compile=1.35), *peers]
    return _ratios(eager=1, compile=1)


def _assignment_bars(kind: str, clusters: int) -> list[Bar]:
    """Eager is the computation of gvar_code, the authors' own: a bar over that one is on it as well."""
    if kind == "convolution":
        eager = 5 if clusters <= 32 else 1.5 if clusters >= 100 else 1
        unfolded = (
            [Bar("", "memory", 0.02)] if clusters <= 32 else []
        )  # of the inputs, by positions
        return [*unfolded, *_ratios(eager=eager, compile=1.5, opacus=3)]
    if clusters >= 256:
        memory = Bar("explicit", "memory", 300)
        return [*_ratios(gemm=1 / 1.25, eager=3, compile=1.5, explicit=100), memory]
    if clusters <= 128:
        bound = Bar("copy", "device", 0.75, or_microseconds=8)
        return [bound, *_ratios("wall", eager=4), *_ratios(eager=4, compile=2)]
    return _ratios(eager=1, compile=1)


def _cpu_bars(facts: dict[str, Any]) -> list[Bar]:
    size = facts["shape"][-1]
    match facts["op"]:
        case "call":
            return [Bar("", "device", 5), *_ratios(eager=1)]
        case "perturb":
            return _ratios(copy=0.8, eager=2, torchattacks=2, compile=1)
        case "concept_cross_entropy":
            return _ratios(eager=8 if size <= 16 else 1.5, compile=1)
        case "project_simplex" | "update_distribution":
            return _ratios(eager=8 if size <= 1000 else 20, compile=1, entmax=15)
        case "hardest_negatives" if facts["kind"] == "cosine":
            return _ratios(gather=2 if size <= 128 and facts["shape"][0] >= 512 else 1, eager=1)
        case "hardest_negatives":
            return _ratios(compile=1, gather=1, eager=60 if size >= 1024 else 1)
        case "info_nce":
            return _ratios(eager=2, compile=1, attention=1 / 1.2, products=0.75)
        case "mix_chains":
            return _ratios(eager=1, Pillow=10 if size <= 32 else 5)
        case "augmix":
            small = size <= 32
            return _ratios(Pillow=10 if small else 5, torchvision=20 if small else 5)
        case "sum_hinge":
            return _ratios(eager=1.5 if size <= 256 and facts["shape"][0] >= 512 else 1)
        case "semi_hard_negatives":  # a warm-up, in plain torch
            return _ratios(eager=0)
        case "rank1_assign":
            linear = facts["kind"] == "linear"
            return _ratios(eager=1.3 if linear else 5 if size <= 32 else 1.5, compile=1)
    return _ratios(eager=1, compile=1)


def _against(facts: dict[str, Any], provider: str) -> Bar:
    """The first bar on a time, or what holds where there is none: never slower than another way."""
    none = Bar(provider, "device", 0.0 if provider == "copy" else 1.0)
    found = (b for b in bars(facts) if b.against == provider and b.quantity in TIMES)
    return next(found, none)


def least_ratio(facts: dict[str, Any], provider: str) -> float:
    """Of the provider's time to ours."""
    return _against(facts, provider).limit


def by_wall_clock(facts: dict[str, Any], provider: str) -> bool:
    """Whether that bar is on the wall clock of a call."""
    return _against(facts, provider).quantity == "wall"


def most_microseconds(facts: dict[str, Any]) -> float | None:
    """Where a call or its launch is what counts: a call on the CPU, an H100 at small sizes."""
    own = (b.limit for b in bars(facts) if not b.against and b.quantity == "device")
    return next(own, None)
