"""The example of docs/transfer.md runs as printed."""

from __future__ import annotations

import re
from pathlib import Path

import torch

PAGE = Path(__file__).parents[2] / "docs" / "transfer.md"


def test_the_example_runs(tmp_path, monkeypatch, capsys):
    (block,) = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    monkeypatch.chdir(tmp_path)
    with torch.random.fork_rng():
        torch.manual_seed(0)  # the network of the example is not trained
        exec(block, {})
    accuracy, worst, C, converged = capsys.readouterr().out.split()
    # An untrained network's features: far from good, and far from the 0.1 of a guess.
    assert 0.3 < float(accuracy) <= 1
    assert 0 <= float(worst) <= float(accuracy)
    assert float(C) in (1e-3, 1e-2, 1e-1, 1.0, 10.0)
    assert converged == "True"
    assert [p.name for p in tmp_path.iterdir()] == ["digits-train.safetensors"]
