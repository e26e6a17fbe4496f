"""Layers that are not trained, by name."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from fnmatch import fnmatchcase

from torch import nn

from ..spec import not_known


def read_patterns(patterns: Sequence[str] | str | None) -> list[str] | None:
    """A list, of text that joins them by "+" too; None for none."""
    found = patterns.split("+") if isinstance(patterns, str) else patterns or ()
    return [pattern.strip() for pattern in found] or None


def freeze(model: nn.Module, patterns: Sequence[str] | None) -> list[nn.Module]:
    """Takes the gradient from the parameters that ``patterns`` name; returns the modules that are named.

    A pattern, with * and ?, fits a parameter by its name or by that of a module that it is in; behind "!"
    it says what is trained, and the last that fits counts. What its owner has frozen stays so.
    ValueError: a pattern that fits nothing, and where nothing is left to train.
    """
    modules = {name: module for name, module in model.named_modules() if name}
    parameters = dict(model.named_parameters())
    for pattern in patterns or ():
        bare = pattern.removeprefix("!")
        if not any(fnmatchcase(name, bare) for name in (*modules, *parameters)):
            raise ValueError(
                f"freeze: {type(model).__name__}'s layer {not_known(bare, [*modules, *parameters])}; "
                "layer* fits every name that begins with layer"
            )
    for name, parameter in parameters.items():
        if _frozen(name, patterns or ()):
            parameter.requires_grad_(False)
    if parameters and not any(p.requires_grad for p in parameters.values()):
        raise ValueError(
            f"freeze: no parameter of {type(model).__name__} is left to train"
            + (f" with freeze={'+'.join(patterns)}; *+!NAME trains NAME alone" if patterns else "")
        )
    return [module for name, module in modules.items() if _frozen(name, patterns or ())]


def _frozen(name: str, patterns: Sequence[str]) -> bool:
    frozen = False
    for pattern in patterns:
        bare = pattern.removeprefix("!")
        if any(fnmatchcase(one, bare) for one in _with_parents(name)):
            frozen = bare == pattern
    return frozen


def _with_parents(name: str) -> Iterator[str]:
    """a.b.c, a.b, a"""
    while name:
        yield name
        name = name.rpartition(".")[0]
