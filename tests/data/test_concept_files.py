"""Concept files: layouts, matching with class names, round trip, and every refusal."""

from __future__ import annotations

import json

import pytest
import torch

from hrrl_ext.data import ArrayImages, ConceptMap, resolve_concepts
from hrrl_ext.data.concept_files import write_example_concepts

CLASSES = ["cat", "dog", "car"]


def write(folder, name, text):
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("c.json", '{"car": "vehicle", "cat": "animal", "dog": "animal"}'),
        ("c.csv", "class,concept\ncar,vehicle\ncat,animal\ndog,animal\n"),
        ("c.CSV", "\ufeffclass, concept\r\n\r\ncar , vehicle\r\ncat,animal\r\ndog,animal"),
    ],
)
def test_class_names(tmp_path, name, text):
    concepts = ConceptMap.from_file(write(tmp_path, name, text), CLASSES)
    assert concepts.names == ["vehicle", "animal"]  # first appearance in the file
    assert concepts.class_to_concept.tolist() == [1, 1, 0]  # order of the classes


@pytest.mark.parametrize("classes", [None, CLASSES, ["same", "same", "same"]])
def test_class_indices(tmp_path, classes):
    path = write(tmp_path, "c.csv", "class,concept\n2,vehicle\n0,animal\n1,animal\n")
    assert ConceptMap.from_file(path, classes).class_to_concept.tolist() == [1, 1, 0]


def test_class_names_that_are_numbers_are_names(tmp_path):
    # Folders "0", "1", "10", "2" in sorted order: the name "2" is the class of index 3.
    path = write(tmp_path, "c.csv", "class,concept\n0,a\n1,a\n2,b\n10,a\n")
    concepts = ConceptMap.from_file(path, ["0", "1", "10", "2"])
    assert concepts.class_to_concept.tolist() == [0, 0, 0, 1]


@pytest.mark.parametrize(
    "ids", [[0, 0, 1], [1, 0, 2, 0], [0], ConceptMap.cifar100().class_to_concept.tolist()]
)
def test_json_round_trip_keeps_the_numbers(tmp_path, ids):
    names = [f"concept {chr(0x3B1 + k)}" for k in range(max(ids) + 1)]
    concepts = ConceptMap(torch.tensor(ids), names)
    concepts.to_json(tmp_path / "map.json")
    assert ConceptMap.from_file(tmp_path / "map.json") == concepts
    # Also where the data set has names for its classes.
    named = [f"class {c}" for c in range(len(ids))]
    assert ConceptMap.from_file(tmp_path / "map.json", named) == concepts


def test_write_is_atomic(tmp_path, monkeypatch):
    path = tmp_path / "map.json"
    ConceptMap.from_names(["a"]).to_json(path)

    def full_disk(*args):
        raise OSError("no space left")

    monkeypatch.setattr("os.replace", full_disk)
    with pytest.raises(OSError, match="no space"):
        ConceptMap.from_names(["b"]).to_json(path)
    assert json.loads(path.read_text()) == {"0": "a"}
    assert [p.name for p in tmp_path.iterdir()] == ["map.json"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("class,concept\ncat,a\ndgo,a\ncar,b\n", r"unknown class 'dgo' \(did you mean 'dog'\?\)"),
        ("class,concept\ncat,a\ncar,b\n", "no concept is given for class 'dog'"),
        ("class,concept\ncar,b\n", "no concept is given for classes 'cat', 'dog'"),
        ("class,concept\n0,a\n1,a\n3,b\n", "unknown class '3'"),
        ("class,concept\ncat,a\ncat,b\n", "class 'cat' is listed twice"),
        ("class,concept\ncat,\n", "empty name"),
        ("class,concept\n", "no class is listed"),
        ("", "the header is ''"),
        ("name,concept\ncat,a\n", "the header is 'name,concept'"),
        ("class,concept\ncat,a,b\n", "'cat,a,b' has 3 cells, not 2"),
        (f"class,concept\n{'a' * 200_000},a\n", "field larger than field limit"),
    ],
)
def test_csv_refusals(tmp_path, text, message):
    path = write(tmp_path, "c.csv", text)
    with pytest.raises(ValueError, match=message) as caught:
        ConceptMap.from_file(path, CLASSES)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"cat": "a", "cat": "b"}', "class 'cat' is listed twice"),
        ('{"cat": 1}', "concept of class 'cat' is not a string"),
        ('{"cat": {"a": "b"}}', "concept of class 'cat' is not a string"),
        ('["a", "b"]', "the top level is not one object"),
        ('[{"cat": "a"}]', "the top level is not one object"),
        ("{", "expected JSON"),
        ("{}", "no class is listed"),
    ],
)
def test_json_refusals(tmp_path, text, message):
    path = write(tmp_path, "c.json", text)
    with pytest.raises(ValueError, match=message) as caught:
        ConceptMap.from_file(path, CLASSES)
    assert str(path) in str(caught.value)


def test_long_lists_are_cut_short(tmp_path):
    path = write(tmp_path, "c.csv", "class,concept\nc0,a\n")
    with pytest.raises(ValueError, match=r"'c5' and 14 more$"):
        ConceptMap.from_file(path, [f"c{i}" for i in range(20)])


