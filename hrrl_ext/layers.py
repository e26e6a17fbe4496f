"""What a model returns, its layers by name, and what goes into one of them or comes out of it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.graph import Node

from .spec import listed, not_known

# --- what a model returns


def logits_of(output: Any) -> Tensor:
    """The logits in what a model returns, whatever library it is of.

    A tensor is itself. Of a mapping or an object it is ``logits`` (the outputs of transformers,
    torchvision's named tuples of networks with auxiliary classifiers), of another tuple or list its first
    entry, of another mapping its only tensor. Whether they are [B, C] is for those to say who use them.
    ValueError: there are none.
    """
    if isinstance(output, Tensor):
        return output
    named = output if isinstance(output, Mapping) else {}
    found = named.get("logits") if named else getattr(output, "logits", None)
    if found is None and named:
        tensors = [value for value in named.values() if isinstance(value, Tensor)]
        found = tensors[0] if len(tensors) == 1 and len(named) == 1 else None
    elif found is None and isinstance(output, tuple | list) and output:
        found = output[0]
    if isinstance(found, Tensor):
        return found
    holds = f" of {', '.join(map(str, named))}" if named else ""
    raise ValueError(
        f"the model must return logits [B, C], alone, as .logits, under the key 'logits' or first in a "
        f"tuple, got {type(output).__name__}{holds}; wrap it in a module that returns its logits"
    )


def _tensors_in(output: Any) -> Iterator[Tensor]:
    """All that a model returns."""
    if isinstance(output, Tensor):
        yield output
    elif isinstance(output, Mapping | tuple | list):
        for value in output.values() if isinstance(output, Mapping) else output:
            yield from _tensors_in(value)


# --- its classifiers


class Classifiers(NamedTuple):
    """Names of the linear layers that a model's outputs end in, in module order; of 1x1 convolutions
    where there is no linear one, as in SqueezeNet."""

    of_logits: list[str]
    beside: list[str]
    """of what it returns besides, such as auxiliary classifiers in train mode"""


def find_classifiers(model: nn.Module, x: Tensor) -> Classifiers:
    """The layers that ``model`` reads its logits from, on some images, in the modes that it is in.

    Found in the graph of a forward pass, whatever the order of the modules is: the nn.Linear layers, as
    wide as there are classes, that are met first on the way back from the logits; where there are none,
    the 1x1 convolutions, which are linear at every position. A network that is distilled has two, whose
    mean the logits are. None, where the logits come from another kind of layer.
    """
    linear: dict[Node, str] = {}
    pointwise: dict[Node, str] = {}
    width: dict[str, int] = {}

    def watch(name: str, layer: nn.Module) -> Callable[[nn.Module, Any, Any], None]:
        def hook(_: nn.Module, __: Any, out: Any) -> None:
            if not (isinstance(out, Tensor) and out.grad_fn is not None):
                return
            if isinstance(layer, nn.Linear) and out.ndim == 2:
                linear[out.grad_fn], width[name] = name, layer.out_features
            elif isinstance(layer, nn.Conv2d) and out.ndim == 4:
                pointwise[out.grad_fn], width[name] = name, layer.out_channels

        return hook

    heads = {name: m for name, m in model.named_modules() if is_classifier(m)}
    handles = [m.register_forward_hook(watch(name, m)) for name, m in heads.items()]
    try:
        with torch.enable_grad():
            output = model(x.detach().requires_grad_().clone())  # which it may change in place
    finally:
        for handle in handles:
            handle.remove()
    try:
        logits = logits_of(output)
    except ValueError:  # a network without a classifier
        return Classifiers([], [])
    classes = logits.shape[1] if logits.ndim == 2 else 0

    def ends_of(tensor: Tensor) -> set[str]:
        ends = _ends(tensor, linear) or _ends(tensor, pointwise)
        return ends if all(width[name] == classes for name in ends) else set()

    of_logits = ends_of(logits)
    beside = {name for t in _tensors_in(output) for name in ends_of(t)} - of_logits
    return Classifiers(*([n for n in heads if n in names] for names in (of_logits, beside)))


def is_classifier(layer: nn.Module) -> bool:
    """Whether it may be one: linear, or a 1x1 convolution, which is so at every position."""
    pointwise = isinstance(layer, nn.Conv2d) and set(layer.kernel_size) == {1} == {layer.groups}
    return isinstance(layer, nn.Linear) or pointwise


def _ends(tensor: Tensor, written: Mapping[Node, str]) -> set[str]:
    """Of the layers whose outputs are ``written``, those met first on every way back from ``tensor``."""
    names: set[str] = set()
    seen: set[Node] = set()
    ahead = [tensor.grad_fn]
    while ahead:
        node = ahead.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if node in written:
            names.add(written[node])
        else:
            ahead += [before for before, _ in node.next_functions]
    return names


def the_classifier(
    model: nn.Module, found: Classifiers, where: str, way_out: str, otherwise: str
) -> nn.Linear:
    """The layer whose input is f(x); the last nn.Linear where the logits come from another kind.
    ValueError where they come from several, or from a convolution, whose input has positions."""
    if len(found.of_logits) > 1:
        raise ValueError(
            f"{where}: the logits of {type(model).__name__} come from {len(found.of_logits)} layers, "
            f"{listed(found.of_logits)}, each with an input of its own; {way_out}"
        )
    if not found.of_logits:
        return find_classifier(model)
    layer = model.get_submodule(found.of_logits[0])
    if not isinstance(layer, nn.Linear):
        raise ValueError(
            f"{where}: the logits of {type(model).__name__} come from the convolution "
            f"{found.of_logits[0]!r}, whose input is no vector; {otherwise}"
        )
    return layer


def find_classifier(model: nn.Module) -> nn.Linear:
    """The last nn.Linear in module order, whose input is f(x). ValueError: the model has none."""
    linear = [module for module in model.modules() if isinstance(module, nn.Linear)]
    if not linear:
        raise ValueError(
            f"find_classifier: {type(model).__name__} has no nn.Linear; name the layer whose input "
            "is the feature: extract_features(..., classifier='name of the layer')"
        )
    return linear[-1]


def find_head(model: nn.Module, classifier: str | nn.Module | None, argument: str) -> nn.Module:
    """``classifier``, checked by :func:`find_layer`, or what :func:`find_classifier` finds."""
    return find_classifier(model) if classifier is None else find_layer(model, classifier, argument)


def find_layer(model: nn.Module, layer: str | nn.Module, argument: str) -> nn.Module:
    """The layer of that name, or itself. ValueError naming ``argument``: it is none of the model's."""
    if isinstance(layer, str):
        named: dict[str, nn.Module] = {name: m for name, m in model.named_modules() if name}
        if layer not in named:
            raise ValueError(
                f"{argument}: {type(model).__name__}'s layer {not_known(layer, named)}"
            )
        return named[layer]
    if not isinstance(layer, nn.Module):
        raise TypeError(
            f"{argument} must be a layer of the model or its name, got {type(layer).__name__}"
        )
    if not any(module is layer for module in model.modules()):
        raise ValueError(
            f"{argument} ({type(layer).__name__}) is not a layer of the model "
            f"({type(model).__name__})"
        )
    return layer


def layer_name(model: nn.Module, layer: nn.Module) -> str:
    """What ``named_modules`` calls a layer."""
    return next(name for name, module in model.named_modules() if module is layer)


@contextmanager
def captured(
    layer: nn.Module, side: Literal["input", "output"], take: Callable[[Any], Tensor]
) -> Iterator[list[Tensor]]:
    """A list of ``take`` of the layer's first input, or of its output, call by call, while within."""
    taken: list[Tensor] = []

    def of_input(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        taken.append(take((*args, *kwargs.values())[0]))

    def of_output(_: nn.Module, args: Any, output: Any) -> None:
        taken.append(take(output))

    if side == "input":
        handle = layer.register_forward_pre_hook(of_input, with_kwargs=True)
    else:
        handle = layer.register_forward_hook(of_output)
    try:
        yield taken
    finally:
        handle.remove()
