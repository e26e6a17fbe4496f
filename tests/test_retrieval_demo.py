"""hrrl demo --system retrieval, in small: what it measures, what it shows, and that it goes on."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

pytest.importorskip("jsonargparse")

from hrrl_ext.cli import main
from hrrl_ext.demo import retrieval as demo
from hrrl_ext.retrieval import evaluate, load_emoji, load_joint_embedding, load_pairs
from hrrl_ext.training import RunFolder

SMALL = {
    "epochs": 2, "warmup_for": 1, "width": 2, "dim": 8, "text_width": 8, "word_dim": 8,
    "batch_size": 512,
}  # fmt: skip


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo, "SETTINGS", demo.SETTINGS | SMALL)
    monkeypatch.setattr(demo, "SAMPLES", 20)


def test_as_a_program(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Everything is there, fits a terminal, is true of the model, and is not trained again."""
    threads = torch.get_num_threads()
    assert main(["demo", "--system", "retrieval", "--out", str(tmp_path)]) == 0
    first, trained = capsys.readouterr()
    assert "epoch 2/2" in trained
    assert torch.get_num_threads() == threads
    wide = [line for line in first.splitlines() if len(line) > 80 and str(tmp_path) not in line]
    assert not wide
    assert {path.name for path in tmp_path.iterdir()} == {
        *("demo.md", "curves.png", "search.png", "run")
    }
    assert f"hrrl search {tmp_path / 'run'} emoji" in first
    page = (tmp_path / "demo.md").read_text(encoding="utf-8")

    model = load_joint_embedding(tmp_path / "run")
    pairs = load_pairs("emoji", split="test")
    with torch.no_grad():
        image = model.encode_image(load_emoji("test").images.images.float() / 255)
        caption = model.encode_captions(pairs.captions)
    found = evaluate(image, caption, pairs.image_group, pairs.caption_group).measures
    for name, what in demo.MEASURES.items():
        (line,) = (line for line in page.splitlines() if f"| {what} |" in line)
        assert line.split("|")[3].strip() == f"{found[name]:.1f}"
    (named,) = load_emoji("test").texts[int((image @ model_text(model)).argmax())][:1]
    assert f"{demo.SOUGHT[0]!r} finds: {named}" in first

    before = (tmp_path / "run" / "metrics.jsonl").stat().st_mtime_ns
    assert main(["demo", "--system", "retrieval", "--out", str(tmp_path)]) == 0
    again, trained = capsys.readouterr()
    assert again == first and "epoch" not in trained
    assert (tmp_path / "run" / "metrics.jsonl").stat().st_mtime_ns == before


def model_text(model: torch.nn.Module) -> torch.Tensor:
    with torch.no_grad():
        return model.encode_captions([demo.SOUGHT[0]])[0]


def test_a_run_that_was_stopped_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And one that was stopped before it had saved anything begins anew."""
    sets = {name: load_pairs("emoji", split="test") for name in ("train", "val")}
    whole = demo._trained(sets, tmp_path / "whole")
    real = demo.RetrievalTrainer.fit
    monkeypatch.setattr(demo.RetrievalTrainer, "fit", lambda self: real(self, until=1))
    (begun,) = demo._trained(sets, tmp_path / "run")
    monkeypatch.setattr(demo.RetrievalTrainer, "fit", real)
    history = demo._trained(sets, tmp_path / "run")
    assert history[0] == begun  # its seconds too: it was not trained again
    assert [row["rsum"] for row in history] == [row["rsum"] for row in whole]
    early = tmp_path / "early"
    early.mkdir()
    (early / "config.json").write_text("{}")
    assert [row["rsum"] for row in demo._trained(sets, early)] == [row["rsum"] for row in whole]
    assert RunFolder(early).checkpoints


def test_what_is_mistaken_is_most_wrong() -> None:
    """By the whole matrix of scores, group by group."""
    emoji, pairs = load_emoji("test"), load_pairs("emoji", split="test")
    random = torch.Generator().manual_seed(0)
    image, caption = (
        torch.nn.functional.normalize(torch.randn(n, 6, generator=random), dim=1)
        for n in (len(emoji), len(pairs))
    )
    gallery = demo.Gallery(
        image, caption, "cosine", pairs.image_group, pairs.caption_group, pairs.owner,
        captions=pairs.captions,
    )  # fmt: skip
    score = image @ caption.T
    own = score[pairs.owner, torch.arange(len(pairs))]
    masked = score.masked_fill(pairs.image_group[:, None] == pairs.caption_group, -torch.inf)
    worst = int((masked.max(0).values - own).argmax())
    other = int(masked[:, worst].argmax())
    header, first, *others = demo._mistaken_table(gallery, emoji)
    assert len(header) == len(first) and len(others) == demo.EXAMPLES - 1
    assert first[0] == pairs.captions[worst]
    assert first[1].endswith(emoji.names[int(pairs.owner[worst])])
    assert first[3].endswith(emoji.names[other])
    assert first[2::2] == [f"{own[worst]:.2f}", f"{masked[other, worst]:.2f}"]

    rows = demo._captions_table(gallery, emoji)[1:]
    assert len(rows) == demo.EXAMPLES
    for picture, name, texts in rows:
        at = emoji.emoji.index(picture)
        assert name == emoji.names[at]
        best = int(score[at].argmax())
        mark = "*" if pairs.caption_group[best] == pairs.image_group[at] else ""
        assert texts.split("; ")[0] == pairs.captions[best] + mark


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--system", "retrival"], "retrieval"),
        (["--system", "retrieval", "--seeds", "3"], "seeds are of system hrrl"),
    ],
)
def test_what_is_refused(
    arguments: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["demo", *arguments, "--out", str(tmp_path / "out")]) != 0
    assert said in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
