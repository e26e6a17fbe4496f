"""Attacked images with what was added to them, as PNG within a data: address, which needs no file."""

from __future__ import annotations

import base64
import struct
import zlib
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..data.image_sets import as_picture
from .predictions import predict

_SHOWN = 2


def attack_pictures(
    model: nn.Module,
    x: Tensor,
    adversarial: Tensor,
    target: Tensor,
    broken: Tensor,
    classes: Sequence[str],
) -> list[dict[str, Any]]:
    """The first examples whose class the attack changed: image, attacked image, perturbation, spectrum.

    x and adversarial [N, C, H, W] in [0, 1], broken [N] bool: whose class changed. The perturbation is
    shown as ½ + δ / (2 max|δ|), the spectrum as log(1 + |Fδ| / mean|Fδ|), mean over channels,
    the zero frequency in the middle, its largest value white.
    """
    shown = broken.nonzero().flatten()[:_SHOWN].cpu()
    if not len(shown):
        return []
    x, adversarial, target = (tensor.detach().cpu()[shown] for tensor in (x, adversarial, target))
    predicted = predict(model, (adversarial, target)).logits.argmax(1)
    pictures = []
    for image, attacked, label, as_ in zip(
        x.float(), adversarial.float(), target, predicted, strict=True
    ):
        delta = attacked - image
        largest = delta.abs().max().clamp(min=torch.finfo(torch.float32).tiny)
        pictures.append(
            {
                "label": classes[label],
                "predicted": classes[as_],
                "largest_change": largest.item(),
                "image": png(as_picture(image)),
                "attacked": png(as_picture(attacked)),
                "delta": png(as_picture(0.5 + delta / (2 * largest))),
                "spectrum": png(spectrum(delta)),
            }
        )
    return pictures


def spectrum(delta: Tensor) -> Tensor:
    """log(1 + |Fδ| / mean|Fδ|) of delta [C, H, W], over its largest value: [H, W] in [0, 1]."""
    modulus = torch.fft.fftshift(torch.fft.fft2(delta.double(), norm="ortho"), dim=(1, 2)).abs()
    modulus = modulus.mean(0)
    shade = (modulus / modulus.mean().clamp(min=1e-300)).log1p()
    return shade / shade.max().clamp(min=1e-300)


def png(image: Tensor) -> str:
    """data: address of a PNG (ISO/IEC 15948) of an image [3, H, W], or a grey one [H, W], in [0, 1]."""
    grey = image.ndim == 2
    pixels = image[..., None] if grey else image.permute(1, 2, 0)  # [H, W, 1 or 3]
    height, width = pixels.shape[:2]
    data = (pixels.clamp(0, 1) * 255).round().to(torch.uint8).contiguous().numpy()
    rows = b"".join(b"\0" + row.tobytes() for row in data)  # each begins with its filter: none
    header = struct.pack(">IIBBBBB", width, height, 8, 0 if grey else 2, 0, 0, 0)
    parts = ((b"IHDR", header), (b"IDAT", zlib.compress(rows, 9)), (b"IEND", b""))
    file = b"\x89PNG\r\n\x1a\n" + b"".join(_chunk(name, content) for name, content in parts)
    return "data:image/png;base64," + base64.b64encode(file).decode("ascii")


def _chunk(name: bytes, content: bytes) -> bytes:
    return (
        struct.pack(">I", len(content))
        + name
        + content
        + struct.pack(">I", zlib.crc32(name + content))
    )
