"""Lists of names in error messages."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence

_SHOWN = 5  # names listed in one message


def listed(names: Sequence[str]) -> str:
    """'cat', 'dog', ..."""
    return ", ".join(repr(name) for name in names[:_SHOWN]) + _rest(names)


def nearest(unknown: Sequence[str], known: Iterable[str]) -> str:
    """'dgo' (nearest known: 'dog'), ...; the name alone where nothing is near."""
    known = list(known)
    shown = []
    for name in unknown[:_SHOWN]:
        match = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
        shown.append(f"{name!r} (nearest known: {match[0]!r})" if match else repr(name))
    return ", ".join(shown) + _rest(unknown)


def _rest(names: Sequence[str]) -> str:
    return f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
