"""How many directions features use."""

from __future__ import annotations

import torch
from torch import Tensor


def rank_me(features: Tensor) -> float:
    """RankMe (Garrido et al., ICML 2023): e^H of the singular values σ of features [N, D].

        H = -Σ_k p_k log p_k,   p_k = σ_k / Σ_l σ_l

    From 1, where all features are multiples of one direction, to min(N, D), where they use all directions
    alike. As in the paper nothing is centred. In float64. ValueError without a feature, or with none that
    is not zero; NaN where one is not finite.
    """
    if features.ndim != 2 or features.numel() == 0:
        raise ValueError(f"rank_me: features must be [N, D], not empty, got {list(features.shape)}")
    x = features.detach().double()
    if not x.isfinite().all():
        return float("nan")
    singular = torch.linalg.svdvals(x)
    if singular[0] == 0:
        raise ValueError("rank_me: all features are 0; they have no directions")
    share = singular / singular.sum()
    return torch.special.entr(share).sum().exp().item()
