"""The gradients of the operators.

No operator has an autograd kernel of its own: it would cost every call some microseconds, most of all
those that need no gradient. The public functions take the Functions below where an input requires one.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from . import reference
from ._library import operator
from ._transforms import transformed
from .pair_gradients import pair_gradients

concept_cross_entropy = operator("concept_cross_entropy")
hardest_negatives = operator("hardest_negatives")
project_simplex = operator("project_simplex")
_scale_gradient = operator("_scale_gradient")
project_simplex_backward = operator("project_simplex_backward")


class ConceptCrossEntropy(torch.autograd.Function):
    """d loss / d logits has left with the forward pass; backward scales it, in place where nobody will
    ask for it again."""

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
        return _scaled(grad_logits, grad_loss).to(ctx.logits_dtype), *(None,) * 5


def has_value(grad: Tensor) -> bool:
    """Not while torch traces, nor where it maps, as with is_grads_batched."""
    if torch.compiler.is_compiling() or type(grad) is not Tensor:
        return False
    f = torch._C._functorch
    return not (f.is_batchedtensor(grad) or f.is_legacy_batchedtensor(grad))


def is_one(grad: Tensor) -> bool:
    """What loss.backward() itself sends, where seeing it costs nothing: then a pass is saved."""
    plain = grad.is_cpu and grad.dim() == 0 and not grad.requires_grad
    return plain and has_value(grad) and grad.item() == 1.0


def _scaled(gradient: Tensor, factor: Tensor) -> Tensor:
    """gradient * factor; on CUDA by a kernel that looks whether it is 1, for which nothing waits."""
    if is_one(factor):
        return gradient
    # With retain_graph=True another backward pass begins from the same gradient.
    keeps = torch._C._autograd._get_current_graph_task_keep_graph
    if gradient.is_cuda and has_value(factor) and not keeps():
        _scale_gradient(gradient, factor)
        return gradient
    return gradient * factor


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
        return simplex_gradient(ctx.saved_tensors[0], grad_out), None


class ProjectSimplexBackward(torch.autograd.Function):
    """1_S (g - mean_S g) is linear in g, and its own transpose."""

    @staticmethod
    def forward(ctx: Any, p: Tensor, grad: Tensor) -> Tensor:
        ctx.save_for_backward(p)
        moved: Tensor = project_simplex_backward(p, grad)
        return moved

    @staticmethod
    def backward(ctx: Any, grad_out: Tensor) -> tuple[None, Tensor]:
        return None, simplex_gradient(ctx.saved_tensors[0], grad_out)


def simplex_gradient(p: Tensor, grad: Tensor) -> Tensor:
    if transformed():
        return reference.project_simplex_backward(p, grad)
    if grad.requires_grad and torch.is_grad_enabled():
        differentiable: Tensor = ProjectSimplexBackward.apply(p, grad)
        return differentiable
    moved: Tensor = project_simplex_backward(p, grad)
    return moved
