"""Problems for hardest_negatives with small whole numbers: every score is exact in every type and order of
summation, and many are equal, so results have to agree to the index."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from hrrl_ext.ops import Similarity

SIMILARITIES: tuple[Similarity, ...] = ("cosine", "order")


@dataclass(frozen=True)
class HardestCase:
    images: int
    captions: int
    size: int
    similarity: Similarity = "cosine"
    dtype: torch.dtype = torch.float32
    groups: int = 5
    spread: int = 3

    def __str__(self) -> str:
        name = str(self.dtype).removeprefix("torch.")
        return f"{self.images}x{self.captions}x{self.size}-{self.similarity}-{name}"

    def arguments(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        g = torch.Generator().manual_seed(self.images + 31 * self.captions + 977 * self.size)

        def draw(rows: int) -> tuple[Tensor, Tensor]:
            shape, spread = (rows, self.size), self.spread
            embedding = torch.randint(-spread, spread + 1, shape, generator=g).to(self.dtype)
            # Numbers beyond 32 bits, which differ in their upper half alone
            return embedding, torch.randint(self.groups, (rows,), generator=g) * 2**33

        (image, image_group), (caption, caption_group) = draw(self.images), draw(self.captions)
        return image, caption, image_group, caption_group

    def check(self, got: Sequence[Tensor]) -> None:
        wide = torch.promote_types(self.dtype, torch.float32)
        for t, count in zip(got, (self.images,) * 2 + (self.captions,) * 2, strict=True):
            assert t.shape == (count,)
        assert [t.dtype for t in got] == [torch.int64, wide] * 2
        for index, score, best in zip(got[::2], got[1::2], self.by_hand(), strict=True):
            assert index.tolist() == [of for of, _ in best]
            expected = torch.tensor([value for _, value in best], dtype=torch.float64)
            # Scores are exact, and a root is rounded once.
            torch.testing.assert_close(score.double(), expected, rtol=2**-23, atol=0)

    def by_hand(self) -> list[list[tuple[int, float]]]:
        """(index, score) of every image, and of every caption, by three loops."""
        image, caption, *groups = (t.tolist() for t in self.arguments())
        best = [[(-1, -math.inf)] * count for count in (self.images, self.captions)]
        pairs = itertools.product(range(self.images), range(self.captions))
        for i, c in pairs:
            if groups[0][i] == groups[1][c]:
                continue
            terms = zip(image[i], caption[c], strict=True)
            if self.similarity == "cosine":
                score = sum(f * g for f, g in terms)
            else:
                score = -sum(max(0.0, g - f) ** 2 for f, g in terms)
            for side, mine, other in ((0, i, c), (1, c, i)):
                if score > best[side][mine][1]:
                    best[side][mine] = (other, score)
        if self.similarity == "order":
            best = [[(of, -math.sqrt(-s) if of >= 0 else s) for of, s in side] for side in best]
        return best
