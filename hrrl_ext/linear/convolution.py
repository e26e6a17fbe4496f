"""Linear convolutional networks, and the classifier that each of them is (Faghri's thesis, section 5.3).

    φ(x; w_1, ..., w_L) = w_Lᵀ (w_{L-1} ⋆ ... (w_1 ⋆ x)),      [w ⋆ x]_i = 1/√d Σ_k w_k x_{i-k}

with indices modulo d and filters as long as the input. F is the unitary DFT, F(w ⋆ x) = F(w) F(x), hence

    φ(x) = w·x,      w = w_L ⋆ flip(w_{L-1}) ⋆ ... ⋆ flip(w_1),      [flip v]_i = v_{-i},
    F(w) = F(w_L) conj(F(w_{L-1})) ... conj(F(w_1)).

Gradient descent on θ = (w_1, ..., w_L) with the exponential loss is biased to the least ‖F(w)‖_{2/L}
(Gunasekar et al., NeurIPS 2018): for L = 2 that is fourier-l1, and the classifier is maximally robust to
Fourier-linf; for L > 2 it is a quasi-norm, and the limit a stationary point.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from .._streams import random_stream
from .losses import TailLoss, tail_loss
from .risk import checked_rows


def circular_convolution(w: Tensor, x: Tensor) -> Tensor:
    """w ⋆ x [..., d], of w and x [..., d] that broadcast."""
    product = torch.fft.rfft(w, norm="ortho") * torch.fft.rfft(x, norm="ortho")
    return torch.fft.irfft(product, n=x.shape[-1], norm="ortho")


def linearised(filters: Tensor) -> Tensor:
    """The w [..., d] with φ(x) = w·x, of filters [..., L, d], the first layer first."""
    _, spectrum = _factors(filters)
    return torch.fft.irfft(spectrum, n=filters.shape[-1], norm="ortho")


def fourier_quasi_norm(w: Tensor, layers: int) -> Tensor:
    """‖F(w)‖_{2/L} [...] of w [..., d]: for L = 2 fourier-l1, for L = 1 l2; no norm for L > 2."""
    if layers < 1:
        raise ValueError(f"fourier_quasi_norm: layers must be at least 1, got {layers}")
    moduli, p = torch.fft.fft(w, norm="ortho").abs(), 2 / layers
    scale = moduli.amax(-1, keepdim=True)
    relative = moduli / torch.where(scale > 0, scale, 1.0)  # powers of what is at most 1
    return scale.squeeze(-1) * (relative**p).sum(-1) ** (1 / p)


class LinearConvolution(nn.Module):
    """φ [N] of inputs [N, d], layer by layer.

    Args:
        d: length of the input and of every filter, odd or even.
        layers: L; with 1 it is a linear classifier.
        scale: filters begin as normal noise of this norm, about.
    """

    def __init__(self, d: int, layers: int = 2, *, scale: float = 1.0, seed: int = 0) -> None:
        super().__init__()
        self.filters = nn.Parameter(initial_filters(d, layers, scale=scale, seed=seed).float())

    def forward(self, x: Tensor) -> Tensor:
        for w in self.filters[:-1]:
            x = circular_convolution(w, x)
        return x @ self.filters[-1]

    def linear(self) -> Tensor:
        """The w [d] with φ(x) = w·x."""
        return linearised(self.filters)


def initial_filters(d: int, layers: int, *, scale: float = 1.0, seed: int = 0) -> Tensor:
    """[L, d] float64, entries N(0, scale²/d), of a stream of their own."""
    if d < 1 or layers < 1:
        raise ValueError(f"filters must be [layers, d] of at least 1 each, got [{layers}, {d}]")
    noise = torch.randn(layers, d, generator=random_stream(seed, "filters"), dtype=torch.float64)
    return noise * (scale / d**0.5)


@dataclass(frozen=True)
class ConvolutionRisk:
    """mean_i ζ(φ(a_i; θ)), θ [P, R, L d] the filters one after the other; for :func:`descend`.

    The gradient, in the Fourier domain: with F(w) = Π_l h_l, h_L = F(w_L) and h_l = conj(F(w_l)) before
    it, that of h_l is F(∇_w f) Π_{k≠l} conj(h_k), and that of F(w_l) its conjugate where h_l is one.
    """

    rows: Tensor
    loss: TailLoss
    layers: int

    def linear(self, theta: Tensor) -> Tensor:
        return linearised(self._filters(theta))

    def __call__(self, theta: Tensor) -> tuple[Tensor, Tensor]:
        filters = self._filters(theta)
        factors, spectrum = _factors(filters)
        d = filters.shape[-1]
        m = torch.fft.irfft(spectrum, n=d, norm="ortho") @ self.rows.mT
        rise = torch.fft.rfft(self.loss.log_shares(m) @ self.rows, norm="ortho")
        of_layers = []
        for layer in range(self.layers):
            own = rise
            for other in range(self.layers):
                if other != layer:
                    own = own * factors[other].conj()
            of_layers.append(own if layer == self.layers - 1 else own.conj())
        gradient = torch.fft.irfft(torch.stack(of_layers, -2), n=d, norm="ortho")
        return self.loss.log_value(m), gradient.flatten(-2)

    def _filters(self, theta: Tensor) -> Tensor:
        return theta.unflatten(-1, (self.layers, -1))


def convolution_risk(
    rows: Tensor, layers: int = 2, loss: str | TailLoss = "exponential"
) -> ConvolutionRisk:
    """:class:`ConvolutionRisk` of signed rows [n, d] or [P, n, d]."""
    rows = checked_rows("convolution_risk", rows)
    if layers < 1:
        raise ValueError(f"convolution_risk: layers must be at least 1, got {layers}")
    return ConvolutionRisk(rows, tail_loss(loss), layers)


def _factors(filters: Tensor) -> tuple[list[Tensor], Tensor]:
    """h_1, ..., h_L and their product F(w), over the frequencies that rfft keeps."""
    spectra = torch.fft.rfft(filters, norm="ortho")
    *first, last = spectra.unbind(-2)
    factors = [spectrum.conj() for spectrum in first] + [last]
    product = factors[0]
    for factor in factors[1:]:
        product = product * factor
    return factors, product
