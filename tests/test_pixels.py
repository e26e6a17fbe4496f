"""Images outside [0, 1]: refused where they would be normalised twice, said where they may be meant."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from hrrl_ext import HRRLObjective, HRRLTrainer, extract_features, finetune
from hrrl_ext._pixels import in_range
from hrrl_ext.clustering import MeanGradient
from hrrl_ext.data import ArrayImages
from hrrl_ext.evaluation import perturbation_curve, predict
from hrrl_ext.evaluation.attacks import fgsm
from hrrl_ext.evaluation.corruptions import corrupt
from hrrl_ext.models import IMAGENET_MEAN, IMAGENET_STD, Normalise

MEAN, STD = (torch.tensor(v).view(3, 1, 1) for v in (IMAGENET_MEAN, IMAGENET_STD))
X = torch.rand(6, 3, 4, 4, generator=torch.Generator().manual_seed(0))
X[0], X[1] = 0, 1  # black and white, where rounding shows
Y = torch.arange(6) % 3
NORMALISED = (X - MEAN) / STD


def linear() -> nn.Sequential:
    return nn.Sequential(nn.Flatten(), nn.Linear(48, 3))


def of(library: str) -> nn.Module:
    """A network as a library has it, which leaves normalising to the loader."""
    kind = type("Net", (nn.Sequential,), {"__module__": f"{library}.models.net"})
    net: nn.Module = kind(*linear())
    return net


def perturb(model: nn.Module, x: Tensor) -> Any:
    return HRRLObjective(tau=0.1, lam=None).perturb(model, x, Y)


def theorem2(model: nn.Module, x: Tensor) -> Any:
    return HRRLObjective(tau="theorem2", lam=None).perturb(model, x, Y)


MEASURES: dict[str, Callable[[nn.Module, Tensor], Any]] = {
    "predict": lambda model, x: predict(model, [(x[:3], Y[:3]), (x[3:], Y[3:])]).logits,
    "extract_features": lambda model, x: extract_features(model, (x, Y)),
    "perturbation_curve": lambda model, x: perturbation_curve(model, (x, Y), [0.0, 0.1]),
    "perturb": perturb,
    "theorem2": theorem2,
    "clustering": lambda model, x: MeanGradient(model, (x, Y)),
}
TRAINING = {"perturb", "theorem2"}
DATA: dict[str, Callable[[Tensor], Any]] = {
    "an image set": lambda x: ArrayImages(x, Y).images,
    "corrupt": lambda x: corrupt(x, "brightness", 1),
    "fgsm": lambda x: fgsm(linear().to(x.dtype), x, Y, 0.1),
}


@contextmanager
def silent() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


@pytest.mark.parametrize("name", [*MEASURES, *DATA])
@pytest.mark.parametrize(
    "dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16], ids=str
)
def test_rounding_is_taken_everywhere(name: str, dtype: torch.dtype) -> None:
    """Normalised and brought back, in each precision."""
    mean, std = MEAN.to(dtype), STD.to(dtype)
    back = (X.to(dtype) - mean) / std * std + mean
    back[2, 0, 0, 0] = -3e-8
    assert back.min() < 0
    with silent():
        if name in DATA:
            DATA[name](back)
        else:
            MEASURES[name](nn.Sequential(Normalise(), *linear()).to(dtype), back)


@pytest.mark.parametrize("name", MEASURES)
@pytest.mark.parametrize(
    "normaliser", [Normalise(), type("Normalize", (nn.Identity,), {})()], ids=["ours", "theirs"]
)
def test_what_would_be_normalised_twice_is_refused(name: str, normaliser: nn.Module) -> None:
    model = nn.Sequential(normaliser, *linear())
    late = X.clone()
    late[5] = NORMALISED[5]
    assert late[5].min() < 0
    with pytest.raises(
        ValueError, match=r"float images must lie in \[0, 1\]; image \d holds .* leave that out"
    ):
        MEASURES[name](model, late)
    with pytest.raises(ValueError, match=r"holds values from .* to 255; divide by 255"):
        MEASURES[name](model, (X * 255).round())


@pytest.mark.parametrize("name", MEASURES)
def test_what_may_be_meant_is_said_once(name: str) -> None:
    with pytest.warns(UserWarning, match=r"got values from -2.11\d+ to 2.64.*as they are") as said:
        MEASURES[name](linear(), NORMALISED)
    assert len(said) == 1
    with silent():
        MEASURES[name](linear(), X)


@pytest.mark.parametrize("name", [*sorted(MEASURES.keys() - TRAINING), "fgsm"])
@pytest.mark.parametrize("library", ["torchvision", "timm", "transformers"])
def test_a_network_without_its_normaliser(name: str, library: str) -> None:
    measure = MEASURES.get(name, lambda model, x: fgsm(model, x, Y, 0.1))
    with pytest.warns(
        UserWarning, match=rf"images are in \[0, 1\], and Net of {library} has no layer that"
    ) as said:
        measure(of(library), X)
    assert len(said) == 1
    with silent():
        measure(nn.Sequential(Normalise(), of(library)), X)
    if name != "fgsm":  # a loader that normalises is what such a network is for
        with pytest.warns(UserWarning, match="as they are"):
            measure(of(library), NORMALISED)


def test_weights_of_a_library_without_its_normaliser(tmp_path: Path) -> None:
    """Pretrained ones, that is: a network that learns here from the first step learns what it is shown."""
    data: dict[str, Any] = {
        "data": ArrayImages(X, Y),
        "epochs": 1,
        "batch_size": 3,
        "progress": "off",
    }
    torch.save(of("timm").state_dict(), tmp_path / "w.pt")
    for begin in (
        lambda model: finetune(model, **data, out=None),
        lambda model: HRRLTrainer(
            model, **data, concepts="classes", lam=None, init=tmp_path / "w.pt"
        ),
    ):
        with pytest.warns(UserWarning, match="Net of timm has no layer that"):
            begin(of("timm"))
    with silent():
        HRRLTrainer(of("timm"), **data, concepts="classes", lam=None)
        for name in TRAINING:
            MEASURES[name](of("timm"), X)


def test_the_advice_knows_timms_numbers() -> None:
    model = of("timm")
    model.pretrained_cfg = {"mean": (0.5, 0.5, 0.5), "std": [0.25] * 3}  # type: ignore[assignment]
    with pytest.warns(
        UserWarning, match=r"Normalise\(\(0.5, 0.5, 0.5\), \(0.25, 0.25, 0.25\)\), model\)"
    ):
        predict(model, (X, Y))


def test_other_tensors_than_images_are_left_alone() -> None:
    x = torch.randn(6, 48)
    with silent():
        perturb(nn.Linear(48, 3), x)
        predict(nn.Linear(48, 3), (x, Y))


@pytest.mark.parametrize(
    ("x", "message"),
    [
        ([0.0, 1.0 + 1e-5], r"image 1 holds values from 1.00001 to 1.00001; divide by 255, or clamp"),
        ([-1e-5, 0.0], r"image 0 holds values from -1e-05 to -1e-05; .*else clamp"),
        ([0.0, torch.nan], r"image 1 holds values from nan to nan"), ([torch.inf, 0.0], "image 0 holds values from inf"),
        ([-1.0, 1.0], r"where they are normalised, leave that out"), ([3.0, 255.0], r"image 0 .*divide by 255"),
    ],
)  # fmt: skip
def test_the_first_image_outside_is_named(x: list[float], message: str) -> None:
    images = torch.tensor(x)[:, None, None].expand(2, 4, 4)
    with pytest.raises(ValueError, match=message):
        in_range(images, "images")
    with pytest.raises(ValueError, match=message):
        ArrayImages(images, [0, 1])


def test_what_is_within_is_not_copied_and_the_rest_is_clamped() -> None:
    assert in_range(X, "x") is X
    x = np.array([-5e-7, 0.5, 1 + 5e-7], dtype=np.float32)
    assert ArrayImages(x[:, None, None], [0, 1, 2]).images[:, 0, 0, 0].tolist() == [0, 0.5, 1]
    assert in_range(torch.zeros(0, 3, 2, 2), "x").shape == (0, 3, 2, 2)
