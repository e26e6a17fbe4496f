"""examples/contrastive_evidence.py: that it goes on, begins only what can begin, and writes its page."""

from __future__ import annotations

from pathlib import Path

import contrastive_evidence as example
import contrastive_page
import numpy as np
import pytest


@pytest.fixture
def data(tmp_path: Path) -> Path:
    random = np.random.default_rng(0)
    for name, classes in (
        ("cifar100-train-0of4", 3),
        ("cifar100-test", 3),
        ("cifar10-train", 2),
        ("cifar10-test", 2),
    ):
        image = random.integers(256, size=(24, 8, 8, 3), dtype=np.uint8)
        label = np.arange(24) % classes
        names = np.array([str(c) for c in range(classes)])
        np.savez(tmp_path / f"{name}.npz", image=image, label=label, class_names=names)
    return tmp_path


def test_it_goes_on_and_writes_its_page(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    views = contrastive_page.PRETRAINED
    monkeypatch.setattr(example, "PRETRAINED", {n: views[n] for n in ("MoCo", "InstDis")})
    monkeypatch.setattr(example, "STARTS", ("MoCo",))
    monkeypatch.setattr(example, "TUNED", {"plain": "plain"})
    monkeypatch.setattr(example, "GRID", {})
    arguments = [
        str(data), "--out", str(tmp_path / "out"), "--seeds", "1", "--parts", "1", "--epochs", "1", "--width", "2",
        "--batch-size", "16", "--images", "6", "--tuning-epochs", "1", "--points", "10", "--corruption-points", "4",
        "--attack-points", "2",
    ]  # fmt: skip
    example.main(arguments)
    assert capsys.readouterr().out.count(" s\n") == 3
    example.main(arguments)
    assert capsys.readouterr().out == ""  # all are through
    page = tmp_path / "page.md"
    example.main([*arguments, "--page", str(page)])
    text = page.read_text()
    assert "3 of 3 trials" in text and "| MoCo, plain | 1 |" in text and "| InstDis | 1 |" in text
    page.write_text(
        text.replace("## Cost", "What it came to.\n\n## Cost").replace("3 of 3", "0 of 3")
    )
    example.main([*arguments, "--page", str(page)])
    assert "What it came to." in page.read_text() and "3 of 3 trials" in page.read_text()


def test_nothing_is_tuned_before_its_start(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def not_to_be_made(*_: object) -> None:
        raise AssertionError

    args = example.parser().parse_args([str(data), "--out", str(data / "out"), "--seeds", "1"])
    of_tuning = [trial for trial in example.trials(args) if trial[0] == "tuned"]
    monkeypatch.setattr(example, "trials", lambda _: iter(of_tuning))
    monkeypatch.setattr(example, "tuned", not_to_be_made)
    example.work(args)
    assert not (data / "out").exists() and len(of_tuning) == 2 * 3 + 10


def test_differences_are_of_the_same_seed() -> None:
    def row(name: str, seed: int, accuracy: float) -> contrastive_page.Row:
        return {"kind": "tuned", "start": "", "name": name, "seed": seed, "accuracy": accuracy}

    rows = [row("a", 0, 0.5), row("a", 1, 0.7), row("b", 1, 0.6), row("b", 2, 0.1)]
    table = contrastive_page.differences(rows, [(("", "a"), ("", "b"))], ["accuracy", "rms"])
    (line,) = table.splitlines()[2:]
    assert line == "| a − b | +10.0 (1 seed) | – |"
    assert contrastive_page.levels(rows, [("", "a")], ["accuracy"]).endswith(
        "| a | 2 | 60.0 ± 14.1 |"
    )
