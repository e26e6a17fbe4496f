from torch import Tensor

from . import reference
from ._types import NearestCentre


def rank1_dot(cross: Tensor, p: Tensor, q: Tensor) -> None:
    assert cross.is_contiguous()
    cross += torch.linalg.vecdot(p.double(), q.double()).sum(1)


def rank1_argmin(cross, square, centre_square, weight, *, rtol=1e-6):
    S = (centre_square - 2 * cross + square[:, None]).clamp(min=0)
    score = weight * S
    ok = torch.isfinite(score).all(1)
    scale = weight * (centre_square + square[:, None])
    best = score.amin(1, keepdim=True)
    a = (score <= best + rtol * scale).int().argmax(1)
    d = S.gather(1, a[:, None])[:, 0]
    return NearestCentre(
        torch.where(ok, a, -1),
        torch.where(ok, d, torch.nan),
        reference._nearest(S, centre_square + square[:, None], weight, rtol).gap,
    )


import torch
