"""examples/gradient_variance.py: its data, networks and tables, and that measuring leaves training alone."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import gradient_variance as example
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from hrrl_ext._streams import random_stream
from hrrl_ext._tables import with_tables
from hrrl_ext.clustering import GradientClustering, gradient_variance
from hrrl_ext.data import ArrayImages, load_images

ROOT = Path(__file__).parents[2]
SMALL = {"images": 48, "batch-size": 4, "steps": 8, "measurements": 4, "batches": 3}
DIGITS = load_images("digits", split="train")


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[dict[str, Any]]]:
    """The example on digits with small networks and two refreshes; returns the rows of trials.csv."""
    networks = {"MLP": linear, "ResNet-8": lambda: example.resnet8(2)}
    cases = {
        name: replace(case, network=networks[name], refreshes=2, rounds=2)
        for name, case in example.CASES.items()
    }
    monkeypatch.setattr(example, "CASES", cases)
    monkeypatch.setattr(example, "plot_variances", lambda *_: None)  # drawn once, below

    def run(*more: str, **settings: int) -> list[dict[str, Any]]:
        chosen = SMALL | {name.replace("_", "-"): value for name, value in settings.items()}
        options = [text for name, value in chosen.items() for text in (f"--{name}", str(value))]
        example.main(["--out", str(tmp_path), "--device", "cpu", *options, *more])
        return example.read(tmp_path / "trials.csv")

    return run


def linear() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(192, 10))


def test_the_networks_are_the_papers() -> None:
    """1,863,690 parameters are the thesis's MLP; ResNet-8 is counted by hand. All are clustered."""
    w = 16
    blocks = 2 * conv(w, w, 3) + conv(w, 2 * w, 3) + conv(2 * w, 2 * w, 3) + conv(w, 2 * w, 1)
    blocks += conv(2 * w, 4 * w, 3) + conv(4 * w, 4 * w, 3) + conv(2 * w, 4 * w, 1)
    counts = {
        example.MLP(): 1_863_690,
        example.resnet8(w): conv(3, w, 3) + blocks + conv(4 * w, 10, 1),
    }
    for model, count in counts.items():
        own = dict(model.named_parameters())
        assert sum(p.numel() for p in own.values()) == count
        assert set(GradientClustering(model, 2).parameters) == set(own)
    grey = torch.rand(5, 1, 28, 28).expand(-1, 3, -1, -1)
    assert example.MLP()(grey).shape == example.resnet8(2)(grey).shape == (5, 10)


def conv(inputs: int, outputs: int, side: int) -> int:
    return (inputs * side**2 + 1) * outputs


@pytest.mark.parametrize("share", [0.0, 2 / 3])
def test_the_data(share: float) -> None:
    images, other = (example.drawn(DIGITS, share, 90, seed=seed) for seed in (1, 2))
    assert isinstance(images, ArrayImages) and isinstance(other, ArrayImages)
    pixels, target = images.images, images.target
    copies = round(90 * share)
    assert len(pixels) == 90
    own, again = pixels[: 90 - copies], pixels[90 - copies :]
    assert len(own.flatten(1).unique(dim=0)) == len(own)  # no digit is there twice
    for i, (image, label) in enumerate(zip(again, target[90 - copies :], strict=True)):
        assert torch.equal(image, own[i % 10]) and label == target[i % 10]
    assert not torch.equal(pixels, other.images)
    with pytest.raises(ValueError, match=r"--images 2000: .* has 1347 only"):
        example.drawn(DIGITS, share, 2000, seed=1)


def test_what_is_together() -> None:
    """Copies of images 0, 1, ..., 9, 0, 1, ...: of the 25, one of image 0 and one of image 4 are away."""
    image = torch.arange(25) % 10
    own = image.clone()
    own[10], own[24] = 7, 0
    assignment = torch.cat([torch.zeros(5, dtype=torch.int64), own])
    assert float(example.together(assignment, 25)) == pytest.approx(23 / 25, abs=5e-4)
    assert example.together(assignment, 0) == ""


