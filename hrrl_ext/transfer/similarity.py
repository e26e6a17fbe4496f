"""Fine-tuning that keeps which images are alike: similarity regularisation (URRL, Eq. 4)."""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from .._arrays import unit_rows
from .._precision import full_float32
from ..layers import captured, find_head
from ..processes import current_processes


def similarity_loss(
    z: Tensor,
    z_start: Tensor,
    *,
    squared: bool = False,
    mean: bool = False,
    normalise: bool = True,
) -> Tensor:
    """‖S - S*‖_F,   S_ij = z_i·z_j,   S*_ij = z*_i·z*_j,   z = f/‖f‖   (URRL, Eq. 4).

    Two networks that see the same images as alike have loss 0, whatever their coordinates: it is 0
    for z = z* Q with any orthogonal Q, and does not depend on the order of the images. Eq. 4 names
    neither the norm nor whether features are normalised; this is Frobenius, with the diagonal, of
    rows normalised as in URRL's Eq. 1.

    Args:
        z: [B, D] features of the images of a batch, which are trained.
        z_start: [B, D*] those of the same images under the network that training began with; D* may
            be another D. No gradient goes there.
        squared: ‖S - S*‖²_F.
        mean: over the B² pairs: the root of the mean square, ‖S - S*‖_F / B, or with ``squared`` the mean
            square. Without it the loss grows with the batch, about as B (as B² if squared), and a
            weight chosen for one B is wrong for another.
        normalise: rows of norm 1 (a row of zeros stays, and gets a finite gradient), whatever their
            scale; False compares inner products of the features as they are.

    Returns a scalar [] of at least float32; half precision is computed in float32, also under autocast
    (the loss also where products in TensorFloat-32 are allowed: S and S* are nearly equal).
    The gradient with S - S* = R is 2RZ/‖R‖_F; at R = 0, where the norm has none, it is exactly 0 (and a
    penalty of that kind pulls with full strength as soon as R is not 0, down to rounding; ``squared``
    does not). Deterministic as matrix products are. ValueError for other shapes.

    In PyTorch: ``z, s = F.normalize(z), F.normalize(z_start.detach()); (z @ z.T - s @ s.T).norm()``.
    """
    if z.ndim != 2 or z_start.ndim != 2 or len(z) != len(z_start):
        raise ValueError(
            "similarity_loss: z and z_start must be [B, D] and [B, D*], features of the same B images, "
            f"got {list(z.shape)} and {list(z_start.shape)}; flatten maps from dim 1 on"
        )
    with full_float32(z.device):
        difference = _similarity(z, normalise) - _similarity(z_start.detach(), normalise)
        pairs = max(1, difference.numel()) if mean else 1
        if squared:
            return difference.square().sum() / pairs
        return torch.linalg.vector_norm(difference) / pairs**0.5  # its gradient at 0 is 0


def _similarity(z: Tensor, normalise: bool) -> Tensor:
    z = z.to(torch.promote_types(z.dtype, torch.float32))
    z = unit_rows(z) if normalise else z
    return z @ z.T


@dataclass(frozen=True, kw_only=True)
class Similarity:
    """The penalty w_sim ‖S - S*‖_F / B of :func:`similarity_loss`, for ``penalty`` of HRRLTrainer.

    f is the input of the classifier. z is of the pass that the task loss is of; z* is of a copy of the
    model as training begins, in eval mode and without gradients, on the same pixels: augmented, and
    perturbed where tau > 0. A step costs a forward pass more than one without.

    S is over the images that a process has in one pass: with several processes, or ``accumulate``, over
    each part of the batch; with ``gather`` over the batch of all processes, as one process has it.

    A network with batch normalisation or dropout does not begin at 0: z has the statistics of the
    batch, z* the running ones.

    Args:
        w_sim: the weight, to be chosen on validation data.
        mean: over the pairs, so that one w_sim means about the same for every batch size. Eq. 4 is
            without: its w_sim is 1/B of this one, and 1/B² of it if ``squared``.
        squared, normalise: see :func:`similarity_loss`.
        gather: over the images of all processes, each of which computes all pairs and sends the features
            of its part twice, z and z*, and a gradient once. Not with ``accumulate``.
        classifier: name of the layer whose input is f; the last nn.Linear if not given.
    """

    w_sim: float = 1.0
    mean: bool = True
    squared: bool = False
    normalise: bool = True
    gather: bool = False
    classifier: str | None = None

    def __post_init__(self) -> None:
        if not (isinstance(self.w_sim, int | float) and 0 <= self.w_sim < float("inf")):
            raise ValueError(f"Similarity: w_sim must be at least 0 and finite, got {self.w_sim!r}")

    def __call__(self, model: nn.Module) -> nn.Module:
        return _SimilarityPenalty(self, model)


class _SimilarityPenalty(nn.Module):
    def __init__(self, settings: Similarity, model: nn.Module) -> None:
        super().__init__()
        self.settings = settings
        if settings.gather:
            self.whole_batch = "the penalty gathers the images of a whole batch, in one pass"
        self.start = copy.deepcopy(model).eval().requires_grad_(False)
        # Not a sub-module: the weights that are trained are no tensors of this one.
        self._layers = [
            find_head(m, settings.classifier, "Similarity: classifier") for m in (model, self.start)
        ]

    def forward(self, model: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
        now, then = self._layers
        with captured(now, "input", _as_is) as z:
            logits = model(x)
        with torch.no_grad(), captured(then, "input", _as_is) as z_start:
            self.start(x)
        if not (z and z_start):
            raise ValueError(
                "Similarity: the model did not call its classifier; name the layer whose input is the "
                "feature with classifier="
            )
        settings = self.settings
        features = z[-1].flatten(1), z_start[-1].flatten(1)
        loss = similarity_loss(
            *(_of_all(*features) if settings.gather else features),
            squared=settings.squared,
            mean=settings.mean,
            normalise=settings.normalise,
        )
        return logits, settings.w_sim * loss


def _of_all(z: Tensor, z_start: Tensor) -> tuple[Tensor, Tensor]:
    """Features of the images of all processes, in each of them.

    A gradient that goes back is the sum of all processes': where each weighs its loss by its share of
    the images, and the gradients of weights are then summed, it is that of the whole batch.
    """
    processes = current_processes()
    sizes = processes.gather(len(z))
    count = sum(sizes)
    even = [len(replace(processes, rank=rank).part(count)) for rank in range(len(sizes))]
    if sizes != even:
        raise ValueError(
            f"Similarity: gather=True needs a batch of {count} images as Processes.part of "
            f"hrrl_ext.processes shares it, {even}, got {sizes}"
        )
    z, z_start = (t.to(torch.promote_types(t.dtype, torch.float32)) for t in (z, z_start))
    return processes.whole(z, count), processes.whole(z_start, count)


def _as_is(x: Tensor) -> Tensor:
    return x
