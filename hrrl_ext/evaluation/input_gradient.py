"""The gradient of a loss in the images, of a model that is measured and not trained."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ..losses import class_ids
from ..perturbation import FP16_LOSS_SCALE


def cross_entropy(logits: Tensor, target: Tensor) -> Tensor:
    """-log softmax(z)_y [N] of logits [N, C], float32 or wider: log(1 + exp(log Σ_{j≠y} exp z_j - z_y)).

    Its derivatives sum to 0 at any confidence. Those of a log-softmax in float32 do not: p_y - 1 is 0
    from a lead of 16.6 on, where the p_j of the others are not, and that is another direction.
    """
    label = class_ids(target)[:, None]
    lowest = torch.finfo(logits.dtype).min  # -inf would be NaN in the gradient of a single class
    others = logits.scatter(1, label, lowest).logsumexp(1)
    return F.softplus(others - logits.gather(1, label)[:, 0])


def input_gradient(losses: Tensor, x: Tensor) -> Tensor:
    """A positive multiple of ∂ Σ_i losses_i/∂x, like x; in float16 one that keeps small gradients.

    0 where the model cuts the graph between x and its logits.
    """
    if not losses.requires_grad:
        return torch.zeros_like(x)
    scale = FP16_LOSS_SCALE if x.dtype == torch.float16 else 1.0
    (grad,) = torch.autograd.grad(losses.sum() * scale, x, materialize_grads=True)
    return grad
