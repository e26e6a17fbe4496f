"""The pictures of attacks: PNGs decoded by hand and by Pillow, spectra of known waves, the right images."""

from __future__ import annotations

import base64
import io
import struct
import zlib

import numpy as np
import pytest
import stand_ins
import torch
from test_evaluate import DIGITS, network

from hrrl_ext.evaluation import evaluate
from hrrl_ext.evaluation.config import drawn
from hrrl_ext.evaluation.pictures import png, spectrum


def decoded(address: str) -> np.ndarray:
    """By hand, chunk by chunk: [H, W, channels] uint8."""
    kind, _, text = address.partition(",")
    assert kind == "data:image/png;base64"
    file = base64.b64decode(text)
    assert file[:8] == b"\x89PNG\r\n\x1a\n"
    chunks, at = {}, 8
    while at < len(file):
        (length,) = struct.unpack(">I", file[at : at + 4])
        name, content = file[at + 4 : at + 8], file[at + 8 : at + 8 + length]
        assert struct.unpack(">I", file[at + 8 + length : at + 12 + length])[0] == zlib.crc32(
            name + content
        )
        chunks[name], at = content, at + 12 + length
    width, height, depth, colour = struct.unpack(">IIBB", chunks[b"IHDR"][:10])
    channels = {0: 1, 2: 3}[colour]
    rows = np.frombuffer(zlib.decompress(chunks[b"IDAT"]), np.uint8).reshape(height, -1)
    assert depth == 8
    assert not rows[:, 0].any()
    return rows[:, 1:].reshape(height, width, channels)


@pytest.mark.parametrize("shape", [(3, 5, 7), (3, 1, 1), (4, 3), (3, 3, 3)])
def test_png(shape: tuple[int, ...]) -> None:
    levels = torch.randint(0, 256, shape, generator=torch.Generator().manual_seed(0))
    image = levels.double() / 255
    pixels = levels[..., None] if len(shape) == 2 else levels.permute(1, 2, 0)
    assert np.array_equal(decoded(png(image)), pixels.numpy())
    assert decoded(png(image + 9)).min() == 255  # clamped
    pillow = pytest.importorskip("PIL.Image")
    opened = pillow.open(io.BytesIO(base64.b64decode(png(image).partition(",")[2])))
    assert np.array_equal(
        np.asarray(opened), pixels.numpy().squeeze(-1) if len(shape) == 2 else pixels
    )


def test_the_spectrum_of_a_wave_is_two_points() -> None:
    """cos(2π (2y)/8): ±2 cycles down, none across; the constant is in the middle."""
    wave = torch.cos(2 * torch.pi * 2 * torch.arange(8.0, dtype=torch.float64) / 8)[
        None, :, None
    ].expand(3, 8, 6)
    bright = (spectrum(wave) > 1e-6).nonzero().tolist()
    assert bright == [[2, 3], [6, 3]]
    assert (spectrum(torch.ones(3, 8, 6)) > 1e-6).nonzero().tolist() == [[4, 3]]
    assert spectrum(torch.zeros(3, 4, 4)).abs().max() == 0
    assert spectrum(1e-30 * wave).max() == 1


def test_pictures_are_of_the_images_that_broke(monkeypatch: pytest.MonkeyPatch) -> None:
    stand_ins.install(monkeypatch)
    model = network()
    report = evaluate(
        model, DIGITS, attacks=["linf:30/255"], corruptions=["none"], attack_points=50
    )
    (attack,) = report.attacks
    images = DIGITS.subset(drawn(len(DIGITS), 50, 0))
    result = stand_ins.evaluate_attack(model, images.images / 255, images.target, "linf:30/255")
    broken = (result.clean & ~result.survived).nonzero().flatten()
    assert len(broken) >= 2
    for picture, row in zip(attack["pictures"], broken.tolist(), strict=False):
        assert picture["label"] == str(int(images.target[row]))
        assert picture["predicted"] != picture["label"]
        assert np.array_equal(
            decoded(picture["image"]), images.images[row].permute(1, 2, 0).numpy()
        )
        assert picture["largest_change"] == pytest.approx(30 / 255, rel=1e-5)
        delta = (result.adversarial[row] - images.images[row] / 255).permute(1, 2, 0).numpy()
        grey = 127.5 + 127.5 * delta / np.abs(delta).max()  # half a level of rounding at most
        assert np.abs(decoded(picture["delta"]) - grey).max() < 0.501
    assert len(attack["pictures"]) == 2
