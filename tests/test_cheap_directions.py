"""examples/cheap_directions.py: what the ways compute, and that it trains, goes on and writes its page."""

from __future__ import annotations

import json
from pathlib import Path

import cheap_directions as example
import cheap_directions_page
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hrrl_ext.models import resnet18
from hrrl_ext.robust import ExamplePerturbation

SMALL = [
    *("digits", "--epochs", "4", "--width", "2", "--per-class", "20", "--images", "100"),
    *("--profile", "equal", "--batch-size", "32", "--lr", "0.01", "--precision", "fp32"),
]


def network() -> nn.Module:
    torch.manual_seed(1)
    return resnet18(10, stem="small", width=2)


def batch() -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(2)
    return torch.rand(6, 3, 8, 8, generator=g), torch.arange(6)


def test_half_of_the_batch_moves() -> None:
    model, (x, target) = network(), batch()
    moved = example.HalfOfTheBatch(0.5)(model, x, target)
    want = ExamplePerturbation(0.5)(model, x[::2], target[::2])
    assert torch.equal(moved[::2], want) and torch.equal(moved[1::2], x[1::2])


def test_every_second_step_moves() -> None:
    model, (x, target) = network(), batch()
    way, want = example.EverySecondStep(0.5), ExamplePerturbation(0.5)(model, x, target)
    seen = [way(model, x, target) for _ in range(4)]
    assert all(torch.equal(seen[i], (want, x)[i % 2]) for i in range(4))


