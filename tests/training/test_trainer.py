"""HRRLTrainer on small real data: the algorithm, reproducibility, resume, and everything that can go wrong."""

from __future__ import annotations

import copy
import csv
import json
import math
import pickle
import random
import re
import resource
import shutil
import signal
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

import hrrl_ext
from hrrl_ext import HRRLTrainer
from hrrl_ext.concept_weights import ConceptDistribution
from hrrl_ext.data import ArrayImages, ConceptMap, load_images
from hrrl_ext.data.concept_files import write_example_concepts
from hrrl_ext.robust import HRRLConfig
from hrrl_ext.training import CheckpointError, TrainingConfig, load_model, run_folder
from hrrl_ext.training.checkpoint import checkpoints
from hrrl_ext.training.draws import Draws
from hrrl_ext.training.progress import Progress

DIGITS = load_images("digits", split="train").subset(range(160))
SMALL: dict[str, Any] = {
    "data": DIGITS,
    "concepts": "classes",
    "epochs": 3,
    "batch_size": 32,
    "lr": 0.05,
    "width": 4,
    "crop_padding": 1,
    "progress": "off",
}


def weights(model: nn.Module) -> list[Tensor]:
    return [value.detach().clone() for value in model.state_dict().values()]


def same(a: list[Tensor], b: list[Tensor]) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


def rows(history: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Without what depends on the clock."""
    return [
        {k: v for k, v in row.items() if k not in ("seconds", "images_per_second")}
        for row in history
    ]


class Narrow(nn.Module):
    """A module of one's own, with dropout: its random state must survive as well."""

    def __init__(self, classes: int = 10) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Flatten(), nn.Linear(192, 16), nn.ReLU(), nn.Dropout(0.5))
        self.head = nn.Linear(16, classes)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.head(self.body(x))
        return logits


def test_learns_and_reports() -> None:
    result = HRRLTrainer(
        data=load_images("digits"), validation="digits", concepts="classes", tau=0.1, lam=10.0,
        epochs=6, batch_size=64, lr=0.05, width=8, crop_padding=1, flip=False, progress="off",
    ).fit()  # fmt: skip
    last = result.last
    assert last["accuracy"] > 0.6  # 10 classes: 0.1 by chance
    assert 0 <= last["worst_concept_accuracy"] <= last["accuracy"] <= 1
    assert last["worst_concept_accuracy"] == min(last["concept_accuracy"].values())
    assert sum(last["q"].values()) == pytest.approx(1.0)
    assert 1 <= last["effective_concepts"] <= 10
    assert [row["lr"] for row in result.history] == pytest.approx(
        [0.05, 0.05, 0.005, 0.005, 0.0005, 0.0005]
    )
    assert last["loss"] < result.history[0]["loss"]


def test_a_step_is_algorithm_1() -> None:
    """train_step against the same lines written out with the plain functions, in float64: batch
    normalisation over a few values multiplies rounding by orders of magnitude."""
    trainer = HRRLTrainer(**SMALL, tau=0.2, lam=5.0, weight_decay=1e-2)
    oracle = HRRLTrainer(**SMALL, tau=0.2, lam=5.0, weight_decay=1e-2)
    trainer.model.double().train()
    model, d = oracle.model.double().train(), oracle.objective.distribution
    for x, target, concept in trainer.batches.epoch(0):
        x = x.double()
        trainer.train_step(x, target, concept)
        buffers = {name: b.clone() for name, b in model.named_buffers()}
        leaf = x.clone().requires_grad_()
        loss = nn.functional.cross_entropy(model(leaf), target, reduction="sum")
        (grad,) = torch.autograd.grad(loss, leaf)
        for name, b in model.named_buffers():
            b.copy_(buffers[name])  # the pass leaves no trace
        x = hrrl_ext.ops.reference.perturb(x, grad, 0.2)[0]
        out = hrrl_ext.ops.reference.concept_cross_entropy(
            model(x), target, concept, d.q, d.concept_count
        )
        oracle.optimizer.zero_grad()
        out.loss.backward()
        oracle.optimizer.step()
        d.update(out.concept_loss)
        torch.testing.assert_close(trainer.objective.distribution.q, d.q, rtol=0, atol=1e-9)
    for a, b in zip(weights(trainer.model), weights(model), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-9)


