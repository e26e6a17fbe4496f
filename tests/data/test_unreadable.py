"""Damaged files: found beforehand, left out where that is asked for, and no bit lost where one stops a run."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from hrrl_ext import HRRLTrainer, URRLTrainer
from hrrl_ext.data import FolderImages, load_images, readable, unreadable
from hrrl_ext.data.unreadable import Reading
from hrrl_ext.models import ConvNet
from hrrl_ext.processes import Processes
from hrrl_ext.retrieval import RetrievalTrainer
from hrrl_ext.training import RunFolder

Image = pytest.importorskip("PIL.Image")
N = 12


@pytest.fixture
def folder(tmp_path):
    for i in range(N):
        file = tmp_path / "data" / "ab"[i % 2] / f"{i:02}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(i).integers(0, 256, (8, 8, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(file)
    return tmp_path / "data"


def damage(file):
    """Half of it is lost; returns what repairs it."""
    whole = file.read_bytes()
    file.write_bytes(whole[: len(whole) // 2])
    return lambda: file.write_bytes(whole)


class Net(nn.Module):
    """With batch normalisation and dropout, whose state must survive too."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Flatten(), nn.Linear(192, 8), nn.BatchNorm1d(8), nn.Dropout(0.2)
        )
        self.head = nn.Linear(8, 2)

    def forward(self, x):
        return self.head(self.body(x))


def trainer(folder, out=None, **options):
    torch.manual_seed(0)
    settings = {
        "data": folder, "concepts": "classes", "image_size": 8, "epochs": 2, "batch_size": 4, "lr": 0.05,
        "tau": 0.1, "lam": 20.0, "crop_padding": 1, "device": "cpu", "progress": "off", "out": out,
    }  # fmt: skip
    return HRRLTrainer(Net(), **(settings | options))


def bits(result):
    rows = [
        {k: v for k, v in row.items() if k not in ("seconds", "images_per_second")}
        for row in result.history
    ]
    return rows, {name: value.tolist() for name, value in result.model.state_dict().items()}


# --- found beforehand


@pytest.mark.parametrize("num_workers", [0, 3])
def test_every_damaged_file_is_found(folder, num_workers):
    assert unreadable(FolderImages(folder, image_size=8), num_workers=num_workers) == []
    damage(folder / "b" / "03.png")
    (folder / "a" / "04.png").write_text("no image")
    found = unreadable(FolderImages(folder, image_size=8), num_workers=num_workers)
    assert [(u.row, u.name) for u in found] == [
        (2, str(folder / "a" / "04.png")),
        (7, str(folder / "b" / "03.png")),
    ]
    assert found[0].error.startswith("its first bytes are of none of PNG")
    assert unreadable(load_images("digits")) == []


def test_processes_share_the_work(folder, monkeypatch):
    damage(folder / "a" / "02.png")
    damage(folder / "b" / "11.png")
    images, tried = FolderImages(folder, image_size=8), []
    get = FolderImages.__getitems__
    parts: list[Any] = []

    def counted(self, rows):
        tried.extend(rows)
        return get(self, rows)

    def gathered(self, value):
        parts.append(value)
        return parts[:]

    monkeypatch.setattr(FolderImages, "__getitems__", counted)
    monkeypatch.setattr(Processes, "gather", gathered)
    unreadable(images, processes=Processes(0, 2))
    assert sorted(tried) == [0, 1, 2, 3, 4, 5]
    found = unreadable(images, processes=Processes(1, 2))
    assert sorted(tried) == list(range(N))
    assert [u.row for u in found] == [1, 11]


# --- left out


def test_readable_leaves_out_and_says_what(folder):
    images = FolderImages(folder, image_size=8)
    assert readable(images) is images
    damage(folder / "a" / "04.png")
    with pytest.warns(
        UserWarning, match=r"1 of 12 images cannot be read and are left out, such as .*04\.png \("
    ):
        rest = readable(images)
    assert rest.left_out == [str(folder / "a" / "04.png")]
    assert len(rest) == 11
    assert rest.target.tolist() == [0] * 5 + [1] * 6
    assert rest.subset([0]).left_out == rest.left_out
    assert images.left_out == ()
    for file in folder.rglob("*.png"):
        file.write_bytes(b"")
    with pytest.raises(OSError, match="none of 12 images can be read, such as"):
        readable(images)
    with pytest.raises(ValueError, match="on_error must be 'raise' or 'skip', got 'ignore'"):
        Reading("ignore")


