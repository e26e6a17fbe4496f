"""VarianceRecorder: what it records, when, and that training does not notice."""

from __future__ import annotations

import itertools
import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hrrl_ext import HRRLTrainer
from hrrl_ext._streams import random_stream
from hrrl_ext.clustering import (
    GradientClustering,
    MeanGradient,
    VarianceRecorder,
    gradient_variance,
)
from hrrl_ext.clustering.recorder import read_recording
from hrrl_ext.data import load_images
from hrrl_ext.processes import Processes

DIGITS = load_images("digits", split="train").subset(range(64))
SMALL: dict[str, Any] = {"batch_size": 8, "num_batches": 3}


class Net(nn.Module):
    """Dropout and batch normalisation: a random state, modes and buffers that could be disturbed."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Flatten(), nn.Linear(192, 12), nn.BatchNorm1d(12), nn.ReLU(), nn.Dropout(0.5)
        )
        self.head = nn.Linear(12, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x))


def net() -> Net:
    torch.manual_seed(3)
    return Net()


def loop(model: nn.Module, steps: int, before: Callable[[int], object] = lambda step: None) -> None:
    """A training loop of one's own, that draws from the global random state."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for step in range(steps):
        before(step)
        x, target = DIGITS.__getitems__(torch.randperm(len(DIGITS))[:16])
        optimizer.zero_grad()
        F.cross_entropy(model(x / 255), target).backward()
        optimizer.step()
    before(steps)


def recorder(model: nn.Module, file: Path, **settings: Any) -> VarianceRecorder:
    schedule = {"every": 2, "refresh_every": 4, "rounds": 2}
    return VarianceRecorder(model, DIGITS, file, **(schedule | SMALL | settings))


def everything(model: nn.Module) -> list[Any]:
    """What training is made of, and every global random state."""
    return [
        {name: value.tolist() for name, value in model.state_dict().items()},
        [None if p.grad is None else p.grad.tolist() for p in model.parameters()],
        [p.requires_grad for p in model.parameters()],
        [m.training for m in model.modules()],
        [len(m._forward_hooks) for m in model.modules()],
        torch.get_rng_state().tolist(),
        np.random.get_state()[1].tolist(),
        random.getstate(),
    ]


def test_a_loop_ends_with_the_same_bits(tmp_path: Path) -> None:
    plain, recorded = net(), net()
    loop(plain.train(), 5)
    expected = everything(plain)
    torch.manual_seed(3)
    Net()  # the same random state as then
    loop(recorded.train(), 5, recorder(recorded, tmp_path / "variance.jsonl"))
    assert everything(recorded) == expected
    assert len(read_recording(tmp_path / "variance.jsonl")) == 3 * 4  # steps 0, 2 and 4


def test_rows_are_what_is_measured_by_hand(tmp_path: Path) -> None:
    """New clusters and a snapshot at 0 and 4, whatever rounds were before; GC's parameters for all."""
    by_hand: list[dict[str, Any]] = []
    model = net()
    clustering, snapshot = GradientClustering(model, 8, seed=5), None

    def measure(step: int) -> None:
        nonlocal clustering, snapshot
        if step % 2:
            return
        gradient = MeanGradient(model, DIGITS, parameters=clustering.parameters)
        if step % 4 == 0:
            clustering = GradientClustering(model, 8, seed=5).fit(DIGITS, rounds=3)
            snapshot = gradient.snapshot(8)
        table = gradient_variance(
            model, DIGITS, ["SG-B", "SG-2B", "SVRG", "GC"],
            assignment=clustering.assignment, snapshot=snapshot, parameters=clustering.parameters,
            form="paper", seed=random_stream(5, "recorder", step).initial_seed(), **SMALL,
        )  # fmt: skip
        refreshed = step // 4 * 4
        for name, measured in table.items():
            age = {"step": step, "refreshed": refreshed if name in ("SVRG", "GC") else None}
            by_hand.append(age | {"estimator": name} | vars(measured))

    loop(model, 6, measure)
    again = net()
    record = recorder(again, tmp_path / "variance.jsonl", seed=5, form="paper", rounds=3)
    tables: list[Any] = []
    loop(again, 6, lambda step: tables.append(record(step)))
    assert [t is None for t in tables] == [False, True] * 3 + [False]
    assert [r["step"] for r in by_hand] == [s for s in (0, 2, 4, 6) for _ in range(4)]
    assert read_recording(tmp_path / "variance.jsonl") == by_hand == record.rows
    svrg = [row["average_variance"] for row in by_hand if row["estimator"] == "SVRG"]
    assert max(svrg[0], svrg[2]) < 1e-9 * min(svrg[1], svrg[3])  # at the snapshot, and away from it


