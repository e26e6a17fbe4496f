"""Pairs as training and evaluation take them: images or features, captions as numbers of words."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from .._modes import evaluating
from .._streams import random_stream
from ..data import Augmentation
from ..data.batches import batch_sizes
from ..data.fetching import Fetcher
from ..data.image_sets import ImageSet, as_float
from ..processes import Processes
from .model import JointEmbedding
from .pairs import Pairs, as_features


class EncodedPairs:
    """Pairs on a device.

    Args:
        pairs: images, or features of them, with captions.
        texts: the captions as numbers of words, tokens [M, L] int64 and lengths [M] int64.
        precomputed: whether features that the pairs have are what the image encoder gives.
        num_workers, keep_gib: of the images, as for :class:`hrrl_ext.data.Batches`.
    """

    def __init__(
        self,
        pairs: Pairs,
        texts: tuple[Tensor, Tensor],
        *,
        device: torch.device,
        processes: Processes,
        precomputed: bool = False,
        num_workers: int = 0,
        keep_gib: float = 0.0,
    ) -> None:
        self.pairs, self.texts = pairs, texts
        self.device, self.processes = device, processes
        self.precomputed = precomputed
        self._source: Fetcher | Tensor
        if isinstance(pairs.images, ImageSet):
            options: dict[str, Any] = {"num_workers": num_workers, "keep_gib": keep_gib}
            self._source = Fetcher(pairs.images, device=device, processes=processes, **options)
        else:
            self._source = pairs.images.to(device)

    def compute_features(self, model: JointEmbedding, batch_size: int) -> None:
        """From here on has what the frozen encoder makes of the images, computed once, in their place."""
        if self.precomputed:
            return
        with evaluating(model):
            features = self.of_images(model.features, batch_size)
        self._source = as_features(features, self.pairs.name).to(self.device)
        self.precomputed = True

    def images(self, rows: list[Tensor]) -> Iterator[Tensor]:
        """Of each of the rows [B] images [B, 3, H, W] as the set has them, or features [B, F]."""
        source = self._source
        if isinstance(source, Fetcher):
            return source.batches(rows)
        return (source[at.to(self.device, non_blocking=True)] for at in rows)

    def captions(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Of the rows [B] tokens [B, L], L the largest length, and lengths [B], which stay on the CPU."""
        tokens, lengths = (text[rows] for text in self.texts)
        tokens = tokens[:, : int(lengths.max())]
        return tokens.to(self.device, non_blocking=True), lengths

    def of_images(self, network: Callable[[Tensor], Tensor], batch_size: int) -> Tensor:
        """What ``network`` makes of the images or features, [N, ...] float32."""

        def outputs(rows: list[Tensor]) -> Iterator[Tensor]:
            return (network(as_float(x)) for x in self.images(rows))

        return self._of_all(outputs, len(self.pairs.images), batch_size)

    def of_captions(self, network: Callable[[Tensor, Tensor], Tensor], batch_size: int) -> Tensor:
        """What ``network`` makes of the captions, [M, ...] float32."""

        def outputs(rows: list[Tensor]) -> Iterator[Tensor]:
            return (network(*self.captions(at)) for at in rows)

        return self._of_all(outputs, len(self.pairs), batch_size)

    @torch.no_grad()
    def _of_all(
        self, outputs: Callable[[list[Tensor]], Iterator[Tensor]], count: int, batch_size: int
    ) -> Tensor:
        """Each process of its part, where there is something for all of them to do."""
        shared = count >= self.processes.size
        part = self.processes.part(count) if shared else range(count)
        rows = torch.arange(part.start, part.stop).split(batch_size)
        mine = torch.cat([out.float() for out in outputs(list(rows))])
        return self.processes.whole(mine, count) if shared else mine


class PairBatches:
    """Epochs of mini-batches, each of which goes once through all captions, each with its image.

    A batch is images [B, 3, H, W] float32 in [0, 1] or features [B, F], tokens [B, L] int64, lengths [B]
    int64 on the CPU, and group [N] int64: that of each pair of the whole batch, of which this process has
    a part, in order. Items of one group are no negatives of each other. What else is known of the pairs,
    each of ``more`` [M], and their ``concept`` [M], follows in the same way.

    The order is a function of (seed, epoch), the augmentation of (seed, epoch, batch number): starting at
    any epoch or batch gives the same bits as getting there, and on several processes the pairs of a batch
    are those of one. A last batch with fewer than two pairs for each process joins the one before it.
    """

    def __init__(
        self,
        encoded: EncodedPairs,
        batch_size: int,
        *,
        seed: int = 0,
        augment: Augmentation | None = None,
        more: Sequence[Tensor] = (),
        concept: Tensor | None = None,
    ) -> None:
        self.encoded, self.seed, self.augment = encoded, seed, augment
        self._of_pairs = (encoded.pairs.caption_group, *more)
        self.concept = concept
        """Of each pair; another one from the next epoch on, where it is set."""
        self.processes, self.device = encoded.processes, encoded.device
        count, least = len(encoded.pairs), 2 * self.processes.size
        if min(batch_size, count) < least:
            raise ValueError(
                f"batch_size: every process needs at least two pairs of a batch, which has {batch_size} "
                f"pairs of {count} for {self.processes.size} of them; a pair alone has no negative"
            )
        self.sizes = batch_sizes(count, batch_size, least)
        """Pairs per batch, over all processes."""

    def __len__(self) -> int:
        """Batches per epoch."""
        return len(self.sizes)

    def epoch(self, epoch: int, start: int = 0) -> Iterator[tuple[Tensor, ...]]:
        """The batches of one epoch, from number ``start`` on."""
        generator = random_stream(self.seed, epoch, "order")
        order = torch.randperm(len(self.encoded.pairs), generator=generator)
        rows = order.split(self.sizes)[start:]
        parts = [self.processes.part(len(batch)) for batch in rows]
        mine = [batch[part.start : part.stop] for batch, part in zip(rows, parts, strict=True)]
        pairs = self.encoded.pairs
        of_pairs = self._of_pairs if self.concept is None else (*self._of_pairs, self.concept)
        images = self.encoded.images([pairs.owner[at] for at in mine])
        for number, (batch, at, part, x) in enumerate(
            zip(rows, mine, parts, images, strict=True), start
        ):
            if self.augment is not None:
                draws = random_stream(self.seed, epoch, number)
                x = self.augment(x, draws, part, len(batch))
            of_whole = [of[batch].to(self.device, non_blocking=True) for of in of_pairs]
            yield as_float(x), *self.encoded.captions(at), *of_whole
