"""Fourier-linf: perturbations whose every Fourier coefficient is bounded (Faghri's thesis, Algorithm 4).

F is the unitary 2-D DFT of each channel (factor 1/√(HW)), so that ‖Fδ‖₂ = ‖δ‖₂.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from ...norms import Length, Norm

Band = Literal["low", "high"]

_CUT = 0.25
"""Cycles per pixel, half the Nyquist frequency: low frequencies up to it, high ones above."""
_ROUNDS = 16
"""Of alternating projections; docs/attacks.md has what they buy."""
_AIM = 1 - 1e-4
"""Part of the radius aimed at: rounding to float32 moves a coefficient by some 1e-6."""
_LEAK = 0.01
"""Bound outside the mask, in units of eps: what the box [0, 1] may spill. No step goes there."""


class FourierLinf(Norm):
    """max_i |(Fδ)_i| / m_i over all frequencies i of all channels; m = 1 without a mask.

    mask    [H, W] in torch.fft.fft2's order, m_i ≥ 0, with m_i = m_{-i} (else δ would not be real):
            frequency i is bounded by eps m_i. "low" and "high" are the frequencies up to and above
            0.25 cycles per pixel (Euclidean). None: all frequencies alike

    Dual: Σ_i m_i |(Fg)_i|. Steepest step: F⁻¹(m u) with u_i = (Fg)_i / |(Fg)_i|, 0 where (Fg)_i = 0;
    it is real because Fg is Hermitian.

    Clamping to [0, 1] leaves this ball. So the projections on the box and on the ball alternate, and
    what still exceeds the radius is shrunk towards x, which keeps it in the box: both constraints
    hold, at the price of a slightly smaller perturbation. Where
    m_i = 0 no step goes; there the clamp may leave up to eps / 100, enforced in the same way.
    """

    def __init__(self, mask: Tensor | Band | None = None) -> None:
        if isinstance(mask, Tensor):
            _check_mask(mask)
        elif mask not in (None, "low", "high"):
            raise ValueError(
                f"FourierLinf: mask must be [H, W], 'low', 'high' or None, got {mask!r}"
            )
        self.mask = mask
        self.name = "fourier" if mask is None else f"fourier-{mask}"
        if isinstance(mask, Tensor):
            self.name = "fourier-mask"

    def size(self, delta: Tensor, leak: float = _LEAK) -> Tensor:
        bound = self._half_mask(delta).clamp(min=leak)
        return (_dft(delta).abs() / bound).amax((1, 2, 3))

    def move(
        self, delta: Tensor, grad: Tensor, length: Length, low: Tensor, high: Tensor
    ) -> Tensor:
        scale = grad.abs().amax((1, 2, 3), keepdim=True)
        g = _dft(torch.where(scale > 0, grad / scale, 0.0))
        modulus = g.abs()
        # A coefficient that is 0 comes out of the FFT as rounding error, whose phase means nothing.
        floor = 8 * torch.finfo(grad.dtype).eps * modulus.amax((1, 2, 3), keepdim=True)
        phase = torch.where(modulus > floor, g / modulus, 0.0)
        return delta + length * _inverse(phase * self._half_mask(grad), grad)

    def project(self, delta: Tensor, eps: float, low: Tensor, high: Tensor) -> Tensor:
        bound = _AIM * eps * self._half_mask(delta)
        for _ in range(_ROUNDS):
            spectrum = _dft(delta.clamp(low, high))
            modulus = spectrum.abs().clamp(min=torch.finfo(delta.dtype).tiny)
            delta = _inverse(spectrum * (bound / modulus).clamp(max=1), delta)
        delta = delta.clamp(low, high)
        shrink = (_AIM * eps / self.size(delta, 0.9 * _LEAK)).clamp(max=1)
        return delta * shrink.view(-1, 1, 1, 1)

    def _half_mask(self, like: Tensor) -> Tensor:
        """The mask over the frequencies that rfft2 keeps, [H, W // 2 + 1]."""
        height, width = like.shape[2:]
        if isinstance(self.mask, Tensor):
            if self.mask.shape != (height, width):
                raise ValueError(
                    f"FourierLinf: the mask must be [{height}, {width}] like the images, "
                    f"got {list(self.mask.shape)}"
                )
            return self.mask[:, : width // 2 + 1].to(like)
        if self.mask is None:
            return like.new_ones(height, width // 2 + 1)
        rows = torch.fft.fftfreq(height, device=like.device)
        columns = torch.fft.rfftfreq(width, device=like.device)
        low = rows[:, None].square() + columns.square() <= _CUT**2
        return (low if self.mask == "low" else ~low).to(like.dtype)


def check_precision(where: str, norm: Norm, dtype: torch.dtype) -> None:
    """ValueError: images of this dtype are too coarse for the norm."""
    if isinstance(norm, FourierLinf) and dtype.itemsize < 4:
        raise ValueError(
            f"{where}: norm {norm.name!r} needs float32 images, got {dtype}: rounding to it moves every "
            "Fourier coefficient by a good part of eps; use model.float() and x.float(), or other norms"
        )


def _dft(delta: Tensor) -> Tensor:
    """[N, C, H, W] → [N, C, H, W // 2 + 1] complex: the rest are conjugates of these."""
    return torch.fft.rfft2(delta, norm="ortho")


def _inverse(spectrum: Tensor, like: Tensor) -> Tensor:
    return torch.fft.irfft2(spectrum, s=like.shape[2:], norm="ortho")


def _check_mask(mask: Tensor) -> None:
    if mask.ndim != 2 or not mask.is_floating_point():
        raise ValueError(
            f"FourierLinf: mask must be [H, W] and float, got {list(mask.shape)} {mask.dtype}"
        )
    if not (mask.isfinite().all() and (mask >= 0).all()):
        raise ValueError("FourierLinf: mask must be finite and not negative")
    mirrored = mask.flip((0, 1)).roll((1, 1), (0, 1))  # m_{-i}, indices modulo H and W
    if not torch.equal(mask, mirrored):
        i, j = (mask != mirrored).nonzero()[0].tolist()
        raise ValueError(
            f"FourierLinf: mask must have m_i = m_-i, else δ is not real; at [{i}, {j}] it is "
            f"{mask[i, j]:g}, at its mirror {mirrored[i, j]:g}; take (m + mirrored) / 2"
        )