def test_a_run_without_damaged_images_is_that_of_the_others(folder, tmp_path):
    """Counts of concepts, order and bits are those of a set that never had them."""
    damage(folder / "a" / "02.png")
    shutil.copytree(folder, tmp_path / "clean")
    (tmp_path / "clean" / "a" / "02.png").unlink()
    with pytest.warns(UserWarning, match="left out"):
        skipping = trainer(folder, tmp_path / "run", validation=folder, on_error="skip")
    assert bits(skipping.fit()) == bits(
        trainer(tmp_path / "clean", validation=tmp_path / "clean").fit()
    )
    names = [str(folder / "a" / "02.png")]
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    assert config["left_out"] == {"data": names, "validation": names}
    assert config["examples"] == 11


@pytest.mark.parametrize("repaired", [False, True])
def test_what_a_run_left_out_stays_out(folder, tmp_path, repaired):
    repair = damage(folder / "a" / "02.png")
    with pytest.warns(UserWarning, match="left out"):
        whole = trainer(folder, on_error="skip").fit()
    with pytest.warns(UserWarning, match="left out"):
        trainer(folder, tmp_path / "run", on_error="skip").fit(until=1)
    if repaired:
        repair()
    with pytest.warns(
        UserWarning, match="1 of 12 images are left out, as when the run began, such as"
    ):
        resumed = trainer(folder, tmp_path / "run", resume=True)
    assert bits(resumed.fit()) == bits(whole)


def test_concepts_of_each_example_follow(folder):
    concept = torch.arange(N) % 3
    damage(folder / "a" / "02.png")  # the second in the list
    with pytest.warns(UserWarning, match="left out"):
        run = trainer(
            folder,
            concepts=concept,
            validation=folder,
            validation_concepts=concept,
            on_error="skip",
        )
    expected = torch.cat([concept[:1], concept[2:]])
    assert torch.equal(run.batches.concept, expected)
    assert run.validation is not None and torch.equal(run.validation.concept, expected)
    with (
        pytest.warns(UserWarning, match="left out"),
        pytest.raises(ValueError, match="no example of concept '1', so that its weight"),
    ):
        trainer(folder, concepts=[0, 1] + [0] * 10, on_error="skip")


def test_pretraining_leaves_out_as_well(folder, tmp_path):
    damage(folder / "b" / "11.png")
    options = {
        "data": folder, "validation": folder, "image_size": 8, "epochs": 1, "batch_size": 4, "queue": 8,
        "dim": 4, "width": 4, "norm_groups": 1, "device": "cpu", "progress": "off",
    }  # fmt: skip
    with pytest.warns(UserWarning, match="left out"):
        run = URRLTrainer("convnet", out=tmp_path / "run", on_error="skip", **options)
    names = [str(folder / "b" / "11.png")]
    assert run.recipe.description()["left_out"] == {"data": names, "validation": names}
    with pytest.raises(OSError, match=r"11\.png"):
        URRLTrainer("convnet", **options).fit()


