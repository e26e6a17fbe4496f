"""examples/contrastive_evidence.py: that it goes on, begins only what can begin, and writes its page."""

from __future__ import annotations

from pathlib import Path

import contrastive_evidence as example
import contrastive_page
import numpy as np
import pytest
import torch


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
    """The whole of it, with two levels of one family, of which one is chosen and taken from URRL too."""
    few = {n: contrastive_page.PRETRAINED[n] for n in ("untrained", "MoCo", "URRL")}
    levels = {"similarity": {f"similarity {w}": f"similarity:w_sim={w}" for w in (1, 1000)}}
    for module in (example, contrastive_page):
        monkeypatch.setattr(module, "PRETRAINED", few)
        monkeypatch.setattr(module, "LEVELS", levels)
    monkeypatch.setattr(example, "METHODS", {"plain": "plain"} | levels["similarity"])
    arguments = [
        str(data), "--out", str(tmp_path / "out"), "--seeds", "1", "--parts", "1", "--epochs", "1", "--width", "2",
        "--batch-size", "16", "--images", "6", "--held-out", "4", "--tuning-epochs", "1", "--points", "10",
        "--corruption-points", "2", "--attack-points", "2",
    ]  # fmt: skip
    example.main(arguments)
    assert capsys.readouterr().out.count(" min\n") == 8
    example.main(arguments)
    assert capsys.readouterr().out == ""  # all are through
    page = tmp_path / "page.md"
    example.main([*arguments, "--page", str(page)])
    text = page.read_text()
    args = example.parser().parse_args(arguments)
    rows = {(row["start"], row["name"]): row for row in example.rows(args)}
    level = example.chosen(args, "similarity", 0)
    found = {n: rows["MoCo", n]["held_out"] for n in levels["similarity"]}
    assert found[level] == max(found.values()) and ("URRL", level) in rows and len(rows) == 8
    assert (
        0 <= rows["", "untrained"]["knn"]["accuracy"] <= 1
        and len(rows["", "URRL"]["course"]["loss"]) == 1
    )
    for told in ("8 of 8 trials", "| MoCo, plain | 1 |", "| URRL, similarity | 1 |", "| untrained | 1 |",
                 f"seed 0: {level}.", "| MoCo, seed 0 |"):  # fmt: skip
        assert told in text
    page.write_text(
        text.replace("## Cost", "What it came to.\n\n## Cost").replace("8 of 8", "0 of 8")
    )
    example.main([*arguments, "--page", str(page)])
    assert "What it came to." in page.read_text() and "8 of 8 trials" in page.read_text()
    assert (tmp_path / "page" / "knn.png").stat().st_size > 1000


def test_a_page_of_nothing_is_refused(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    with pytest.raises(ValueError, match="no trial is through yet"):
        example.main([str(tmp_path), "--out", str(tmp_path / "out"), "--page", str(page)])
    assert not page.exists()


def test_nothing_is_tuned_before_its_start(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def not_to_be_made(*_: object) -> None:
        raise AssertionError

    args = example.parser().parse_args([str(data), "--out", str(data / "out"), "--seeds", "1"])
    of_tuning = [trial for trial in example.trials(args) if trial.start]
    monkeypatch.setattr(example, "trials", lambda _: iter(of_tuning))
    monkeypatch.setattr(example, "train", not_to_be_made)
    example.work(args)
    assert (
        not (data / "out").exists() and len(of_tuning) == 1 + 10 + 3 + 1
    )  # no level is chosen yet
    assert example.of_all(args) == 11 + 14 + 3


def test_a_training_that_fails_is_kept_and_the_others_go_on(
    data: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def diverges(*_: object, **__: object) -> None:
        raise FloatingPointError("the loss is not finite")

    args = example.parser().parse_args([str(data), "--out", str(data / "out"), "--seeds", "1"])
    begun = [example.Trial("", "MoCo", 0), example.Trial("MoCo", "plain", 0)]
    monkeypatch.setattr(example, "trials", lambda _: iter(begun))
    monkeypatch.setattr(example, "pretraining", diverges)
    for told in ("MoCo 0: the loss is not finite\n", ""):
        example.work(args)
        assert capsys.readouterr().out == told
    assert example.rows(args) == []  # and the page says which are missing
    told = contrastive_page.cost([], 84, example.failed(args))
    assert told.endswith("0.0 hours of one thread. 1 more failed in training: MoCo 0.")
    assert contrastive_page.cost([], 84, []).endswith("one thread.")


def test_images_held_out_are_others(data: Path) -> None:
    args = example.parser().parse_args([str(data), "--out", str(data / "out")])
    sets = (example.of_each_class(args, first, 6) for first in (0, 6))
    train, rest = ([images[i][0] for i in range(len(images))] for images in sets)
    assert len(train) == len(rest) == 6 and not any(torch.equal(x, y) for x in train for y in rest)


def test_differences_are_of_the_same_seed() -> None:
    def row(name: str, seed: int, accuracy: float) -> contrastive_page.Row:
        return {"start": "", "name": name, "seed": seed, "accuracy": accuracy}

    rows = [row("a", 0, 0.5), row("a", 1, 0.7), row("b", 1, 0.6), row("b", 2, 0.1)]
    pair = [(("", "a"), ("", "b"))]
    (line,) = contrastive_page.differences(rows, pair, ["accuracy", "knn"]).splitlines()[2:]
    assert line == "| a − b | +10.0 | – |"
    (line,) = contrastive_page.differences(
        [*rows, row("b", 0, 0.2)], pair, ["accuracy"]
    ).splitlines()[2:]
    assert line == "| a − b | +20.0 ± 10.0 (+30.0, +10.0) |"
    assert contrastive_page.levels(rows, [("", "a")], ["accuracy"]).endswith(
        "| a | 2 | 60.0 ± 14.1 |"
    )