def test_variants_share_weights_and_batches() -> None:
    erm, cl = (HRRLTrainer(**SMALL, tau=0.0, lam=lam) for lam in (None, 1e12))
    assert same(weights(erm.model), weights(cl.model))
    assert same(weights(erm.fit().model), weights(cl.fit().model))  # λ → ∞ is ERM


def test_same_seed_same_bits_and_no_global_randomness() -> None:
    state = torch.get_rng_state()
    first = HRRLTrainer(**SMALL, tau=0.1, lam=5.0).fit()
    assert torch.equal(torch.get_rng_state(), state)
    second = HRRLTrainer(**SMALL, tau=0.1, lam=5.0).fit()
    other = HRRLTrainer(**SMALL, tau=0.1, lam=5.0, seed=1).fit()
    assert same(weights(first.model), weights(second.model))
    assert rows(first.history) == rows(second.history)
    assert not same(weights(first.model), weights(other.model))


def test_dropout_draws_by_the_seed_alone() -> None:
    """Not from the global state, which stays as it was; and in two fits what it does in one."""
    settings = SMALL | {"epochs": 2, "tau": 0.0, "lam": None}
    torch.manual_seed(7)
    start = Narrow()
    state = torch.get_rng_state()
    first = HRRLTrainer(copy.deepcopy(start), **settings).fit()
    assert torch.equal(torch.get_rng_state(), state)
    again = HRRLTrainer(copy.deepcopy(start), **settings)
    again.fit(until=1)
    torch.manual_seed(99)
    assert same(weights(first.model), weights(again.fit().model))
    other = HRRLTrainer(start, **settings)
    other.loop.draws = Draws(1, torch.device("cpu"))
    assert not same(weights(first.model), weights(other.fit().model))


def test_c_is_of_the_losses_that_q_moves_by() -> None:
    """Of batch statistics: at first those that run are of no image. They stay, and so does the random state."""
    trainer = HRRLTrainer(**SMALL, tau=0.0, lam=0.5, c="auto", s=9)
    model, distribution = trainer.model.train(), trainer.objective.distribution
    before, state = weights(model), torch.get_rng_state()
    trainer.recipe.before(0, trainer.loop.move, Progress("off", 1))
    assert same(weights(model), before) and torch.equal(torch.get_rng_state(), state)
    expected = ConceptDistribution(distribution.concept_count, lam=0.5, s=9, c="auto")
    with torch.no_grad():
        found = [trainer.objective(model(x), *labels) for x, *labels in trainer.batches.epoch(0)]
    expected.calibrate([out.concept_loss for out in found])
    assert distribution.c == expected.c > 1


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_half_precision_and_channels_last(precision: str) -> None:
    settings = SMALL | {"epochs": 4}
    half = HRRLTrainer(**settings, tau=0.1, lam=5.0, precision=precision, channels_last=True).fit()
    full = HRRLTrainer(**settings, tau=0.1, lam=5.0).fit()
    assert all(p.dtype == torch.float32 for p in half.model.parameters())
    assert half.last["loss"] == pytest.approx(full.last["loss"], rel=0.1)
    assert half.last["loss"] < half.history[0]["loss"]
    assert half.model.conv1.weight.is_contiguous(memory_format=torch.channels_last)


# --- the run's folder


@pytest.mark.parametrize("stop_after", [1, 2])
def test_resumes_to_the_same_bits(tmp_path: Path, stop_after: int) -> None:
    settings = SMALL | {"tau": 0.1, "lam": 5.0, "c": "auto"}
    torch.manual_seed(7)
    whole = HRRLTrainer(Narrow(), **settings, out=tmp_path / "whole").fit()
    torch.manual_seed(7)
    stopped = HRRLTrainer(Narrow(), **settings, out=tmp_path / "cut")
    train_epoch = stopped.loop._epoch

    def stop(*arguments: Any) -> bool:
        if len(stopped.history) == stop_after:
            raise KeyboardInterrupt
        return train_epoch(*arguments)

    stopped.loop._epoch = stop  # type: ignore[assignment]
    with pytest.raises(KeyboardInterrupt):
        stopped.fit()
    torch.manual_seed(99)  # whatever the new process did before
    resumed = HRRLTrainer(Narrow(), **settings, out=tmp_path / "cut", resume=True).fit()
    assert same(weights(whole.model), weights(resumed.model))
    assert rows(whole.history) == rows(resumed.history)
    assert len((tmp_path / "cut/metrics.csv").read_text().splitlines()) == 1 + 3
    again = HRRLTrainer(
        Narrow(), **settings, out=tmp_path / "cut", resume=True
    ).fit()  # is finished
    assert same(weights(whole.model), weights(again.model))


