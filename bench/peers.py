"""What else a user would write or install: each peer in the form that is fastest for it.

Everything that does not change from step to step (N/N_k, ranks) is prepared outside the timing.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable

import torch
import torch.nn.functional as F
from torch import Tensor

from hrrl_ext.data import Augmentation
from hrrl_ext.ops import Convolution

# --- perturb: x + tau * grad / ‖grad‖ per example


def eager_perturb(x: Tensor, grad: Tensor, tau: float) -> Tensor:
    """Three lines that keep any memory layout."""
    dims = tuple(range(1, grad.dim()))
    norm: Tensor = torch.linalg.vector_norm(grad, dim=dims, keepdim=True)
    return x + tau * (grad / norm)


def torchattacks_perturb(x: Tensor, grad: Tensor, tau: float) -> Tensor:
    """The step of torchattacks' PGDL2, line by line. Its view() refuses channels_last."""
    batch = len(x)
    norm: Tensor = torch.norm(grad.view(batch, -1), p=2, dim=1) + 1e-10
    grad = grad / norm.view(batch, 1, 1, 1)
    return x.detach() + tau * grad


# --- perturb_stored and store_directions: by the augmentation, on whole batches


def eager_perturb_stored(
    x: Tensor, values: Tensor, row: Tensor, view: Tensor, tau: float, augment: Augmentation
) -> Tensor:
    """Bytes are directions of any scale; of packed signs eight come out of each."""
    found = values[row]
    if found.dtype == torch.uint8:
        place = 2 ** torch.arange(8, dtype=torch.uint8, device=x.device)
        found = ((found[:, :, None] & place) != 0).flatten(1)[:, : x[0].numel()]
        z = found.to(x.dtype) * 2 - 1
    else:
        z = found.to(x.dtype)
    return eager_perturb(x, augment.apply(z.view_as(x), view), tau)


def eager_store_directions(
    values: Tensor, scale: Tensor, grad: Tensor, row: Tensor, view: Tensor, augment: Augmentation
) -> None:
    """What is not shown becomes 0, or keeps its sign."""
    g = augment.undo(grad, view).flatten(1)
    if values.dtype == torch.uint8:
        place = 2 ** torch.arange(8, dtype=torch.uint8, device=g.device)
        old = ((values[row][:, :, None] & place) != 0).flatten(1)[:, : g.shape[1]]
        bits = torch.where(g != 0, g > 0, old).view(len(g), -1, 8)
        values[row] = (bits * place).sum(2, dtype=torch.uint8)
    else:
        z = g / torch.linalg.vector_norm(g, dim=1, keepdim=True)
        unit = z.abs().amax(1) / 127
        values[row] = (z / unit[:, None]).round().to(torch.int8)
        scale[row] = unit


# --- concept_cross_entropy: the weighted loss, and the sums per concept


def eager_concept_loss(
    logits: Tensor, target: Tensor, concept: Tensor, q: Tensor, inverse_share: Tensor
) -> tuple[Tensor, Tensor]:
    """loss [] and ĝ [K]; inverse_share [K] is N/N_k. Half precision is widened, as autocast does."""
    example_loss = F.cross_entropy(logits.float(), target, reduction="none")
    loss = ((q * inverse_share)[concept] * example_loss).mean()
    sums = torch.zeros_like(q).index_add_(0, concept, example_loss.detach())
    return loss, sums * inverse_share / len(target)


def liger_concept_loss() -> Callable[..., tuple[Tensor, Tensor]]:
    """The same on Liger's cross-entropy, which has no weight per example. It overwrites the logits."""
    from liger_kernel.ops.cross_entropy import LigerCrossEntropyFunction

    def concept_loss(
        logits: Tensor, target: Tensor, concept: Tensor, q: Tensor, inverse_share: Tensor
    ) -> tuple[Tensor, Tensor]:
        example_loss = LigerCrossEntropyFunction.apply(
            logits, target, None, -100, 0.0, 0.0, "none"
        )[0]
        loss = ((q * inverse_share)[concept] * example_loss).mean()
        sums = torch.zeros_like(q).index_add_(0, concept, example_loss.detach().float())
        return loss, sums * inverse_share / len(target)

    return concept_loss


# --- project_simplex and update_distribution


def sort_project(v: Tensor, rank: Tensor) -> Tensor:
    """Duchi et al., 2008, along the last dimension; rank [K] is 1, 2, ..., K."""
    descending = v.sort(descending=True).values
    nu = (descending.cumsum(-1) - 1) / rank
    support = (descending > nu).sum(-1, keepdim=True)
    return (v - nu.gather(-1, support - 1)).clamp(min=0)


def entmax_project() -> Callable[[Tensor], Tensor]:
    from entmax import sparsemax

    return lambda v: sparsemax(v, dim=-1)


def liger_project() -> Callable[[Tensor], Tensor]:
    from liger_kernel.ops.sparsemax import LigerSparsemaxFunction

    return lambda v: LigerSparsemaxFunction.apply(v, -1)


