"""Pairs of examples/retrieval_evidence.py, and their splits.

A split tests on a fifth of the groups, each split on another, holds a seventh of them for validation, and
trains on the rest.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from hrrl_ext.data import ImageSet
from hrrl_ext.retrieval import Pairs, load_pairs

Sets = dict[str, Pairs]
SPLITS = 5
"""Each tests on another fifth."""
EMOJI = "emoji"


def open_pairs(where: str) -> Pairs:
    if where == EMOJI:
        return load_pairs(EMOJI, split="all")
    with np.load(where, allow_pickle=False) as archive:
        features, captions = archive["features"].astype(np.float32), archive["captions"]
    return load_pairs((features, [[str(text) for text in texts] for texts in captions]))


def split_of(pairs: Pairs, number: int) -> Sets:
    groups = pairs.image_group.unique()
    order = groups[torch.randperm(len(groups), generator=torch.Generator().manual_seed(0))]
    fifths = list(order.tensor_split(SPLITS))
    test = fifths.pop(number)
    rest = torch.cat(fifths)
    rest = rest[torch.randperm(len(rest), generator=torch.Generator().manual_seed(1 + number))]
    held = len(order) // 7
    parts = {"train": rest[held:], "validation": rest[:held], "test": test}
    return {name: of_groups(pairs, part, name) for name, part in parts.items()}


def of_groups(pairs: Pairs, groups: Tensor, name: str) -> Pairs:
    rows = torch.isin(pairs.image_group, groups).nonzero().flatten()
    place = torch.full((len(pairs.images),), -1)
    place[rows] = torch.arange(len(rows))
    owner = place[pairs.owner]
    captions = [text for text, of in zip(pairs.captions, owner.tolist(), strict=True) if of >= 0]
    return Pairs(
        taken(pairs.images, rows), captions, owner[owner >= 0], group=pairs.image_group[rows],
        name=name,
    )  # fmt: skip


def taken(images: ImageSet | Tensor, rows: Tensor) -> ImageSet | Tensor:
    return images.subset(rows) if isinstance(images, ImageSet) else images[rows]


def without_mask(pairs: Pairs) -> Pairs:
    """Every pair with an image, and a group, of its own."""
    return Pairs(taken(pairs.images, pairs.owner), pairs.captions, range(len(pairs)))
