"""Momentum contrast (MoCo v2)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from .._streams import random_stream
from ..training import Move
from .encoder import KeyEncoder
from .losses import info_nce
from .queue import KeyQueue
from .recipe import Contrastive


class MoCo(Contrastive):
    """min_θ E ℓ(z(x_1; θ), z(x_2; θ_k), queue)   (He et al., 2020; Chen et al., 2020; URRL, Eq. 1).

    The positive is the other view's key, by an encoder that follows; negatives are keys of the last
    batches.
    """

    against_collapse = "Lower lr, or raise key_momentum"

    def begin(self) -> None:
        self.keys = KeyEncoder(self.model, self.config.key_momentum)
        queue = KeyQueue(self.config.queue, self.config.dim, self.seed)
        self.queue = queue.to(self.batches.device)

    @property
    def filled(self) -> bool:
        return self.seen >= self.config.queue

    def step(self, batch: tuple[Tensor, ...], move: Move) -> Tensor:
        query_view, key_view, target, *_ = batch
        self.keys.follow(self.model)  # θ_k ← m θ_k + (1 - m) θ_q
        mine, keys = self._encoded(key_view, move)
        self._groups = self._groups_of(move.config.accumulate)
        means = move(self.losses, query_view, mine, target)  # against the queue; θ_q moves
        self.queue.put(keys)  # after the logits: no key is a negative of its own step
        return self._count(means)

    def losses(
        self, model: nn.Module, x: Tensor, key: Tensor, target: Tensor
    ) -> tuple[Tensor, Tensor]:
        """InfoNCE of some queries, and the loss of the probe."""
        z, logits = model(x, self._groups)
        each = info_nce(z, key, self.queue.keys, temperature=self.config.temperature)
        return self._learned(each, z, logits, target)

    def _encoded(self, view: Tensor, move: Move) -> tuple[Tensor, Tensor]:
        """Keys of this process's images, and of the whole batch [B, dim].

        They are shuffled before they are parted into groups, over all processes, so that a key shares
        its group with other images than its query does; then put back in order.
        """
        count = len(view) if move.examples is None else move.examples
        stream = random_stream(self.seed, "shuffle", self.done)
        order = torch.randperm(count, generator=stream).to(view.device, non_blocking=True)
        part = self.processes.part(count)
        here = slice(part.start, part.stop)
        self.processes.agree(self.keys.buffers())
        with torch.no_grad(), move.autocast():
            shuffled = self.processes.whole(view, count)[order[here]]
            keys = self.keys(shuffled, self._groups_of(1))
        keys = self.processes.whole(keys, count)[order.argsort()]
        return keys[here], keys

    def state_dict(self) -> dict[str, Any]:
        of_keys = {"keys": self.keys.state_dict(), "queue": self.queue.state_dict()}
        return of_keys | super().state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        super().load_state_dict(state)
        self.keys.load_state_dict(state["keys"])
        self.queue.load_state_dict(state["queue"])
