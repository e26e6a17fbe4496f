"""examples/robustness_cifar100.py: what it puts on its page are the numbers of the reports."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import robustness_cifar100
from torch import nn

from hrrl_ext.data import load_images
from hrrl_ext.evaluation import evaluate
from hrrl_ext.models import resnet18

ROOT = Path(__file__).parents[2]


def test_the_page(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    images = load_images("digits", split="test")
    models: dict[str, nn.Module] = {
        name: resnet18(10, stem="small", width=2) for name in ("one", "two")
    }
    reports = [
        evaluate(
            model, images, name=name, points=60, attacks=["linf:1/255"], attack_points=10,
            max_epsilon=["linf"], corruptions=["contrast", "fog"], corruption_points=20,
        )
        for name, model in models.items()
    ]  # fmt: skip
    page = tmp_path / "robustness.md"
    old = (ROOT / "docs/results/robustness.md").read_text(encoding="utf-8")
    page.write_text(old, encoding="utf-8")
    for _ in range(2):  # once more changes nothing
        robustness_cifar100.write_page(reports, page)
    text = page.read_text(encoding="utf-8")
    accuracies = [f"{100 * report.accuracy['accuracy']:.1f}" for report in reports]
    assert f"| accuracy | {' | '.join(accuracies)} |" in text
    fog = [f"{100 * r.corruptions['kinds'][1]['mean_error']:.1f}" for r in reports if r.corruptions]
    assert f"| fog | {' | '.join(fog)} |" in text
    assert text.split("<!-- table")[0] == old.split("<!-- table")[0]
    kept = json.loads((tmp_path / "robustness" / "reports.json").read_text())
    assert [report["name"] for report in kept] == ["one", "two"]
    assert (tmp_path / "robustness" / "robustness.png").read_bytes().startswith(b"\x89PNG")
    page.write_text(old.replace("<!-- end: summary -->", ""), encoding="utf-8")
    with pytest.raises(ValueError, match="no place for the table"):
        robustness_cifar100.write_page(reports, page)