def test_commands_that_read_once(folder, tmp_path, capsys):
    """Each names a damaged file and the way out; and, told to skip it, does as without it."""
    from hrrl_ext.cli import main
    from hrrl_ext.pretrained import save_pretrained
    from hrrl_ext.transfer import load_features

    config = {"model": "convnet", "classes": ["a", "b"], "image_size": 8, "width": 2}
    save_pretrained(ConvNet(2, width=2), tmp_path / "m", config)
    bad = str(folder / "a" / "02.png")
    shutil.copytree(folder, tmp_path / "clean")
    (tmp_path / "clean" / "a" / "02.png").unlink()
    damage(Path(bad))

    more: dict[str, list[Any]] = {
        "extract": [],
        "evaluate": ["--attacks", "none", "--corruptions", "none"],
        "cluster": ["--clusters", 2, "--rounds", 1],
        "variance": ["--num_batches", 20, "--batch_size", 4],
    }

    def run(command: str, data: Path, out: str, *words: str) -> tuple[int, str, str]:
        model = ["--model", tmp_path / "m"] if command == "extract" else [tmp_path / "m"]
        where = ["--data", data, "--device", "cpu", "--out", tmp_path / out]
        status = main([str(word) for word in (command, *model, *where, *more[command], *words)])
        told = capsys.readouterr()
        return status, told.out, told.err

    for command in more:
        out = command + {"extract": ".npz", "variance": ".json"}.get(command, "")
        status, _, err = run(command, folder, out)
        assert status == 1 and f"cannot decode image {bad}: " in err, (command, err)
        assert "--on_error skip" in err
        status, told, err = run(command, folder, f"skip-{out}", "--on_error", "skip")
        assert status == 0 and "1 of 12 images cannot be read and are left out" in err, err
        assert f"left out: 1 images\n{bad}\n" in told
        assert run(command, tmp_path / "clean", f"clean-{out}")[0] == 0
    ours, theirs = (load_features(tmp_path / f"{n}-extract.npz") for n in ("skip", "clean"))
    assert torch.equal(ours.features, theirs.features)
    report = json.loads((tmp_path / "skip-evaluate" / "m" / "report.json").read_text())
    assert report["about"]["left_out"] == {"data": [bad]}
    assert report["warnings"][0] == {
        "name": "left out",
        "text": f"1 images are left out: {bad!r}",
    }
    clean = json.loads((tmp_path / "clean-evaluate" / "m" / "report.json").read_text())
    assert report["accuracy"]["concepts"] == clean["accuracy"]["concepts"]
    for kept in (tmp_path / "skip-cluster" / "clusters.json", tmp_path / "skip-variance.json"):
        assert json.loads(kept.read_text())["left_out"] == {"data": [bad]}


def test_captions_stay_out_with_their_image(folder, tmp_path):
    for i, file in enumerate(sorted((folder / "a").iterdir())):
        file.with_suffix(".txt").write_text(f"one {i}\ntwo {i}\n")
    damage(folder / "a" / "02.png")
    options = {
        "model": "convnet", "image_size": 8, "epochs": 1, "batch_size": 4, "width": 2, "dim": 4,
        "text_width": 4, "word_dim": 4, "device": "cpu", "progress": "off", "concepts": [*"abcabc"],
    }  # fmt: skip
    whole = RetrievalTrainer(data=folder / "a", **options)
    with pytest.warns(UserWarning, match="1 of 6 images cannot be read and are left out"):
        run = RetrievalTrainer(
            data=folder / "a", on_error="skip", out=tmp_path / "run", freeze=True, **options
        )
    pairs, before = run.recipe.batches.encoded.pairs, whole.recipe.batches.encoded.pairs
    assert pairs.captions == before.captions[:2] + before.captions[4:]
    assert pairs.owner.tolist() == [i for i in range(5) for _ in range(2)]
    assert run.recipe.level.concept.tolist() == [0, 0, 2, 2, 0, 0, 1, 1, 2, 2]
    assert run.recipe.description()["left_out"] == {"data": [str(folder / "a" / "02.png")]}
    with pytest.raises(OSError, match=r"cannot decode image .*02\.png.*--on_error skip"):
        whole.fit()


def test_nothing_left_out_is_nothing_in_the_description(folder):
    assert "left_out" not in trainer(folder, on_error="skip").recipe.description()


# --- stopped, repaired, gone on with


@pytest.mark.parametrize("num_workers", [0, 1])
def test_a_damaged_image_stops_a_run_that_goes_on_after_its_repair(folder, tmp_path, num_workers):
    whole = bits(trainer(folder).fit())
    options = {"num_workers": num_workers, "keep_gib": 0.0}
    run = trainer(folder, tmp_path / "run", **options)
    last = int(
        run.batches._order(0)[8:].max()
    )  # met in the third step of three; 0 is opened before
    repair = damage(Path(FolderImages(folder, image_size=8).sources[last]))
    with pytest.raises(
        OSError, match=r"cannot decode image .*Repair or replace it\. The run is saved in"
    ):
        run.fit()
    assert RunFolder(tmp_path / "run").checkpoints[-1].name == "step-00000002"
    repair()
    assert bits(trainer(folder, tmp_path / "run", resume=True, **options).fit()) == whole


def test_a_damaged_image_in_the_first_batch_leaves_the_start_to_go_on_with(folder, tmp_path):
    """But with the weights that it began with, which were the module's."""
    run = trainer(folder, tmp_path / "run", batch_size=N)
    damage(folder / "a" / "00.png")
    with pytest.raises(OSError, match=r"Repair or replace it\. The run is saved in"):
        run.fit()
    assert [path.name for path in RunFolder(tmp_path / "run").checkpoints] == ["step-00000000"]
