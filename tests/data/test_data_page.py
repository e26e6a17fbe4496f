"""What docs/data.md shows runs as shown."""

from __future__ import annotations

import re
from pathlib import Path

import torch

from hrrl_ext.data import ConceptMap

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
