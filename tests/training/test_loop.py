"""The loop with a recipe that is not HRRL's: what every method gets, and that it resumes to the same bits."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any, ClassVar

import mixup
import pytest
import torch
from mixup import Mixup
from torch import Tensor, nn

import hrrl_ext
from hrrl_ext import data
from hrrl_ext.data import Batches, load_images
from hrrl_ext.processes import Processes
from hrrl_ext.training import Loop, RunFolder, TrainingConfig, load_model
from hrrl_ext.training.move import Move
from hrrl_ext.training.optimizers import build_optimizer
from hrrl_ext.training.schedule import in_steps

TRAIN, TEST = (
    load_images("digits", split=s).subset(range(n)) for s, n in (("train", 96), ("test", 40))
)
CPU = torch.device("cpu")


def net() -> nn.Module:
    torch.manual_seed(1)
    return nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(144, 10)
    )  # fmt: skip


def loop(
    out: Path | None, resume: bool = False, recipe: type[Mixup] = Mixup, **settings: Any
) -> Loop:
    """Six steps of 16 examples an epoch."""
    whole = {
        name: settings.pop(name) for name in ("max_minutes", "checkpoint_every") if name in settings
    }
    config = TrainingConfig(**{"epochs": 2, "batch_size": 16, "lr": 0.05} | settings)
    train, test = (
        Batches(
            images,
            torch.zeros_like(images.target),
            16,
            shuffle=images is TRAIN,
            device=CPU,
            mixup=mix,
        )
        for images, mix in ((TRAIN, data.Mixup()), (TEST, None))
    )
    return Loop(
        recipe(net(), train, test),
        config,
        processes=Processes(),
        device=CPU,
        run=None if out is None else RunFolder(out),
        resume=resume,
        progress="off",
        **whole,
    )


def weights(model: nn.Module) -> list[Tensor]:
    return [value.detach().clone() for value in model.state_dict().values()]


def same(a: nn.Module, b: nn.Module) -> bool:
    return all(torch.equal(x, y) for x, y in zip(weights(a), weights(b), strict=True))


def steady(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [
        {k: v for k, v in row.items() if k not in ("seconds", "images_per_second")} for row in rows
    ]


# --- exact resumption


@pytest.mark.parametrize(
    "settings",
    [
        {"optimizer": "adamw", "schedule": "cosine", "warmup": "4 steps"},
        {"optimizer": "torch.optim.NAdam", "clip_norm": 0.5, "decay_norms_and_biases": False},
        {"optimizer_options": {"nesterov": True}, "ema": 0.9, "warmup": 1},
        {"evaluate_every": "4 steps", "patience": 2, "lr": 1e-4, "epochs": 4},
        {
            "evaluate_every": 2,
            "max_steps": 9,
            "precision": "fp16",
            "accumulate": 2,
            "clip_norm": 1.0,
        },
    ],
    ids=str,
)
def test_a_run_cut_anywhere_resumes_to_the_same_bits(
    tmp_path: Path, settings: dict[str, Any]
) -> None:
    torch.manual_seed(5)  # what the recipe draws from
    whole = loop(tmp_path / "whole", checkpoint_every=2, **settings)
    expected = whole.fit()
    torch.manual_seed(5)
    for cut in (3, 8, None):  # within the first and the second epoch, one step after a checkpoint
        cut_loop = loop(tmp_path / "cut", cut != 3, checkpoint_every=2, **settings)
        cut_loop.after_step = lambda step, cut=cut: stop() if step == cut else None
        try:
            got = cut_loop.fit()
        except KeyboardInterrupt:
            torch.manual_seed(99)
    assert same(got.model, expected.model)
    assert steady(got.history) == steady(expected.history)
    assert steady(cut_loop.evaluations) == steady(whole.evaluations)
    if expected.ema is not None:
        assert got.ema is not None
        assert same(got.ema, expected.ema)
    for name in ("evaluations.jsonl", "best/model.safetensors"):
        a, b = (tmp_path / run / name for run in ("whole", "cut"))
        assert a.exists() == b.exists()
        assert not a.exists() or a.read_bytes() == b.read_bytes()
    again = loop(tmp_path / "cut", True, checkpoint_every=2, **settings)
    assert again.over
    assert same(again.fit().model, expected.model)


def stop() -> None:
    raise KeyboardInterrupt


# --- how long


def test_a_limit_in_steps_ends_within_an_epoch() -> None:
    run = loop(None, max_steps=8, epochs=50)
    rows = run.fit().history
    assert [row["step"] for row in rows] == [6, 8]
    assert "accuracy" in rows[-1]
    assert run.over


def test_a_limit_in_minutes_saves_and_can_be_resumed(tmp_path: Path, capsys: Any) -> None:
    torch.manual_seed(5)
    expected = loop(None).fit()
    torch.manual_seed(5)
    part = loop(tmp_path, max_minutes=1e-9).fit()
    assert part.history == []
    with pytest.raises(ValueError, match=r"stopped before the end of its first epoch; resume it"):
        _ = part.last
    assert "stopped by max_minutes: saved in" in capsys.readouterr().out
    assert not (tmp_path / "results.json").exists()
    late = loop(tmp_path, True, max_minutes=60)
    late.after_step = lambda step: setattr(late, "max_minutes", None)
    assert same(late.fit().model, expected.model)
    assert (tmp_path / "results.json").exists()


def test_patience_counts_evaluations_since_the_best(tmp_path: Path) -> None:
    class Falling(Mixup):
        values = iter([0.5, 0.7, 0.7, 0.6, 0.9, 0.9])

        def evaluate(self, model: nn.Module) -> dict[str, Any]:
            return {"accuracy": next(self.values)}

    run = loop(tmp_path, recipe=Falling, epochs=6, patience=2)
    rows = run.fit().history
    assert [row["accuracy"] for row in rows] == [0.5, 0.7, 0.7, 0.6]  # 0.7 again is no better
    results = json.loads((tmp_path / "results.json").read_text())
    assert (results["best"]["epoch"], results["last"]["epoch"]) == (2, 4)


def test_evaluations_every_so_many_steps_choose_the_best(tmp_path: Path) -> None:
    class Peaked(Mixup):
        kept: ClassVar[list[list[Tensor]]] = []

        def evaluate(self, model: nn.Module) -> dict[str, Any]:
            Peaked.kept.append(weights(model))
            return {"accuracy": [0.1, 0.9, 0.3][len(Peaked.kept) - 1]}

    loop(tmp_path, recipe=Peaked, evaluate_every="4 steps").fit()
    written = [
        json.loads(line) for line in (tmp_path / "evaluations.jsonl").read_text().splitlines()
    ]
    assert [(row["epoch"], row["step"], row["accuracy"]) for row in written] == [
        (1, 4, 0.1),
        (2, 8, 0.9),
    ]
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert ["accuracy" in row for row in rows] == [False, True]  # the end of the run is always one
    best = net()
    hrrl_ext.pretrained.load_weights(best, tmp_path / "best")
    assert all(torch.equal(a, b) for a, b in zip(weights(best), Peaked.kept[1], strict=True))
    assert json.loads((tmp_path / "results.json").read_text())["best"]["step"] == 8


# --- the learning rate


def rates(**settings: Any) -> list[float]:
    run = loop(None, **settings)
    return [run.schedule(step) for step in range(run.steps)]


def test_steps_are_the_papers() -> None:
    assert rates(epochs=3) == pytest.approx([0.05] * 6 + [0.005] * 6 + [0.0005] * 6)
    assert rates(epochs=1) == [0.05] * 6
    assert rates(milestones=[1]) == pytest.approx([0.05] * 6 + [0.005] * 6)


def test_cosine_and_constant_with_warmup() -> None:
    got = rates(schedule="cosine", warmup="2 steps")
    cosine = [0.05 * (1 + math.cos(math.pi * t / 10)) / 2 for t in range(10)]
    assert got == pytest.approx([0.025, 0.05, *cosine])
    assert rates(schedule="constant", warmup=1) == pytest.approx(
        [0.05 * (t + 1) / 6 for t in range(6)] + [0.05] * 6
    )
    assert rates(schedule="cosine", max_steps=4)[3] == pytest.approx(
        0.05 * (1 + math.cos(0.75 * math.pi)) / 2
    )


def test_the_rate_reaches_the_optimiser() -> None:
    run = loop(None, schedule="cosine", epochs=1)
    seen = []
    run.after_step = lambda step: seen.append(run.move.optimizer.param_groups[0]["lr"])
    rows = run.fit().history
    assert seen == rates(schedule="cosine", epochs=1)
    assert rows[0]["lr"] == seen[-1]


@pytest.mark.parametrize(
    ("span", "steps"),
    [(0, 0), (2, 20), ("2", 20), ("3 epochs", 30), ("1 epoch", 10), ("7 steps", 7)],
)
def test_spans(span: int | str, steps: int) -> None:
    assert in_steps(span, per_epoch=10) == steps


# --- from a loss to new weights


def test_clipping_shortens_the_gradient_and_leaves_a_short_one() -> None:
    x, target = torch.rand(4, 3, 8, 8), torch.arange(4)

    def losses(model: nn.Module, x: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        loss = nn.functional.cross_entropy(model(x), target)
        return loss, loss.detach()

    for precision in ("fp32", "fp16"):  # whose gradients are scaled up until they are clipped
        norms = {}
        for clip in (None, 0.01, 1e6):
            config = TrainingConfig(clip_norm=clip, precision=precision)
            move = Move(net(), config, Processes(), CPU)
            if precision == "fp16":
                move.scaler = torch.amp.GradScaler("cpu", init_scale=256.0)
            move(losses, x, target)
            grads = [p.grad.flatten() for p in move.model.parameters()]
            norms[clip] = torch.cat(grads).norm().item()
        assert norms[0.01] == pytest.approx(0.01, rel=1e-4)
        assert norms[1e6] == pytest.approx(norms[None])
        assert norms[None] > 0.01


def test_the_average_is_of_weights_and_statistics() -> None:
    """By hand: the first is a copy, later ones are d a + (1 - d) w."""
    run = loop(None, ema=0.8, epochs=1)
    by_hand: list[Tensor] = []

    def average(step: int) -> None:
        now = weights(run.recipe.model)
        old = by_hand if step > 1 else now
        by_hand[:] = [
            0.8 * a + 0.2 * w if w.is_floating_point() else a for a, w in zip(old, now, strict=True)
        ]

    run.after_step = average
    result = run.fit()
    assert result.ema is not None
    for got, expected in zip(weights(result.ema), by_hand, strict=True):
        if got.is_floating_point():
            torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-6)
    assert not same(result.ema, result.model)


def test_the_average_is_what_is_measured_and_kept(tmp_path: Path) -> None:
    result = loop(tmp_path, ema=0.5, epochs=1).fit()
    assert result.ema is not None
    best = net()
    hrrl_ext.pretrained.load_weights(best, tmp_path / "best")
    assert same(best, result.ema)
    assert same(load_model(tmp_path, net(), which="ema"), result.ema)
    assert same(load_model(tmp_path, net()), result.model)
    loop(tmp_path / "without", epochs=1).fit()
    with pytest.raises(ValueError, match="without a moving average"):
        load_model(tmp_path / "without", net(), which="ema")


def test_parts_give_the_same_step_as_the_whole() -> None:
    """In float64, without batch normalisation: gradients are sums over examples."""
    plain = nn.Sequential(nn.Flatten(), nn.Linear(192, 10)).double()
    state = {k: v.clone() for k, v in plain.state_dict().items()}
    x, target = torch.rand(7, 3, 8, 8, dtype=torch.float64), torch.arange(7)

    def losses(model: nn.Module, x: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        loss = nn.functional.cross_entropy(model(x), target)
        return loss, loss.detach()

    moved, means = [], []
    for parts in (1, 3, 50):
        plain.load_state_dict(state)
        means.append(
            Move(plain, TrainingConfig(accumulate=parts), Processes(), CPU)(losses, x, target)
        )
        moved.append(plain[1].weight.detach().clone())
    for other in (1, 2):
        torch.testing.assert_close(moved[other], moved[0], rtol=1e-12, atol=1e-14)
        torch.testing.assert_close(means[other], means[0], rtol=1e-12, atol=0)


def test_a_recipe_that_needs_the_whole_batch_refuses_parts() -> None:
    class Whole(Mixup):
        whole_batch = "negatives are the other examples of the batch"

    with pytest.raises(ValueError, match=r"accumulate must be 1, got 2: negatives are"):
        loop(None, recipe=Whole, accumulate=2)


# --- optimisers


def test_decay_on_all_or_on_matrices_alone() -> None:
    model = net()
    everything = build_optimizer(model, TrainingConfig(weight_decay=0.1))
    assert [g["weight_decay"] for g in everything.param_groups] == [0.1]
    some = build_optimizer(model, TrainingConfig(weight_decay=0.1, decay_norms_and_biases=False))
    shapes = [[p.ndim for p in g["params"]] for g in some.param_groups]
    assert [g["weight_decay"] for g in some.param_groups] == [0.1, 0.0]
    assert shapes == [[4, 2], [1, 1, 1, 1]]


def test_optimisers_by_name() -> None:
    model = net()
    for name, kind in (("adam", "Adam"), ("adamw", "AdamW"), ("torch.optim.Adagrad", "Adagrad")):
        made = build_optimizer(model, TrainingConfig(optimizer=name, lr=0.3))
        assert (type(made).__name__, made.defaults["lr"]) == (kind, 0.3)
    made = build_optimizer(
        model, TrainingConfig(optimizer="adam", optimizer_options={"betas": [0.5, 0.6]})
    )
    assert tuple(made.defaults["betas"]) == (0.5, 0.6)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"optimizer": "adamm"}, r"'adamm' is not known; did you mean 'adam'\? known are 'sgd', 'adam', 'adamw', or the"),
        ({"optimizer": "torch.optim.Nothing"}, "there is no torch.optim.Nothing"),
        ({"optimizer": "nowhere.Adam"}, "there is no nowhere.Adam"),
        ({"optimizer": "torch.nn.Linear"}, "torch.nn.Linear is no torch.optim.Optimizer"),
        ({"optimizer": "torch.optim.LBFGS"}, "takes no weight_decay|evaluates the loss several times"),
        ({"optimizer_options": {"nestrov": True}}, "sgd's option 'nestrov' is not known; did you mean 'nesterov'"),
        ({"optimizer_options": {"lr": 0.1}}, "are settings of the run"),
        ({"schedule": "linear"}, "schedule must be one of steps, cosine, constant, got 'linear'"),
        ({"warmup": -1}, "warmup must be at least 0"),
        ({"warmup": "5 miles"}, r'warmup must be a whole number of epochs, or text such as "500 steps"'),
        ({"evaluate_every": 0}, "evaluate_every must be at least 1"),
        ({"evaluate_every": True}, "evaluate_every must be a whole number of epochs"),
        ({"ema": 1.0}, r"ema must lie between 0 and 1, such as 0.999, got 1.0"),
        ({"clip_norm": 0.0}, "clip_norm must be positive"),
        ({"patience": 0}, "patience must be positive"),
        ({"max_steps": 0}, "max_steps must be positive"),
        ({"max_minutes": 0.0}, "max_minutes must be positive"),
        ({"checkpoint_every": 0}, "checkpoint_every must be positive"),
    ],
    ids=str,
)  # fmt: skip
def test_bad_settings_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        loop(None, **settings)


def test_a_folder_that_holds_a_run_is_not_overwritten(tmp_path: Path) -> None:
    loop(tmp_path, epochs=1).fit()
    with pytest.raises(FileExistsError, match="already holds a run"):
        loop(tmp_path, epochs=1)


def test_a_run_of_before_a_setting_was_there_resumes(tmp_path: Path) -> None:
    """A setting that config.json does not know had its default."""
    loop(tmp_path, epochs=1).fit()
    file = tmp_path / "config.json"
    config = json.loads(file.read_text())
    del config["training"]["schedule"], config["training"]["ema"]
    file.write_text(json.dumps(config))
    for digests in tmp_path.glob("checkpoints/*/digests.json"):
        digests.unlink()  # nor did checkpoints have any
    assert loop(tmp_path, True, epochs=1).over
    with pytest.raises(ValueError, match=r"other settings \(schedule differ\)"):
        loop(tmp_path, True, epochs=1, schedule="cosine")


def test_the_example_trains(tmp_path: Path) -> None:
    result = mixup.loop(str(tmp_path), epochs=3).fit()
    assert result.last["accuracy"] > 0.6  # 0.1 by chance
    assert load_model(tmp_path, which="best")(torch.rand(2, 3, 8, 8)).shape == (2, 10)
