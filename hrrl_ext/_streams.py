"""Random streams of one's own: nothing here reads or changes a global random state."""

from __future__ import annotations

import hashlib

import torch


def random_stream(seed: int, *purpose: int | str) -> torch.Generator:
    """A generator for one purpose; hashed, so that neighbouring seeds do not overlap."""
    digest = hashlib.sha256("/".join(map(str, (seed, *purpose))).encode()).digest()
    seed_bits = int.from_bytes(digest[:4], "little")  # torch's CPU generator uses 32 bits
    return torch.Generator().manual_seed(seed_bits)