def ascend(q: Tensor, concept_loss: Tensor, q0: Tensor, eta: float, lam: float) -> Tensor:
    """q + η (ĝ - λ (q - q0)), yet to be projected."""
    return q + eta * (concept_loss - lam * (q - q0))


def sort_update(
    q: Tensor, concept_loss: Tensor, q0: Tensor, eta: float, lam: float, rank: Tensor
) -> Tensor:
    return sort_project(ascend(q, concept_loss, q0, eta, lam), rank)


def eager_step(
    q: Tensor,
    t: Tensor,
    concept_loss: Tensor,
    q0: Tensor,
    c: Tensor,
    lam: float,
    s: int,
    rank: Tensor,
) -> Tensor:
    t += 1
    eta = 1 / (lam * t.double())
    eta = torch.where(t <= s, eta / c, eta)
    stepped = sort_project(q + eta * (concept_loss - lam * (q - q0)), rank)
    return q.copy_(torch.where(stepped.isfinite().all(), stepped, q))


# --- chi_square_response


def bisect_response(
    loss: Tensor, q0: Tensor, lam: float, rho: float, max_weight: float, rounds: int = 48
) -> Tensor:
    """Bisection for η, within one for λ' where there is a ball, on tensors that are never read back."""

    def weights(mu: Tensor) -> Tensor:
        low, high = loss.min() - mu * max_weight, loss.max() + mu
        for _ in range(rounds):
            eta = (low + high) / 2
            too_much = q0 @ (1 + (loss - eta) / mu).clamp(0, max_weight) > 1
            low, high = torch.where(too_much, eta, low), torch.where(too_much, high, eta)
        return (1 + (loss - (low + high) / 2) / mu).clamp(0, max_weight)

    mu = torch.full_like(loss[0], lam)
    if rho < math.inf:
        low, high = mu, mu + (q0 @ (loss - q0 @ loss) ** 2).sqrt() / rho
        for _ in range(rounds):
            middle = (low + high) / 2
            too_far = q0 @ (weights(middle) - 1) ** 2 > rho**2
            low, high = torch.where(too_far, middle, low), torch.where(too_far, high, middle)
        mu = high
    return q0 * weights(mu)


def sort_response(loss: Tensor, q0: Tensor, lam: float) -> Tensor:
    """Without ball and cap: the threshold among the sorted losses, by sums of those above."""
    falling, order = loss.sort(descending=True)
    mass = q0[order].cumsum(0)
    eta = ((q0[order] * falling).cumsum(0) - lam * (1 - mass)) / mass  # if so many were above it
    support = (1 + (falling - eta) / lam > 0).sum(0, keepdim=True)
    return q0 * (1 + (loss - eta.gather(0, support - 1)) / lam).clamp(min=0)


# --- hardest_negatives: the losses of VSE++


def all_scores(image: Tensor, caption: Tensor, order: bool) -> Tensor:
    if order:
        return -(caption - image[:, None]).clamp(min=0).square().sum(2).sqrt()
    return image @ caption.T


def _hinges(image: Tensor, caption: Tensor, order: bool) -> tuple[Tensor, Tensor]:
    score = all_scores(image, caption, order)
    pair = score.diagonal()
    own = torch.eye(len(score), dtype=torch.bool, device=score.device)
    of_image = (0.2 + score - pair[:, None]).clamp(min=0).masked_fill(own, 0)
    return of_image, (0.2 + score - pair).clamp(min=0).masked_fill(own, 0)


def eager_sum_hinge(image: Tensor, caption: Tensor, order: bool) -> Tensor:
    """As vsepp writes it."""
    of_image, of_caption = _hinges(image, caption, order)
    return of_image.sum() + of_caption.sum()


def eager_max_hinge(image: Tensor, caption: Tensor, order: bool) -> Tensor:
    of_image, of_caption = _hinges(image, caption, order)
    return of_image.max(1).values.sum() + of_caption.max(0).values.sum()


def eager_semi_hard_hinge(image: Tensor, caption: Tensor) -> Tensor:
    """The hardest of the negatives that score below their pair, which is no negative of its own."""
    score = image @ caption.T
    pair = score.diagonal()
    of_image = score.masked_fill(score >= pair[:, None], -torch.inf).amax(1)
    of_caption = score.masked_fill(score >= pair, -torch.inf).amax(0)
    below = 0.2 - pair
    return ((below + of_image).clamp(min=0) + (below + of_caption).clamp(min=0)).sum()


def gather_max_hinge(image: Tensor, caption: Tensor, order: bool) -> Tensor:
    """Who is hardest, without a gradient; then the pairs alone."""

    def of_pairs(f: Tensor, g: Tensor) -> Tensor:
        if order:
            return -(g - f).clamp(min=0).square().sum(1).sqrt()
        return (f * g).sum(1)

    with torch.no_grad():
        score = all_scores(image, caption, order)
        score.diagonal().fill_(-torch.inf)
        caption_index, image_index = score.argmax(1), score.argmax(0)
    below = 0.2 - of_pairs(image, caption)
    of_image = (below + of_pairs(image, caption[caption_index])).clamp(min=0)
    return (of_image + (below + of_pairs(image[image_index], caption)).clamp(min=0)).sum()