def test_what_a_run_leaves(tmp_path: Path) -> None:
    out = tmp_path / "run"
    result = HRRLTrainer(**SMALL, validation=DIGITS, tau=0.1, lam=5.0, out=out).fit()
    config = json.loads((out / "config.json").read_text())
    assert config["training"]["tau"] == 0.1
    assert config["concepts"] == [str(d) for d in range(10)]
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert lines == result.history
    with (out / "metrics.csv").open(newline="") as f:
        table = list(csv.DictReader(f))
    assert [int(row["epoch"]) for row in table] == [1, 2, 3]
    assert float(table[2]["q/7"]) == result.last["q"]["7"]
    log = (out / "train.log").read_text().splitlines()
    assert [line.split()[1] for line in log] == ["1/3", "2/3", "3/3"]
    kept = checkpoints(out / "checkpoints")
    assert [path.name for path in kept] == ["step-00000010", "step-00000015"]
    state = torch.load(kept[-1] / "state.pt", weights_only=True)
    assert torch.equal(
        state["objective"]["distribution.q"],
        torch.tensor(list(result.last["q"].values()), dtype=torch.float64),
    )
    model = load_model(out)
    assert not model.training
    assert same(weights(model), weights(result.model))
    assert [p.name for p in out.rglob("*partial*")] == []


def test_refuses_a_folder_that_holds_a_run(tmp_path: Path) -> None:
    HRRLTrainer(**(SMALL | {"epochs": 1}), tau=0.0, lam=None, out=tmp_path).fit()
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    with pytest.raises(
        FileExistsError, match=r"already holds a run; continue it with resume, or choose"
    ):
        HRRLTrainer(**SMALL, tau=0.0, lam=None, out=tmp_path)
    with pytest.raises(ValueError, match=r"other settings \(tau, epochs differ\)"):
        HRRLTrainer(**SMALL, tau=0.5, lam=None, out=tmp_path, resume=True)
    turned = [*range(1, 10), 0]
    moved = ConceptMap(torch.tensor(turned), DIGITS.classes)  # of the same names
    plain: dict[str, Any] = SMALL | {"epochs": 1, "tau": 0.0, "lam": None, "out": tmp_path}
    for others in ({"concepts": moved}, {"data": DIGITS.relabelled(DIGITS.classes, turned)}):
        with pytest.raises(ValueError, match=r"other settings \(labels differ\)"):
            HRRLTrainer(**(plain | others), resume=True)
    with pytest.raises(ValueError, match=r"other settings \(validation differ\)"):
        HRRLTrainer(**plain, validation=DIGITS.subset(range(9)), resume=True)
    config = json.loads(before[tmp_path / "config.json"])
    del config["labels"], config["validation"]  # as an older run has it
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=r"other settings \(tau differ\)"):
        HRRLTrainer(**(plain | {"tau": 0.5}), resume=True)
    (tmp_path / "config.json").write_bytes(before[tmp_path / "config.json"])
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before
    (tmp_path / "file").write_text("")
    with pytest.raises(NotADirectoryError, match="out must be a folder"):
        HRRLTrainer(**SMALL, out=tmp_path / "file")
    with pytest.raises(FileNotFoundError, match=r"resume: .* holds no run"):
        HRRLTrainer(**SMALL, out=tmp_path / "nothing", resume=True)
    with pytest.raises(ValueError, match="resume=True needs out"):
        HRRLTrainer(**SMALL, resume=True)


