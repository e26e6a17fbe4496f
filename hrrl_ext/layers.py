"""The layers of a model by name, and what goes into one of them or comes out of it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Literal

from torch import Tensor, nn

from .spec import not_known


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