# --- rank1_dot and rank1_argmin

Sum = Callable[[Tensor, Tensor, Tensor], Tensor]


def sum_products(cross: Tensor, p: Tensor, q: Tensor) -> Tensor:
    """In float64, as ours."""
    cross += (p.double() * q.double()).sum((1, 3))
    return cross


def sum_narrow_products(cross: Tensor, p: Tensor, q: Tensor) -> Tensor:
    """In float32: less work, and less exact. What one would write first."""
    cross += (p * q).sum((1, 3))
    return cross


def nearest_centre(
    cross: Tensor, square: Tensor, centre_square: Tensor, weight: Tensor, rtol: float
) -> tuple[Tensor, Tensor, Tensor]:
    """assignment, distance and gap, for numbers that are finite."""
    squared = (centre_square - 2 * cross + square[:, None]).clamp(min=0)  # [B, K]
    score, scale = weight * squared, weight * (centre_square + square[:, None])
    near = score <= score.amin(1, keepdim=True) + rtol * scale
    assignment = near.int().argmax(1, keepdim=True)
    others = score.scatter(1, assignment, torch.inf).amin(1, keepdim=True)
    gap = (others - score.gather(1, assignment)) / scale.gather(1, assignment)
    return assignment[:, 0], squared.gather(1, assignment)[:, 0], gap[:, 0]


# --- rank1_assign: argmin_k w_k Σ_l ‖C_kl - G_il‖²


def linear_scores(act: Tensor, dout: Tensor, centre_in: Tensor, centre_out: Tensor) -> Tensor:
    """‖C - G‖² [B, K] of a linear layer (thesis, Eq. 4.5)."""
    cross = (act @ centre_in.T) * (dout @ centre_out.T)
    square = act.square().sum(1) * dout.square().sum(1)
    return centre_in.square().sum(1) * centre_out.square().sum(1) - 2 * cross + square[:, None]


def unfolded_scores(
    act: Tensor, dout: Tensor, centre_in: Tensor, centre_out: Tensor, conv: Convolution
) -> Tensor:
    """‖C - G‖² [B, K] of a convolution on unfolded patches, both products by the cheaper equation."""
    patches = F.unfold(act, conv.kernel, conv.dilation, conv.padding, conv.stride)  # [B, J, T]
    dout = dout.flatten(2)  # [B, O, T]
    (_, inputs, positions), outputs, clusters = patches.shape, dout.shape[1], len(centre_in)
    formed = None
    if clusters * positions * (inputs + outputs) > (positions + clusters) * inputs * outputs:
        formed = patches @ dout.transpose(1, 2)  # [B, J, O]
        cross = ((centre_in @ formed) * centre_out).sum(2)  # Eq. A.2
    else:
        cross = ((centre_in @ patches) * (centre_out @ dout)).sum(2)  # Eq. A.3
    if positions * (inputs + outputs) < inputs * outputs:
        square = (patches.transpose(1, 2) @ patches * (dout.transpose(1, 2) @ dout)).sum((1, 2))
    else:
        formed = patches @ dout.transpose(1, 2) if formed is None else formed
        square = formed.square().sum((1, 2))
    return centre_in.square().sum(1) * centre_out.square().sum(1) - 2 * cross + square[:, None]


def assign_linear(
    acts: list[Tensor],
    douts: list[Tensor],
    centre_in: list[Tensor],
    centre_out: list[Tensor],
    weight: Tensor,
) -> Tensor:
    total = torch.zeros(())
    for layer in zip(acts, douts, centre_in, centre_out, strict=True):
        total = total.to(weight) + linear_scores(*layer)
    return (weight * total).argmin(1)


def assign_3x3(
    act: Tensor, dout: Tensor, centre_in: Tensor, centre_out: Tensor, weight: Tensor
) -> Tensor:
    conv = Convolution((3, 3), padding=(1, 1))
    return (weight * unfolded_scores(act, dout, centre_in, centre_out, conv)).argmin(1)


def explicit_assignment(
    layers: Iterable[tuple[Tensor, Tensor, Tensor, Tensor]], weight: Tensor
) -> Callable[[], Tensor]:
    """k-means on gradients that are formed, and kept: linear layers as in assign_linear."""
    gradients, centres = (
        torch.cat([torch.einsum("bo,bi->boi", d, a).flatten(1) for a, d in pairs], 1)
        for pairs in zip(*(((a, d), (c, e)) for a, d, c, e in layers), strict=True)
    )

    def assign() -> Tensor:
        cross = gradients @ centres.T
        square = gradients.square().sum(1)
        return (weight * (centres.square().sum(1) - 2 * cross + square[:, None])).argmin(1)

    return assign
