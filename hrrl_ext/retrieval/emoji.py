"""The embedded set: 1,840 emoji pictures with their names and keywords (docs/emoji.md)."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files

import numpy as np
import torch
from torch import Tensor

from ..data.image_sets import ArrayImages
from ..spec import not_known

_SHARE = {"train": 14, "val": 3, "test": 3}
"""Of twenty equal parts, by a hash of the name."""


@dataclass(frozen=True)
class EmojiPairs:
    """N pictures and the texts of each.

    images: [N, 3, 32, 32] uint8; their target is the concept, so that they serve a classifier too.
    texts: of each picture 2 to 4 different ones, the name first. names: [N], all different, such as
    "grinning face"; emoji: [N], the characters. group: [N] int64; pictures that share a text,
    directly or through others, have one, and none of them is a negative of another. concept: [N]
    int64, one of the 9 concept_names, the groups that Unicode sorts emoji into.
    """

    images: ArrayImages
    texts: list[list[str]]
    names: list[str]
    emoji: list[str]
    group: Tensor
    concept: Tensor
    concept_names: list[str]

    def __len__(self) -> int:
        return len(self.names)

    def subset(self, rows: Sequence[int]) -> EmojiPairs:
        """The pictures at these rows, in this order; groups keep their numbers."""
        at = torch.as_tensor(rows, dtype=torch.int64)
        return EmojiPairs(
            self.images.subset(at),
            [self.texts[i] for i in rows],
            [self.names[i] for i in rows],
            [self.emoji[i] for i in rows],
            self.group[at],
            self.concept[at],
            self.concept_names,
        )


def load_emoji(split: str = "train") -> EmojiPairs:
    """The pictures of a split ("train", "val", "test") or of "all", in Unicode's order.

    The split of a picture depends on its name alone: it is the same in every version of the set, and
    whatever else is in it. No names are shared between splits; a keyword may be. Raises ValueError
    for another split.
    """
    if split not in (*_SHARE, "all"):
        raise ValueError(f"emoji: split {not_known(split, (*_SHARE, 'all'))}")
    folder = files(__package__).joinpath("embedded")
    with folder.joinpath("images.npz").open("rb") as file, np.load(file) as archive:
        pixels = archive["image"]
    table = json.loads(folder.joinpath("texts.json").read_text(encoding="utf-8"))
    emoji, concept, texts = (list(column) for column in zip(*table["pictures"], strict=True))
    names = [some[0] for some in texts]
    images = ArrayImages(pixels, concept, classes=table["concepts"], name="emoji")
    pairs = EmojiPairs(
        images, texts, names, emoji, _groups(texts), images.target, table["concepts"]
    )
    if split == "all":
        return pairs
    return pairs.subset([i for i, name in enumerate(names) if _split_of(name) == split])


def _split_of(name: str) -> str:
    part = int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big") % sum(_SHARE.values())
    for split, share in _SHARE.items():
        if part < share:
            return split
        part -= share
    raise AssertionError("the parts are those of _SHARE")


def _groups(texts: list[list[str]]) -> Tensor:
    """[N], from 0: the connected pictures, where those with an equal text (in lower case) are."""
    parent = list(range(len(texts)))

    def root(i: int) -> int:
        while parent[i] != i:
            i = parent[i]
        return i

    first: dict[str, int] = {}
    for i, some in enumerate(texts):
        for text in some:
            one, other = sorted((root(first.setdefault(text.casefold(), i)), root(i)))
            parent[other] = one
    return torch.tensor([root(i) for i in range(len(texts))]).unique(return_inverse=True)[1]
