"""The loss of an example, stated once for both players."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from . import ops
from .layers import logits_of


@dataclass(frozen=True)
class Mixed:
    """Labels of images that are mixtures of two: classes, or concepts."""

    first: Tensor
    """[B] int64"""
    second: Tensor
    """[B] int64"""
    share: Tensor
    """[B] of the first, in [0, 1]; the second has the rest"""

    def flat(self) -> tuple[Tensor, Tensor]:
        """All 2B labels, and the share of each."""
        return torch.cat([self.first, self.second]), torch.cat([self.share, 1 - self.share])

    def matched(self, guess: Tensor) -> Tensor:
        """[B] the share of the labels that a guess [B] has right."""
        first, second = guess == self.first, guess == self.second
        return self.share * first + (1 - self.share) * second


class ClassificationLoss(nn.Module):
    """ℓ(x_i, y_i; θ): what both players play for.

        ℓ = -(1 - p_y)^γ log p_y        p = softmax(f(x) + a log π),  π_c = N_c/N

    With γ = 0 and a = 0 it is the cross-entropy. Of it the input gradient is taken and gradients are
    clustered; :meth:`weighted` weighs and sums the same. Evaluation takes f(x) as it is.

    Args:
        label_smoothing: ε of the cross-entropy; not together with ``focal``, which has no such form.
        focal: γ ≥ 0 (Lin et al., Focal loss, ICCV 2017): examples that are right count less. It grows
            with the cross-entropy, so an example's own gradient in x keeps its direction.
        logit_adjustment: a ≥ 0, the power of the class shares (Menon et al., Long-tail learning via logit
            adjustment, ICLR 2021, their τ; 1 is consistent for the mean of the classes' accuracies).
        class_count: [C] N_c, the training examples of each class, for ``logit_adjustment``.

    ::

        loss = ClassificationLoss(logit_adjustment=1.0, class_count=torch.bincount(images.target))
        objective = HRRLObjective(tau=0.0, lam=None, loss=loss)
    """

    offset: Tensor | None

    def __init__(
        self,
        *,
        label_smoothing: float = 0.0,
        focal: float = 0.0,
        logit_adjustment: float = 0.0,
        class_count: Tensor | Sequence[int] | None = None,
    ) -> None:
        super().__init__()
        for name, value in (("focal", focal), ("logit_adjustment", logit_adjustment)):
            if not (math.isfinite(value) and value >= 0):
                raise ValueError(f"{name} must be finite and not negative, got {value}")
        if focal and label_smoothing:
            raise ValueError(
                "focal and label_smoothing do not go together: the focal loss is of one class, got "
                f"focal={focal:g} and label_smoothing={label_smoothing:g}; leave one of them at 0"
            )
        self.label_smoothing, self.focal = label_smoothing, float(focal)
        self.logit_adjustment = float(logit_adjustment)
        offset = None if logit_adjustment == 0 else logit_adjustment * _log_share(class_count)
        self.register_buffer("offset", offset, persistent=False)  # the data has it

    @staticmethod
    def given(loss: ClassificationLoss | None, label_smoothing: float) -> ClassificationLoss:
        """``loss``, or the cross-entropy with this smoothing, of arguments that exclude each other."""
        if loss is None:
            return ClassificationLoss(label_smoothing=label_smoothing)
        if label_smoothing:
            raise ValueError(
                f"label_smoothing={label_smoothing:g} is a setting of the loss, and one is given: "
                "ClassificationLoss(label_smoothing=...)"
            )
        return loss

    def forward(self, logits: Tensor, target: Tensor | Mixed) -> Tensor:
        """logits [B, C] as the model returns them (:func:`hrrl_ext.layers.logits_of`), target [B] → ℓ_i
        [B], in float32 at least. Of a mixture it is the losses of both labels, by their shares."""
        if isinstance(target, Mixed):
            label, share = target.flat()
            first, second = (share * self(logits_of(logits).repeat(2, 1), label)).chunk(2)
            return first + second
        logits, target = self._adjusted(logits), class_ids(target)
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        loss = F.cross_entropy(
            logits, target, reduction="none", label_smoothing=self.label_smoothing
        )
        if self.focal == 0:
            return loss
        wrong = -torch.expm1(-loss)  # 1 - p_y without cancellation
        # Above 0, where the power has a slope: times the loss, which is 0 there, it is none.
        return wrong.clamp(min=torch.finfo(wrong.dtype).tiny) ** self.focal * loss

    def weighted(
        self,
        logits: Tensor,
        target: Tensor | Mixed,
        concept: Tensor | Mixed,
        q: Tensor,
        concept_count: Tensor,
    ) -> ops.ConceptLoss:
        """What :func:`hrrl_ext.ops.concept_cross_entropy` returns, of this loss. A mixture is an example
        of both its classes and of both their concepts, each by its share."""
        if isinstance(target, Mixed) or isinstance(concept, Mixed):
            return self._weighted_mixtures(logits_of(logits), target, concept, q, concept_count)
        target, concept = class_ids(target), class_ids(concept)
        if self.focal == 0:
            return ops.concept_cross_entropy(
                self._adjusted(logits),
                target,
                concept,
                q,
                concept_count,
                label_smoothing=self.label_smoothing,
            )
        return weighed(self(logits, target), concept, q, concept_count)

    def _weighted_mixtures(
        self,
        logits: Tensor,
        target: Tensor | Mixed,
        concept: Tensor | Mixed,
        q: Tensor,
        concept_count: Tensor,
    ) -> ops.ConceptLoss:
        if not (isinstance(target, Mixed) and isinstance(concept, Mixed)):
            raise TypeError(
                "target and concept: a mixture has two of each, so both are Mixed or neither; got "
                f"{type(target).__name__} and {type(concept).__name__}"
            )
        label, share = target.flat()
        losses = share * self(logits.repeat(2, 1), label)  # [2B], each of its own concept
        out = weighed(2 * losses, concept.flat()[0], q, concept_count)  # a mean over 2B
        first, second = losses.detach().chunk(2)
        return ops.ConceptLoss(out.loss, out.concept_loss, first + second)

    def _adjusted(self, logits: Tensor) -> Tensor:
        logits = logits_of(logits)
        return logits if self.offset is None else logits + self.offset

    def extra_repr(self) -> str:
        return (
            f"label_smoothing={self.label_smoothing:g}, focal={self.focal:g}, "
            f"logit_adjustment={self.logit_adjustment:g}"
        )


def class_ids(ids: Tensor) -> Tensor:
    """Integers of any width as int64, which indexing and cross-entropies ask for; others as they are."""
    whole = not (ids.is_floating_point() or ids.is_complex() or ids.dtype == torch.bool)
    return ids.long() if whole else ids


def weighed(
    example_loss: Tensor, concept: Tensor, q: Tensor, concept_count: Tensor
) -> ops.ConceptLoss:
    """What :func:`hrrl_ext.ops.concept_cross_entropy` returns, of any losses ℓ_i [B]."""
    batch = max(len(example_loss), 1)
    p = concept_count.double() / concept_count.double().sum()
    loss = ((q / p).to(example_loss)[concept] * example_loss).sum() / batch
    example_loss = example_loss.detach()
    # A column for each concept: sums in a fixed order on every device, and a loss that is not
    # finite stays in its own.
    own = concept[:, None] == torch.arange(len(p), device=p.device)
    sums = torch.where(own, example_loss.double()[:, None], 0.0).sum(0)
    return ops.ConceptLoss(loss, (sums / (p * batch)).to(q.dtype), example_loss)


def _log_share(class_count: Tensor | Sequence[int] | None) -> Tensor:
    """log π [C], in float32."""
    if class_count is None:
        raise ValueError("logit_adjustment needs class_count, the training examples of each class")
    count = torch.as_tensor(class_count).double()
    if count.ndim != 1 or len(count) == 0:
        raise ValueError(f"class_count must have shape [C] with C >= 1, got {list(count.shape)}")
    if not bool((count > 0).all() and count.isfinite().all()):
        c = int((~(count > 0) | ~count.isfinite()).nonzero()[0])
        raise ValueError(
            f"class_count must be positive, got {count[c].item():g} for class {c}: logit_adjustment "
            "takes the logarithm of its share; leave the class out, or logit_adjustment at 0"
        )
    return (count / count.sum()).log().float()