def test_all_parameters_where_nothing_is_clustered(tmp_path: Path) -> None:
    model = net()
    record = recorder(model, tmp_path / "a", estimators=["SG-B"])
    record(0)
    assert record.clustering is None
    assert record.rows[0]["num_parameters"] == sum(p.numel() for p in model.parameters())
    clustered = recorder(model, tmp_path / "b", estimators=["GC"])
    clustered(0)
    normalised = sum(p.numel() for p in model.body[2].parameters())
    assert clustered.rows[0]["num_parameters"] == record.rows[0]["num_parameters"] - normalised


def test_a_clustering_of_ones_own(tmp_path: Path) -> None:
    """Any K and layers; two layers of tensors and no images."""
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))
    x = torch.randn(20, 3, generator=torch.Generator().manual_seed(0))
    clustering = GradientClustering(model, 5, layers=["2"], weighted=False)
    record = VarianceRecorder(
        model, (x, (x[:, 0] > 0).long()), tmp_path / "v.jsonl", ["GC"],
        clustering=clustering, every=1, refresh_every=1, rounds=1, batch_size=5, num_batches=2,
    )  # fmt: skip
    record(7)
    record(8)
    assert record.rows[0]["num_parameters"] == 10
    assert [row["refreshed"] for row in record.rows] == [7, 8]
    assert len(clustering.history) == 1  # of the last refresh


def test_what_is_not_finite_is_null(tmp_path: Path) -> None:
    """n = 2 has no standard error in the corrected form; the file is JSON by the letter."""
    record = recorder(net(), tmp_path / "v.jsonl", estimators=["SG-B"], num_batches=2)
    record(0)

    def refuse(constant: str) -> None:
        raise AssertionError(constant)

    (line,) = (tmp_path / "v.jsonl").read_text().splitlines()
    assert json.loads(line, parse_constant=refuse)["standard_error"] is None


# --- with a trainer


def train(out: Path | None, stop: int | None = None, resume: bool = False) -> Any:
    trainer = HRRLTrainer(
        net(), data=DIGITS, concepts="classes", tau=0.1, lam=20.0, epochs=2, batch_size=16, lr=0.05,
        crop_padding=1, device="cpu", progress="off", out=out, resume=resume, checkpoint_every=3,
    )  # fmt: skip
    seen: list[int] = []
    if out is not None:
        record = recorder(trainer.model, out / "variance.jsonl")

        def after_step(of: HRRLTrainer, step: int) -> None:
            assert of is trainer
            seen.append(step)
            record(step)
            if step == stop:
                raise KeyboardInterrupt

        trainer.after_step = after_step
    try:
        trainer.fit()
    except KeyboardInterrupt:
        assert stop is not None
    return trainer, seen


