"""ℓ of pairs by the settings of a run: among the others of their batch, or among fixed ones."""

from __future__ import annotations

from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from .._precision import full_float32
from ..data.batches import batch_sizes
from ..training.schedule import in_steps
from .clip_losses import info_nce, sigmoid_loss
from .config import RetrievalConfig
from .hinges import all_scores, pair_scores
from .losses import Keys, max_hinge, negatives_among, sum_hinge
from .model import JointEmbedding

LossOfStep = Literal["max_hinge", "semi_hard", "sum_hinge", "info_nce", "sigmoid"]


class PairLosses:
    """What a run computes of embeddings. Which loss that is changes where a warm-up ends (:meth:`at`)."""

    def __init__(self, model: JointEmbedding, config: RetrievalConfig) -> None:
        self.model, self.config = model, config

    def at(self, step: int, per_epoch: int) -> LossOfStep:
        """The loss of the step after so many."""
        config = self.config
        if config.warmup_loss != "none" and step < in_steps(config.warmup_for, per_epoch):
            return config.warmup_loss
        return "semi_hard" if config.semi_hard else config.loss

    def of_sets(
        self,
        loss: LossOfStep,
        image: Tensor,
        caption: Tensor,
        group: Tensor,
        *,
        queue: Keys | None,
        each: bool,
    ) -> Tensor:
        """The losses of the pairs, whose negatives are those of their set, and of the queue: of each,
        [N], or their sum."""
        options: dict[str, Any] = {"queue": queue, "each": each}
        if self.config.negatives is None:
            return self._of_pairs(loss, image, caption, group, **options)
        sizes = batch_sizes(len(group), self.config.negatives, least=2)
        sets = zip(*(x.split(sizes) for x in (image, caption, group)), strict=True)
        losses = [self._of_pairs(loss, *one, **options) for one in sets]
        return torch.cat(losses) if each else torch.stack(losses).sum()

    def _of_pairs(
        self,
        loss: LossOfStep,
        image: Tensor,
        caption: Tensor,
        group: Tensor,
        *,
        queue: Keys | None,
        each: bool,
    ) -> Tensor:
        config, learned = self.config, self.model.learned
        if loss in ("info_nce", "sigmoid"):
            of: dict[str, Any] = {"group": group, "reduction": "none" if each else "mean"}
            if loss == "info_nce":
                found = info_nce(image, caption, temperature=(-learned["log_scale"]).exp(), **of)
            else:
                scale, bias = learned["log_scale"].exp(), learned["bias"]
                found = sigmoid_loss(image, caption, scale=scale, bias=bias, **of)
            return found if each else found * len(group)
        settings: dict[str, Any] = {
            "image_group": group,
            "caption_group": group,
            "margin": config.margin,
            "similarity": config.similarity,
            "reduction": "none" if each else "sum",
        }
        if loss == "sum_hinge":
            return sum_hinge(image, caption, **settings)
        return max_hinge(image, caption, semi_hard=loss == "semi_hard", queue=queue, **settings)

    def among(
        self, loss: LossOfStep, image: Tensor, caption: Tensor, group: Tensor, others: Keys
    ) -> Tensor:
        """The loss [B] that each pair has in a batch of its own, with ``others`` beside it.

        Of the pair alone, so that its gradient is too. Others of its group are left out; where all are,
        a hinge is 0.
        """
        config, learned = self.config, self.model.learned
        positive = pair_scores(image, caption, config.similarity)
        if loss in ("max_hinge", "semi_hard"):
            keys = others.image, others.caption, others.group, others.group
            below = positive.detach() if loss == "semi_hard" else None
            pairs, groups = (image, caption), (group, group)
            hardest = negatives_among(pairs, groups, keys, config.similarity, below)
            return torch.stack(hardest).add(config.margin - positive).relu().sum(0)
        with full_float32(image.device):
            of_image = all_scores(image, others.caption, config.similarity)[0]
            of_caption = all_scores(others.image, caption, config.similarity)[0].T
        scores = torch.stack((of_image, of_caption))  # [2, B, Q]
        scores = scores.masked_fill(group[:, None] == others.group, -torch.inf)
        if loss == "sum_hinge":
            return (scores + (config.margin - positive)[:, None]).relu().sum((0, 2))
        scale = learned["log_scale"].exp()
        if loss == "info_nce":
            all_of = torch.cat([positive.expand(2, -1)[..., None], scores], 2) * scale
            return all_of.logsumexp(2).mean(0) - positive * scale
        bias = learned["bias"]
        own = F.softplus(-(positive * scale + bias))
        return own + F.softplus(scores * scale + bias).sum((0, 2)) / 2