def test_names_without_class_names_to_match(tmp_path):
    path = write(tmp_path, "c.csv", "class,concept\ncat,a\n")
    with pytest.raises(ValueError, match=r"without class names .* indices 0\.\.C-1"):
        ConceptMap.from_file(path)


def test_repeated_class_names_cannot_be_matched(tmp_path):
    path = write(tmp_path, "c.csv", "class,concept\ncrane,a\n")
    with pytest.raises(ValueError, match=r"not unique \('crane'\); give class indices"):
        ConceptMap.from_file(path, ["crane", "crane"])


def test_missing_file_unknown_suffix_and_bytes(tmp_path):
    with pytest.raises(FileNotFoundError, match="does not exist"):
        ConceptMap.from_file(tmp_path / "none.json")
    with pytest.raises(ValueError, match=r"unknown suffix '\.txt'"):
        ConceptMap.from_file(write(tmp_path, "c.txt", "class,concept\n0,a\n"))
    (tmp_path / "latin.csv").write_bytes(b"class,concept\ncaf\xe9,a\n")
    with pytest.raises(ValueError, match=r"latin\.csv"):
        ConceptMap.from_file(tmp_path / "latin.csv")


# --- by example


def images(count):
    pixels = torch.zeros(count, 3, 4, 4, dtype=torch.uint8)
    return ArrayImages(pixels, torch.arange(count) % 3, classes=CLASSES)


@pytest.mark.parametrize(
    "concepts", [[0], [10, 9, 10, 2], ["b", "a", "b"], ["x, y", 'a "b"', "x, y"]], ids=str
)
def test_examples_round_trip(tmp_path, concepts):
    """In sorted order, by value where all are numbers; whatever names hold."""
    write_example_concepts(tmp_path / "c.csv", concepts)
    found, names = resolve_concepts(tmp_path / "c.csv", images(len(concepts)))
    assert names == [str(name) for name in sorted(set(concepts))]
    assert [names[k] for k in found] == [str(name) for name in concepts]
    assert found.dtype == torch.int64


def test_examples_in_any_order(tmp_path):
    path = write(tmp_path, "c.CSV", "\ufeffexample , concept\r\n\r\n2,1\r\n0 , 0\r\n1,1")
    assert resolve_concepts(str(path), images(3))[0].tolist() == [0, 1, 1]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "0,a\n1,a\n",
            "no concept is given for example 2 of 3; the file must be of the same images",
        ),
        ("0,a\n1,a\n2,a\n3,a\n", r"example must be an index in 0..2, .* got '3'"),
        ("0,a\n1,a\n-1,a\n", "got '-1'"),
        ("0,a\n1,a\ncat,a\n", "got 'cat'"),
        ("0,a\n1,a\n1,a\n", "example 1 is listed twice"),
        ("0,a\n1,\n2,a\n", "example 1 has an empty concept"),
        ("0,a\n1\n2,a\n", "has 1 cells, not 2"),
        ("", "no concept is given for example 0"),
    ],
)
def test_example_refusals(tmp_path, text, message):
    path = write(tmp_path, "c.csv", "example,concept\n" + text)
    with pytest.raises(ValueError, match=message) as caught:
        resolve_concepts(path, images(3))
    assert str(path) in str(caught.value)


def test_a_map_has_classes(tmp_path):
    """A file by example makes no map, and other headers are told what there is."""
    path = write(tmp_path, "c.csv", "example,concept\n0,a\n1,a\n2,b\n")
    with pytest.raises(
        ValueError, match=r"expected JSON .* or CSV with the header `class,concept`"
    ):
        ConceptMap.from_file(path, CLASSES)
    with pytest.raises(FileNotFoundError, match="`example,concept` for one of each example"):
        resolve_concepts(tmp_path / "none.csv", images(3))


def test_a_header_in_quotes(tmp_path):
    """As R and pandas write it."""
    text = '"class","concept"\n"car","vehicle"\ncat,"a,b"\ndog,"a,b"\n'
    assert ConceptMap.from_file(write(tmp_path, "c.csv", text), CLASSES).names == ["vehicle", "a,b"]
    of_examples = write(tmp_path, "e.csv", '\ufeff"example","concept"\n"1","b"\n0,"a"\n2,b\n')
    images = ArrayImages(torch.zeros(3, 3, 4, 4), [0, 1, 0])
    assert resolve_concepts(of_examples, images)[0].tolist() == [0, 1, 1]


def test_names_that_a_spreadsheet_would_run_come_back_as_they_were(tmp_path):
    names = ["=1+1", "'=x", "-1", "@a", "+b", "''+c", "plain", "'q'"]
    write_example_concepts(tmp_path / "e.csv", names)
    cells = [line.split(",")[1] for line in (tmp_path / "e.csv").read_text().splitlines()[1:]]
    assert cells == ["'=1+1", "''=x", "-1", "'@a", "'+b", "'''+c", "plain", "'q'"]
    images = ArrayImages(torch.zeros(len(names), 3, 4, 4), [0, 1] * 4)
    concept, found = resolve_concepts(tmp_path / "e.csv", images)
    assert [found[k] for k in concept.tolist()] == names
