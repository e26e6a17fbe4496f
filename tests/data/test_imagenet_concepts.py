"""The ImageNet table that is shipped, and the tool that derives it from WordNet."""

from __future__ import annotations

import hashlib
import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

from hrrl_ext.data import ConceptMap
from hrrl_ext.data.concept_tables import imagenet_table

ROOT = Path(__file__).resolve().parents[2]
TABLE_1 = {
    "dog": 118,
    "bird": 59,
    "mammal": 100,
    "animal": 121,
    "vehicle": 67,
    "container": 56,
    "device": 129,
    "structure": 57,
    "instrumentality": 106,
    "artifact": 107,
    "other": 80,
}
SHA256 = "1de0c32e114527d64880ea59b628fb403339eff8d40c294671e15b73962ceadf"


def concept_names() -> list[str]:
    concepts = ConceptMap.imagenet()
    return [concepts.names[k] for k in concepts.class_to_concept.tolist()]


def test_counts_are_table_1():
    concepts = ConceptMap.imagenet()
    count = concepts.class_to_concept.bincount().tolist()
    assert dict(zip(concepts.names, count, strict=True)) == TABLE_1
    assert concepts.names == list(TABLE_1)  # and its order
    assert concepts.num_classes == 1000


def test_index_ranges():
    names = concept_names()
    dogs = [i for i, name in enumerate(names) if name == "dog"]
    assert dogs == list(range(151, 269))
    birds = [i for i, name in enumerate(names) if name == "bird"]
    assert birds == [*range(7, 25), *range(80, 101), *range(127, 147)]
    assert names[922:] == ["other"] * 78


def test_hash_of_all_names():
    assert hashlib.sha256(",".join(concept_names()).encode()).hexdigest() == SHA256


def test_ids_are_sorted_and_unique():
    wnids = list(imagenet_table())
    assert wnids == sorted(set(wnids))
    assert (wnids[0], wnids[-1]) == ("n01440764", "n15075141")  # tench, toilet tissue


def test_selection_by_wordnet_id():
    concepts = ConceptMap.imagenet(["n04467665", "n02085620", "n01440764"])  # truck, chihuahua, ...
    assert concepts.names == ["dog", "animal", "vehicle"]  # the order of Table 1
    assert concepts.class_to_concept.tolist() == [2, 0, 1]


def test_unknown_wordnet_id():
    with pytest.raises(ValueError, match="unknown: 'n99999999'"):
        ConceptMap.imagenet(["n02085620", "n99999999"])


def test_licence_is_shipped():
    notice = (ROOT / "hrrl_ext/data/WORDNET-LICENSE.txt").read_text(encoding="utf-8")
    assert "WordNet 3.0 Copyright 2006 by Princeton University.  All rights reserved." in notice
    assert "Permission to use, copy, modify and distribute this software" in notice


@pytest.fixture(scope="module")
def tool() -> ModuleType:
    spec = importlib.util.spec_from_file_location("tool", ROOT / "tools/imagenet_concepts.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


# Two words in synset 90000001, three parents of which the second leads to a vehicle (through an
# instance pointer) and the third to a container; a part pointer that leads to a dog is none.
NOUNS = """\
  1 This software and database is being provided to you, the LICENSEE, by
  2 Princeton University under the following license.
90000001 06 n 02 cart 0 wheeled_cart 0 005 @ 90000002 n 0000 @i 90000003 n 0000 @ 03094503 n 0000 \
#p 02084071 n 0000 + 01234567 v 0101 | a vehicle | or not
90000002 03 n 01 thing 0 000 | anything
90000003 03 n 0a w 0 w 0 w 0 w 0 w 0 w 0 w 0 w 0 w 0 w 0 001 @ 04524313 n 0000 | hexadecimal count
02084071 05 n 01 dog 0 000 | a dog
03094503 06 n 01 container 0 000 | holds things
04524313 06 n 01 vehicle 0 000 | moves things
"""


def test_tool_reads_all_hypernyms(tool, tmp_path):
    path = tmp_path / "data.noun"
    path.write_text(NOUNS.replace("\n", "  \n"))  # every line ends in two spaces
    licence, hypernyms = tool.read_nouns(path)
    assert licence.splitlines()[1] == "Princeton University under the following license."
    assert hypernyms["n90000001"] == ["n90000002", "n90000003", "n03094503"]
    assert tool.ancestors("n90000001", hypernyms) == {
        "n90000001",
        "n90000002",
        "n90000003",
        "n03094503",
        "n04524313",
    }
    # Vehicle comes before container in the rule, although its path is the longer one.
    assert tool.concept_of("n90000001", hypernyms) == "vehicle"
    assert tool.concept_of("n02084071", hypernyms) == "dog"
    assert tool.concept_of("n90000002", hypernyms) == "other"


def test_tool_accepts_the_shipped_table_only(tool):
    names = concept_names()
    tool.check(names)
    with pytest.raises(ValueError, match="differ from Table 1"):
        tool.check(["dog", *names[1:]])
    with pytest.raises(ValueError, match="SHA-256"):
        tool.check(sorted(names))
