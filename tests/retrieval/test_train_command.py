"""hrrl train-retrieval."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("jsonargparse")

from hrrl_ext.cli import main
from hrrl_ext.retrieval import load_joint_embedding


def test_the_command_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Settings from YAML, a preset, an epoch; what is given counts more than the preset."""
    monkeypatch.chdir(tmp_path)
    Path("run.yaml").write_text("batch_size: 128\ndim: 8\nmargin: 0.1\npreset: Order0\n")
    words = [
        *(
            "train-retrieval",
            "--config=run.yaml",
            "--data=emoji",
            "--validation=emoji",
            "--model=convnet",
        ),
        *(
            "--width=2",
            "--text_width=8",
            "--word_dim=8",
            "--epochs=2",
            "--max_steps=3",
            "--device=cpu",
        ),
        *("--out=run", "--progress=off"),
    ]
    assert main(words) == 0
    config = json.loads(Path("run/config.json").read_text())
    got = {
        name: config["training"][name]
        for name in ("loss", "margin", "similarity", "absolute", "lr")
    }
    assert got == {
        "loss": "sum_hinge", "margin": 0.1, "similarity": "order", "absolute": True, "lr": 1e-3,
    }  # fmt: skip
    assert config["data"] == "emoji-train" and load_joint_embedding("run").dim == 8
    assert main(words) == 1
    assert "already holds a run" in capsys.readouterr().err
    assert main([*words, "--resume"]) == 0


def test_clusters_from_a_file_of_settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    random = np.random.default_rng(0)
    np.save("train_ims.npy", random.standard_normal((20, 5)).astype(np.float32))
    Path("train_caps.txt").write_text("a red dog\na green leaf\n" * 20)
    Path("run.yaml").write_text("concepts: clusters:3,rounds=2\nlam: 2.0\ndim: 4\nepochs: 1\n")
    words = "train-retrieval --config=run.yaml --data=. --text_width=4 --word_dim=4 --device=cpu --out=run"
    assert main([*words.split(), "--progress=off"]) == 0
    assert json.loads(Path("run/config.json").read_text())["concepts"] == "clusters:3,rounds=2"
    (row,) = map(json.loads, Path("run/metrics.jsonl").read_text().splitlines())
    assert sum(row["concept_count"].values()) == 40
    assert main([*words.split(), "--resume", "--concepts=clusters:3"]) == 1


def test_concepts_on_the_command_line(tmp_path: Path) -> None:
    """The nine kinds of emoji as concepts."""
    out = tmp_path / "run"
    words = "train-retrieval --data=emoji --concepts=classes --lam=0.1 --tau=0.2 --model=convnet --width=2"
    sizes = (
        "--dim=4 --text_width=4 --word_dim=4 --epochs=1 --max_steps=2 --device=cpu --progress=off"
    )
    assert main([*words.split(), *sizes.split(), "--queue=99", f"--out={out}"]) == 0
    config = json.loads((out / "config.json").read_text())
    given = {name: config["training"][name] for name in ("tau", "lam", "queue")}
    assert given == {"tau": 0.2, "lam": 0.1, "queue": 99}
    assert len(config["concepts"]) == 9