@pytest.mark.parametrize("file", ["state.pt", "model.safetensors"])
@pytest.mark.parametrize("damage", ["truncated", "foreign", "missing", "of another kind"])
def test_a_damaged_checkpoint_is_named_and_the_one_before_used(
    tmp_path: Path, file: str, damage: str
) -> None:
    HRRLTrainer(**SMALL, tau=0.1, lam=5.0, out=tmp_path).fit()
    newest = tmp_path / "checkpoints/step-00000015" / file
    content = newest.read_bytes()
    if damage == "missing":
        newest.unlink()
    elif damage == "of another kind":  # can be read, and is not of this run
        other = {"weight": torch.zeros(3)}
        (torch.save if file == "state.pt" else save_file)(other, newest)
    else:
        newest.write_bytes(
            content[: len(content) // 2] if damage == "truncated" else b"not a model"
        )
    with pytest.warns(UserWarning, match=r"step-00000015 cannot be read .*; trying the one before"):
        trainer = HRRLTrainer(**SMALL, tau=0.1, lam=5.0, out=tmp_path, resume=True)
    assert len(trainer.history) == 2
    (tmp_path / "checkpoints/step-00000010" / file).write_bytes(b"")
    with (
        pytest.warns(UserWarning, match="cannot be read"),
        pytest.raises(CheckpointError, match="none of the checkpoints"),
    ):
        load_model(tmp_path)


def test_a_state_file_cannot_run_code(tmp_path: Path) -> None:
    HRRLTrainer(**(SMALL | {"epochs": 1}), tau=0.0, lam=None, out=tmp_path).fit()

    class Evil:
        def __reduce__(self) -> tuple[Any, ...]:
            return (Path(tmp_path / "executed").touch, ())

    newest = tmp_path / "checkpoints/step-00000005"
    for save in (torch.save, save_as_legacy, save_as_pickle):
        for name in ("state.pt", "model.safetensors"):
            whole = (newest / name).read_bytes()
            save({"history": Evil()}, newest / name)
            (newest / "digests.json").unlink(missing_ok=True)  # of whoever could write this as well
            with pytest.warns(UserWarning, match="cannot be read"), pytest.raises(CheckpointError):
                load_model(tmp_path)
            (newest / name).write_bytes(whole)
    assert not (tmp_path / "executed").exists()
    save_as_pickle(Evil(), tmp_path / "plain")
    pickle.loads((tmp_path / "plain").read_bytes())  # what it would have done
    assert (tmp_path / "executed").exists()


def save_as_legacy(value: Any, path: Path) -> None:
    torch.save(value, path, _use_new_zipfile_serialization=False)


def save_as_pickle(value: Any, path: Path) -> None:
    path.write_bytes(pickle.dumps(value))


def test_a_state_file_cut_anywhere_is_refused_by_name(tmp_path: Path) -> None:
    HRRLTrainer(**(SMALL | {"epochs": 1}), tau=0.0, lam=None, out=tmp_path).fit()
    newest = tmp_path / "checkpoints/step-00000005"
    for name in ("state.pt", "model.safetensors"):
        whole = (newest / name).read_bytes()
        for length in {*range(0, 40, 7), *range(0, len(whole), len(whole) // 20), len(whole) - 1}:
            (newest / name).write_bytes(whole[:length])
            with (
                pytest.warns(UserWarning, match=r"step-00000005 cannot be read"),
                pytest.raises(CheckpointError, match="none of the checkpoints"),
            ):
                load_model(tmp_path)
        (newest / name).write_bytes(whole)
    load_model(tmp_path)


@pytest.mark.parametrize("lost", ["checkpoints", "checkpoints/step-*"])
@pytest.mark.parametrize("epochs", [1, 3])
def test_a_run_whose_checkpoints_are_gone_is_not_begun_anew(
    tmp_path: Path, lost: str, epochs: int
) -> None:
    settings = SMALL | {"epochs": epochs, "tau": 0.0, "lam": None, "validation": DIGITS}
    HRRLTrainer(**settings, out=tmp_path).fit()
    before = {
        f: f.read_bytes() for f in tmp_path.rglob("*") if f.is_file() and "step-" not in str(f)
    }
    for path in list(tmp_path.glob(lost)):
        shutil.rmtree(path)
    with pytest.raises(CheckpointError, match="no checkpoint to go on from"):
        HRRLTrainer(**settings, out=tmp_path, resume=True)
    assert {f: f.read_bytes() for f in before} == before


def test_a_run_that_was_stopped_before_its_first_checkpoint_begins_anew(tmp_path: Path) -> None:
    settings = SMALL | {"epochs": 1, "tau": 0.0, "lam": None}
    HRRLTrainer(**settings, out=tmp_path).fit()
    shutil.rmtree(next(tmp_path.glob("checkpoints/step-*")))
    (tmp_path / "results.json").unlink()  # which comes after the checkpoint, as the metrics do not
    assert HRRLTrainer(**settings, out=tmp_path, resume=True).history == []


def test_a_flipped_bit_is_named_and_the_checkpoint_before_used(tmp_path: Path) -> None:
    HRRLTrainer(**SMALL, tau=0.1, lam=5.0, out=tmp_path).fit()
    newest, chance = tmp_path / "checkpoints/step-00000015", random.Random(0)
    for name in ("state.pt", "model.safetensors", "digests.json"):
        whole = (newest / name).read_bytes()
        for _ in range(20):
            damaged, place = bytearray(whole), chance.randrange(len(whole))
            damaged[place] ^= 1 << chance.randrange(8)
            (newest / name).write_bytes(damaged)
            with pytest.warns(UserWarning, match=r"step-00000015 cannot be read"):
                load_model(tmp_path)
        (newest / name).write_bytes(whole)
    load_model(tmp_path)


def test_a_checkpoint_of_another_run_is_none_of_this(tmp_path: Path) -> None:
    for seed in (0, 1):
        HRRLTrainer(**SMALL, tau=0.1, lam=5.0, seed=seed, out=tmp_path / str(seed)).fit()
    newest = tmp_path / "0/checkpoints/step-00000015"
    shutil.rmtree(newest)
    shutil.copytree(tmp_path / "1/checkpoints/step-00000015", newest)
    with pytest.warns(UserWarning, match="it is of another run than config.json tells of"):
        trainer = HRRLTrainer(**SMALL, tau=0.1, lam=5.0, out=tmp_path / "0", resume=True)
    assert len(trainer.history) == 2


def test_a_checkpoint_without_digests_is_of_before_there_were_any(tmp_path: Path) -> None:
    HRRLTrainer(**SMALL, tau=0.1, lam=5.0, out=tmp_path).fit()
    (tmp_path / "checkpoints/step-00000015/digests.json").unlink()
    assert len(HRRLTrainer(**SMALL, tau=0.1, lam=5.0, out=tmp_path, resume=True).history) == 3


def test_a_link_is_no_checkpoint(tmp_path: Path) -> None:
    """It is neither read nor tidied away, nor is what it leads to."""
    settings = SMALL | {"tau": 0.0, "lam": None}
    HRRLTrainer(**settings, seed=1, out=tmp_path / "other").fit()
    run = tmp_path / "run"
    HRRLTrainer(**settings, out=run).fit()
    link = run / "checkpoints/step-00000099"
    link.symlink_to(tmp_path / "other/checkpoints/step-00000015")
    early = run / "checkpoints/step-00000001"
    early.symlink_to(tmp_path / "other/checkpoints/step-00000010")
    resumed = HRRLTrainer(**settings, out=run, resume=True)
    assert same(weights(resumed.model), weights(HRRLTrainer(**settings).fit().model))
    resumed.loop._save()
    assert link.is_symlink() and early.is_symlink()
    assert (tmp_path / "other/checkpoints/step-00000010/state.pt").exists()


@pytest.mark.parametrize(
    "name", ["../../other", "/etc/passwd", "os.system", "timm:../../other", "file:///tmp/x"]
)
def test_a_configuration_names_models_and_no_files(name: str, tmp_path: Path) -> None:
    out = tmp_path / "run"
    HRRLTrainer(**(SMALL | {"epochs": 1}), validation=DIGITS, tau=0.0, lam=None, out=out).fit()
    for folder, which in ((out, "last"), (out / "best", "best")):
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(config | {"model": name}))
        (folder / "digests.json").unlink(missing_ok=True)  # of whoever could write this as well
        with pytest.raises(
            (ValueError, ImportError), match=re.escape(name.partition(":")[2] or name)
        ):
            load_model(out, which=which)


def test_names_of_concepts_are_no_paths(tmp_path: Path) -> None:
    """A name out of a data set goes into files, and never into the name of one."""
    names = ["../up", "/root", "a/b", "=1+1", "c,d", 'e"f', " ", "g\nh", "[bold]", "ü"]
    images = ArrayImages(DIGITS.images[:160], DIGITS.target, classes=names)
    out = tmp_path / "run"
    settings = SMALL | {"data": images, "epochs": 1, "validation": images, "tensorboard": True}
    result = HRRLTrainer(**settings, tau=0.0, lam=50.0, out=out).fit()
    assert list(json.loads((out / "results.json").read_text())["concepts"]) == names
    with (out / "metrics.csv").open(newline="") as f:
        (row,) = csv.DictReader(f)
    assert float(row["q/g\nh"]) == result.last["q"]["g\nh"]
    assert [path.name for path in tmp_path.iterdir()] == ["run"]
    assert {path.name for path in out.iterdir()} == {
        "config.json", "environment.jsonl", "metrics.csv", "metrics.jsonl", "train.log",
        "results.json", "tensorboard", "checkpoints", "best", ".lock",
    }  # fmt: skip


@pytest.mark.slow
def test_a_full_disk_costs_nothing_that_was_saved(tmp_path: Path) -> None:
    """A process that may not write files over 20 kB (the checkpoint has more) stands for the full
    disk: the write fails in the middle with an OSError."""
    out = tmp_path / "run"
    trainer = HRRLTrainer(**SMALL, tau=0.1, lam=5.0, out=out)
    save = run_folder.save_checkpoint
    saved: list[Path] = []
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)

    def save_with_little_space(*arguments: Any) -> Path:
        if saved:
            resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, limits[1]))
        saved.append(save(*arguments))
        return saved[-1]

    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    run_folder.save_checkpoint = save_with_little_space  # type: ignore[assignment]
    try:
        with pytest.raises(
            CheckpointError, match=r"could not write .*step-00000010.*step-00000005 is intact"
        ):
            trainer.fit()
    finally:
        run_folder.save_checkpoint = save
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, ignored)
    assert [path.name for path in (out / "checkpoints").iterdir()] == ["step-00000005"]
    resumed = HRRLTrainer(**SMALL, tau=0.1, lam=5.0, out=out, resume=True).fit()
    whole = HRRLTrainer(**SMALL, tau=0.1, lam=5.0).fit()
    assert same(weights(resumed.model), weights(whole.model))


