"""YAML files that are given: regular, and no longer than they look."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from .._regular import regular

_MOST = 100_000
"""Values in a file, with all that its aliases stand for: some hundred times the longest study's.

Ten lines of nine aliases each, of the line above, are 9^10 values, which merging keys, a copy or a
message would write out.
"""
_DEEPEST = 100
"""Levels of lists and mappings. Who reads them calls itself at each, and where Python ends that is up to
the process: libraries change it."""


def read_yaml(path: Path) -> Any:
    """ValueError naming the file where `check_yaml` does, or where it is no YAML."""
    import jsonargparse
    import yaml

    check_yaml(path)
    try:
        return jsonargparse.get_loader("yaml")(path.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise ValueError(f"{path} is not valid YAML: {' '.join(str(error).split())}") from error


def check_yaml(path: Path) -> None:
    """ValueError naming the file: it is a pipe or a device, no text, nested too deeply, or one whose
    aliases unfold without bound. Any other fault is left to whoever reads it."""
    import yaml

    try:
        text = regular(path).read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not text in UTF-8: {error}") from error
    try:
        if _depth(text) > _DEEPEST:
            raise ValueError(f"{path} is nested too deeply; settings are of a few levels")
        values = _unfolded(yaml.compose(text, Loader=yaml.SafeLoader), {})
    except yaml.YAMLError:
        return
    if values > _MOST:
        raise ValueError(
            f"{path} unfolds to more than {_MOST:,} values by its aliases (&name, *name); write out what "
            "they stand for"
        )


def _depth(text: str) -> int:
    """How many lists and mappings stand within one another."""
    import yaml

    depth = most = 0
    for event in yaml.parse(text, Loader=yaml.SafeLoader):
        depth += isinstance(event, yaml.CollectionStartEvent)
        depth -= isinstance(event, yaml.CollectionEndEvent)
        most = max(most, depth)
    return most


def _unfolded(node: Any, known: dict[int, float]) -> float:
    """How many values a node stands for; infinitely many, where it is an alias within itself."""
    if node is None or isinstance(node.value, str):
        return 1
    if id(node) not in known:
        known[id(node)] = float("inf")
        parts = (
            part
            for entry in node.value
            for part in (entry if isinstance(entry, tuple) else (entry,))
        )
        known[id(node)] = 1 + sum(_unfolded(part, known) for part in parts)
    return known[id(node)]
