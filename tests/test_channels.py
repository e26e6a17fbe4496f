"""Images of other channels than RGB: grey ones of one, satellites' and scanners' of many."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from hrrl_ext import HRRLTrainer, evaluate, extract_features, finetune, load_model
from hrrl_ext.data import ArrayImages, load_images
from hrrl_ext.data.image_sets import as_picture
from hrrl_ext.evaluation.corruptions import corrupt
from hrrl_ext.evaluation.pictures import attack_pictures, png
from hrrl_ext.models import build_model, takes_channels


def images(channels: int, side: int = 8, count: int = 12) -> ArrayImages:
    generator = torch.Generator().manual_seed(channels)
    x = torch.randint(0, 256, (count, channels, side, side), dtype=torch.uint8, generator=generator)
    return ArrayImages(x, torch.arange(count) % 3, name="scan")


SMALL: dict[str, Any] = {
    "concepts": "classes", "lam": 0.1, "tau": 0.05, "epochs": 1, "batch_size": 6, "width": 2, "crop_padding": 1,
    "progress": "off",
}  # fmt: skip


@pytest.mark.parametrize(
    ("shape", "expected"),
    [
        ((2, 8, 9), 3), ((2, 1, 8, 9), 1), ((2, 8, 9, 1), 1), ((2, 4, 8, 9), 4), ((2, 8, 9, 4), 4), ((2, 13, 64, 64), 13),
        ((2, 64, 64, 13), 13), ((2, 3, 2, 2), 3), ((2, 2, 2, 3), 3), ((2, 2, 8, 8), 2), ((2, 13, 8, 8), 13), ((2, 8, 8, 13), 13),
    ],
)  # fmt: skip
def test_the_axis_of_channels(shape: tuple[int, ...], expected: int) -> None:
    x = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    found = ArrayImages(x, [0, 1])
    assert (
        found.image_shape[0] == expected == found.images.shape[1]
        and found[0][0].shape == found.image_shape
    )
    first = x[:, None] if x.ndim == 3 else x if shape[1] == expected else x.transpose(0, 3, 1, 2)
    assert np.array_equal(found.images.numpy(), np.broadcast_to(first, found.images.shape))
    assert (
        found.resized(4).image_shape == found.subset([1]).resized(4).image_shape == (expected, 4, 4)
    )


@pytest.mark.parametrize(
    "shape", [(2, 8, 8, 8), (2, 9, 4, 9), (2, 4, 9, 4), (2, 3, 9, 3), (2, 2, 2, 2)]
)
def test_what_may_be_either_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"images .*\[N, 3, H, W\]"):
        ArrayImages(np.zeros(shape, np.uint8), [0, 1])


@pytest.mark.parametrize("channels", [1, 4, 13])
@pytest.mark.parametrize("model", ["convnet", "resnet18"])
def test_a_network_by_name_is_built_for_them(model: str, channels: int, tmp_path: Path) -> None:
    """Trained, opened, taken up, measured, attacked, fine-tuned."""
    data = images(channels)
    result = HRRLTrainer(model, data=data, validation=data, out=tmp_path / "run", **SMALL).fit()
    opened = load_model(tmp_path / "run")
    assert takes_channels(opened) == channels
    x = data.images / 255
    assert torch.equal(opened(x), result.model.eval()(x))
    assert takes_channels(load_model(tmp_path / "run", which="best")) == channels
    HRRLTrainer(model, data=data, validation=data, out=tmp_path / "run", resume=True, **SMALL)
    report = evaluate(opened, data, corruptions=["none"], attacks=["linf:0.5"], steps=[0.0, 1.0])
    assert report.attacks[0]["accuracy"] <= report.accuracy["accuracy"]
    assert extract_features(opened, data).features.shape == (12, 16)
    with pytest.raises(
        ValueError, match=rf"corruptions are of RGB images, and scan has {channels} channels"
    ):
        evaluate(opened, data)
    tuned = finetune(tmp_path / "run", data, epochs=1, batch_size=6, progress="off").model
    assert takes_channels(tuned) == channels


@pytest.mark.parametrize("channels", [1, 4])
def test_a_module_of_ones_own(channels: int) -> None:
    model = nn.Sequential(nn.Conv2d(channels, 4, 3), nn.Flatten(), nn.Linear(144, 3))
    settings = {name: value for name, value in SMALL.items() if name != "width"}
    for extra in ({}, {"example_level": "stored"}, {"tau": "theorem2"}):
        HRRLTrainer(model, data=images(channels), **settings | extra).fit()
    del settings["crop_padding"]
    run = HRRLTrainer(model, data=images(channels), resized_crop=0.5, **settings)
    if channels == 1:
        run.fit()
        return
    with pytest.raises(
        ValueError, match=r"mix_chains: images must be \[B, C, H, W\] of one channel or three"
    ):
        run.fit()


@pytest.mark.parametrize(
    ("takes", "given", "advice"),
    [
        (1, 3, r"model takes images of 1 channels, and .* has 3: \[3, 8, 8\]. Give grey images as arrays \[N, 1, H, W\], or"),
        (4, 3, "Give images of 4, or a model for 3"), (3, 4, "Give images of 3, or a model for 4"),
        (3, 1, "Give images of 3, or a model for 1"),
    ],
)  # fmt: skip
def test_a_misfit_is_said_at_the_door(takes: int, given: int, advice: str, tmp_path: Path) -> None:
    for model in (
        nn.Conv2d(takes, 4, 3),
        build_model("convnet", num_classes=3, image_size=8, width=2, channels=takes),
    ):
        with pytest.raises(ValueError, match=advice):
            HRRLTrainer(nn.Sequential(model, nn.Flatten()), data=images(given), **SMALL)
    with pytest.raises(
        (RuntimeError, ValueError), match="Given groups=1"
    ):  # another misfit keeps its own words
        HRRLTrainer(
            nn.Sequential(nn.Conv2d(given, 4, 3), nn.Conv2d(5, 3, 3)), data=images(given), **SMALL
        )


def test_grey_digits_for_a_grey_network() -> None:
    """By the way out that the message names."""
    digits = load_images("digits").subset(range(40))
    grey = ArrayImages(digits.images[:, :1], digits.target, classes=digits.classes)
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.Flatten(), nn.Linear(144, 10))
    settings = SMALL | {"lam": None}
    assert HRRLTrainer(model, data=grey, **settings).fit().history


def test_others_than_rgb_are_refused_where_there_is_nothing_for_them() -> None:
    with pytest.raises(
        ValueError, match=r"must be RGB, \[B, 3, H, W\], got \[12, 4, 8, 8\]; corruptions are of"
    ):
        corrupt(images(4).images, "fog", 1)
    with pytest.raises(
        ValueError, match="networks of torchvision take RGB, and the images have 4 channels"
    ):
        build_model("torchvision:resnet18", num_classes=3, image_size=8, channels=4)


def test_what_is_looked_at() -> None:
    x = torch.rand(2, 4, 5, 6)
    assert as_picture(x[:, :3]) is not None and torch.equal(as_picture(x[:, :3]), x[:, :3])
    assert torch.equal(as_picture(x[0]), x[0].mean(0).expand(3, 5, 6))
    assert torch.equal(as_picture(x[:, :1]), x[:, :1].expand(2, 3, 5, 6))


@pytest.mark.parametrize("channels", [1, 4])
def test_pictures_of_attacks_are_grey(channels: int) -> None:
    data = images(channels, count=3)
    x, model = data.images / 255, nn.Sequential(nn.Flatten(), nn.Linear(64 * channels, 3))
    (shown, *_) = attack_pictures(model, x, 1 - x, data.target, torch.ones(3).bool(), "abc")
    assert shown["image"] == png(x[0].mean(0).expand(3, 8, 8))
    assert shown["attacked"] == png((1 - x[0]).mean(0).expand(3, 8, 8))
