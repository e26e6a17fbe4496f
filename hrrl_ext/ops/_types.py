from __future__ import annotations

from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.grad import conv2d_weight


class ConceptLoss(NamedTuple):
    """What :func:`hrrl_ext.ops.concept_cross_entropy` returns. Only ``loss`` carries a gradient."""

    loss: Tensor
    """[] what the model descends on: 1/B Σ_i (N/N_k) q_k ℓ_i."""
    concept_loss: Tensor
    """[K] what the adversary ascends on: ĝ_k = 1/B Σ_{i in k} (N/N_k) ℓ_i; 0 for an absent concept."""
    example_loss: Tensor
    """[B] ℓ_i, unweighted."""


class NearestCentre(NamedTuple):
    """What :func:`hrrl_ext.ops.rank1_assign` and :func:`hrrl_ext.ops.rank1_argmin` return.

    None of it carries a gradient.
    """

    assignment: Tensor
    """[B] int64 a_b, the cluster of each example; -1 where a number was not finite."""
    distance: Tensor
    """[B] float64 S_ba = ‖C_a - g_b‖², not weighted; NaN where the assignment is -1."""
    gap: Tensor
    """[B] float64 how far the next cluster is behind, over w_a (‖C_a‖² + ‖g_b‖²); inf for K = 1."""


Similarity = Literal["cosine", "order"]
"""Of an image f and a caption g: f · g, or -‖max(0, g - f)‖."""


class HardestNegatives(NamedTuple):
    """What :func:`hrrl_ext.ops.hardest_negatives` returns. The scores carry a gradient."""

    caption_index: Tensor
    """[I] int64 the hardest caption of each image; -1 where there is none."""
    caption_score: Tensor
    """[I] its score; -inf where there is none, NaN where one could not be compared."""
    image_index: Tensor
    """[C] int64 the hardest image of each caption."""
    image_score: Tensor
    """[C] its score."""


class HingeCoefficients(NamedTuple):
    """What :func:`hrrl_ext.ops.hinge_coefficients` returns. None of it carries a gradient."""

    loss: Tensor
    """[] the sum of all hinges, weighted."""
    coefficient: Tensor
    """[I, C] its derivative in each score; 0 within a group."""
    of_image: Tensor
    """[I] its derivative in image_below."""
    of_caption: Tensor
    """[C] its derivative in caption_below."""


class Convolution(NamedTuple):
    """The geometry of a two-dimensional convolution, zero padding."""

    kernel: tuple[int, int]
    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int] = (0, 0)
    dilation: tuple[int, int] = (1, 1)
    groups: int = 1

    def __call__(self, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        return F.conv2d(x, weight, bias, self.stride, self.padding, self.dilation, self.groups)


class LayerGradient(NamedTuple):
    """The gradients of B examples in one layer, G_i = Σ_t D_it A_itᵀ, by their factors.

    A linear layer has one position t; a convolution one per pixel of its output, where A_it is the
    patch that it read. With a bias, A_it ends in the 1 that the bias is multiplied with.
    """

    act: Tensor
    """what the layer read: [B, J], or [B, channels, H, W] for a convolution"""
    dout: Tensor
    """∂ Σ_i ℓ_i / ∂ (what it wrote): [B, O], or [B, channels, H', W']"""
    conv: Convolution | None = None
    bias: bool = False

    @property
    def shape(self) -> tuple[int, int, int]:
        """(G, O, J): groups, and outputs and inputs of each, the bias being an input."""
        groups, window = 1, 1
        if self.conv is not None:
            groups, window = self.conv.groups, self.conv.kernel[0] * self.conv.kernel[1]
        inputs = self.act.shape[1] // groups * window
        return groups, self.dout.shape[1] // groups, inputs + self.bias

    def part(self, rows: slice) -> LayerGradient:
        return self._replace(act=self.act[rows], dout=self.dout[rows])

    def materialize(self) -> Tensor:
        """G_i of every example, [B, G, O, J], without unfolding patches."""
        groups, outputs, _ = self.shape
        batch = len(self.act)
        if self.conv is None:
            ones = [torch.ones_like(self.act[:, :1])] if self.bias else []
            return (self.dout[:, :, None] * torch.cat([self.act, *ones], 1)[:, None])[:, None]
        if batch == 0:
            return self.act.new_zeros(0, *self.shape)
        # The weight gradient of one convolution with a group for every example (and group).
        formed = conv2d_weight(
            self.act.reshape(1, -1, *self.act.shape[2:]),
            (batch * groups * outputs, self.act.shape[1] // groups, *self.conv.kernel),
            self.dout.reshape(1, -1, *self.dout.shape[2:]),
            *self.conv[1:4],
            batch * groups,
        ).view(batch, groups, outputs, -1)
        if not self.bias:
            return formed
        constant = self.dout.flatten(2).sum(2).view(batch, groups, outputs, 1)
        return torch.cat([formed, constant], 3)


class Rank1Centre(NamedTuple):
    """Centres of K clusters in one layer, C_k = Σ_r d_kr c_krᵀ, one of them in each group."""

    centre_in: Tensor
    """c [G, K, R, J]"""
    centre_out: Tensor
    """d [G, K, R, O]"""
