"""What contrastive methods have in common, as the training loop takes it; but for a step of each."""

from __future__ import annotations

import math
import warnings
from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .._arrays import labels_digest
from .._modes import evaluating
from ..data import Batches
from ..data.unreadable import left_out
from ..evaluation.neighbours import KNeighbours
from ..evaluation.rank import rank_me
from ..processes import Processes
from ..training import Move, Recipe
from ..training.opening import described, measured_on
from ..training.recipe import Row
from .config import ContrastiveConfig
from .encoder import Encoder
from .views import ViewBatches

_COLLAPSED = 0.1  # of the spread, which is 1 where queries point everywhere
_STANDS = 0.01  # off log(K + 1), as a share of how far below it queries like their keys would be
_FELL = 2.0  # standard errors that an accuracy of neighbours falls by, at least, to be told


@dataclass(frozen=True)
class Measured:
    """What an evaluation looks at, in the order of the sets."""

    bank: Batches
    """of training images"""
    validation: Batches | None


class Contrastive(Recipe):
    """min_θ E ℓ(z(x; θ), its positive, K negatives): each method has its own positives and negatives.

    Args:
        model: on its device, as it is trained.
        model_name: what :func:`hrrl_ext.models.build_model` calls the backbone, if it does.
    """

    part = "backbone"
    chosen = "knn_accuracy"
    advice = "Lower lr, or raise temperature."
    against_collapse = "Lower lr"

    def __init__(
        self,
        model: Encoder,
        batches: ViewBatches,
        measured: Measured,
        config: ContrastiveConfig,
        processes: Processes,
        *,
        seed: int,
        model_name: str | None = None,
    ) -> None:
        self.model, self.batches, self.measured = model, batches, measured
        self.config, self.processes, self.model_name = config, processes, model_name
        self.seed, self.batch_size = seed, batches.sizes[0]
        self.begin()
        self.done = 0
        """Steps of the run."""
        self._steps = 0  # of the epoch
        self._groups = 1  # of the step
        self._sums = torch.zeros(3, dtype=torch.float64, device=batches.device)
        self._last = torch.zeros(3, device=batches.device)
        self._labelled = batches.images.num_classes > 1
        self._best: tuple[float, float] | None = None  # accuracy of neighbours, its epoch's loss
        self._standing = 0  # epochs in a row whose loss was log(K + 1)
        self._told: list[str] = []

    @abstractmethod
    def begin(self) -> None:
        """Makes what queries are compared with."""

    @property
    @abstractmethod
    def filled(self) -> bool:
        """Whether nothing is left of the random directions that what they are compared with began as."""

    # --- a step, but for what it compares with

    @abstractmethod
    def step(self, batch: tuple[Tensor, ...], move: Move) -> Tensor:
        """One iteration; returns the batch's means [3] of loss, hits of the probe and ‖mean z‖²."""

    def _learned(
        self, each: Tensor, z: Tensor, logits: Tensor, target: Tensor
    ) -> tuple[Tensor, Tensor]:
        """The mean of the losses [B] of some images, and with it the cross-entropy of the probe, which
        the features do not feel; and means [2 + dim] of loss, hits of the probe and z."""
        loss = each.mean()
        hits = (logits.detach().argmax(1) == target).float().mean()
        means = torch.cat([torch.stack([loss.detach(), hits]), z.detach().mean(0)])
        return loss + F.cross_entropy(logits, target), means

    def _count(self, means: Tensor) -> Tensor:
        """Ends a step; returns its batch's means [3] of loss, hits of the probe and ‖mean z‖²."""
        self._last = torch.cat([means[:2], means[2:].square().sum()[None]])
        self._sums += self._last.double() * self.batches.sizes[self._steps]
        self._steps += 1
        self.done += 1
        return self._last

    @property
    def seen(self) -> int:
        """Images that steps were made with, each as often as it came."""
        epochs, steps = divmod(self.done, len(self.batches.sizes))
        return epochs * sum(self.batches.sizes) + sum(self.batches.sizes[:steps])

    def _groups_of(self, accumulate: int) -> int:
        """Of batch normalisation, for each part of this process's part of the batch: of the same size as
        those of a whole batch, two images at least, and as many in every process."""
        images, parts = self.batches.sizes[self._steps], self.processes.size * accumulate
        groups = images * self.config.norm_groups // self.batch_size
        return max(1, min(groups, images // 2) // parts)

    # --- what it reports

    def check(self, where: str) -> None:
        if not self._last.isfinite().all():
            raise FloatingPointError(f"the loss is not finite in {where}")

    def running(self) -> str:
        loss, hits, spread = self._means()
        probe = f"  probe {100 * hits:.1f} %" if self._labelled else ""
        return f"loss {loss:.3f}  spread {spread:.2f}{probe}"

    def row(self, measured: Row) -> dict[str, Any]:
        loss, hits, spread = self._means()
        of_labels = {"train_accuracy": hits} if self._labelled else {}
        row = {"loss": loss, "spread": spread} | of_labels | dict(measured)
        self._warn(row)
        self._sums, self._steps = torch.zeros_like(self._sums), 0
        return row

    def line(self, row: Row) -> str:
        parts = [f"{name} {row[name]:.3f}" for name in ("loss", "spread") if name in row]
        if "rank_me" in row:
            parts.append(f"RankMe {row['rank_me']:.1f}")
        for name, words in (("knn_accuracy", "k-NN"), ("accuracy", "probe")):
            if name in row:
                parts.append(f"{words} {100 * row[name]:.1f} %")
        return "  ".join(parts)

    def evaluate(self, model: nn.Module) -> dict[str, Any]:
        """RankMe of the bank's features; on validation images the accuracy of their nearest neighbours in
        it, and of the probe."""
        assert isinstance(model, Encoder)
        bank, labels, _ = self._features(model, self.measured.bank)
        bank, labels = (torch.cat(self.processes.gather(t)) for t in (bank, labels))
        measured: dict[str, Any] = {"rank_me": rank_me(bank) if bank.any() else 0.0}
        if self.measured.validation is None:
            return measured
        config = self.config
        voters = KNeighbours(config.neighbours, temperature=config.neighbour_temperature)
        voters.fit(bank, labels)
        features, target, hits = self._features(model, self.measured.validation)
        right = hits
        if len(features):
            with torch.autocast("cpu", enabled=False):  # that of the passes
                right = torch.from_numpy(voters.predict(features)) == target
        counts = torch.tensor([right.sum(), hits.sum(), len(hits)], dtype=torch.float64)
        knn, probe, count = sum(self.processes.gather(counts)).tolist()
        return measured | {"knn_accuracy": knn / count, "accuracy": probe / count}

    def _features(self, model: Encoder, batches: Batches) -> tuple[Tensor, Tensor, Tensor]:
        """Of this process's part, on the CPU: features [N, F], labels [N], hits of the probe [N]."""
        found: list[tuple[Tensor, ...]] = []
        with evaluating(model):
            for x, target, *_ in batches.epoch(0):
                feature, logits = model.features(x)
                found.append((feature.float(), target, logits.argmax(1) == target))
        none = (
            torch.empty(0, model.width),
            torch.empty(0, dtype=torch.int64),
            torch.empty(0).bool(),
        )
        features, labels, hits = (
            torch.cat([t.cpu() for t in parts]) for parts in zip(none, *found, strict=True)
        )
        return features, labels, hits

    def _means(self) -> tuple[float, float, float]:
        """Loss, hits of the probe and spread in the epoch so far."""
        seen = sum(self.batches.sizes[: self._steps])
        loss, hits, towards = (self._sums / seen).tolist()
        return loss, hits, math.sqrt(max(0.0, 1 - towards))

    def _warn(self, row: Row) -> None:
        """Once each: of a collapse, of a loss that stands where no image is told, and of one that falls
        by a way round the task."""
        agree = math.log(self.config.queue + 1)
        if row["spread"] < _COLLAPSED and self.filled:
            self._tell(
                "collapse",
                f"all queries point the same way: their spread is {row['spread']:.2g}, where 1 is "
                f"everywhere and 0 one point; the loss is {row['loss']:.3f}, and log(K + 1) = "
                f"{agree:.3f} where no image can be told. {self.against_collapse}",
            )
        below = agree - math.log1p(self.config.queue * math.exp(-1 / self.config.temperature))
        stands = self.filled and abs(row["loss"] - agree) < _STANDS * below
        self._standing = self._standing + 1 if stands else 0
        if (
            self._standing == 2 and "collapse" not in self._told
        ):  # it may pass by in one, on its way
            self._tell(
                "standing",
                f"the loss was {row['loss']:.3f}, in two epochs now that of log(K + 1) = {agree:.3f}, "
                "where no image is told from the negatives, though the spread of queries is "
                f"{row['spread']:.2g}. {self.against_collapse}",
            )
        if "knn_accuracy" not in row:
            return
        accuracy, loss = row["knn_accuracy"], row["loss"]
        if self._best is None or accuracy >= self._best[0]:
            self._best = (accuracy, loss)
            return
        assert self.measured.validation is not None
        before, its_loss = self._best
        images = len(self.measured.validation.images)
        noise = math.sqrt((before * (1 - before) + accuracy * (1 - accuracy)) / images)
        if loss < its_loss and before - accuracy > _FELL * noise:
            self._tell(
                "shortcut",
                f"the loss fell from {its_loss:.3f} to {loss:.3f}, and the accuracy of nearest "
                f"neighbours too, from {100 * before:.1f} % to {100 * accuracy:.1f} %: queries may be "
                "told by what is not in the image, such as the statistics of their batch (norm_groups, "
                f"now {self.config.norm_groups}), or by its colours alone (views)",
            )

    def _tell(self, what: str, text: str) -> None:
        if what not in self._told:
            self._told.append(what)
            warnings.warn(text, stacklevel=4)

    # --- its state

    def description(self) -> dict[str, Any]:
        images, measured = self.batches.images, self.measured.validation
        validation = None if measured is None else measured.images
        return {
            **described(self.model_name, images, self.config.width),
            "labels": labels_digest(images.target),
            **measured_on(validation, *([] if validation is None else [validation.target])),
            **left_out(data=images, validation=validation),
            "views": str(self.batches.views),
        }

    def state_dict(self) -> dict[str, Any]:
        return {
            "steps": [self.done, self._steps],
            "sums": self._sums,
            "best_neighbours": self._best,
            "standing": self._standing,
            "told": self._told,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.done, self._steps = state["steps"]
        self._sums = state["sums"].to(self._sums)
        self._best, self._told = state["best_neighbours"], state["told"]
        self._standing = state.get("standing", 0)
