"""What torch needs to trace and differentiate the operators: shapes (fakes) and gradients.

``perturb`` and ``update_distribution`` register no gradient: an autograd kernel would cost every call
some microseconds, and in training neither is differentiated. Their public functions say what happens
to inputs that require gradients.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from . import _library  # noqa: F401  (loads the operators)


def _loss_dtype(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32


@torch.library.register_fake("hrrl_ext::perturb")
def _(
    x: Tensor, grad: Tensor, tau: float, tau_scale: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    return torch.empty_like(x), x.new_empty(x.shape[0], dtype=_loss_dtype(x.dtype))


@torch.library.register_fake("hrrl_ext::concept_cross_entropy")
def _(
    logits: Tensor,
    target: Tensor,
    concept: Tensor,
    q: Tensor,
    concept_count: Tensor,
    label_smoothing: float,
    with_grad: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    dtype = _loss_dtype(logits.dtype)
    grad_dtype = torch.float32 if logits.dtype == torch.float16 else logits.dtype
    return (
        logits.new_empty((), dtype=dtype),
        q.new_empty(q.shape),
        logits.new_empty(logits.shape[0], dtype=dtype),
        logits.new_empty(logits.shape if with_grad else (0,), dtype=grad_dtype),
    )


@torch.library.register_fake("hrrl_ext::project_simplex")
def _(v: Tensor, radius: float) -> Tensor:
    return v.new_empty(v.shape)


@torch.library.register_fake("hrrl_ext::update_distribution")
def _(
    q: Tensor,
    concept_loss: Tensor,
    q0: Tensor,
    eta: float,
    lam: float,
    eta_scale: Tensor | None = None,
) -> Tensor:
    return q.new_empty(q.shape)


# concept_cross_entropy: d loss / d logits has left with the forward pass; backward scales it.


def _keep_grad_logits(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    _, concept_loss, example_loss, grad_logits = output
    ctx.mark_non_differentiable(concept_loss, example_loss, grad_logits)
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(grad_logits)
    ctx.logits_dtype, ctx.with_grad = inputs[0].dtype, inputs[-1]


def _scale_grad_logits(ctx: Any, grad_loss: Tensor | None, *_: Any) -> tuple[Tensor | None, ...]:
    if grad_loss is None:
        return (None,) * 7
    if not ctx.with_grad:
        raise RuntimeError(
            "concept_cross_entropy was called with with_grad=False; nothing to scale"
        )
    if torch.is_grad_enabled():
        raise RuntimeError(
            "concept_cross_entropy is differentiable once; create_graph=True is not supported. "
            "Use hrrl_ext.ops.reference.concept_cross_entropy for higher derivatives."
        )
    (grad_logits,) = ctx.saved_tensors
    # loss.backward() itself sends 1: on the CPU, where looking costs nothing, the pass over the
    # gradient is saved. (While torch traces, the tensor is of a subclass and has no value.)
    if type(grad_loss) is Tensor and grad_loss.device.type == "cpu" and grad_loss.item() == 1.0:
        return grad_logits.to(ctx.logits_dtype), *(None,) * 6
    return (grad_logits * grad_loss).to(ctx.logits_dtype), *(None,) * 6


torch.library.register_autograd(
    "hrrl_ext::concept_cross_entropy", _scale_grad_logits, setup_context=_keep_grad_logits
)

# project_simplex: P(v) = max(v - ν, 0) with support S = {P(v) > 0}, and ν moves so that the sum stays:
# dv = 1_S (dp - mean_S dp).


def _keep_support(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(output)


def _project_on_support(ctx: Any, grad_out: Tensor) -> tuple[Tensor, None]:
    (p,) = ctx.saved_tensors
    support = p > 0
    on_support = torch.where(support, grad_out, 0)
    mean = on_support.sum(-1, keepdim=True) / support.sum(-1, keepdim=True)
    return torch.where(support, on_support - mean, 0), None


torch.library.register_autograd(
    "hrrl_ext::project_simplex", _project_on_support, setup_context=_keep_support
)
