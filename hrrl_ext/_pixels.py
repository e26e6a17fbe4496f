"""Images are values in [0, 1], and what takes them normalises in its first layer: checked here."""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch import Tensor, nn

_ROUNDING = 1e-6
"""How far outside [0, 1] an image may be that was normalised and brought back, in float32."""
_NORMALISERS = ("Normalise", "Normalize")  # ours; torchvision's and kornia's
_UNNORMALISED = ("torchvision", "timm", "transformers")  # whose networks leave it to the loader


def in_range(images: Tensor, name: str) -> Tensor:
    """Float images [B, ...], which must lie in [0, 1]; what rounding put outside is clamped.

    ValueError naming the first image that is outside, or holds NaN, and the likely reason.
    """
    if images.numel() == 0:
        return images
    low, high = images.detach().aminmax()
    if bool((low >= 0) & (high <= 1)):
        return images
    rest = tuple(range(1, images.ndim))
    lows, highs = images.detach().amin(rest), images.detach().amax(rest)  # NaN passes through both
    slack = _slack(images)
    outside = (~((lows >= -slack) & (highs <= 1 + slack))).nonzero().flatten()
    if len(outside) == 0:
        return images.clamp(0, 1)
    i = int(outside[0])
    raise ValueError(
        f"{name}: float images must lie in [0, 1]; image {i} holds values from {lows[i]:.6g} to "
        f"{highs[i]:.6g}; {_advice(float(low), float(high))}"
    )


class PixelCheck:
    """Looks at the images that a model is given from outside, batch by batch.

    Of a model with a normaliser they must lie in [0, 1]: others would be normalised twice. One without
    may be meant for them; that is said, once. So is what :func:`warn_unnormalised` finds, but where the
    model is trained: it learns what it is shown.
    """

    def __init__(self, model: nn.Module, where: str, *, trained: bool = False) -> None:
        self.where = where
        self._normalises = normalises(model)
        self._measured = None if trained else model
        self._said = False

    def __call__(self, images: Tensor) -> Tensor:
        """``images`` [B, C, H, W] as they are; waits for the device they are on."""
        if images.ndim != 4 or images.numel() == 0 or images.is_meta or self._said:
            return images
        low, high, slack = 0.0, 1.0, 0.0
        if images.is_floating_point():
            low, high = (float(value) for value in images.detach().aminmax())
            slack = _slack(images)
        if not (low < -slack or high > 1 + slack):  # NaN is looked for where it does harm
            if self._measured is not None:
                self._said = warn_unnormalised(self._measured, self.where)
            return images
        if self._normalises:
            in_range(images, self.where)
        self._said = True
        warnings.warn(
            f"{self.where}: images are floats in [0, 1] here, got values from {low:.6g} to "
            f"{high:.6g}. The model has no layer that normalises, so they are taken as they are, and a "
            "radius such as tau is in their units; to have it in pixels, give images in [0, 1] to "
            "nn.Sequential(hrrl_ext.models.Normalise(mean, std), model)",
            stacklevel=3,
        )
        return images


def normalises(model: nn.Module) -> bool:
    return any(type(m).__name__ in _NORMALISERS for m in model.modules())


def warn_unnormalised(model: nn.Module, where: str) -> bool:
    """Says of a network of torchvision, timm or transformers that nothing normalises its images, which
    are in [0, 1]; whether there was something to say."""
    library = type(model).__module__.partition(".")[0]
    if library not in _UNNORMALISED or normalises(model):
        return False
    warnings.warn(
        f"{where}: images are in [0, 1], and {type(model).__name__} of {library} has no layer that "
        f"normalises them. Put one before it, {_wrapped(model)}; if it was trained on images in [0, 1], "
        "it is right as it is",
        stacklevel=3,
    )
    return True


def _slack(images: Tensor) -> float:
    return max(_ROUNDING, torch.finfo(images.dtype).eps)


def _advice(low: float, high: float) -> str:
    if low < -_ROUNDING and high <= 10:
        return (
            "where they are normalised, leave that out of what loads them (the model's first layer does "
            "it); else clamp"
        )
    return "divide by 255, or clamp"


def _wrapped(model: nn.Module) -> str:
    """With the mean and the standard deviation that timm knows of its weights."""
    known: Any = getattr(model, "pretrained_cfg", None)
    values = ""
    if isinstance(known, dict) and {"mean", "std"} <= known.keys():
        values = f"{tuple(known['mean'])}, {tuple(known['std'])}"
    return f"nn.Sequential(hrrl_ext.models.Normalise({values}), model)"
