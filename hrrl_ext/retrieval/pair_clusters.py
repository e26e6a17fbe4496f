"""Clusters of the gradients of pairs, each of which has a loss of its own for it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from .._modes import evaluating
from .._streams import random_stream
from ..clustering import DiscoveredConcepts
from ..clustering.discovered import Discovery
from ..clustering.layers import check_independence
from .batches import EncodedPairs
from .losses import Keys
from .pair_losses import LossOfStep, PairLosses


class PairExamples(nn.Module):
    """From numbers of pairs [B] to their embeddings f and g, for :class:`GradientClustering`.

    In a batch the loss of a pair is also that of the others, which are its negatives. Here all pairs
    have the same negatives, of fixed embeddings: pairs that are drawn once, by the seed, and embedded as
    a clustering begins. Its layers are those that both sides end in, W_f and W_g; what these read, φ and
    ψ, is computed once for all rounds of a clustering (:meth:`held`).

    Args:
        losses: of the network.
        encoded: the pairs.
        negatives: how many, at most all pairs.
        batch_size: images, and captions, that are encoded at once.
        seed: of the draw.
    """

    def __init__(
        self,
        losses: PairLosses,
        encoded: EncodedPairs,
        *,
        negatives: int,
        batch_size: int,
        seed: int,
    ) -> None:
        super().__init__()
        model = losses.model
        with evaluating(model):
            check_independence(model)
        self.project_image, self.project_text = model.project_image, model.project_text
        self._losses, self._encoded, self._batch_size = losses, encoded, batch_size
        pairs, device = encoded.pairs, encoded.device
        self._owner, self._group = pairs.owner.to(device), pairs.caption_group.to(device)
        draws = random_stream(seed, "negatives")
        self._drawn = torch.randperm(len(pairs), generator=draws)[:negatives].to(device)
        self._read: tuple[Tensor, Tensor] | None = None  # φ [N, F] and ψ [M, W], while held
        self._others: Keys | None = None
        self._loss_of_step: LossOfStep = "max_hinge"

    @contextmanager
    def held(self, loss: LossOfStep) -> Iterator[tuple[Tensor, Tensor]]:
        """The data of a clustering at the model's present weights: pairs [M] by number, and their groups,
        which :meth:`loss` takes. In eval mode, without augmentation and perturbation."""
        model, encoded = self._losses.model, self._encoded
        features = nn.Identity() if encoded.precomputed else model.features
        try:
            with evaluating(model):
                of_images = encoded.of_images(features, self._batch_size)
                self._read = of_images, encoded.of_captions(model.text_encoder, self._batch_size)
                image, caption = self(self._drawn)
            self._others = Keys(image, caption, self._group[self._drawn])
            self._loss_of_step = loss
            yield torch.arange(len(self._group)), self._group
        finally:
            self._read = self._others = None

    def forward(self, pair: Tensor) -> tuple[Tensor, Tensor]:
        assert self._read is not None
        model, (features, states) = self._losses.model, self._read
        image = model.encode_image(features[self._owner[pair]], precomputed=True)
        return image, model.encode_state(states[pair])

    def loss(self, embeddings: Any, group: Tensor) -> Tensor:
        """[B] of each pair by itself."""
        assert self._others is not None
        image, caption = embeddings
        return self._losses.among(self._loss_of_step, image, caption, group, self._others)


class PairClusters(Discovery):
    """The clustering of pairs that a trainer repeats, and its clusters as their concepts.

    Arguments as of :class:`PairExamples`; ``settings`` have the seed.
    """

    def __init__(
        self,
        settings: DiscoveredConcepts,
        losses: PairLosses,
        encoded: EncodedPairs,
        *,
        negatives: int,
        batch_size: int,
    ) -> None:
        of: dict[str, Any] = {"negatives": negatives, "seed": settings.seed}
        self.examples = PairExamples(losses, encoded, batch_size=batch_size, **of)
        super().__init__(settings, self.examples, batch_size=batch_size, loss=self.examples.loss)

    def find_pairs(self, loss: LossOfStep, report: Callable[[str], None] | None = None) -> None:
        """:meth:`find`, of all pairs at the model's present weights."""
        with self.examples.held(loss) as pairs:
            self.find(pairs, report)
