"""Query encoder and key encoder: a network, with a head on its features."""

from __future__ import annotations

import copy
from typing import Literal

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

from .._arrays import unit_rows, wide
from .._streams import random_stream
from ..layers import find_classifier, layer_name, logits_of
from ..perturbation import frozen_statistics


class Encoder(nn.Module):
    """x ↦ z = head(f(x))/‖head(f(x))‖, f the features of a network: the input of its classifier.

    ``backbone`` is the whole network, whose classifier (its last nn.Linear, if not given) learns beside
    the head, from features that carry no gradient: an online probe, which changes nothing of f. ``head``
    has two layers (MoCo v2), or one, and is drawn by ``seed`` alone.
    """

    def __init__(
        self,
        backbone: nn.Module,
        dim: int,
        seed: int,
        classifier: nn.Linear | None = None,
        *,
        layers: Literal[1, 2] = 2,
    ) -> None:
        super().__init__()
        classifier = find_classifier(backbone) if classifier is None else classifier
        self.backbone = backbone
        self.classifier = layer_name(backbone, classifier)
        self.width = classifier.in_features
        """F, of the features"""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            hidden = [nn.Linear(self.width, self.width), nn.ReLU()] if layers == 2 else []
            self.head = nn.Sequential(*hidden, nn.Linear(self.width, dim))

    def forward(self, x: Tensor, groups: int = 1) -> tuple[Tensor, Tensor]:
        """x [B, 3, H, W] → z [B, dim] of norm 1, logits [B, C].

        Each of ``groups`` neighbouring parts of x goes through the network by itself, as if it had a
        device of its own: batch normalisation sees no other.
        """
        passes = [self.features(part) for part in x.tensor_split(groups)]
        feature, logits = (torch.cat(parts) for parts in zip(*passes, strict=True))
        return unit_rows(wide(self.head(feature))), wide(logits)

    def features(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """f(x) [B, F], and the logits [B, C], whose gradient does not reach it."""
        seen: list[Tensor] = []

        def cut(_: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
            seen.append(args[0])
            return (args[0].detach(),)

        handle = self.backbone.get_submodule(self.classifier).register_forward_pre_hook(cut)
        try:
            logits = logits_of(self.backbone(x))
        finally:
            handle.remove()
        if len(seen) != 1:
            raise ValueError(
                f"the model called its last linear layer {self.classifier!r} {len(seen)} times in a "
                "pass, expected once: its input is the feature"
            )
        return seen[0].flatten(1), logits


class JigsawEncoder(Encoder):
    """Beside z of an image, what its P parts come to by the same network (PIRL): each has a linear head,
    and another takes what these give, one after the other.

    Running statistics are of the images' passes alone, for images are what is evaluated.
    """

    def __init__(
        self,
        backbone: nn.Module,
        dim: int,
        seed: int,
        classifier: nn.Linear | None = None,
        *,
        parts: int,
    ) -> None:
        super().__init__(backbone, dim, seed, classifier, layers=1)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(random_stream(seed, "jigsaw").initial_seed())
            self.part_head = nn.Linear(self.width, dim)
            self.jigsaw_head = nn.Linear(parts * dim, dim)

    def forward(  # type: ignore[override]
        self, x: Tensor, parts: Tensor, groups: int = 1
    ) -> tuple[Tensor, Tensor, Tensor]:
        """x [B, 3, H, W], parts [B, P, 3, h, w] → z [B, dim] and that of the parts, both of norm 1, and
        logits [B, C] of x. Groups are of the same images for both."""
        z, logits = super().forward(x, groups)
        with frozen_statistics(self.backbone, "batch"):
            passes = [self.features(some.flatten(0, 1))[0] for some in parts.tensor_split(groups)]
        together = self.part_head(torch.cat(passes)).view(len(x), -1)
        return z, unit_rows(wide(self.jigsaw_head(together))), logits


class KeyEncoder(nn.Module):
    """A copy of an encoder, head and all, whose weights follow it and carry no gradient.

    Buffers are its own: running statistics, of the keys' passes, which only frozen layers read. These
    are in eval mode for keys as for queries.
    """

    def __init__(self, encoder: Encoder, momentum: float) -> None:
        super().__init__()
        self.encoder = copy.deepcopy(encoder).requires_grad_(False)
        self._average = get_ema_multi_avg_fn(momentum)

    @torch.no_grad()
    def follow(self, encoder: Encoder) -> None:
        """θ_k ← m θ_k + (1 - m) θ_q, of parameters alone; and each layer in the mode of the other's."""
        self._average([*self.encoder.parameters()], [*encoder.parameters()], torch.ones(()))
        for ours, theirs in zip(self.encoder.modules(), encoder.modules(), strict=True):
            ours.training = theirs.training

    @torch.no_grad()
    def forward(self, x: Tensor, groups: int = 1) -> Tensor:
        """x [B, 3, H, W] → keys [B, dim] of norm 1."""
        z: Tensor = self.encoder(x, groups)[0]
        return z