@pytest.fixture
def args(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    some = ("ERM", "Algorithm 1, 0.1", "half of the batch, 0.3", "first layer, 0.3")
    monkeypatch.setattr(example, "WAYS", {name: example.WAYS[name] for name in some})
    return [*SMALL, "--out", str(tmp_path / "out")]


def seen_by(way: str, steps: int = 1) -> tuple[list[Tensor], Tensor, nn.Module]:
    """What the network is given in training, the images of the first batch, and the network after."""
    parsed = example.parser().parse_args([*SMALL, "--out", "unused"])
    loop = example.loop_of(example.WAYS[way], example.open_data("digits"), parsed, seed=0)
    given: list[Tensor] = []
    model = loop.recipe.model
    model.register_forward_pre_hook(lambda _, a: given.append(a[0].detach().clone()))
    model.train()
    for number, part in enumerate(loop.recipe.batches.epoch(0)):
        if number < steps:
            loop.recipe.step(part, loop.move.of(len(part[0])))
    return given, next(iter(loop.recipe.batches.epoch(0)))[0], model


@pytest.mark.parametrize(
    ("way", "count"), [("replayed twice, 0.3", 2), ("replayed 4 times, 0.3", 4)]
)
def test_replays_move_by_tau_from_the_images(way: str, count: int) -> None:
    given, x, _ = seen_by(way)
    assert len(given) == count and torch.equal(given[0], x)
    for moved in given[1:]:
        length = (moved - x).flatten(1).norm(dim=1)
        torch.testing.assert_close(length, torch.full_like(length, 0.3), rtol=1e-5, atol=0)
    assert count == 2 or not torch.allclose(given[1], given[2], atol=1e-4)


def test_first_layer_updates() -> None:
    """x̃ is at most τ away, along the gradient of the whole network where its first layer is linear; and the
    step is that of the mean of both losses."""
    (first, second), x, after = seen_by("first layer, 0.3")
    assert torch.equal(first, x)
    length = (second - x).flatten(1).norm(dim=1)
    assert (length <= 0.3 * (1 + 1e-5)).all() and (length > 0.2).all()
    parsed = example.parser().parse_args([*SMALL, "--out", "unused"])
    loop = example.loop_of(example.WAYS["ERM"], example.open_data("digits"), parsed, seed=0)
    _, target, *_ = next(iter(loop.recipe.batches.epoch(0)))
    model = loop.recipe.model.train()
    losses = [F.cross_entropy(model(v), target) for v in (first, second)]
    (sum(losses) / 2).backward()
    loop.move.optimizer.step()
    for ours, plain in zip(after.parameters(), model.parameters(), strict=True):
        torch.testing.assert_close(ours, plain, rtol=1e-4, atol=1e-6)


def test_it_trains_goes_on_and_writes_its_page(
    args: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    page, out = tmp_path / "page.md", tmp_path / "out"
    args += ["--lam", "5", "--crop-padding", "1", "--per-class", "5", "20"]
    example.main([*args, "--seeds", "0", "--ways", "ERM", "first layer, 0.3"])
    assert len(capsys.readouterr().out.splitlines()) == 2
    kept = {path: path.read_bytes() for path in out.rglob("trial.json")}
    example.main([*args, "--seeds", "0", "1", "--page", str(page)])
    printed = capsys.readouterr().out.splitlines()
    assert len(printed) == 2 * len(example.WAYS) - 2
    assert all(path.read_bytes() == before for path, before in kept.items())  # not made again
    text = page.read_text(encoding="utf-8")
    for way in example.WAYS:
        assert f"| {way} | 2 |" in text
    assert (
        f"{2 * len(example.WAYS)} of {2 * len(example.WAYS)} trials are through, each on 100"
        in text
    )
    assert "lam 5.0, crop padding 1, images per class 5 and 20." in text
    assert "| digits, 5 a class | digits, 20 a class | half resolution, 5 a class |" in text
    assert (tmp_path / "page/cost.png").stat().st_size > 1000
    page.write_text(text.replace("# The example level for less", "# By hand"), encoding="utf-8")
    example.main([*args, "--seeds", "0", "--page", str(page)])
    assert page.read_text(encoding="utf-8").startswith("# By hand")


def test_a_trial_of_other_settings_is_refused(
    args: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    example.main([*args, "--seeds", "0", "--ways", "ERM"])
    with pytest.raises(ValueError, match=r"was made with other settings \(training\)"):
        example.main([*args, "--seeds", "0", "--ways", "ERM", "--lr", "0.02"])
    with pytest.raises(ValueError, match="--epochs must be a multiple of 2, got 5"):
        example.main([*args, "--ways", "first layer, 0.3", "--epochs", "5"])
    with pytest.raises(ValueError, match=r"was made with other settings \(settings\)"):
        example.main([*args, "--seeds", "0", "--ways", "ERM", "--lam", "5"])
    monkeypatch.setattr(example, "loop_of", None)  # said before a training
    with pytest.raises(ValueError, match="fewer than 500"):
        example.main([*args, "--seeds", "7", "--ways", "ERM", "--per-class", "500"])


def test_what_is_beside_a_way_reaches_its_training_and_its_description() -> None:
    """And the trials of no option are what they were."""
    parsed = example.parser().parse_args([*SMALL, "--out", "unused"])
    of = example.description(parsed, "stored, 0.3", 0)
    assert of["settings"] == {"tau": 0.3, "example_level": "stored"} and of["per_class"] == 20
    more = ["--out", "unused", "--lam", "5", "--crop-padding", "2", "--per-class", "5", "20"]
    parsed = example.parser().parse_args([*SMALL, *more])
    of = example.description(parsed, "stored, 0.3", 0)
    assert of["settings"].items() >= {"lam": 5.0, "crop_padding": 2}.items()
    assert of["per_class"] == [5, 20]
    way, data = example.WAYS["stored, 0.3"], example.open_data("digits")
    recipe = example.loop_of(way, data, parsed, seed=0).recipe
    assert (recipe.config.lam, recipe.config.crop_padding) == (5.0, 2)


def test_differences_are_paired_by_seed() -> None:
    rows = [
        {"way": way, "seed": seed, "images": 9, "training_seconds": cost, "clean": clean}
        for way, seed, cost, clean in (
            ("ERM", 0, 10.0, 0.3), ("ERM", 1, 20.0, 0.5), ("slow", 0, 20.0, 0.4), ("slow", 1, 40.0, 0.6),
        )
    ]  # fmt: skip
    assert "| slow | +10.0 (+10.0 to +10.0; 2) |" in cheap_directions_page.differences(rows, "ERM")
    means = cheap_directions_page.means(rows)
    assert "| slow | 2 | 30 | 2.00 (2.00 to 2.00) | 50.0 ± 14.1 |" in means
    with pytest.raises(ValueError, match="no trial is through yet"):
        cheap_directions_page.write_page([], Path("page.md"), 3, {})


def test_every_way_makes_as_many_passes() -> None:
    parsed = example.parser().parse_args(["digits", "--out", "unused"])
    for way in example.WAYS.values():
        assert example.training(parsed, way, 0)["epochs"] * way.replays == parsed.epochs
    assert json.dumps(example.description(parsed, "ERM", 0))
