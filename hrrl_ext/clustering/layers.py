"""What each layer read, and the gradient of what it wrote: the factors of per-example gradients."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from ..ops import Convolution, LayerGradient
from ..spec import not_known
from .examples import ExampleLoss, check_losses

_KINDS = (nn.Linear, nn.Conv1d, nn.Conv2d)
Layer: TypeAlias = nn.Linear | nn.Conv1d | nn.Conv2d


def find_layers(model: nn.Module, layers: Sequence[str] | None = None) -> dict[str, Layer]:
    """The linear and convolutional layers of ``model`` by name, or those of these names.

    Raises ValueError for a name that the model does not have, for a layer of another kind or without
    a weight that is trained, and where there is none.
    """
    known = {name: m for name, m in model.named_modules() if isinstance(m, _KINDS)}
    if layers is None:
        found = {name: m for name, m in known.items() if m.weight.requires_grad}
        if not found:
            raise ValueError(
                f"layers: {type(model).__name__} has no nn.Linear, nn.Conv1d or nn.Conv2d with a "
                "weight that requires grad, so there are no gradients to cluster"
            )
        return found
    found = {}
    for name in layers:
        if name not in known:
            everything = dict(model.named_modules())
            if name in everything:
                raise ValueError(
                    f"layers: {name!r} is a {type(everything[name]).__name__}; gradients are "
                    "clustered by nn.Linear, nn.Conv1d and nn.Conv2d layers"
                )
            raise ValueError(f"layers: the model's layer {not_known(name, known)}")
        found[name] = known[name]
    if not found:
        raise ValueError("layers: no layer was named; leave it out for all of them")
    return found


def parameter_names(layers: dict[str, Layer]) -> list[str]:
    """The parameters whose gradients are clustered: weights and biases of the layers."""
    return [
        f"{name}.{parameter}" if name else parameter
        for name, layer in layers.items()
        for parameter, _ in layer.named_parameters(recurse=False)
    ]


def check_independence(model: nn.Module) -> None:
    """An example's gradient must not depend on the batch it comes in."""
    for name, module in model.named_modules():
        if isinstance(module, _BatchNorm) and (
            module.training or not module.track_running_stats or module.running_mean is None
        ):
            raise ValueError(
                f"{name or type(module).__name__} normalises by the statistics of the batch, so the "
                "gradient of an example depends on the others in it, and none is its own; use "
                "mode='eval' and a batch norm with running statistics"
            )


def layer_gradients(
    model: nn.Module, layers: dict[str, Layer], x: Tensor, target: Tensor, loss: ExampleLoss
) -> list[LayerGradient]:
    """The gradients of every example of a batch, by their factors, in the order of ``layers``.

    One forward pass and one backward pass to what the layers wrote. No gradient of a parameter is
    computed, and the model's parameters, their gradients and its hooks stay as they are.
    """
    acts: dict[str, tuple[Tensor, int]] = {}
    douts: dict[str, Tensor] = {}
    leaves: list[Tensor] = []

    def watch(name: str) -> Callable[[nn.Module, Any, Tensor], Tensor | None]:
        def hook(layer: nn.Module, inputs: tuple[Tensor, ...], out: Tensor) -> Tensor | None:
            if name in acts:
                raise ValueError(
                    f"layers: {name!r} is called more than once per forward pass, so its gradient is "
                    "a sum that one pair of factors does not give; leave it out of layers"
                )
            acts[name] = inputs[0].detach(), inputs[0]._version
            fresh = not out.requires_grad
            if fresh:  # nothing before it needs a gradient
                leaves.append(out.detach().requires_grad_())
                out = leaves[-1].clone()  # what follows may work in place
            out.register_hook(lambda grad: douts.__setitem__(name, grad))
            return out if fresh else None

        return hook

    handles = [layer.register_forward_hook(watch(name)) for name, layer in layers.items()]
    try:
        with torch.enable_grad():
            # Detached parameters: autograd then has no reason to compute their gradients.
            frozen = {name: p.detach() for name, p in model.named_parameters()}
            logits = torch.func.functional_call(model, frozen, (x.detach(),))
            example_loss = loss(logits, target)
            check_losses(example_loss, len(x))
            if not example_loss.requires_grad:
                raise ValueError("layers: none of them has a part in the loss")
            for name, (act, version) in acts.items():
                if act._version != version:
                    raise ValueError(
                        f"layers: what {name!r} read was changed in place afterwards; write "
                        "x = x + y for x += y there, or leave it out of layers"
                    )
            torch.autograd.grad(example_loss.sum(), leaves, allow_unused=True)
    finally:
        for handle in handles:
            handle.remove()
    for name in layers:
        if name not in douts:
            raise ValueError(
                f"layers: {name!r} has no part in the loss of this batch; leave it out of layers"
            )
    return [
        _factors(name, layer, acts[name][0], douts[name], len(x)) for name, layer in layers.items()
    ]


def _factors(name: str, layer: Layer, act: Tensor, dout: Tensor, batch: int) -> LayerGradient:
    bias = layer.bias is not None
    if len(act) != batch:
        raise ValueError(
            f"layers: {name!r} reads {list(act.shape)}, whose first dimension is not that of the "
            f"{batch} examples; leave it out of layers"
        )
    if isinstance(layer, nn.Linear):
        if act.dim() == 2:
            return LayerGradient(act, dout, None, bias)
        act, dout = (t.flatten(1, -2).transpose(1, 2)[..., None] for t in (act, dout))
        return LayerGradient(act, dout, Convolution((1, 1)), bias)  # a position per row
    padding = layer.padding
    if layer.padding_mode != "zeros" or isinstance(padding, str):
        mode = "constant" if layer.padding_mode == "zeros" else layer.padding_mode
        act = F.pad(act, layer._reversed_padding_repeated_twice, mode)
        padding = (0,) * len(layer.kernel_size)
    geometry: list[Any] = [layer.kernel_size, layer.stride, padding, layer.dilation]
    if isinstance(layer, nn.Conv1d):
        act, dout = act[..., None], dout[..., None]
        geometry = [(*sizes, one) for sizes, one in zip(geometry, (1, 1, 0, 1), strict=True)]
    kernel, stride, padding, dilation = geometry
    conv = Convolution(kernel, stride, padding, dilation, layer.groups)
    return LayerGradient(act, dout, conv, bias)
