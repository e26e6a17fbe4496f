"""InstDis and PIRL: a memory of the whole set in the place of MoCo's keys."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ..training import Move
from .losses import info_nce
from .memory import MemoryBank
from .recipe import Contrastive


class InstDis(Contrastive):
    """min_θ E ℓ(z(x_1; θ), m_i, negatives)   (Wu et al., CVPR 2018; with InfoNCE).

    A view of an image is to be like what the image was mapped to in epochs before. Negatives are entries
    of the memory, drawn for each step among the images that are not in its batch.
    """

    def begin(self) -> None:
        config, images, most = self.config, len(self.batches.images), max(self.batches.sizes)
        if most == images:
            raise ValueError(
                f"batch_size: {config.method} takes its negatives from the images that are not in the "
                f"batch, and one batch has all {images}; lower batch_size"
            )
        memory = MemoryBank(images, config.dim, config.memory_momentum, self.seed)
        self.memory = memory.to(self.batches.device)
        self._z: list[Tensor] = []

    @property
    def filled(self) -> bool:
        return self.done >= len(self.batches)

    def step(self, batch: tuple[Tensor, ...], move: Move) -> Tensor:
        *views, target, rows = batch
        count = len(rows) if move.examples is None else move.examples
        whole = self.processes.whole(rows, count)
        self._negatives = self.memory.drawn(self.config.queue, whole, self.seed, self.done)
        self._z.clear()
        self._groups = self._groups_of(move.config.accumulate)
        means = move(self.losses, *views, self.memory.entries[rows], target)  # θ moves
        z = self.processes.whole(torch.cat(self._z), count)
        self.memory.put(whole, z)  # after the loss, which compares with what is older
        return self._count(means)

    def losses(
        self, model: nn.Module, x: Tensor, _: Tensor, entry: Tensor, target: Tensor
    ) -> tuple[Tensor, Tensor]:
        """InfoNCE of some images with their entries, and the loss of the probe."""
        z, logits = model(x, self._groups)
        self._z.append(z.detach())
        return self._learned(self._compared(z, entry), z, logits, target)

    def _compared(self, z: Tensor, entry: Tensor) -> Tensor:
        return info_nce(z, entry, self._negatives, temperature=self.config.temperature)

    def state_dict(self) -> dict[str, Any]:
        return {"memory": self.memory.state_dict()} | super().state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        super().load_state_dict(state)
        self.memory.load_state_dict(state["memory"])


class PIRL(InstDis):
    """min_θ E [λ ℓ(z(parts of x_2; θ), m_i, ·) + (1 - λ) ℓ(z(x_1; θ), m_i, ·)]   (Misra and van der
    Maaten, CVPR 2020; with InfoNCE).

    The parts of an image, in an order by chance, are to be like the image; the memory is of images.
    """

    def losses(
        self, model: nn.Module, x: Tensor, parts: Tensor, entry: Tensor, target: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Both losses of some images, and that of the probe."""
        z, of_parts, logits = model(x, parts, self._groups)
        self._z.append(z.detach())
        share = self.config.jigsaw
        each = share * self._compared(of_parts, entry) + (1 - share) * self._compared(z, entry)
        return self._learned(each, z, logits, target)
