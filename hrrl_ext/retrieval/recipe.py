"""Joint embeddings by their hardest negatives, as the training loop takes it."""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .. import ops
from .._arrays import labels_digest
from .._modes import evaluating
from .._precision import full_float32
from .._tables import one_line
from ..clustering import DiscoveredConcepts
from ..concept_weights import CALIBRATION_BATCHES
from ..data.columns import sorted_names
from ..data.image_sets import as_float
from ..data.unreadable import left_out
from ..perturbation import frozen_statistics, gradient_in
from ..processes import Processes
from ..training import Move, Recipe
from ..training.draws import without_trace
from ..training.opening import measured_on
from ..training.progress import Progress
from ..training.recipe import Row, named_step
from .batches import EncodedPairs, PairBatches
from .collapse import WATCHED, CollapseWatch, Seen
from .concept_level import ConceptLevel
from .config import RetrievalConfig
from .measures import CUTS, Retrieval, evaluate, summary
from .model import JointEmbedding
from .pair_clusters import PairClusters
from .pair_losses import LossOfStep, PairLosses
from .pair_queue import PairQueue
from .pairs import Pairs
from .saved import described

_LOOKED_AT = 128  # pairs of a queue whose embeddings are looked at


class VSE(Recipe):
    """min_θ Σ_(i,c) ℓ(i, c; θ), the negatives of a pair being others of its batch   (thesis, Eq. 3.4).

    With a concept level min_θ max_{q in Δ} Σ_k (q_k/N_k) Σ_{(i,c) in k} ℓ(i, c; θ) - (λ/2) ‖q - q0‖²
    (HRRL, Eq. 4), k the concept of the pair; with tau of the images x̃ = x + τ ∇ℓ/‖∇ℓ‖_F.

    Args:
        model: on its device, as it is trained.
        batches: what it is trained on.
        validation: what it is measured on, if on anything.
        batch_size: images, and captions, that are embedded at once in evaluation.
        concepts: of each validation image, its name.
        level: q over the concepts of the pairs. The batches have, as far as they are needed, of each pair
            the image (with tau), the pair itself (with a queue) and the concept, in this order.
        found: how concepts that are clusters are found; until they are, ``level`` is of a single one.
        loss_scale: of the input-gradient pass; see :class:`hrrl_ext.ExamplePerturbation`.
    """

    chosen = "rsum"
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
        level: ConceptLevel | None = None,
        found: DiscoveredConcepts | None = None,
        loss_scale: float = 1.0,
    ) -> None:
        if (config.negatives or 0) > batches.sizes[0]:
            raise ValueError(
                f"negatives={config.negatives} is more than the {batches.sizes[0]} pairs of a batch, "
                "which are all there is; give at most as many, a larger batch_size, or leave it out"
            )
        self.model, self.batches, self.config = model, batches, config
        self.validation, self.processes = validation, processes
        self.batch_size, self.concepts = batch_size, concepts
        self.level, self.loss_scale = level, loss_scale
        encoder = () if batches.encoded.precomputed else model.image_encoder.parameters()
        self.advice = _advice(config, any(p.requires_grad for p in encoder))
        self.queue: PairQueue | None = None
        if config.queue is not None:
            self.queue = PairQueue(config.queue, model.dim).to(batches.device)
        self.pair_losses = PairLosses(model, config)
        self.clusters: PairClusters | None = None
        if found is not None:
            of = self.pair_losses, batches.encoded
            others = (config.negatives or batches.sizes[0]) + (config.queue or 0)
            self.clusters = PairClusters(found, *of, negatives=others, batch_size=batch_size)
        self.done = 0
        """Steps of the run."""
        self._steps = 0  # of the epoch
        self._loss = torch.zeros((), dtype=torch.float64, device=batches.device)  # of its pairs
        self._last = torch.zeros_like(self._loss)  # per pair, of the last step
        self._collapse = CollapseWatch(config, batches.device)
        self._warned = False
        self._pairs: tuple[Tensor, Tensor] | None = None  # of the last step

    # --- one step

    def step(self, batch: tuple[Tensor, ...], move: Callable[..., Tensor]) -> Tensor:
        """Encodes both sides, finds the negatives, moves θ, and q; returns the mean loss of a pair []."""
        means = move(self.losses, *batch)
        loss = means if self.level is None else means[0]
        if self.level is not None:
            self.level.update(means[1:])  # with the losses at θ_t
        assert self._pairs is not None
        if self.queue is not None:  # after the loss: no pair is a negative of its own step
            self.queue.put(*self._pairs, batch[3], batch[4 + (self.config.tau > 0)])
        self._loss += loss.double() * len(batch[-1])
        self._last = loss
        self._steps += 1
        self.done += 1
        self._collapse.see(self.done, loss, *self._pairs)
        return loss

    def losses(
        self,
        model: nn.Module,
        images: Tensor,
        tokens: Tensor,
        lengths: Tensor,
        group: Tensor,
        *more: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """The loss of the whole batch, that is of all processes, and its mean over the pairs; behind it,
        where there is a concept level, ĝ [K].

        ``more``, of all pairs as group: with tau their images, with a queue which pairs they are, with a
        concept level their concepts.

        Every process has the same embeddings, hence the same loss; what it sends back reaches those
        that made them.
        """
        if self.config.tau > 0:
            images = self.perturbed(images, tokens, lengths, group, more[0])
        image, caption = (
            self.processes.whole(x, len(group))
            for x in model(images, tokens, lengths, precomputed=self.batches.encoded.precomputed)
        )
        self._pairs = image.detach(), caption.detach()
        with torch.autocast(image.device.type, enabled=False):
            loss = self._of_sets(image, caption, group, each=self.level is not None)
            summed = self.config.hinge and self.config.reduction == "sum"
            if self.level is None:
                mean = loss / len(group)
                return loss if summed else mean, mean.detach()
            out = self.level.weighed(loss, more[-1])
        means = torch.cat([loss.detach().double().mean().view(1), out.concept_loss])
        return out.loss * len(group) if summed else out.loss, means

    def perturbed(
        self, images: Tensor, tokens: Tensor, lengths: Tensor, group: Tensor, owner: Tensor
    ) -> Tensor:
        """x̃ = x + τ ∇_x Σ_m ℓ_m / ‖∇_x Σ_m ℓ_m‖_F of every row, image or features, detached.

        The sum is over the whole batch, as an image is also a negative of others, and the gradient that
        of the image, that is of all rows [N] of one ``owner``: which of these is the negative where they
        tie is then all the same. It is without the concepts' weights, of which one of 0 would switch an
        image off. Of the model nothing changes.
        """
        count, part = len(group), self.processes.part(len(group))
        with frozen_statistics(self.model, "batch"):
            with torch.no_grad():
                caption = self.processes.whole(self.model.encode_text(tokens, lengths), count)
            with torch.enable_grad():
                leaf = images.detach().requires_grad_()
                mine = self.model.encode_image(leaf, precomputed=self.batches.encoded.precomputed)
            whole = self.processes.whole(mine.detach(), count)
            with full_float32(whole.device):
                grad = gradient_in(lambda f: self._of_sets(f, caption, group, each=False), whole)
                same = owner[part.start : part.stop, None] == owner
                grad = same.to(grad) @ grad * self.loss_scale
            (grad,) = torch.autograd.grad(mine, leaf, grad)
        return ops.perturb(images, grad, self.config.tau)[0]

    def _of_sets(self, image: Tensor, caption: Tensor, group: Tensor, *, each: bool) -> Tensor:
        keys = None if self.queue is None else self.queue.keys()
        of = image, caption, group
        return self.pair_losses.of_sets(self._loss_now, *of, queue=keys, each=each)

    @property
    def _loss_now(self) -> LossOfStep:
        return self.pair_losses.at(self.done, len(self.batches))

    # --- as an epoch begins

    def before(self, epoch: int, move: Move, progress: Progress) -> bool:
        """Finds concepts, where they are to be found, and measures c="auto"."""
        found = self.clusters is not None and self.clusters.due(epoch)
        if self.clusters is not None and found:
            report = partial(progress.work, "clustering")
            self.clusters.find_pairs(self._loss_now, report)
            self._take_clusters(self.clusters)
        if found or (epoch == 0 and self.clusters is None):
            self._calibrate(move)
        if self.clusters is not None and found:
            progress.line(self.clusters.summary())
        return found

    def _take_clusters(self, found: PairClusters) -> None:
        """They are the concepts from here on, of an adversary that begins anew."""
        self.level = ConceptLevel(found.names, found.concept, self.config, self.batches.device)
        self.batches.concept = self.level.concept

    def _calibrate(self, move: Move) -> None:
        """For c="auto": c from the concept losses of a few mini-batches, at θ_t and without a step."""
        if self.level is None or self.config.c != "auto" or self.config.lam is None:
            return
        losses = []
        with without_trace(self.model, move.device):
            for batch in itertools.islice(self.batches.epoch(0), CALIBRATION_BATCHES):
                with move.autocast():
                    losses.append(self.losses(self.model, *batch)[1][1:])
        self.level.distribution.calibrate(losses)

    # --- what it reports

    def check(self, where: str) -> None:
        """The loss of the last step, and whether embeddings have become one point since the last look."""
        if not torch.isfinite(self._last):
            raise FloatingPointError(f"the loss is not finite in {where}")
        if (seen := self._collapse.at_one_point) is not None:
            raise FloatingPointError(f"the embeddings have collapsed: {self._told(seen)}")
        if not self._warned and (seen := self._collapse.at_margin) is not None:
            self._warned = True
            warnings.warn(
                f"{self._told(seen)}: the hardest negatives hold the embeddings near one point, where "
                f"training is slow, or stays. {self.advice}",
                stacklevel=3,
            )
        if self.level is not None:
            self.level.check(where)

    def _told(self, seen: Seen) -> str:
        margin = f", with a margin of {self.config.margin:g}" if self.config.hinge else ""
        many = min(WATCHED, self.batches.sizes[0])
        return (
            f"in {named_step(seen.step, len(self.batches))} the scores of {many} pairs have a spread "
            f"of {seen.spread:.1g} only, and a pair a loss of {seen.loss:.4g}{margin}"
        )

    def running(self) -> str:
        return f"loss {self._mean():.3f}"

    def row(self, measured: Row) -> dict[str, Any]:
        row = {"loss": self._mean()} | dict(measured)
        if self.level is not None:
            row |= self.level.row(counted=self.clusters is not None)
        if self.queue is not None:
            row["queue_drift"] = self._drift(self.queue)
        self._loss, self._steps = torch.zeros_like(self._loss), 0
        return row

    def _drift(self, queue: PairQueue) -> float:
        """How stale the queue is: the mean of 1 - cos between what its oldest pairs are in it and what
        the model makes of them now, of images and captions; in eval mode, without augmentation."""
        *then, pair = queue.oldest(_LOOKED_AT)
        encoded, rows = self.batches.encoded, pair.cpu()
        with evaluating(self.model):
            (x,) = encoded.images([encoded.pairs.owner[rows]])
            texts = encoded.captions(rows)
            now = self.model(as_float(x), *texts, precomputed=encoded.precomputed)
        agree = [F.cosine_similarity(a, b).mean() for a, b in zip(then, now, strict=True)]
        return 1 - torch.stack(agree).mean().item()

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
        if row.get("lam") is not None:
            largest = max(row["q"], key=lambda name: row["q"][name])
            parts.append(f"q {row['q'][largest]:.2f} ({largest})")
        if "queue_drift" in row:
            parts.append(f"queue drift {row['queue_drift']:.3f}")
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
            name: summary(found.i2t_rank[of_image == name], found.t2i_rank[of_caption == name])[
                "rsum"
            ]
            for name in sorted_names(self.concepts)
        }
        return {"worst_concept_rsum": min(by_concept.values()), "concept_rsum": by_concept}

    def _mean(self) -> float:
        """Loss of a pair in the epoch so far."""
        return self._loss.item() / sum(self.batches.sizes[: self._steps])

    # --- its state

    def description(self) -> dict[str, Any]:
        pairs = self.batches.encoded.pairs
        measured = None if self.validation is None else self.validation.pairs
        concepts: dict[str, Any] = {} if self.level is None else {"concepts": self.level.names}
        of_pairs = [] if self.level is None else [self.level.concept]
        if self.clusters is not None:  # not what is found
            concepts, of_pairs = {"concepts": str(self.clusters.settings)}, []
        of_measured: list[Tensor | Sequence[str]] = []
        if measured is not None:
            of_measured = [*_labels(measured), self.concepts or []]
        return {
            **described(self.model),
            "data": pairs.name,
            "images": len(pairs.images),
            "captions": len(pairs),
            "labels": labels_digest(*_labels(pairs), *of_pairs),
            **measured_on(measured, *of_measured),
            **left_out(data=pairs, validation=measured),
            "words": None if self.model.words is None else len(self.model.words),
            **concepts,
        }

    def state_dict(self) -> dict[str, Any]:
        state: dict[str, Any] = {
            "steps": (self.done, self._steps),
            "loss": self._loss,
            "collapse": self._collapse.state_dict(),
            "warned": self._warned,
        }
        if self.clusters is not None:
            state["clustering"] = self.clusters.clustering.state_dict()
        parts = {"concepts": self.level, "queue": self.queue}
        return state | {k: part.state_dict() for k, part in parts.items() if part is not None}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.done, self._steps = state["steps"]
        self._loss = state["loss"].to(self._loss)
        self._collapse.load_state_dict(state.get("collapse", {}))  # older runs have neither
        self._warned = state.get("warned", False)
        if self.clusters is not None:
            self.clusters.clustering.load_state_dict(state["clustering"])
            if self.clusters.clustering.centres:  # found by then
                self._take_clusters(self.clusters)
        if self.level is not None:
            self.level.load_state_dict(state["concepts"])
        if self.queue is not None:
            self.queue.load_state_dict(state["queue"])


def _labels(pairs: Pairs) -> tuple[Sequence[str], Tensor, Tensor]:
    """What makes them pairs, and positives of each other."""
    return pairs.captions, pairs.owner, pairs.image_group


def _advice(config: RetrievalConfig, encoder_trained: bool) -> str:
    """What to try where training fails, of what these settings leave to be tried."""
    parts = ["Lower lr"]
    if config.loss == "max_hinge" and config.warmup_loss == "none":
        parts.append("begin with warmup_loss='semi_hard' or 'sum_hinge'")
    if encoder_trained:
        parts.append("train with freeze=True first, and fine-tune from there by init")
    return "; or ".join(parts) + "."