@pytest.mark.parametrize(
    ("case", "lr", "momentum"),
    [("MLP", [0.02] * 8, 0.5), ("ResNet-8", [0.01] * 4 + [0.001] * 2 + [0.0001] * 2, 0.9)],
)
def test_the_trajectory_is_that_of_plain_sgd_and_the_numbers_are_the_librarys(
    run: Callable[..., list[dict[str, Any]]],
    case: str,
    lr: list[float],
    momentum: float,
) -> None:
    """Table A.2's learning rate, a tenth of it from the half on and a hundredth in the last quarter."""
    rows = run(f"--{case.lower().replace('-', '')}", "digits", seeds=3)
    assert {(r["case"], r["repeated"], r["seed"]) for r in rows} == {(case, 0, 3), (case, 0.67, 3)}
    images = example.drawn(DIGITS, 0.0, 48, seed=3)
    assert isinstance(images, ArrayImages)
    x, target = images.images.float() / 255, images.target
    torch.manual_seed(3)
    model = example.CASES[case].network()
    optimizer = torch.optim.SGD(model.parameters(), momentum=momentum, weight_decay=5e-4)
    generator = torch.Generator().manual_seed(3)
    order = torch.randperm(48, generator=generator)
    for step in range(8):
        if step % 2 == 0:
            here = {r["estimator"]: r for r in rows if (r["repeated"], r["step"]) == (0, step)}
            assert set(here) == set(example.ESTIMATORS)
            # Written with four digits; float32 sums in another order.
            assert here["SG-B"]["loss"] == pytest.approx(
                F.cross_entropy(model(x), target).item(), rel=1e-3
            )
            seed = random_stream(3, "recorder", step).initial_seed()
            for name, v in gradient_variance(
                model, images, batch_size=4, num_batches=3, seed=seed
            ).items():
                assert here[name]["average_variance"] == pytest.approx(v.average_variance, rel=1e-4)
                assert here[name]["normalised_variance"] == pytest.approx(
                    v.normalised_variance, rel=1e-4
                )
            refreshed = 4 * (step // 4)
            assert here["SVRG"]["refreshed"] == here["GC, mean"]["refreshed"] == refreshed
            assert (here["SVRG"]["average_variance"] == 0) == (step == refreshed)
            assert here["GC, svd"]["explained"] is not None
        batch = order[4 * step : 4 * step + 4]
        optimizer.param_groups[0]["lr"] = lr[step]
        optimizer.zero_grad()
        F.cross_entropy(model(x[batch]), target[batch]).backward()
        optimizer.step()


def test_a_run_that_is_over_is_not_run_again(
    run: Callable[..., list[dict[str, Any]]], tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    page = tmp_path / "page.md"
    old = (ROOT / "docs/results/gradient-variance.md").read_text(encoding="utf-8")
    page.write_text(old, encoding="utf-8")
    first = run("--resnet8", "digits", "--page", str(page), seeds=0)
    printed, new = capsys.readouterr().out, page.read_text(encoding="utf-8")
    for name in ("ratios", "course"):
        before, table, after = cut(new, name)
        assert table and table in printed
        assert (before.split("<!--")[0], after.split("<!--")[0]) == (
            cut(old, name)[0].split("<!--")[0],
            cut(old, name)[2].split("<!--")[0],
        )

    done: list[int] = []
    measured = example.measured

    def counted(*arguments: Any) -> list[example.Row]:
        done.append(arguments[-1])
        return measured(*arguments)

    monkeypatch.setattr(example, "measured", counted)
    both = run("--resnet8", "digits", "--seeds", "0", "1")
    assert done == [1, 1] and both[: len(first)] == first
    assert run() == both  # no data: it draws what is there
    with pytest.raises(ValueError, match=r"has runs with .*'steps': 8.*take another --out"):
        run(steps=16)
    with pytest.raises(ValueError, match="must divide"):
        run(steps=9)
    page.write_text("no place", encoding="utf-8")
    with pytest.raises(ValueError, match="no place for the table"):
        with_tables(page, {"ratios": ""})


def cut(text: str, name: str) -> tuple[str, str, str]:
    before, rest = text.split(f"<!-- table: {name} -->\n")
    table, after = rest.split(f"<!-- end: {name} -->")
    return before, table.strip(), after


def test_the_tables_by_hand(tmp_path: Path) -> None:
    """Two seeds, four measurements, a refresh at 0 and 20: SG-2B is half of SG-B, GC as given."""
    over = {0: (0.25, 0.75, 0.25, 1.25), 1: (0.75, 0.75, 0.75, 1.75)}
    rows = [
        {
            "case": "MLP", "repeated": 0.67, "seed": seed, "step": 10 * i, "loss": 2.0 - i,
            "estimator": name, "refreshed": None if name.startswith("SG") else 20 * (i // 2),
            "average_variance": 10.0**-i * value, "normalised_variance": 0.5,
            "explained": 0.5 if name.startswith("GC") else None,
            "together": 0.25 + seed / 2 if name.startswith("GC") else None,
        }
        for seed, gc in over.items()
        for i in range(4)
        for name, value in zip(example.ESTIMATORS, (1.0, 0.5, 0.0, gc[i], gc[i]), strict=True)
    ]  # fmt: skip
    table = {line.split("|")[1].strip(): line for line in example.ratios(rows).splitlines()}
    assert next(iter(table)) == "MLP, 67% copies"
    half = "0.50 ± 0.00"
    assert table["SG-2B"] == f"| SG-2B | {half} | {half} | {half} | 100% ± 0% | 0% ± 0% |  |  |"
    # SG-B falls by 10 each: (0.25 + 0.075 + 0.0025 + 0.00125)/1.111 = 0.30, and 0.75 of the other seed.
    assert table["GC, svd"] == (
        "| GC, svd | 0.52 ± 0.32 | 0.50 ± 0.35 | 0.75 ± 0.00 | 75% ± 0% | 25% ± 35% | 50% ± 0% | 50% ± 35% |"
    )
    course = example.course(rows).splitlines()
    assert course[0] == "| | | step 0 | step 10 | step 20 | step 30 |"
    assert course[2].startswith("| MLP, 67% copies | loss | 2.000 ± 0.000 | 1.000 ± 0.000 |")
    (curve,) = example.curves(rows).values()
    gc = [row for row in curve if row["estimator"] == "GC, mean"]
    assert [row["average_variance"] for row in gc] == pytest.approx([0.5, 0.075, 0.005, 0.0015])
    assert gc[0]["standard_error"] == pytest.approx(0.5 / 2**0.5)
    (drawn,) = example.plot_variances(example.curves(rows), tmp_path)
    assert drawn.stat().st_size > 0
