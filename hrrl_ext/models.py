"""Models that take images in [0, 1]: the normaliser is their first layer.

So a radius such as tau or eps means the same pixels in training and in every attack, whatever the
data set's mean and standard deviation. `resnet18` is the paper's network; its parameter names are
torchvision's, whose state dicts load. `ConvNet` is for images of a few pixels.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .spec import not_known

__all__ = [
    "IMAGENET_MEAN",
    "IMAGENET_STD",
    "ConvNet",
    "Normalise",
    "ResNet18",
    "build_model",
    "resnet18",
]

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

_MODELS = ("resnet18", "convnet")
# From here down ImageNet's stem, of stride 4, would leave the last stage 2x2 positions or fewer.
_SMALL_IMAGE_SIZE = 64


class Normalise(nn.Module):
    """(x - mean) / std per channel, for float images x [B, C, H, W] in [0, 1].

    mean and std are buffers [1, C, 1, 1], saved with the weights and never trained. A state dict
    that has neither (such as torchvision's) loads with strict=True and leaves them as constructed.
    ValueError: wrong number of dimensions or channels. TypeError: integer images.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self, mean: Sequence[float] = IMAGENET_MEAN, std: Sequence[float] = IMAGENET_STD
    ) -> None:
        super().__init__()
        if len(mean) != len(std) or len(mean) == 0:
            raise ValueError(
                "Normalise: mean and std must have one entry per channel each, "
                f"got {len(mean)} and {len(std)}"
            )
        if not all(math.isfinite(value) for value in mean):
            raise ValueError(f"Normalise: mean must be finite, got {tuple(mean)}")
        if not all(math.isfinite(value) and value > 0 for value in std):
            raise ValueError(f"Normalise: std must be finite and positive, got {tuple(std)}")
        self.register_buffer("mean", torch.tensor(mean, dtype=torch.float32).view(1, -1, 1, 1))
        self.register_buffer("std", torch.tensor(std, dtype=torch.float32).view(1, -1, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        channels = self.mean.shape[1]
        # Grey images would broadcast against the mean, and uint8 would pass as 0 to 255.
        if x.ndim != 4 or x.shape[1] != channels:
            raise ValueError(
                f"Normalise: images must be [B, {channels}, H, W], got {list(x.shape)}; "
                "repeat a grey channel, add the batch dimension to a single image"
            )
        if not x.is_floating_point():
            raise TypeError(
                f"Normalise: images must be float in [0, 1], got {x.dtype}; "
                "convert uint8 images with images.float() / 255"
            )
        return (x - self.mean) / self.std

    def extra_repr(self) -> str:
        return f"mean={self.mean.flatten().tolist()}, std={self.std.flatten().tolist()}"

    def _load_from_state_dict(
        self, state_dict: Mapping[str, Any], prefix: str, *args: Any, **kwargs: Any
    ) -> None:
        own = {prefix + "mean": self.mean, prefix + "std": self.std}
        if own.keys().isdisjoint(state_dict):
            state_dict = {**state_dict, **own}
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)


class BasicBlock(nn.Module):
    """relu(F(x) + x), F two 3x3 convolutions; a 1x1 projects x where the shape changes."""

    def __init__(self, in_channels: int, channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, channels, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.downsample: nn.Module | None = None
        if stride != 1 or in_channels != channels:
            projection = nn.Conv2d(in_channels, channels, 1, stride, bias=False)
            self.downsample = nn.Sequential(projection, nn.BatchNorm2d(channels))

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(self.bn1(self.conv1(x)), inplace=True)
        out = self.bn2(self.conv2(out))
        shortcut = x if self.downsample is None else self.downsample(x)
        return F.relu(out + shortcut, inplace=True)


def _stage(in_channels: int, channels: int, stride: int) -> nn.Sequential:
    return nn.Sequential(
        BasicBlock(in_channels, channels, stride), BasicBlock(channels, channels, 1)
    )


class ResNet18(nn.Module):
    """ResNet-18 (He et al., CVPR 2016): float images [B, 3, H, W] in [0, 1] → [B, num_classes].

    num_classes         size of the last layer
    stem                "imagenet": 7x7 convolution of stride 2, then max-pooling; "small": 3x3
                        convolution of stride 1, no pooling, for images of up to about 64 pixels
    width               channels of the first stage, 64 in the paper; `num_features` = 8 width
    mean, std           of the normaliser, in units of [0, 1] pixels
    zero_init_residual  start each block as relu(shortcut): the last scale of its F is 0

    With stem="imagenet" and width=64 a torchvision resnet18 state dict loads with strict=True.
    Convolutions are drawn from He et al.'s normal (fan out) by torch's global generator.
    """

    def __init__(
        self,
        num_classes: int,
        *,
        stem: Literal["imagenet", "small"] = "imagenet",
        width: int = 64,
        mean: Sequence[float] = IMAGENET_MEAN,
        std: Sequence[float] = IMAGENET_STD,
        zero_init_residual: bool = False,
    ) -> None:
        super().__init__()
        if num_classes < 1 or width < 1:
            raise ValueError(
                "resnet18: num_classes and width must be at least 1, "
                f"got num_classes={num_classes}, width={width}"
            )
        if stem not in ("imagenet", "small"):
            raise ValueError(f"resnet18: stem must be 'imagenet' or 'small', got {stem!r}")
        self.num_classes = num_classes
        self.num_features = 8 * width
        self.normalise = Normalise(mean, std)
        channels = len(mean)
        self.maxpool: nn.Module
        if stem == "imagenet":
            self.conv1 = nn.Conv2d(channels, width, 7, stride=2, padding=3, bias=False)
            self.maxpool = nn.MaxPool2d(3, stride=2, padding=1)
        else:
            self.conv1 = nn.Conv2d(channels, width, 3, padding=1, bias=False)
            self.maxpool = nn.Identity()
        self.bn1 = nn.BatchNorm2d(width)
        self.layer1 = _stage(width, width, 1)
        self.layer2 = _stage(width, 2 * width, 2)
        self.layer3 = _stage(2 * width, 4 * width, 2)
        self.layer4 = _stage(4 * width, 8 * width, 2)
        self.fc = nn.Linear(8 * width, num_classes)
        self._initialise(zero_init_residual)

    def _initialise(self, zero_init_residual: bool) -> None:
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            elif isinstance(module, BasicBlock) and zero_init_residual:
                nn.init.zeros_(module.bn2.weight)

    def pre_logits(self, x: Tensor) -> Tensor:
        """The paper's f(x) [B, num_features]: the input of the last linear layer."""
        x = F.relu(self.bn1(self.conv1(self.normalise(x))), inplace=True)
        x = self.layer1(self.maxpool(x))  # [B, width, H, W], a quarter of H and W with "imagenet"
        x = self.layer4(self.layer3(self.layer2(x)))  # [B, 8 width, H/8, W/8]
        return x.mean(dim=(2, 3))

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.fc(self.pre_logits(x))
        return logits


resnet18 = ResNet18  # under torchvision's name


class ConvNet(nn.Sequential):
    """Three 3x3 convolutions: float images [B, C, H, W] → [B, num_classes], H and W at least 2.

    For images of a few pixels, such as 8x8 digits, on which it trains in seconds and which ResNet-18's
    strides would leave one position of. w, 2w and 2w channels, each convolution with batch
    normalisation and relu, max-pooling after the second; the features are the means of the four
    quarters of the image, 8w as ResNet-18's. mean and std are the normaliser's, one per channel.
    """

    def __init__(
        self,
        num_classes: int,
        *,
        width: int = 64,
        mean: Sequence[float] = IMAGENET_MEAN,
        std: Sequence[float] = IMAGENET_STD,
    ) -> None:
        if num_classes < 1 or width < 1:
            raise ValueError(
                "convnet: num_classes and width must be at least 1, "
                f"got num_classes={num_classes}, width={width}"
            )
        super().__init__(
            OrderedDict(
                normalise=Normalise(mean, std),
                stage1=_convolution(len(mean), width),
                stage2=_convolution(width, 2 * width),
                pool=nn.MaxPool2d(2),
                stage3=_convolution(2 * width, 2 * width),
                quarters=nn.AdaptiveAvgPool2d(2),
                flatten=nn.Flatten(),
                fc=nn.Linear(8 * width, num_classes),
            )
        )


def _convolution(in_channels: int, channels: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(in_channels, channels, 3, padding=1, bias=False),
        nn.BatchNorm2d(channels),
        nn.ReLU(inplace=True),
    )


def build_model(
    model: str | nn.Module,
    *,
    num_classes: int,
    image_size: int | Sequence[int],
    width: int = 64,
    channels: int = 3,
) -> nn.Module:
    """A model by name for images of image_size pixels, the side of a square or (height, width); an
    nn.Module passes through untouched.

    ``width`` is the number of channels of the first stage: of "resnet18", which has the small stem up
    to 64 pixels on the shorter side, ImageNet's above, and of "convnet", for images of a few pixels.
    "torchvision:NAME" and "timm:NAME" are those libraries' networks with fresh weights, behind ImageNet's
    normaliser. ``channels`` of other images than RGB are normalised by a mean of 0.5 and a standard
    deviation of 0.25 each. ValueError: unknown name, or torchvision's for other channels. ImportError:
    the library is not there.
    """
    if isinstance(model, nn.Module):
        return model
    if not isinstance(model, str):
        raise TypeError(
            f"build_model: model must be a name or an nn.Module, got {type(model).__name__}"
        )
    library, _, name = model.partition(":")
    if name and library in ("torchvision", "timm"):
        make = _of_torchvision if library == "torchvision" else _of_timm
        network = make(name, num_classes, channels)
        return nn.Sequential(
            OrderedDict(normalise=Normalise(*_statistics(channels)), network=network)
        )
    if model not in _MODELS:
        known = [*_MODELS, "torchvision:NAME", "timm:NAME"]
        raise ValueError(f"build_model: model {not_known(model, known)}; or pass any nn.Module")
    side = image_size if isinstance(image_size, int) else min(image_size)
    if side < 1:
        raise ValueError(f"build_model: image_size must be at least 1 pixel, got {image_size}")
    mean, std = _statistics(channels)
    if model == "convnet":
        return ConvNet(num_classes, width=width, mean=mean, std=std)
    stem: Any = "small" if side <= _SMALL_IMAGE_SIZE else "imagenet"
    return resnet18(num_classes, stem=stem, width=width, mean=mean, std=std)


def takes_channels(model: nn.Module) -> int | None:
    """How many channels its images have, by its first normaliser or convolution; None: not known."""
    for layer in model.modules():
        if isinstance(layer, Normalise):
            return layer.mean.shape[1]
        if isinstance(layer, nn.Conv2d):
            return layer.in_channels
    return None


def _statistics(channels: int) -> tuple[Sequence[float], Sequence[float]]:
    """Mean and standard deviation of the normaliser: ImageNet's of RGB, else some that do not favour a
    channel."""
    if channels == 3:
        return IMAGENET_MEAN, IMAGENET_STD
    return (0.5,) * channels, (0.25,) * channels


def _of_torchvision(name: str, num_classes: int, channels: int) -> nn.Module:
    if channels != 3:
        raise ValueError(
            f"build_model: networks of torchvision take RGB, and the images have {channels} channels; "
            "take resnet18, convnet or timm:NAME, or pass a module"
        )
    try:
        from torchvision import models
    except (ImportError, RuntimeError) as error:  # RuntimeError: built for another torch
        raise ImportError(f"torchvision:{name} needs torchvision, and {error}") from error
    _require_known(name, models.list_models(), "torchvision")
    network: nn.Module = models.get_model(name, weights=None, num_classes=num_classes)
    return network


def _of_timm(name: str, num_classes: int, channels: int) -> nn.Module:
    try:
        import timm
    except (ImportError, RuntimeError) as error:
        raise ImportError(f"timm:{name} needs timm (pip install timm), and {error}") from error
    _require_known(name, timm.list_models(), "timm")
    network: nn.Module = timm.create_model(
        name, pretrained=False, num_classes=num_classes, in_chans=channels
    )
    return network


def _require_known(name: str, known: Sequence[str], library: str) -> None:
    if name not in known:
        raise ValueError(f"build_model: {library} model {not_known(name, known)}")
