"""What we ask of ourselves. A missed bar does not fail a run: the table says where it was missed."""

from __future__ import annotations

import math
from typing import Any

STEP_BAR = 1.75
"""HRRL's training step over ERM's; the floor is 5/3."""
MEMORY_BAR = 1.1
"""Its peak memory over ERM's."""
LOOP_BAR = 1.05
"""An epoch of HRRLTrainer over the bare steps on the same batches, made beforehand."""
TRANSFER_BARS = {"extraction": ("bare", 1 / 0.95), "finetuning_step": ("plain", 1.4)}
"""Over the provider's time: features over the bare forward passes, similarity over a plain step."""
ATTACK_BAR = 1.1
"""Steps of APGD over the forward and backward passes they contain."""

ITEMSIZE = {"fp32": 4, "bf16": 2, "fp16": 2}
UPDATE_LIMITS = {1e3: 4.0, 1e4: 6.0, 1e5: 10.0, math.inf: 30.0}
"""Microseconds of update_distribution on an H100, by K."""


def least_ratio(facts: dict[str, Any], provider: str) -> float:
    """Of the provider's time to ours. A copy moves as many bytes as we must."""
    gpu, size = facts["device"] == "cuda", facts["shape"][-1]
    match facts["op"], provider:
        case "perturb", "copy":
            return 0.85 if gpu else 0.8
        case _, "copy":  # on a CPU the exponentials, not the memory, are what takes the time
            return 0.85 if gpu else 0.0
        case "perturb", "eager" | "torchattacks":
            return 1.9 if gpu else 2.0
        case "concept_cross_entropy", "eager":
            return 2.7 if gpu else 8.0 if size <= 16 else 1.5
        case "project_simplex" | "update_distribution", "eager":
            return 5.0 if gpu else 8.0 if size <= 1000 else 20.0
        case "rank1_assign", "eager" if facts["kind"] == "linear":
            return 1.3
        case "rank1_assign", "eager":
            return 5.0 if size <= 32 else 1.5
        case "project_simplex" | "update_distribution", "entmax":
            return 5.0 if gpu else 15.0
    return 1.0


def most_microseconds(facts: dict[str, Any]) -> float | None:
    """Where a call or its launch is what counts: a call on the CPU, an H100 at small sizes."""
    op, elements = facts["op"], math.prod(facts["shape"])
    if facts["device"] != "cuda":
        return 5.0 if op == "call" else None
    if op == "perturb":
        return 4.0 if 3 * elements * ITEMSIZE[facts["dtype"]] <= 10e6 else None
    if op == "concept_cross_entropy forward":
        return 6.0 if elements <= 1e6 else None
    if op == "update_distribution":
        return next(limit for size, limit in UPDATE_LIMITS.items() if elements <= size)
    return None
