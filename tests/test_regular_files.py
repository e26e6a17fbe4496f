"""Pipes, sockets and devices that are named like what is read: refused by name, and never waited on."""

from __future__ import annotations

import os
import re
import socket
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from hrrl_ext._regular import regular
from hrrl_ext.clustering.folder import ClusterFolder
from hrrl_ext.data import ConceptMap, FolderImages, load_images, read_check, unreadable, without
from hrrl_ext.data.classes import read_classes
from hrrl_ext.data.concept_files import is_example_file
from hrrl_ext.evaluation import Report
from hrrl_ext.evaluation.corruptions.folders import _loaded
from hrrl_ext.plots.runs import plot_runs, read_history
from hrrl_ext.pretrained import load_weights, read_config
from hrrl_ext.retrieval import load_pairs
from hrrl_ext.retrieval.embeddings import load_embeddings
from hrrl_ext.retrieval.text import read_lines
from hrrl_ext.retrieval.words import Words
from hrrl_ext.storage import append_row, file_digest, read_json, read_rows
from hrrl_ext.training.checkpoint import load_checkpoint, save_checkpoint
from hrrl_ext.transfer import load_classes, load_features

pytest.importorskip("jsonargparse")
from hrrl_ext.cli import main
from hrrl_ext.cli.examples import read_examples

pytestmark = pytest.mark.timeout(60)  # what fails here waits

READERS: dict[str, Callable[[Path], Any]] = {
    **dict.fromkeys(("m.csv", "m.tsv", "m.jsonl", "m.txt"), lambda f: load_images(f, image_size=8)),
    "images.npz": load_images,
    **dict.fromkeys(("c.json", "c.csv"), ConceptMap.from_file),
    "examples.csv": is_example_file,
    "classes.txt": read_classes,
    **dict.fromkeys(("f.npz", "f.safetensors"), load_features),
    **dict.fromkeys(("n.npz", "n.safetensors"), load_classes),
    **dict.fromkeys(("w.safetensors", "w.pt"), lambda f: load_weights(nn.Linear(1, 1), f)),
    "model.safetensors": lambda f: load_weights(nn.Linear(1, 1), f.parent),
    "report.json": lambda f: Report.from_json(f.parent),
    "config.json": lambda f: read_config(f.parent),
    "any.json": read_json,
    "check.json": read_check,
    "faults.txt": lambda f: without(load_images("digits"), f),
    "metrics.jsonl": lambda f: read_rows(f, ("epoch", "loss"), of="a run"),
    "rows.jsonl": lambda f: append_row(f, {}),
    "digest.bin": file_digest,
    **dict.fromkeys(("e.npz", "e.safetensors"), load_embeddings),
    **dict.fromkeys(("x.csv", "x.npz"), read_examples),
    "corrupted.npy": _loaded,
    "captions.txt": read_lines,
    "pairs.csv": load_pairs,
    "tokenizer.json": Words.load,
    "history.jsonl": read_history,
    "run.jsonl": lambda f: plot_runs([f], f.parent),
    "state.pt": lambda f: ClusterFolder(f.parent).resume(nn.Module()),
}


@pytest.mark.parametrize("name", READERS)
def test_a_pipe_is_named_by_every_reader(name: str, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / name)
    with pytest.raises(
        ValueError, match=rf"{re.escape(str(tmp_path / name))} is a pipe.*give a file"
    ):
        READERS[name](tmp_path / name)


def test_of_every_kind_through_links(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with socket.socket(socket.AF_UNIX) as end:
        end.bind(str(tmp_path / "socket"))
        for kind, path in {"pipe": "pipe", "socket": "socket", "device": "/dev/zero"}.items():
            link = tmp_path / f"{kind}.png"
            link.symlink_to(path if kind == "device" else tmp_path / path)
            with pytest.raises(ValueError, match=rf"{kind}\.png is a {kind}, no regular file"):
                regular(link)
    (tmp_path / "file").touch()
    for other in ("file", "not there", "", "nul\0"):  # and the folder: whoever opens it says so
        assert regular(tmp_path / other) == tmp_path / other


def test_among_images_it_is_one_that_cannot_be_read(tmp_path: Path) -> None:
    image = pytest.importorskip("PIL.Image")
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        image.new("RGB", (8, 8)).save(tmp_path / name / "1.png")
    os.mkfifo(tmp_path / "a" / "2.png")
    (found,) = unreadable(FolderImages(tmp_path, image_size=8))
    assert "2.png is a pipe, no regular file" in found.error


@pytest.mark.parametrize("file", ["state.pt", "model.safetensors", "digests.json"])
def test_a_checkpoint_with_one_is_passed_over(file: str, tmp_path: Path) -> None:
    model, run = nn.Linear(1, 1), {"of": "this"}
    state = dict.fromkeys(("optimizer", "scaler", "rng", "rng_cuda", "history"))
    for step in (1, 2):
        nn.init.constant_(model.weight, step)
        last = save_checkpoint(tmp_path, step, model, state, run)
    (last / file).unlink()
    os.mkfifo(last / file)
    with pytest.warns(UserWarning, match=rf"{re.escape(file)} is a pipe"):
        step, _ = load_checkpoint(tmp_path, model, run)
    assert step == 1 and torch.equal(model.weight, torch.ones(1, 1))


@pytest.mark.parametrize(
    "words", [["train", "--config"], ["study", "--out", "out"]], ids=lambda words: words[0]
)
def test_yaml(words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    os.mkfifo(tmp_path / "c.yaml")
    with suppress(SystemExit):  # of wrong usage, which the parser finds
        assert main([*words, str(tmp_path / "c.yaml")]) == 1
    assert "c.yaml is a pipe, no regular file" in capsys.readouterr().err


# Modules that read no path of a user's, or one that was asked about where it is found.
EXEMPT = {
    "evaluation/corruptions/digital.py": "in memory",
    "data/concept_tables.py": "of the package",
    "retrieval/emoji.py": "of the package",
    "_state_dicts.py": "pretrained.py finds the file",
    "retrieval/gallery.py": "after load_embeddings",
    "locks.py": "a file of its own",
    "_output.py": "the null device",
    "_products.py": "the system's own /proc/cpuinfo",
}
READING = re.compile(
    r"(?<!`)\b(np|torch)\.load\(|\b(load_file|safe_open)\(|\.read_(text|bytes)\("
    r"|\.open\((?!([^\"()]*, )?\"[wax])|(?<![.\w])open\((?![^()]*\"[wax])"
)


def test_every_module_that_reads_a_file_asks_first() -> None:
    package = Path(__file__).resolve().parents[1] / "hrrl_ext"
    asked = {}
    for path in sorted(package.rglob("*.py")):
        text = path.read_text(encoding="utf-8")
        if READING.search(text):
            asked[path.relative_to(package).as_posix()] = "regular(" in text
    assert {name for name, there in asked.items() if not there} == EXEMPT.keys()
    assert sum(asked.values()) > 12
