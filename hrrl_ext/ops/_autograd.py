"""What torch needs to trace and differentiate the operators: shapes (fakes) and gradients.

No operator has an autograd kernel of its own: it would cost every call some microseconds, most of all
those that need no gradient. The public functions take the Functions below where an input requires one.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ._library import operator
from .pair_gradients import pair_gradients

concept_cross_entropy = operator("concept_cross_entropy")
hardest_negatives = operator("hardest_negatives")
project_simplex = operator("project_simplex")


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


@torch.library.register_fake("hrrl_ext::rank1_dot")
def _(cross: Tensor, p: Tensor, q: Tensor) -> None:
    pass


@torch.library.register_fake("hrrl_ext::rank1_argmin")
def _(
    cross: Tensor, square: Tensor, centre_square: Tensor, weight: Tensor, rtol: float
) -> tuple[Tensor, Tensor, Tensor]:
    batch = cross.shape[0]
    return (
        cross.new_empty(batch, dtype=torch.int64),
        cross.new_empty(batch),
        cross.new_empty(batch),
    )


@torch.library.register_fake("hrrl_ext::hardest_negatives")
def _(
    image: Tensor, caption: Tensor, image_group: Tensor, caption_group: Tensor, order: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    dtype, sides = _loss_dtype(image.dtype), (image, caption)
    index, score = ([t.new_empty(t.shape[0], dtype=d) for t in sides] for d in (torch.int64, dtype))
    return index[0], score[0], index[1], score[1]


@torch.library.register_fake("hrrl_ext::hinge_coefficients")
def _(
    image: Tensor,
    caption: Tensor,
    image_below: Tensor,
    caption_below: Tensor,
    image_weight: Tensor,
    caption_weight: Tensor,
    image_group: Tensor,
    caption_group: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    dtype, images, captions = _loss_dtype(image.dtype), image.shape[0], caption.shape[0]
    shapes = ((), (images, captions), (images,), (captions,))
    loss, coefficient, of_image, of_caption = (image.new_empty(s, dtype=dtype) for s in shapes)
    return loss, coefficient, of_image, of_caption


@torch.library.register_fake("hrrl_ext::pair_gradients")
def _(
    image: Tensor, caption: Tensor, row: Tensor, column: Tensor, weight: Tensor, order: bool
) -> tuple[Tensor, Tensor]:
    dtype = _loss_dtype(image.dtype)
    return image.new_empty(image.shape, dtype=dtype), image.new_empty(caption.shape, dtype=dtype)


@torch.library.register_fake("hrrl_ext::perturb_stored")
def _(
    x: Tensor,
    values: Tensor,
    scale: Tensor,
    row: Tensor,
    view: Tensor,
    tau: float,
    padding: int,
    resolution: int,
) -> Tensor:
    return torch.empty_like(x)


@torch.library.register_fake("hrrl_ext::store_directions")
def _(
    values: Tensor,
    scale: Tensor,
    grad: Tensor,
    row: Tensor,
    view: Tensor,
    padding: int,
    resolution: int,
) -> None:
    pass


@torch.library.register_fake("hrrl_ext::mix_chains")
def _(images: Tensor, operation: Tensor, parameter: Tensor, weight: Tensor, mix: Tensor) -> Tensor:
    return torch.empty_like(images)


class ConceptCrossEntropy(torch.autograd.Function):
    """d loss / d logits has left with the forward pass; backward scales it."""

    # forward(ctx, ...) and not setup_context(): that form takes another 8 µs per call.
    @staticmethod
    def forward(ctx: Any, logits: Tensor, *others: Any) -> tuple[Tensor, ...]:
        loss, concept_loss, example_loss, grad_logits = concept_cross_entropy(logits, *others, True)
        ctx.mark_non_differentiable(concept_loss, example_loss)
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(grad_logits)
        ctx.logits_dtype = logits.dtype
        return loss, concept_loss, example_loss

    @staticmethod
    def backward(ctx: Any, grad_loss: Tensor | None, *_: Any) -> tuple[Tensor | None, ...]:
        if grad_loss is None:
            return (None,) * 6
        if torch.is_grad_enabled():
            raise RuntimeError(
                "concept_cross_entropy is differentiable once; create_graph=True is not supported. "
                "Use hrrl_ext.ops.reference.concept_cross_entropy for higher derivatives."
            )
        (grad_logits,) = ctx.saved_tensors
        # loss.backward() itself sends 1: where looking costs nothing the pass over the gradient is
        # saved. While torch traces, there is no value to look at.
        traced = torch.compiler.is_compiling() or type(grad_loss) is not Tensor
        if traced or not grad_loss.is_cpu or grad_loss.item() != 1.0:
            grad_logits = grad_logits * grad_loss
        return grad_logits.to(ctx.logits_dtype), *(None,) * 5


class HardestNegatives(torch.autograd.Function):
    """The gradient of the chosen pairs' scores, each weighted by what comes from above."""

    @staticmethod
    def forward(ctx: Any, *arguments: Any) -> tuple[Tensor, ...]:
        out: tuple[Tensor, ...] = hardest_negatives(*arguments)
        ctx.mark_non_differentiable(out[0], out[2])
        ctx.save_for_backward(*arguments[:2], out[0], out[2])
        ctx.similarity = "order" if arguments[-1] else "cosine"
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        image, caption, caption_index, image_index = ctx.saved_tensors
        i, c = (torch.arange(len(t), device=t.device) for t in (image, caption))
        row, column = torch.cat((i, image_index)), torch.cat((caption_index, c))
        weight = torch.cat((grads[1], grads[3]))
        found = pair_gradients(image, caption, row, column, weight, ctx.similarity)
        return found[0].to(image.dtype), found[1].to(caption.dtype), None, None, None


class ProjectSimplex(torch.autograd.Function):
    """P(v) = max(v - ν, 0) with support S = {P(v) > 0}, and ν moves so that the sum stays:
    dv = 1_S (dp - mean_S dp)."""

    @staticmethod
    def forward(v: Tensor, radius: float) -> Tensor:
        p: Tensor = project_simplex(v, radius)
        return p

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.save_for_backward(output)

    @staticmethod
    def backward(ctx: Any, grad_out: Tensor) -> tuple[Tensor, None]:
        (p,) = ctx.saved_tensors
        support = p > 0
        on_support = torch.where(support, grad_out, 0)
        mean = on_support.sum(-1, keepdim=True) / support.sum(-1, keepdim=True)
        return torch.where(support, on_support - mean, 0), None