def test_a_run_ends_with_the_same_bits_and_a_resumed_one_goes_on_recording(tmp_path: Path) -> None:
    """8 steps. Stopped after 6 it goes on from its checkpoint of step 4, and does 5 and 6 once more."""
    expected = train(None)[0]
    trainer, seen = train(tmp_path / "through")
    assert seen == list(range(1, 9))
    stopped = train(tmp_path / "stopped", stop=6)[1]
    before = read_recording(tmp_path / "stopped/variance.jsonl")
    assert [r["step"] for r in before] == [2] * 4 + [4] * 4 + [6] * 4
    resumed, after = train(tmp_path / "stopped", resume=True)
    assert (stopped, after) == ([1, 2, 3, 4, 5, 6], [5, 6, 7, 8])
    for other in (trainer, resumed):
        assert everything(other.model)[:2] == everything(expected.model)[:2]
        assert torch.equal(other.objective.distribution.q, expected.objective.distribution.q)
    through, halting = (
        read_recording(tmp_path / name / "variance.jsonl") for name in ("through", "stopped")
    )
    assert [(r["step"], r["estimator"]) for r in halting] == [
        (r["step"], r["estimator"]) for r in through
    ]
    assert halting[-4:] == through[-4:]  # after a refresh
    uniform = [r for r in through if r["estimator"].startswith("SG")]
    assert [r for r in halting if r["estimator"].startswith("SG")] == uniform  # to the bit
    for rows, refreshed in ((through, [2, 4, 4, 8]), (halting, [2, 4, 6, 8])):
        for name in ("SVRG", "GC"):
            assert [r["refreshed"] for r in rows if r["estimator"] == name] == refreshed


def test_processes_share_the_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of several that call it alike; here each of the two whose turns are counted is this one."""
    measured: list[int] = []

    class Two(Processes):
        def turns(self, items: Any) -> Any:
            measured.append(self.size)
            return super().turns(items)

        def sum(self, x: Tensor) -> Tensor:
            return x

        def in_order(self, items: Any) -> Any:
            return itertools.cycle(items)

    monkeypatch.setattr("hrrl_ext.clustering.recorder.current_processes", lambda: Two(0, 2))
    recorder(net(), tmp_path / "v.jsonl", estimators=["SG-B", "SVRG"])(0)
    assert measured == [2, 2, 2]  # the snapshot and both estimators


def test_the_hook_given_at_once() -> None:
    steps: list[int] = []
    HRRLTrainer(
        net(), data=DIGITS, concepts="classes", epochs=1, batch_size=32, crop_padding=1,
        progress="off", after_step=lambda trainer, step: steps.append(step),
    ).fit()  # fmt: skip
    assert steps == [1, 2]


# --- refusals


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"every": 0}, "every at least 1, got refresh_every=4 and every=0"),
        ({"every": 3}, "refresh_every must be a multiple of every"),
        ({"rounds": 0}, "rounds must be at least 1"),
        ({"estimators": ["SGB"]}, "no estimator 'SGB'"),
        ({"estimators": []}, "no estimator"),
        ({"num_batches": 1}, "num_batches of at least 2"),
        ({"form": "raw"}, "form must be"),
        ({"batch_size": 33}, "batch_size=33 asks for 66 different examples of 64"),
        ({"batch_size": 65, "estimators": ["SVRG"]}, "asks for 65 different examples of 64"),
        ({"clustering": GradientClustering(net(), 4)}, "of another model"),
    ],
    ids=lambda v: next(iter(v)) if isinstance(v, dict) else "",
)
def test_refused_at_once(settings: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        recorder(net(), tmp_path / "v.jsonl", **settings)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"step": 1}\n', "line 1 is no row of a VarianceRecorder"),
        (
            '{"step": 1, "estimator": "GC", "average_variance": 1.0}\n{"st',
            "line 2 is not valid JSON",
        ),
        ("[]\n", "line 1 is no row"),
    ],
)
def test_a_file_of_something_else_is_not_written_to(
    text: str, message: str, tmp_path: Path
) -> None:
    (tmp_path / "v.jsonl").write_text(text)
    with pytest.raises(ValueError, match=message):
        recorder(net(), tmp_path / "v.jsonl")
    assert (tmp_path / "v.jsonl").read_text() == text