# --- what goes wrong


def test_warns_before_q_collapses() -> None:
    """A small lam throws q into a corner in the very first step, from where q may be back before the
    epoch ends and the network is not; the warning names step, concept and remedy."""
    for lam in (1e-3, 0.3):
        with pytest.warns(
            UserWarning,
            match=r"epoch 1, step 1 q has concentrated on \d\.\d of 9\.9 concepts: '\d'.*Raise lam",
        ):
            HRRLTrainer(**SMALL, tau=0.0, lam=lam).fit()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        HRRLTrainer(**SMALL, tau=0.0, lam=50.0).fit()


def test_a_diverged_run_stops_and_names_what_is_left(tmp_path: Path) -> None:
    trainer = HRRLTrainer(**SMALL, tau=0.0, lam=5.0, out=tmp_path)
    train_epoch = trainer.loop._epoch

    def break_second(*arguments: Any) -> bool:
        if len(trainer.history) == 1:
            trainer.model.fc.weight.data.fill_(math.nan)
        return train_epoch(*arguments)

    trainer.loop._epoch = break_second  # type: ignore[assignment]
    with pytest.raises(
        FloatingPointError,
        match=r"loss is not finite in epoch 2, step 5 \(concepts: 0, 1, 2 and 7 more\).*step-00000005",
    ):
        trainer.fit()
    assert torch.isfinite(trainer.objective.distribution.q).all()
    resumed = HRRLTrainer(**SMALL, tau=0.0, lam=5.0, out=tmp_path, resume=True).fit()
    assert same(weights(resumed.model), weights(HRRLTrainer(**SMALL, tau=0.0, lam=5.0).fit().model))


