"""examples/finetune_cifar10.py: the images it takes, and the tables it writes."""

from __future__ import annotations

import csv
from pathlib import Path

import finetune_cifar10
import pytest
import torch

from hrrl_ext.data import load_images


def test_as_many_of_each_class() -> None:
    images = load_images("digits", split="train")
    some, more = (finetune_cifar10.subset(images, count) for count in (47, 60))
    count = torch.bincount(some.target, minlength=10)
    assert len(some) == 47 and set(count.tolist()) == {4, 5}
    assert torch.equal(more.target[:47], some.target)  # fewer are part of more


def test_the_tables(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    histories, shifted = {}, {}
    for v, variant in enumerate(("ERM", "EL", "CL", "HRRL")):
        for seed in (0, 1):
            accuracy = 0.5 + 0.1 * v + 0.02 * seed
            histories[variant, "plain", seed] = [
                {"epoch": e, "accuracy": accuracy - 0.1 * (2 - e), "train_accuracy": 0.9, "seconds": 1.0}
                for e in (1, 2)
            ]  # fmt: skip
            shifted[variant, "plain", seed] = 0.25
    finetune_cifar10.write(histories, shifted, tmp_path, [0, 1])
    lines = (tmp_path / "table.md").read_text().splitlines()
    assert lines[0] == "| error, % | plain | plain, half |"
    assert lines[2] == "| ERM | 49.0 ± 1.4 | 25.0 ± 0.0 |"
    assert lines[5] == "| HRRL | 19.0 ± 1.4 | 25.0 ± 0.0 |"
    with (tmp_path / "errors.csv").open(newline="") as f:
        rows = list(csv.DictReader(f))
    assert len(rows) == 16
    assert (rows[0]["epoch"], rows[0]["error"]) == ("1", "0.6000")
    assert (tmp_path / "error.png").read_bytes().startswith(b"\x89PNG")
