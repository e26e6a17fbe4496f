"""Derive the 11 ImageNet concepts (Table 1 of the HRRL paper) from WordNet 3.0.

    python tools/imagenet_concepts.py --wordnet /usr/share/wordnet --wnids imagenet_synsets.txt

--wordnet: the folder of WordNet's database files (data.noun; Debian's package wordnet-base installs
them in /usr/share/wordnet). --wnids: a text file with the 1000 ILSVRC ids, one a line: the names of
the folders of ILSVRC's training set. Writes imagenet_concepts.csv (sorted ids) and
WORDNET-LICENSE.txt; refuses to write anything that does not have the paper's class counts and the
known hash.

Rule: a class belongs to the first concept, in the order below, among ALL its hypernyms: the
transitive closure over every hypernym pointer. Many classes have several parents; following the
first one only gives another table.
"""

from __future__ import annotations

import argparse
import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

# Concept, its synset, and its number of classes in Table 1. The order decides where synsets nest or
# overlap.
TABLE = (
    ("dog", "n02084071", 118),
    ("bird", "n01503061", 59),
    ("mammal", "n01861778", 100),
    ("animal", "n00015388", 121),
    ("vehicle", "n04524313", 67),
    ("container", "n03094503", 56),
    ("device", "n03183080", 129),
    ("structure", "n04341686", 57),
    ("instrumentality", "n03575240", 106),
    ("artifact", "n00021939", 107),
    ("other", "", 80),
)
SHA256 = (
    "1de0c32e114527d64880ea59b628fb403339eff8d40c294671e15b73962ceadf"  # of the names joined by ","
)
VERSION = "WordNet 3.0 Copyright 2006 by Princeton University."
HYPERNYM_POINTERS = ("@", "@i")  # "is a kind of" and "is an instance of"
OUT = Path(__file__).resolve().parents[1] / "hrrl_ext" / "data"


def read_nouns(path: Path) -> tuple[str, dict[str, list[str]]]:
    """The licence at the head of data.noun, and synset id → ids of its direct hypernyms."""
    licence, hypernyms = [], {}
    for line in path.read_text(encoding="utf-8").splitlines():
        if line.startswith("  "):  # numbered lines of the licence
            licence.append(line.strip().partition(" ")[2].rstrip())
            continue
        # offset file type words(hex) (word lex_id)* pointers (symbol offset pos source)* | gloss
        field = line.partition(" | ")[0].split()
        first = 4 + 2 * int(field[3], 16)
        pointers = [field[first + 1 + 4 * i :][:3] for i in range(int(field[first]))]
        hypernyms["n" + field[0]] = [
            "n" + o for s, o, pos in pointers if s in HYPERNYM_POINTERS and pos == "n"
        ]
    return "\n".join(licence).strip(), hypernyms


def ancestors(synset: str, hypernyms: Mapping[str, Sequence[str]]) -> set[str]:
    """The synset and everything above it."""
    found, pending = set(), [synset]
    while pending:
        current = pending.pop()
        if current not in found:
            found.add(current)
            pending += hypernyms[current]
    return found


def concept_of(synset: str, hypernyms: Mapping[str, Sequence[str]]) -> str:
    """First concept of the table among the synset's ancestors."""
    above = ancestors(synset, hypernyms)
    return next((name for name, root, _ in TABLE if root in above), "other")


def check(concepts: Sequence[str]) -> None:
    """Raise ValueError unless this is Table 1, class by class."""
    expected, got = {name: count for name, _, count in TABLE}, dict(Counter(concepts))
    if got != expected:
        raise ValueError(f"classes per concept differ from Table 1: expected {expected}, got {got}")
    digest = hashlib.sha256(",".join(concepts).encode()).hexdigest()
    if digest != SHA256:
        raise ValueError(f"SHA-256 of the concept names must be {SHA256}, got {digest}")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--wordnet", type=Path, required=True, help="folder with WordNet 3.0's data.noun"
    )
    parser.add_argument(
        "--wnids", type=Path, required=True, help="text file of 1000 ids, one a line"
    )
    parser.add_argument(
        "--out", type=Path, default=OUT, help="folder to write to (default: %(default)s)"
    )
    options = parser.parse_args()

    for path in (options.wordnet / "data.noun", options.wnids):
        if not path.is_file():
            parser.error(f"{path} does not exist")
    licence, hypernyms = read_nouns(options.wordnet / "data.noun")
    if VERSION not in licence:
        parser.error(f"{options.wordnet}/data.noun is not {VERSION.partition(' Copyright')[0]}")
    wnids = sorted(set(options.wnids.read_text(encoding="utf-8").split()))
    unknown = [wnid for wnid in wnids if wnid not in hypernyms]
    if len(wnids) != 1000 or unknown:
        parser.error(
            f"{options.wnids}: expected 1000 noun ids, got {len(wnids)}, unknown: {unknown[:5]}"
        )
    concepts = [concept_of(wnid, hypernyms) for wnid in wnids]
    check(concepts)

    rows = [f"{wnid},{concept}" for wnid, concept in zip(wnids, concepts, strict=True)]
    (options.out / "imagenet_concepts.csv").write_text(
        "\n".join(["class,concept", *rows]) + "\n", encoding="utf-8"
    )
    notice = (
        f"imagenet_concepts.csv is derived from WordNet 3.0, whose licence follows.\n\n{licence}\n"
    )
    (options.out / "WORDNET-LICENSE.txt").write_text(notice, encoding="utf-8")


if __name__ == "__main__":
    main()