@pytest.mark.parametrize(
    ("after", "message"),
    [
        (1, r"loss is not finite in epoch 1, step 2 .*Nothing has been saved yet"),
        (7, r"loss is not finite in epoch 2, step 4 .*The last good state is .*step-00000006\."),
        (
            6,
            r"weights are not finite after step 6: fc.weight\..*The last good state is .*step-00000005\.",
        ),
        (
            5,
            r"weights are not finite after step 5: fc.weight\..*The last good state is .*step-00000003\.",
        ),
    ],
)
def test_what_has_diverged_is_never_saved(after: int, message: str, tmp_path: Path) -> None:
    """The weights are lost in a step whose own loss is finite; checkpoints are due every third step
    and after the fifth, the last of an epoch. What is there before, is there after, and is whole."""
    settings = SMALL | {"tau": 0.0, "lam": 50.0, "validation": DIGITS}
    trainer = HRRLTrainer(**settings, out=tmp_path, checkpoint_every=3)
    step, done = trainer.recipe.step, 0

    def overflow(*arguments: Any) -> Tensor:
        nonlocal done
        concept_loss = step(*arguments)
        done += 1
        if done == after:
            trainer.model.fc.weight.data[0, 0] = math.inf
        return concept_loss

    trainer.recipe.step = overflow  # type: ignore[assignment]
    with pytest.raises(FloatingPointError, match=message):
        trainer.fit()
    resumed = HRRLTrainer(**settings, out=tmp_path, checkpoint_every=3, resume=True)
    assert all(torch.isfinite(w).all() for w in weights(resumed.model))
    assert resumed.fit().last["step"] == 15


