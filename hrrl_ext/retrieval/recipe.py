"""Joint embeddings by their hardest negatives, as the training loop takes it."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from .._modes import evaluating
from .._tables import one_line
from ..data.batches import batch_sizes
from ..processes import Processes
from ..training import Recipe
from ..training.recipe import Row
from ..training.schedule import in_steps
from .batches import EncodedPairs, PairBatches
from .config import RetrievalConfig
from .losses import info_nce, max_hinge, sigmoid_loss, sum_hinge
from .measures import CUTS, Retrieval, evaluate, summary
from .model import JointEmbedding
from .ranks import scores
from .saved import described

_LEAST_SPREAD = 1e-4
_LOOKED_AT = 128  # pairs whose scores are looked at


class VSE(Recipe):
    """min_θ Σ_(i,c) ℓ(i, c; θ), the negatives of a pair being others of its batch   (thesis, Eq. 3.4).

    Args:
        model: on its device, as it is trained.
        batches: what it is trained on.
        validation: what it is measured on, if on anything.
        batch_size: images, and captions, that are embedded at once in evaluation.
        concepts: of each validation image, its name.
    """

    chosen = "rsum"
    advice = (
        "Lower lr; begin with warmup_loss='semi_hard' or 'sum_hinge'; or train with freeze=True first, "
        "and fine-tune from there by init."
    )
    whole_batch = (
        "the negatives of a pair are all others of its batch, and a part of it has fewer; lower "
        "batch_size, or share the batch among processes, which gather their negatives"
    )

    def __init__(
        self,
        model: JointEmbedding,
        batches: PairBatches,
        validation: EncodedPairs | None,
        config: RetrievalConfig,
        processes: Processes,
        *,
        batch_size: int,
        concepts: Sequence[str] | None = None,
    ) -> None:
        self.model, self.batches, self.config = model, batches, config
        self.validation, self.processes = validation, processes
        self.batch_size, self.concepts = batch_size, concepts
        self.done = 0
        """Steps of the run."""
        self._steps = 0  # of the epoch
        self._loss = torch.zeros((), dtype=torch.float64, device=batches.device)  # of its pairs
        self._last = torch.zeros_like(self._loss)  # per pair, of the last step
        self._warned = False
        self._pairs: tuple[Tensor, Tensor] | None = None  # of the last step

    # --- one step

    def step(self, batch: tuple[Tensor, ...], move: Callable[..., Tensor]) -> Tensor:
        """Encodes both sides, finds the negatives, moves θ; returns the mean loss of a pair []."""
        loss = move(self.losses, *batch)
        self._loss += loss.double() * len(batch[-1])
        self._last = loss
        self._steps += 1
        self.done += 1
        return loss

    def losses(
        self, model: nn.Module, images: Tensor, tokens: Tensor, lengths: Tensor, group: Tensor
    ) -> tuple[Tensor, Tensor]:
        """The loss of the whole batch, that is of all processes, and its mean over the pairs.

        Every process has the same embeddings, hence the same loss; what it sends back reaches those
        that made them.
        """
        image, caption = (
            self.processes.whole(x, len(group))
            for x in model(images, tokens, lengths, precomputed=self.batches.encoded.precomputed)
        )
        self._pairs = image.detach()[:_LOOKED_AT], caption.detach()[:_LOOKED_AT]
        with torch.autocast(image.device.type, enabled=False):
            total = self._of_sets(image, caption, group)
        mean = total / len(group)
        summed = self.config.hinge and self.config.reduction == "sum"
        return total if summed else mean, mean.detach()

    def _of_sets(self, image: Tensor, caption: Tensor, group: Tensor) -> Tensor:
        """The sum of the pairs' losses, whose negatives are those of their set."""
        if self.config.negatives is None:
            return self._of_pairs(image, caption, group)
        sizes = batch_sizes(len(group), self.config.negatives, least=2)
        sets = zip(*(x.split(sizes) for x in (image, caption, group)), strict=True)
        return torch.stack([self._of_pairs(*one) for one in sets]).sum()

    def _of_pairs(self, image: Tensor, caption: Tensor, group: Tensor) -> Tensor:
        config, learned = self.config, self.model.learned
        if config.loss == "info_nce":
            temperature = (-learned["log_scale"]).exp()
            return info_nce(image, caption, group=group, temperature=temperature) * len(group)
        if config.loss == "sigmoid":
            scale, bias = learned["log_scale"].exp(), learned["bias"]
            return sigmoid_loss(image, caption, group=group, scale=scale, bias=bias) * len(group)
        begins = self.done < in_steps(config.warmup_for, len(self.batches))
        warmup = config.warmup_loss if begins else "none"
        settings: dict[str, Any] = {
            "image_group": group,
            "caption_group": group,
            "margin": config.margin,
            "similarity": config.similarity,
        }
        if config.loss == "sum_hinge" or warmup == "sum_hinge":
            return sum_hinge(image, caption, **settings)
        semi_hard = config.semi_hard or warmup == "semi_hard"
        return max_hinge(image, caption, semi_hard=semi_hard, **settings)

    # --- what it reports

    def check(self, where: str) -> None:
        """The loss of the last step, and whether its embeddings have become one point."""
        loss = self._last.item()
        if not torch.isfinite(self._last):
            raise FloatingPointError(f"the loss is not finite in {where}")
        assert self._pairs is not None
        spread = scores(*self._pairs, self.config.similarity).std().item()
        found = (
            f"in {where} the scores of a batch have a spread of {spread:.1g} only, and a pair a loss of "
            f"{loss:.4g}, with a margin of {self.config.margin:g}"
        )
        if spread < _LEAST_SPREAD:
            raise FloatingPointError(f"the embeddings have collapsed: {found}")
        self._warn_of_collapse(loss, spread, found)

    def _warn_of_collapse(self, loss: float, spread: float, found: str) -> None:
        """Once, where both hinges of a pair have come to be the margin: its own score is that of its
        hardest negatives. Training leaves it again, or not."""
        near = abs(loss / 2 - self.config.margin) < 0.01 * self.config.margin
        if self._warned or self.config.loss != "max_hinge" or not near or spread > 0.01:
            return
        self._warned = True
        warnings.warn(
            f"{found}: the hardest negatives hold the embeddings near one point, where training is slow, "
            f"or stays. {self.advice}",
            stacklevel=4,
        )

    def running(self) -> str:
        return f"loss {self._mean():.3f}"

    def row(self, measured: Row) -> dict[str, Any]:
        row = {"loss": self._mean()} | dict(measured)
        self._loss, self._steps = torch.zeros_like(self._loss), 0
        return row

    def line(self, row: Row) -> str:
        parts = [f"loss {row['loss']:.3f}"] if "loss" in row else []
        if "rsum" in row:
            parts.append(f"rsum {row['rsum']:.1f}")
            for name, words in (("i2t", "captions"), ("t2i", "images")):
                recalls = " ".join(f"{row[f'{name}_r{k}']:.1f}" for k in CUTS)
                parts.append(f"{words} {recalls} (rank {row[f'{name}_median']:g})")
        if "concept_rsum" in row:
            of = row["concept_rsum"]
            worst = min(of, key=lambda name: of[name])
            parts.append(f"worst concept {of[worst]:.1f} ({worst})")
        return one_line("  ".join(parts))

    def evaluate(self, model: nn.Module) -> dict[str, Any]:
        """Recall, median rank and rsum on the validation pairs, in both directions; rsum by concept."""
        if self.validation is None:
            return {}
        assert isinstance(model, JointEmbedding)
        encoded, pairs = self.validation, self.validation.pairs
        with evaluating(model):
            encode_image = partial(model.encode_image, precomputed=encoded.precomputed)
            image = encoded.of_images(encode_image, self.batch_size)
            caption = encoded.of_captions(model.encode_text, self.batch_size)
        if not (image.isfinite().all() and caption.isfinite().all()):
            raise FloatingPointError(
                f"embeddings of the validation pairs are not finite. {self.advice}"
            )
        groups = pairs.image_group, pairs.caption_group
        found = evaluate(image, caption, *groups, similarity=model.compared)
        return found.measures | self._by_concept(found)

    def _by_concept(self, found: Retrieval) -> dict[str, Any]:
        """rsum of each concept's queries; the concept of a caption is that of the image it came with."""
        if self.concepts is None or self.validation is None:
            return {}
        of_image = np.array(self.concepts)
        of_caption = of_image[self.validation.pairs.owner.numpy()]
        by_concept = {
            str(name): summary(
                found.i2t_rank[of_image == name], found.t2i_rank[of_caption == name]
            )["rsum"]
            for name in np.unique(of_image)
        }
        return {"worst_concept_rsum": min(by_concept.values()), "concept_rsum": by_concept}

    def _mean(self) -> float:
        """Loss of a pair in the epoch so far."""
        return self._loss.item() / sum(self.batches.sizes[: self._steps])

    # --- its state

    def description(self) -> dict[str, Any]:
        pairs = self.batches.encoded.pairs
        return {
            **described(self.model),
            "data": pairs.name,
            "images": len(pairs.images),
            "captions": len(pairs),
            "words": None if self.model.words is None else len(self.model.words),
        }

    def state_dict(self) -> dict[str, Any]:
        return {"steps": (self.done, self._steps), "loss": self._loss}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.done, self._steps = state["steps"]
        self._loss = state["loss"].to(self._loss)
