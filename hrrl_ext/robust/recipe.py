"""Algorithm 1 of HRRL, as the training loop takes it."""

from __future__ import annotations

import itertools
import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..clustering.discovered import Discovery
from ..concept_weights import CALIBRATION_BATCHES, ConceptDistribution, ConceptWeights
from ..data import Augmentation, Batches, ImageSet
from ..evaluation import accuracy
from ..layers import logits_of
from ..losses import ClassificationLoss, Mixed
from ..processes import Processes
from ..training import Move, Recipe
from ..training.draws import without_trace
from ..training.loop import FIRST_STEPS
from ..training.opening import described
from ..training.progress import Progress
from ..training.recipe import Row
from . import report
from .baselines import CVaR, GroupDRO
from .chi_square import LEAST_HORIZON, ChiSquare
from .config import HRRLConfig
from .consistency import JensenShannon
from .objective import HRRLObjective
from .sets import Sets
from .stored import StoredDirections, StoredPerturbation
from .tally import Tally
from .theorem2 import Theorem2Perturbation


class HRRL(Recipe):
    """min_θ max_{q in Δ}  Σ_k (q_k/N_k) Σ_{i in k} ℓ(x̃_i, y_i; θ) - (λ/2) ‖q - q0‖²   (HRRL, Eq. 4).

    Args:
        model: on its device, as it is trained.
        sets: what it is trained on, and measured on.
        loss_scale: of the input-gradient pass; see :class:`hrrl_ext.ExamplePerturbation`.
        at_once: examples that a process has in one pass through the model, at most.
        penalty: see :class:`HRRLTrainer`.
        model_name: what :func:`hrrl_ext.models.build_model` calls ``model``, if it does.
        first_line: said as the first epoch begins.
    """

    advice = "Lower lr or tau, or raise lam."

    def __init__(
        self,
        model: nn.Module,
        sets: Sets,
        config: HRRLConfig,
        processes: Processes,
        *,
        loss_scale: float = 1.0,
        at_once: int,
        penalty: Callable[[nn.Module], nn.Module] | None = None,
        model_name: str | None = None,
        first_line: str | None = None,
    ) -> None:
        self.first_line = first_line
        self.model, self.batches, self.sets, self.config = model, sets.batches, sets, config
        self.processes, self.chosen, self.model_name = processes, config.chosen, model_name
        self.penalty = _penalty(penalty, model, config)
        self.penalty_name = None if penalty is None else str(penalty)
        self.whole_batch = getattr(self.penalty, "whole_batch", None)
        self.objective = HRRLObjective(
            tau=config.tau,
            lam=None,
            distribution=_adversary(config, sets.batches, len(sets.concept_names)),
            batch_norm=config.batch_norm,
            loss_scale=loss_scale,
            steps=config.example_steps,
            loss=_loss(config, sets.images),
            tau_multiple=config.tau_multiple,
            processes=processes,
        ).to(sets.batches.device)
        self.stored: StoredPerturbation | None = None
        if config.stored:
            _check_penalty(self.penalty, self.penalty_name)
            self.stored = _stored(config, sets.batches)
        self.discovery: Discovery | None = None
        if sets.found is not None:
            loss = self.objective.loss
            self.discovery = Discovery(sets.found, model, batch_size=at_once, loss=loss)
        self.tally, self._warned = self._empty_tally(), False
        self._concept_loss = torch.zeros_like(self.objective.distribution.q)  # of the last step

    # --- Algorithm 1

    def step(self, batch: tuple[Tensor, ...], move: Callable[..., Tensor]) -> Tensor:
        """One iteration of Algorithm 1, lines 9 to 11; returns ĝ [K]."""
        means = move(self.losses, *batch)  # lines 9, 10: θ_{t+1}, and ĝ of the whole batch
        concept_loss, *seen = means.view(-1, len(self.sets.concept_names))
        self.objective.update(concept_loss, *seen)  # line 11: q_{t+1}, with the losses at θ_t
        if self.stored is not None:
            self.stored.learn()  # the z of the next epoch
        self.tally.add_step(concept_loss)
        self._concept_loss = concept_loss
        return concept_loss

    def losses(
        self, model: nn.Module, x: Tensor, target: Tensor, concept: Tensor, *more: Tensor
    ) -> tuple[Tensor, Tensor]:
        """The loss of Eq. 5 and the ĝ [K] of Eq. 6 at θ_t and q_t, of some examples; behind ĝ, for an
        adversary that wants it, how often each concept was seen.

        ``more``: with stored directions rows and views; with mixup the share of target and concept, and
        those of the other image; else mixtures of x, of which jsd has two.
        """
        target, concept, more = self._labels(target, concept, more)
        if self.stored is None:
            x = self.objective.perturb(self.model, x, target)  # x̃ = x + τ ∇ℓ/‖∇ℓ‖, line 9
            if isinstance(self.objective.perturbation, Theorem2Perturbation):
                self.tally.length += self.objective.perturbation.lengths.sum()
        else:
            x, more = self.stored.perturb(x, *more), ()  # with the ∇ℓ of the last epoch
        output, penalty = (
            (model(x), None) if self.penalty is None else self.penalty(model, x, *more)
        )
        logits = logits_of(output)
        out = self.objective(logits, target, concept)
        self.tally.add(logits.detach(), target, out, penalty)
        means, distribution = out.concept_loss, self.objective.distribution
        if distribution.wants_seen:
            means = torch.cat([means, distribution.seen(concept)])
        return out.loss if penalty is None else out.loss + penalty, means

    def _labels(
        self, target: Tensor, concept: Tensor, more: tuple[Tensor, ...]
    ) -> tuple[Any, Any, tuple[Tensor, ...]]:
        """Target and concept as the objective takes them, and what else there is in a batch."""
        if self.config.mixup == 0:
            return target, concept, more
        share, its_target, its_concept = more
        return Mixed(target, its_target, share), Mixed(concept, its_concept, share), ()

    # --- as an epoch begins

    def before(self, epoch: int, move: Move, progress: Progress) -> bool:
        """Finds concepts, where they are to be found, and measures c="auto"."""
        if epoch == 0 and self.first_line is not None:
            progress.line(self.first_line)
        if self.stored is not None:
            self.stored.exchange()
        found = self.discovery is not None and self.discovery.due(epoch)
        if self.discovery is not None and found:
            self.discovery.find(self.sets.images, lambda text: progress.work("clustering", text))
            self._take_clusters(self.discovery)
            if self.sets.validation is not None and self.sets.group_names is None:
                self.sets.validation.concept = self.discovery.assign(self.sets.validation.images)
        if found or (epoch == 0 and self.discovery is None):
            self._calibrate(move)
        if self.discovery is not None and found:
            progress.line(self.discovery.summary())
        return found

    def _take_clusters(self, discovery: Discovery) -> None:
        """They are the concepts from here on, of an adversary that begins anew."""
        self.sets.concept_names, self.batches.concept = discovery.names, discovery.concept
        adversary = _adversary(self.config, self.batches, len(discovery.names))
        self.objective.distribution = adversary.to(self.batches.device)
        self.tally = self._empty_tally()

    def _calibrate(self, move: Move) -> None:
        """For c="auto": c from the concept losses of a few mini-batches, as q moves by them, at θ_t and
        without a step."""
        distribution = self.objective.distribution
        if self.config.c != "auto" or not isinstance(distribution, ConceptDistribution):
            return
        if distribution.lam is None:
            return
        losses = []
        with without_trace(self.model, move.device):
            batches = zip(self.batches.epoch(0), self.batches.sizes, strict=True)
            for (x, *labels), size in itertools.islice(batches, CALIBRATION_BATCHES):
                target, concept, _ = self._labels(labels[0], labels[1], tuple(labels[2:]))
                with move.autocast():
                    logits = logits_of(self.model(x))
                part = self.objective(logits, target, concept).concept_loss * (len(x) / size)
                losses.append(self.processes.sum(part))
        distribution.calibrate(losses)

    # --- what it reports

    def check(self, where: str) -> None:
        """The losses of the concepts in the last step; and q, which warns once."""
        wrong = (~torch.isfinite(self._concept_loss)).nonzero().flatten().tolist()
        if wrong:
            names = ", ".join(self.sets.concept_names[k] for k in wrong[:3])
            names += f" and {len(wrong) - 3} more" if len(wrong) > 3 else ""
            raise FloatingPointError(f"the loss is not finite in {where} (concepts: {names})")
        self._check_distribution(where)

    def _check_distribution(self, where: str) -> None:
        """Warns once when q runs into a corner of the simplex, and says what lam would avoid it."""
        distribution = self.objective.distribution
        if self._warned or not isinstance(distribution, (ConceptDistribution, ChiSquare)):
            return
        if distribution.lam is None:
            return
        found = distribution.concentration(self.sets.concept_names)
        if found is None:
            return
        self._warned = True
        if isinstance(distribution, ChiSquare):
            advised, or_else = distribution.spread.item(), ", or lower rho or max_weight"
        else:
            mean_loss = self.tally.concept_loss / self.tally.steps
            advised, or_else = distribution.advised_lam(mean_loss, FIRST_STEPS), ""
        warnings.warn(
            f"in {where} {found}. Raise lam (now {distribution.lam:g}); the spread of the "
            f"concepts' losses asks for {advised:.2g}{or_else}",
            stacklevel=4,
        )

    def running(self) -> str:
        loss, correct, *_ = self.tally.total(self.processes)
        seen, names = self._seen, self.sets.concept_names
        distribution = self.objective.distribution
        return report.running(
            loss / seen,
            correct / seen,
            _by_name(names, self.tally.concept_loss / self.tally.steps),
            _by_name(names, distribution.q),
            distribution.effective_concepts.item(),
        )

    def row(self, measured: Row) -> dict[str, Any]:
        distribution, names = self.objective.distribution, self.sets.concept_names
        loss, correct, penalty, length = self.tally.total(self.processes)
        row: dict[str, Any] = {"loss": loss / self._seen, "train_accuracy": correct / self._seen}
        if self.penalty is not None:
            row["penalty"] = penalty / self._seen
        row |= measured
        if self.discovery is not None:
            row["concept_count"] = _by_name(names, torch.bincount(self.batches.concept))
        row |= {
            "concept_loss": _by_name(names, self.tally.concept_loss / self.tally.steps),
            "q": _by_name(names, distribution.q),
            "effective_concepts": distribution.effective_concepts.item(),
            "largest_weight": distribution.weight.max().item(),
            "mu": math.sqrt(self.tally.concept_square.item() / self.tally.steps),
        }
        if isinstance(distribution, ConceptDistribution) and distribution.lam is not None:
            row |= {"lam": distribution.lam, "s": distribution.s, "c": distribution.c.item()}
        if isinstance(self.objective.perturbation, Theorem2Perturbation):
            row |= {"mean_tau": length / self._seen, "l_x": self.objective.perturbation.l_x.item()}
        if isinstance(distribution, ChiSquare):
            row |= {"lam": distribution.lam, "distance": distribution.distance.item()}
        self.tally = self._empty_tally()
        return row

    def line(self, row: Row) -> str:
        return report.summary(row)

    def evaluate(self, model: nn.Module) -> dict[str, Any]:
        """Accuracy on the validation set: average, of the worst concept, by concept."""
        if self.sets.validation is None:
            return {}
        names = self.sets.group_names or self.sets.concept_names
        measured = accuracy(model, self.sets.validation, len(names))
        return {
            "accuracy": measured.average,
            "worst_concept_accuracy": measured.worst_concept,
            "concept_accuracy": _by_name(names, measured.concept),
        }

    def results(self, last: Row, best: Row | None) -> dict[str, Any]:
        return report.results(last, best)

    @property
    def _seen(self) -> int:
        """Examples of the epoch so far, of all processes."""
        return sum(self.batches.sizes[: self.tally.steps])

    def _empty_tally(self) -> Tally:
        return Tally.empty(len(self.sets.concept_names), self.batches.device)

    # --- its state

    def description(self) -> dict[str, Any]:
        return {
            **described(self.model_name, self.sets.images, self.config.width),
            **self.sets.description(),
            "penalty": self.penalty_name,
        }

    def state_dict(self) -> dict[str, Any]:
        state = {
            "objective": self.objective.state_dict(),
            "tally": self.processes.gather(self.tally.state_dict()),
        }
        if self.penalty is not None:
            state["penalty"] = self.penalty.state_dict()
        if self.stored is not None:
            state["directions"] = self.stored.state_dict()
        if self.discovery is not None:
            state["clustering"] = self.discovery.clustering.state_dict()
            if self.sets.validation is not None:
                state["validation_concept"] = self.sets.validation.concept
        return state

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        if self.penalty is not None:
            self.penalty.load_state_dict(state["penalty"])
        if self.stored is not None:
            self.stored.load_state_dict(state["directions"])
        if self.discovery is not None:
            self.discovery.clustering.load_state_dict(state["clustering"])
            if self.discovery.clustering.centres:  # found by then
                self._take_clusters(self.discovery)
            if self.sets.validation is not None:
                self.sets.validation.concept = state["validation_concept"]
        self.objective.load_state_dict(state["objective"])
        self.tally.load_state_dict(state["tally"][self.processes.rank])


