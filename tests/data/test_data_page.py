"""What docs/data.md shows runs as shown."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
import torch

from hrrl_ext.data import ConceptMap, CsvImages

pytest.importorskip("jsonargparse")
from hrrl_ext.cli import command_parser

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "data.md").read_text(encoding="utf-8")


def test_first_example():
    names: dict[str, object] = {}
    exec(re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)[0], names)
    x, target, concept = names["x"], names["target"], names["concept_of_x"]
    assert isinstance(x, torch.Tensor)
    assert x.shape[1:] == (3, 8, 8)
    assert torch.equal(target, concept)


def test_concept_file(tmp_path):
    text = re.findall(r"```\n(class,concept\n.*?)```", PAGE, re.DOTALL)[0]
    (tmp_path / "concepts.csv").write_text(text)
    concepts = ConceptMap.from_file(tmp_path / "concepts.csv", ["car", "cat", "dog"])
    assert concepts.names == ["animal", "vehicle"]
    assert concepts.class_to_concept.tolist() == [1, 0, 0]


def test_metadata_csv(tmp_path):
    image = pytest.importorskip("PIL.Image")
    text = re.findall(r"```\n(img_id,.*?)```", PAGE, re.DOTALL)[0]
    (tmp_path / "metadata.csv").write_text(text)
    (tmp_path / "001.Albatross").mkdir()
    for name in ("one", "two"):
        image.new("RGB", (4, 4)).save(tmp_path / "001.Albatross" / f"{name}.jpg")
    images = CsvImages(tmp_path / "metadata.csv", image_size=4)
    assert images.columns["place"].tolist() == ["0", "1"]
    assert len(images) == 2


def test_the_command_is_one():
    command = re.findall(r"```\nhrrl train (.*?)```", PAGE, re.DOTALL)[0]
    args = command_parser("train").parse(shlex.split(command.replace("\\\n", " ")))
    assert (args.concepts, args.adversary) == ("column:y+place", "group_dro")
