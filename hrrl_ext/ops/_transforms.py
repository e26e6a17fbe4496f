"""Function transforms (torch.func) and forward mode: what the kernels have no rules for.

torch hands a native operator without such rules the values alone and takes its result for a constant: a
derivative of 0, and no word said. So where a transform is under way what is differentiable is computed by
its plain-PyTorch twin, which has them all, and what is not is handed to the kernel without a history.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.autograd import forward_ad

Result = TypeVar("Result")


def transformed() -> bool:
    """Whether the call is within vmap, grad, jvp, ..., or a level of forward mode. A tenth of a µs."""
    # Of the ways to ask this is the one that torch.compile traces to the truth.
    depth: int = torch._C._functorch.get_dynamic_layer_stack_depth()
    return depth > 0 or forward_ad._current_level >= 0


def constants(*tensors: Tensor) -> tuple[Tensor, ...]:
    """The values alone, of what carries no gradient."""
    if transformed() or any(t.requires_grad for t in tensors):
        return tuple(t.detach() for t in tensors)
    return tensors


def by_twin(name: str, twin: Callable[[], Result], *arguments: Any) -> Result:
    """``twin``, for what the kernel takes as ``arguments`` and nothing else.

    In plain PyTorch sizes that differ are broadcast, or refused in the words of some function within.
    """
    if not torch.compiler.is_compiling():  # which would have it in its graph
        sizes = [
            torch.empty(a.shape, dtype=a.dtype, device="meta") if isinstance(a, Tensor) else a
            for a in arguments
        ]
        getattr(torch.ops.hrrl_ext, name).default(*sizes)
    try:
        return twin()
    except (IndexError, RuntimeError, ValueError) as error:  # values, such as a class out of range
        why = str(error).partition("\n")[0]
        raise ValueError(why if why.startswith(f"{name}: ") else f"{name}: {why}") from error