def test_a_run_without_a_folder_that_diverges_has_nothing_saved() -> None:
    trainer = HRRLTrainer(**SMALL, tau=0.0, lam=50.0)
    trainer.model.fc.weight.data.fill_(math.nan)
    with pytest.raises(FloatingPointError, match=r"epoch 1, step 1 .*Nothing has been saved yet"):
        trainer.fit()


def test_validation_is_as_the_training_images() -> None:
    """In channels and size, which a network that pools would not tell; and not the same."""
    pixels, target = DIGITS.__getitems__(range(20))
    with pytest.raises(ValueError, match=r"validation: .* images of 1 channels, and data of 3"):
        HRRLTrainer(**SMALL, validation=ArrayImages(pixels[:, :1], target))
    large = torch.nn.functional.interpolate(pixels, (12, 10))
    with pytest.warns(UserWarning, match=r"images of 12 x 10 pixels are resized to 8 x 8"):
        trainer = HRRLTrainer(**SMALL, validation=ArrayImages(large, target))
    assert trainer.validation is not None
    assert trainer.validation.images.image_shape == (3, 8, 8)
    with pytest.warns(UserWarning, match="validation: .* is the same images as data"):
        HRRLTrainer(**SMALL, validation=DIGITS.subset(range(160)))


def test_per_example_concepts(tmp_path: Path) -> None:
    ids = torch.arange(160) % 3
    trainer = HRRLTrainer(**(SMALL | {"concepts": ids, "epochs": 1}), tau=0.0, lam=5.0)
    assert trainer.objective.distribution.concept_count.tolist() == [54.0, 53.0, 53.0]
    assert list(trainer.fit().last["q"]) == ["0", "1", "2"]
    with pytest.raises(ValueError, match="pass them as validation_concepts"):
        HRRLTrainer(**(SMALL | {"concepts": ids}), validation=DIGITS)
    HRRLTrainer(**(SMALL | {"concepts": ids}), validation=DIGITS, validation_concepts=ids)
    by_file: dict[str, Any] = {"data": DIGITS, "validation": DIGITS.subset([0, 1, 2])}
    write_example_concepts(tmp_path / "data.csv", ["abc"[k] for k in ids])
    by_file |= {"concepts": tmp_path / "data.csv", "validation_concepts": tmp_path / "other.csv"}
    write_example_concepts(tmp_path / "other.csv", ["c", "b", "c"])
    validation = HRRLTrainer(**(SMALL | by_file)).validation
    assert validation is not None and validation.concept.tolist() == [2, 1, 2]
    write_example_concepts(tmp_path / "other.csv", ["c", "b", "d"])
    with pytest.raises(ValueError, match=r"other.csv has the concepts 'd', .* 'a', 'b', 'c'"):
        HRRLTrainer(**(SMALL | by_file))
    found = HRRLTrainer(**(SMALL | by_file | {"concepts": "clusters:2"}))
    assert found.recipe.sets.group_names == ["b", "c", "d"]


