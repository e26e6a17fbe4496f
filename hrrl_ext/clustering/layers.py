"""What each layer read, and the gradient of what it wrote: the factors of per-example gradients."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from ..ops import Convolution, LayerGradient
from ..spec import not_known
from .examples import ExampleLoss, check_losses

_KINDS = (nn.Linear, nn.Conv1d, nn.Conv2d)
_SHOWN = 3  # layers in a message
_CHANGED = "what it read was changed in place afterwards; write x = x + y for x += y there"
Layer: TypeAlias = nn.Linear | nn.Conv1d | nn.Conv2d


def find_layers(model: nn.Module, layers: Sequence[str] | None = None) -> dict[str, Layer]:
    """The linear and convolutional layers of ``model`` by name, or those of these names.

    Layers that share their parameters are one, under the first name. Without names, a warning says
    which are left out as their factors do not give the gradient. Raises ValueError for a name that
    the model does not have, for a layer of another kind, of such factors or without a weight that is
    trained, and where there is none.
    """
    known = {
        name: m for name, m in model.named_modules(remove_duplicate=False) if isinstance(m, _KINDS)
    }
    owners = _owners(model)
    if layers is None:
        return _all_layers(model, known, owners)
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
        if why := _why_not(model, name, known[name], owners):
            raise ValueError(f"layers: {name!r}: {why}; leave it out of layers")
        found[_first_name(known, known[name])] = known[name]
    if not found:
        raise ValueError("layers: no layer was named; leave it out for all of them")
    return found


def _all_layers(
    model: nn.Module, known: Mapping[str, Layer], owners: Mapping[int, Sequence[nn.Module]]
) -> dict[str, Layer]:
    found: dict[str, Layer] = {}
    left_out: list[str] = []
    for name, layer in known.items():
        if not layer.weight.requires_grad:
            continue
        if why := _why_not(model, name, layer, owners):
            left_out.append(f"{name} ({why})")
        else:
            found[_first_name(known, layer)] = layer
    if left_out:
        _tell_left_out(left_out)
    if not found:
        raise ValueError(
            f"layers: {type(model).__name__} has no nn.Linear, nn.Conv1d or nn.Conv2d with a "
            "weight that requires grad, so there are no gradients to cluster"
        )
    return found


def _tell_left_out(left_out: Sequence[str]) -> None:
    more = f" and {len(left_out) - _SHOWN} more" if len(left_out) > _SHOWN else ""
    warnings.warn(
        f"layers: the gradients of {', '.join(left_out[:_SHOWN])}{more} do not count", stacklevel=5
    )


def layers_with_factors(
    model: nn.Module, layers: Mapping[str, Layer], x: Tensor, target: Tensor, loss: ExampleLoss
) -> dict[str, Layer]:
    """Those of ``layers`` that a pass of these examples gives gradients of; a warning names the others.
    ValueError where none is left."""
    calls = _watched(model, layers, x, target, loss)
    without = _without_factors(model, calls, x, target, loss)
    found = {name: layer for name, layer in layers.items() if name not in without}
    if not found:
        name, why = next(iter(without.items()))
        raise ValueError(
            f"layers: none of {type(model).__name__} gives the gradients of single examples, such as "
            f"{name}: {why}; so there are no gradients to cluster"
        )
    if without:
        _tell_left_out([f"{name} ({why})" for name, why in without.items()])
    return found


def _owners(model: nn.Module) -> dict[int, list[nn.Module]]:
    """The modules that have each parameter, by its id."""
    owners: dict[int, list[nn.Module]] = {}
    for module in model.modules():
        for parameter in module.parameters(recurse=False):
            owners.setdefault(id(parameter), []).append(module)
    return owners


def _first_name(known: Mapping[str, Layer], layer: Layer) -> str:
    """Of the layers with this weight: that by which the model knows its parameters."""
    return next(name for name, other in known.items() if other.weight is layer.weight)


def _sharing(model: nn.Module, layer: Layer) -> list[Layer]:
    """The layers with this weight."""
    return [m for m in model.modules() if isinstance(m, _KINDS) and m.weight is layer.weight]


def _why_not(
    model: nn.Module, name: str, layer: Layer, owners: Mapping[int, Sequence[nn.Module]]
) -> str | None:
    """Why what goes in and comes out of a layer does not give the gradients of its parameters."""
    parent = model.get_submodule(name.rpartition(".")[0])
    if isinstance(parent, nn.MultiheadAttention):
        return f"{type(parent).__name__} takes its weight and does not call it"
    if "weight" not in layer._parameters:
        return "its weight is computed from other parameters"
    group = _sharing(model, layer)
    like = all(
        type(m) is type(layer)
        and m.bias is layer.bias
        and getattr(m, "groups", 1) == getattr(layer, "groups", 1)
        for m in group
    )
    others = [m for p in layer.parameters(recurse=False) for m in owners[id(p)] if m not in group]
    if not like or others:
        other = others[0] if others else next(m for m in group if m is not layer)
        return f"it shares a part of its parameters with a {type(other).__name__}"
    return None


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
                "gradient of an example depends on the others in it, and none is its own; use eval "
                "mode and a batch norm with running statistics"
            )


def layer_gradients(
    model: nn.Module, layers: Mapping[str, Layer], x: Tensor, target: Tensor, loss: ExampleLoss
) -> list[LayerGradient]:
    """The gradients of every example of a batch, by their factors, in the order of ``layers``.

    One forward pass and one backward pass to what the layers wrote. No gradient of a parameter is
    computed, and the model's parameters, their gradients and its hooks stay as they are. What is called
    several times, by itself or as layers that share a weight, has the sum of its gradients; what has no
    part in the loss has 0. ValueError naming a layer whose factors do not give it.
    """
    calls = _watched(model, layers, x, target, loss)
    for name, why in _without_factors(model, calls, x, target, loss).items():
        raise ValueError(f"layers: {name!r}: {why}; leave it out of layers")
    return [_of_calls(layer, calls[name], x) for name, layer in layers.items()]


def _watched(
    model: nn.Module, layers: Mapping[str, Layer], x: Tensor, target: Tensor, loss: ExampleLoss
) -> dict[str, list[_Call]]:
    """The calls of each layer in a pass forward and backward."""
    calls: dict[str, list[_Call]] = {name: [] for name in layers}
    leaves: list[Tensor] = []

    def watch(name: str) -> Callable[[nn.Module, Any, Tensor], Tensor | None]:
        def hook(layer: nn.Module, inputs: tuple[Tensor, ...], out: Tensor) -> Tensor | None:
            assert isinstance(layer, _KINDS)
            call = _Call(layer, inputs[0].detach(), inputs[0]._version, out.shape)
            calls[name].append(call)
            fresh = not out.requires_grad
            if fresh:  # nothing before it needs a gradient
                leaves.append(out.detach().requires_grad_())
                out = leaves[-1].clone()  # what follows may work in place
            out.register_hook(lambda grad: setattr(call, "dout", grad))
            return out if fresh else None

        return hook

    handles = [
        m.register_forward_hook(watch(name))
        for name, layer in layers.items()
        for m in _sharing(model, layer)
    ]
    try:
        with torch.enable_grad():
            # Detached parameters: autograd then has no reason to compute their gradients.
            frozen = {name: p.detach() for name, p in model.named_parameters()}
            logits = torch.func.functional_call(model, frozen, (x.detach(),))
            example_loss = loss(logits, target)
            check_losses(example_loss, len(x))
            if not example_loss.requires_grad:
                raise ValueError("layers: none of them has a part in the loss")
            every = [(name, call) for name, of_layer in calls.items() for call in of_layer]
            for _, call in every:
                call.changed = call.act._version != call.version
            try:
                torch.autograd.grad(example_loss.sum(), leaves, allow_unused=True)
            except RuntimeError as error:  # the model's own backward pass needs it as it was
                changed = [name for name, call in every if call.changed]
                if not changed:
                    raise
                raise ValueError(f"layers: {changed[0]!r}: {_CHANGED}") from error
    finally:
        for handle in handles:
            handle.remove()
    return calls


def _without_factors(
    model: nn.Module,
    calls: Mapping[str, Sequence[_Call]],
    x: Tensor,
    target: Tensor,
    loss: ExampleLoss,
) -> dict[str, str]:
    """Of the layers that were called as ``calls``: whose gradients they do not give, and why."""
    why = {}
    for name, of_layer in calls.items():
        for call in of_layer:
            if call.changed:
                why[name] = _CHANGED
            elif len(call.act) != len(x):
                why[name] = (
                    f"it reads {list(call.act.shape)}, whose first dimension is not that of the "
                    f"{len(x)} examples"
                )
    silent = [name for name, of_layer in calls.items() if not of_layer]
    taken = _taken(model, silent, x[:1], target[:1], loss) if silent else []
    return why | dict.fromkeys(taken, "the model takes its weight and does not call it")


@dataclass(eq=False)
class _Call:
    """Of a layer: what it read, its version then, the shape of what it wrote and the gradient of that."""

    layer: Layer
    act: Tensor
    version: int
    shape: torch.Size
    changed: bool = False
    dout: Tensor | None = None

    def factors(self) -> LayerGradient:
        dout = self.act.new_zeros(self.shape) if self.dout is None else self.dout
        return _factors(self.layer, self.act, dout)


def _taken(
    model: nn.Module, names: Sequence[str], x: Tensor, target: Tensor, loss: ExampleLoss
) -> list[str]:
    """Of layers that are not called, those whose weights alone have a part in the loss."""
    state = {name: p.detach() for name, p in model.named_parameters()}
    weights = [state[f"{name}.weight"].requires_grad_() for name in names]
    with torch.enable_grad():
        example_loss = loss(torch.func.functional_call(model, state, (x.detach(),)), target)
        if not example_loss.requires_grad:
            return []
        grads = torch.autograd.grad(example_loss.sum(), weights, allow_unused=True)
    return [name for name, grad in zip(names, grads, strict=True) if grad is not None]


def _of_calls(layer: Layer, calls: Sequence[_Call], x: Tensor) -> LayerGradient:
    """A call after the other is one of more positions."""
    if len(calls) == 1:
        return calls[0].factors()
    groups = getattr(layer, "groups", 1)
    conv = Convolution((1, 1), groups=groups)
    if not calls:
        outputs = layer.weight.shape[0]
        inputs = groups * layer.weight[0].numel()
        act, dout = (layer.weight.new_zeros(len(x), n, 1, 1) for n in (inputs, outputs))
        return LayerGradient(act, dout, conv, layer.bias is not None)
    each = [_positions(call.factors()) for call in calls]
    act, dout = (torch.cat(parts, 2)[..., None] for parts in zip(*each, strict=True))
    return LayerGradient(act, dout, conv, layer.bias is not None)


def _positions(gradient: LayerGradient) -> tuple[Tensor, Tensor]:
    """What was read at each position [B, G J, T], and the gradient of what was written [B, G O, T]."""
    act, dout, conv, _ = gradient
    if conv is None:
        return act[..., None], dout[..., None]
    patches = F.unfold(act, conv.kernel, conv.dilation, conv.padding, conv.stride)
    return patches, dout.flatten(2)


def _factors(layer: Layer, act: Tensor, dout: Tensor) -> LayerGradient:
    bias = layer.bias is not None
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
