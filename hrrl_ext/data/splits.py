"""Names of splits, as people write them: "Training", "valid", "0"."""

from __future__ import annotations

import re
from collections.abc import Sequence

from ..spec import listed

SPLITS = ("train", "val", "test")
_NAMES = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("val", "valid", "validation", "dev"), "val"),
    **dict.fromkeys(("test", "testing"), "test"),
}
_NUMBERS = {"0": "train", "1": "val", "2": "test"}  # of WILDS and Waterbirds
_ASIDE = ("id_val", "id_test")  # of WILDS: more images of the training domains, to compare with


def split_of(name: str) -> str | None:
    """train, val or test, whatever the name's case; None for another name."""
    return _NAMES.get(name.strip().lower())


def split_within(name: str) -> str | None:
    """That which one word of a name is: seg_train, "test images"."""
    found = {split_of(word) for word in re.split(r"[\W_]+", name)} - {None}
    return found.pop() if len(found) == 1 else None


def splits_among(names: Sequence[str]) -> dict[str, str]:
    """Those of the names that are of splits, each with its split."""
    found = {name: split for name in names if (split := split_of(name))}
    if not found:  # seg_train and seg_test, but not the classes "train station" and "bus"
        found = {name: split for name in names if (split := split_within(name))}
        if len(found) < len(names) or len(set(found.values())) < 2:
            return {}
    return found


def split_of_row(value: str, where: str) -> str:
    """Of the value in a column, which may also be a number; those of `_ASIDE` are splits of their own."""
    name = value.strip().lower()
    found = name if name in _ASIDE else _NUMBERS.get(name) or split_of(name)
    if found is None:
        raise ValueError(
            f"{where}: unknown split {value!r}; expected train, val, test or 0, 1, 2; "
            "split= without a name takes the whole list"
        )
    return found


def chosen_split(split: str, known: Sequence[str], where: str) -> str:
    """Which of the known ones is meant: val for a test that is not there."""
    wanted = "val" if split == "test" and "test" not in known else split
    if wanted not in known:
        raise ValueError(f"{where} of split {split!r}, only {listed(sorted(known))}")
    return wanted