IMAGES = torch.zeros(6, 3, 8, 8, dtype=torch.uint8)
BAD: dict[str, tuple[dict[str, Any], type[Exception], str]] = {
    "unknown": ({"taw": 1.0}, TypeError, "argument 'taw' is not known; did you mean 'tau'"),
    "tau": ({"tau": -1.0}, ValueError, "tau must be finite and not negative"),
    "lam": ({"lam": 0.0}, ValueError, "lam must be positive"),
    "epochs": ({"epochs": 0}, ValueError, "epochs must be positive, got 0"),
    "batch_size": ({"batch_size": -1}, ValueError, "batch_size must be positive"),
    "lr": ({"lr": math.nan}, ValueError, "lr must be positive"),
    "milestones": ({"milestones": [5, -2]}, ValueError, "milestones must be epochs from 1 on"),
    "patience": ({"patience": 2}, ValueError, "patience needs validation"),
    "precision": ({"precision": "fp8"}, ValueError, "precision must be one of fp32, bf16, fp16"),
    "progress": ({"progress": "loud"}, ValueError, "progress must be one of auto"),
    "device": ({"device": "cuda:99"}, ValueError, "torch sees no CUDA device"),
    "model": ({"model": "resnet19"}, ValueError, "'resnet19' is not known; did you mean 'resnet18'"),
    "few logits": ({"model": Narrow(classes=7)}, ValueError, r"logits \[B, 10\].*got \[2, 7\]"),
    "one concept": ({"concepts": [0] * 160}, ValueError, "one concept only.*lam=None"),
    "empty concept": ({"concepts": [0, 2] * 80}, ValueError, "concept"),
    "concept length": ({"concepts": [0, 1]}, ValueError, "160"),
    "no data": ({"data": DIGITS.subset([])}, ValueError, "concept"),
    "path": ({"data": "/no/such/place"}, FileNotFoundError, "/no/such/place"),
    "NaN": (
        {"data": (torch.full((4, 3, 8, 8), math.nan), [0, 1, 0, 1])}, ValueError, "finite|NaN|nan"
    ),
    "labels": ({"data": (IMAGES, [0, 1, 2, 3, 4, -1])}, ValueError, "target"),
    "q0": ({"q0": [1.0]}, ValueError, "q0 must have one entry per concept"),
    "validation": (
        {"validation": ArrayImages(IMAGES, [0] * 6, classes=["a"])}, ValueError, "validation has 1 classes"
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_refused_before_any_work(name: str, tmp_path: Path) -> None:
    change, error, message = BAD[name]
    model = change.pop("model", "resnet18") if "model" in change else "resnet18"
    settings = SMALL | {"tau": 0.1, "lam": 5.0, "out": tmp_path / "run"} | change
    with pytest.raises(error, match=message):
        HRRLTrainer(model, **settings).fit()
    assert not (tmp_path / "run").exists()


def test_defaults_are_the_papers() -> None:
    config = TrainingConfig()
    assert (config.epochs, config.batch_size, config.lr) == (90, 256, 0.1)
    assert (config.momentum, config.weight_decay) == (0.9, 1e-4)
    assert (HRRLConfig().s, HRRLConfig().c) == (1000, 10.0)
    assert TrainingConfig(milestones=(5, 9)) == TrainingConfig(milestones=[5, 9])
    assert HRRLConfig(q0=torch.tensor([0.25, 0.75])) == HRRLConfig(q0=[0.25, 0.75])


def test_concepts_follow_a_map() -> None:
    parity = ConceptMap.from_names(["even", "odd"] * 5)
    trainer = HRRLTrainer(**(SMALL | {"concepts": parity}), validation=DIGITS)
    assert trainer.concept_names == ["even", "odd"]
    assert trainer.validation is not None
    assert torch.equal(trainer.validation.concept, DIGITS.target % 2)


def test_a_class_that_was_never_trained_on_has_no_concept() -> None:
    some = DIGITS.subset((DIGITS.target != 3).nonzero().flatten())
    parity = ConceptMap.from_names(["even", "odd"] * 5)
    with pytest.raises(
        ValueError, match="validation has images of class '3', of which data has none"
    ):
        HRRLTrainer(**(SMALL | {"data": some, "concepts": parity}), validation=DIGITS)


def test_a_concept_without_validation_examples_is_not_zero_percent(tmp_path: Path) -> None:
    some = DIGITS.subset((DIGITS.target != 3).nonzero().flatten())
    settings = SMALL | {"epochs": 1, "validation": some, "out": tmp_path}
    last = HRRLTrainer(**settings, tau=0.0, lam=None).fit().last
    assert last["concept_accuracy"]["3"] is None
    assert last["worst_concept_accuracy"] == min(
        v for v in last["concept_accuracy"].values() if v is not None
    )
    row = (tmp_path / "metrics.jsonl").read_text()
    assert "NaN" not in row
    assert json.loads(row) == last


def test_the_look_at_a_model_leaves_the_mode_of_every_layer() -> None:
    model = Narrow()
    model.body.eval()
    HRRLTrainer(model, **SMALL)
    assert [m.training for m in (model, model.body, model.head)] == [True, False, True]
