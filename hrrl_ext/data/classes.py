"""Whether two numberings of classes are the same: that which a model was trained on, and the data's."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

_SHOWN = 3  # names in a message


def require_same_classes(
    known: Sequence[str], found: Sequence[str], *, of: str, data: str = "data"
) -> None:
    """That labels of classes ``found`` mean what they mean to a model of classes ``known``.

    ValueError: their number differs, or a name that both have stands at another place, so that one
    class would be taken for another. A warning: names of one alone, which are taken for the same.
    ``of`` and ``data`` say whose they are.
    """
    both = f"{data} has {_few(found)}, {of} {_few(known)}"
    if len(known) != len(found):
        raise ValueError(f"{both}; give data of the same classes, in their order")
    differ = [i for i, (a, b) in enumerate(zip(known, found, strict=True)) if a != b]
    if moved := [i for i in differ if found[i] in known]:
        i = moved[0]
        raise ValueError(
            f"{both}: {found[i]!r} is class {i} of {data} and class {list(known).index(found[i])} of "
            f"{of}, so one would be taken for another; give labels that count the classes in the same "
            "order, by class_names in an .npz, or by classes= of ArrayImages and FolderImages"
        )
    if differ:
        i = differ[0]
        warnings.warn(
            f"{both}: they are taken for the same, such as {found[i]!r} for {known[i]!r}",
            stacklevel=3,
        )


def _few(names: Sequence[str]) -> str:
    more = ", ..." if len(names) > _SHOWN else ""
    return f"{len(names)} classes ({', '.join(names[:_SHOWN])}{more})"
