"""Problems for hinge_coefficients and pair_gradients with small whole numbers: products, hinges and their sums are
exact in every type and order of summation."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from hardest_cases import HardestCase
from torch import Tensor

from hrrl_ext.ops import Similarity


@dataclass(frozen=True)
class HingeCase:
    images: int
    captions: int
    size: int
    dtype: torch.dtype = torch.float32

    def arguments(self) -> list[Tensor]:
        image, caption, *groups = HardestCase(
            self.images, self.captions, self.size, dtype=self.dtype
        ).arguments()
        g = torch.Generator().manual_seed(self.images)
        wide = torch.promote_types(self.dtype, torch.float32)
        sides = (self.images, self.captions)
        # A hinge of exactly 0 is among them, and negatives of no weight.
        below = [torch.randint(-6, 7, (n,), generator=g).to(wide) / 2 for n in sides]
        weight = [torch.randint(0, 5, (n,), generator=g).to(wide) / 4 for n in sides]
        return [image, caption, *below, *weight, *groups]

    def check(self, got: Sequence[Tensor]) -> None:
        image, caption, b, d, u, v, *groups = (t.tolist() for t in self.arguments())
        loss, coefficient = 0.0, torch.zeros(self.images, self.captions, dtype=torch.float64)
        of_image, of_caption = (torch.zeros(n, dtype=torch.float64) for n in coefficient.shape)
        for i in range(self.images):
            for c in range(self.captions):
                if groups[0][i] == groups[1][c]:
                    continue
                score = sum(f * g for f, g in zip(image[i], caption[c], strict=True))
                of_pair, of_other = b[i] + score, d[c] + score
                loss += v[c] * max(of_pair, 0) + u[i] * max(of_other, 0)
                of_image[i] += v[c] * (of_pair > 0)
                of_caption[c] += u[i] * (of_other > 0)
                coefficient[i, c] = v[c] * (of_pair > 0) + u[i] * (of_other > 0)
        for t, want in zip(
            got, (torch.tensor(loss), coefficient, of_image, of_caption), strict=True
        ):
            assert t.dtype == torch.promote_types(self.dtype, torch.float32)
            # A loss may be too large to be exact in float32: it is rounded once.
            torch.testing.assert_close(t.double(), want.double(), rtol=2**-24, atol=0)


@dataclass(frozen=True)
class PairCase:
    images: int
    captions: int
    size: int
    pairs: int
    similarity: Similarity = "cosine"
    dtype: torch.dtype = torch.float32

    def arguments(self) -> list[Tensor]:
        image, caption, _, _ = HardestCase(
            self.images, self.captions, self.size, dtype=self.dtype
        ).arguments()
        g = torch.Generator().manual_seed(self.pairs)
        # Some pairs are none, and some have no weight.
        row, column = (
            torch.randint(-1, n, (self.pairs,), generator=g) for n in (self.images, self.captions)
        )
        weight = torch.randint(-2, 3, (self.pairs,), generator=g) / 2
        return [
            image,
            caption,
            row,
            column,
            weight.to(torch.promote_types(self.dtype, torch.float32)),
        ]

    def check(self, got: Sequence[Tensor]) -> None:
        image, caption, row, column, weight = (t.tolist() for t in self.arguments())
        to_image, to_caption = ([[0.0] * self.size for _ in rows] for rows in (image, caption))
        for i, c, w in zip(row, column, weight, strict=True):
            if i < 0 or c < 0:
                continue
            f, g = image[i], caption[c]
            if self.similarity == "order":
                beyond = [max(0.0, b - a) for a, b in zip(f, g, strict=True)]
                norm = math.sqrt(sum(r * r for r in beyond))
                g = [r / norm if norm else 0.0 for r in beyond]
                f = [-r for r in g]
            for k in range(self.size):
                to_image[i][k] += w * g[k]
                to_caption[c][k] += w * f[k]
        terms = max(self.pairs, 1)
        for t, want in zip(got, (to_image, to_caption), strict=True):
            assert t.dtype == torch.promote_types(self.dtype, torch.float32)
            expected = torch.tensor(want, dtype=torch.float64).view(t.shape)
            # "order" divides by a root: of each term, at most 1, some roundings, and as many of their sum.
            atol = 4 * terms * torch.finfo(t.dtype).eps if self.similarity == "order" else 0
            torch.testing.assert_close(t.double(), expected, rtol=0, atol=atol)