def _by_name(names: Sequence[str], values: Tensor) -> dict[str, float | None]:
    """NaN (a concept without a validation example) is None, which JSON knows."""
    numbers = (None if math.isnan(value) else value for value in values.tolist())
    return dict(zip(names, numbers, strict=True))


def _stored(config: HRRLConfig, batches: Batches) -> StoredPerturbation:
    images = batches.images
    directions = StoredDirections(
        len(images),
        images.image_shape,
        config.stored_bits,
        batches.device,
        config.stored_resolution,
    )
    augment = batches.augment
    if not isinstance(augment, Augmentation):  # the settings leave none or this
        augment = Augmentation(0, flip=False)
    return StoredPerturbation(float(config.tau), directions, augment, batches.processes)


def _penalty(
    penalty: Callable[[nn.Module], nn.Module] | None, model: nn.Module, config: HRRLConfig
) -> nn.Module | None:
    """What is added to the loss, besides Eq. 5."""
    if config.jsd == 0:
        return None if penalty is None else penalty(model)
    if penalty is not None:
        raise ValueError(
            f"jsd and penalty {penalty} each want the forward pass for themselves; give one of the two"
        )
    return JensenShannon(config.jsd)


def _check_penalty(penalty: nn.Module | None, name: str | None) -> None:
    """The backward pass of training gives the gradient of its whole loss: all of it must be ℓ's."""
    if penalty is not None and not getattr(penalty, "of_weights", False):
        raise ValueError(
            f"example_level='stored' takes z from the backward pass of training, and the penalty {name} "
            "may have a gradient in x, which belongs to no example's loss; take example_level='exact', "
            "or, for a penalty of the weights alone, give its module of_weights = True"
        )


def _loss(config: HRRLConfig, images: ImageSet) -> ClassificationLoss:
    return ClassificationLoss(
        label_smoothing=config.label_smoothing,
        focal=config.focal,
        logit_adjustment=config.logit_adjustment,
        class_count=torch.bincount(images.target, minlength=images.num_classes),
    )


def _adversary(config: HRRLConfig, batches: Batches, num_concepts: int) -> ConceptWeights:
    """Over the concepts as they are drawn: N_k, where every example comes once."""
    count = torch.bincount(batches.concept, batches.draws, num_concepts)
    match config.adversary:
        case "chi_square" if config.lam is not None:
            return ChiSquare(
                count,
                lam=config.lam,
                rho=config.rho,
                max_weight=config.max_weight,
                horizon=max(len(batches), LEAST_HORIZON),
                q0=config.q0,
            )
        case "group_dro":
            return GroupDRO(count, eta_q=config.eta_q, q0=config.q0)
        case "cvar":
            return CVaR(count, alpha=config.alpha)
    return ConceptDistribution(count, lam=config.lam, s=config.s, c=config.c, q0=config.q0)
