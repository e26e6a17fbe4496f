"""The specification of the operators: the same signatures in plain PyTorch, with no cleverness.

Any device, differentiable by autograd to any order, and slow. The tests hold the kernels to these
functions; a user may read them to learn what the kernels compute.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ._types import (
    ConceptLoss,
    HardestNegatives,
    HingeCoefficients,
    LayerGradient,
    NearestCentre,
    Rank1Centre,
    Similarity,
)
from .image_operations import mix_chains as mix_chains


def perturb(x: Tensor, grad: Tensor, tau: float | Tensor) -> tuple[Tensor, Tensor]:
    """See :func:`hrrl_ext.ops.perturb`. Differentiable in x, grad and tau; grad_norm is not."""
    g = grad.flatten(1).double() if grad.dim() > 1 else grad[:, None].double()  # [B, P]
    # The direction is that of g / largest, whose squares neither vanish nor overflow.
    largest = F.pad(g.detach().abs(), (0, 1)).amax(1, keepdim=True)  # [B, 1]; 0 if P = 0
    usable = (largest > 0) & torch.isfinite(largest)
    g = g / torch.where(usable, largest, 1.0)
    norm = torch.linalg.vector_norm(g, dim=1, keepdim=True)
    z = torch.where(usable, g / torch.where(usable, norm, 1.0), 0.0)
    if isinstance(tau, Tensor):
        tau = tau.double().reshape(-1, 1)
    x_perturbed = (x.double() + (tau * z).view(x.shape)).to(x.dtype)
    grad_norm = (largest * norm).squeeze(1).detach()
    return x_perturbed, grad_norm.to(torch.promote_types(x.dtype, torch.float32))


def perturb_stored(
    x: Tensor,
    values: Tensor,
    scale: Tensor,
    row: Tensor,
    view: Tensor,
    tau: float,
    *,
    padding: int = 0,
    resolution: int = 1,
) -> Tensor:
    """See :func:`hrrl_ext.ops.perturb_stored`. Differentiable in x."""
    channels, height, width = x.shape[1:]
    shape = channels, -(-height // resolution), -(-width // resolution)
    z = _decoded(values[row], shape)
    pixel, shown = _looked_at(view, padding, resolution, x.shape)
    pixel = pixel[:, None].expand(-1, channels, -1, -1).flatten(2)
    z = z.flatten(2).gather(2, pixel).view(x.shape)
    known = scale[row] > 0
    z = torch.where(shown[:, None] & known[:, None, None, None], z, 0.0)
    return perturb(x, z, tau)[0]


def store_directions(
    values: Tensor,
    scale: Tensor,
    grad: Tensor,
    row: Tensor,
    view: Tensor,
    *,
    padding: int = 0,
    resolution: int = 1,
) -> None:
    """See :func:`hrrl_ext.ops.store_directions`. Writes whole rows at once."""
    with torch.no_grad():
        batch, channels, height, width = grad.shape
        shape = channels, -(-height // resolution), -(-width // resolution)
        pixel, shown = _looked_at(view, padding, resolution, grad.shape)
        given = torch.where(shown[:, None], grad.double(), 0.0).flatten(2)
        g, new = given.new_zeros(2, batch, channels, shape[1] * shape[2])
        g.scatter_add_(2, pixel[:, None].expand(-1, channels, -1, -1).flatten(2), given)
        new.scatter_add_(2, pixel[:, None].expand(-1, channels, -1, -1).flatten(2),
                         shown[:, None].expand_as(grad).flatten(2).double())  # fmt: skip
        g, is_new = g.flatten(1), new.flatten(1) > 0
        largest = g.abs().amax(1)
        usable = (largest > 0) & torch.isfinite(largest)
        g = g / torch.where(usable, largest, 1.0)[:, None]
        old = _decoded(values[row], shape).flatten(1)
        if values.dtype == torch.uint8:
            sign = torch.where(g != 0, g, old) > 0
            sign = F.pad(sign, (0, 8 * values.shape[1] - sign.shape[1]))
            eights = sign.view(batch, values.shape[1], 8) * 2 ** torch.arange(8, device=g.device)
            code = eights.sum(2)
            unit = torch.ones_like(scale[row])
        else:
            old = old * scale[row, None]
            z = torch.where(is_new, g / torch.linalg.vector_norm(g, dim=1, keepdim=True), old)
            kept = torch.where(is_new, 0.0, old).abs().amax(1)
            most = torch.where(is_new, z, 0.0).abs().amax(1)
            unit = torch.maximum(most, kept) / 127
            code = (z / unit[:, None]).round()
        values[row] = torch.where(usable[:, None], code.to(values.dtype), values[row])
        scale[row] = torch.where(usable, unit.float(), scale[row])


def concept_cross_entropy(
    logits: Tensor,
    target: Tensor,
    concept: Tensor,
    q: Tensor,
    concept_count: Tensor,
    *,
    label_smoothing: float = 0.0,
) -> ConceptLoss:
    """See :func:`hrrl_ext.ops.concept_cross_entropy`."""
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    example_loss = F.cross_entropy(
        logits, target, reduction="none", label_smoothing=label_smoothing
    )
    batch = max(len(target), 1)
    p = concept_count.double() / concept_count.double().sum()  # N_k / N
    loss = ((q / p)[concept] * example_loss).sum() / batch
    example_loss = example_loss.detach()
    sums = torch.zeros_like(p).index_add(0, concept, example_loss.double())
    concept_loss = torch.where(sums == 0, 0.0, sums / (p * batch))
    return ConceptLoss(loss.to(example_loss.dtype), concept_loss.to(q.dtype), example_loss)


def project_simplex(v: Tensor, *, dim: int = -1, radius: float = 1.0) -> Tensor:
    """See :func:`hrrl_ext.ops.project_simplex`. Sorts (Duchi et al., 2008)."""
    v = v.movedim(dim, -1)
    u = v.double() - v.detach().double().amax(-1, keepdim=True)
    descending = u.sort(-1, descending=True).values
    rank = torch.arange(1, u.shape[-1] + 1, device=v.device)
    nu = (descending.cumsum(-1) - radius) / rank  # the threshold if the support had `rank` entries
    support = (descending > nu).sum(-1, keepdim=True).clamp(min=1)
    p = (u - nu.gather(-1, support - 1)).clamp(min=0)
    return p.to(v.dtype).movedim(-1, dim)


def project_simplex_backward(p: Tensor, grad: Tensor) -> Tensor:
    """See :func:`hrrl_ext.ops.project_simplex_backward`."""
    support = p > 0
    inside = torch.where(support, grad.double(), 0.0)
    mean = inside.sum(-1, keepdim=True) / support.sum(-1, keepdim=True)
    return torch.where(support, inside - mean, 0.0).to(grad.dtype)


def update_distribution(
    q: Tensor, concept_loss: Tensor, q0: Tensor, eta: float | Tensor, lam: float
) -> Tensor:
    """See :func:`hrrl_ext.ops.update_distribution`."""
    ascended = q.double() + eta * (concept_loss.double() - lam * (q.double() - q0.double()))
    return project_simplex(ascended).to(q.dtype)


def step_distribution(
    q: Tensor, t: Tensor, concept_loss: Tensor, q0: Tensor, c: Tensor, *, lam: float, s: int
) -> None:
    """See :func:`hrrl_ext.ops.step_distribution`."""
    with torch.no_grad():
        t += 1
        eta = 1 / (lam * t.double())
        eta = torch.where(t <= s, eta / c, eta)
        stepped = update_distribution(q, concept_loss, q0, eta, lam)
        q.copy_(torch.where(stepped.isfinite().all(), stepped, q))


def chi_square_response(
    concept_loss: Tensor,
    q0: Tensor,
    lam: float,
    *,
    rho: float | None = None,
    max_weight: float | None = None,
) -> Tensor:
    """See :func:`hrrl_ext.ops.chi_square_response`. Sorts, bisects, and carries no gradient either."""
    with torch.no_grad():
        loss, p, mass = concept_loss.double() / 2, q0.double(), q0.double().sum()
        if not (loss.isfinite().all() and (p >= 0).all() and 0 < mass < torch.inf):
            return torch.full_like(q0, torch.nan)
        given = p > 0
        cap = mass / p[given].min() if max_weight is None else mass.new_tensor(max_weight)
        # Weights are b where the loss is t, the lowest that the cap alone would give to.
        falling = loss[given].sort(descending=True)
        reached = cap * p[given][falling.indices].cumsum(0) >= mass * (1 - 1e-15)
        reached[-1] = True  # a cap of 1 gives away all in exact sums
        x = torch.where(given, loss - falling.values[reached][:1], 0.0)
        scale = x.abs().max().item() or 1.0
        x, lam = x / scale, lam / 2 / scale

        def weights(lam: float) -> Tensor:
            def clipped(b: float) -> Tensor:
                return (x / lam + b).clamp(min=0).minimum(cap)

            if lam == 0:
                above, level = x > 0, given & (x == 0)
                left = (mass - cap * p[above].sum()) / p[level].sum()
                return cap * above + left * level
            return clipped(_bisect(lambda b: p @ clipped(b) >= mass, 0.0, cap.item()))

        def too_far(lam: float) -> bool:
            return rho is not None and bool(p @ (weights(lam) - 1) ** 2 > rho**2)

        if rho is not None and too_far(lam):
            spread = (p @ (x - p @ x / mass) ** 2).sqrt().item()  # there nothing needs clipping
            lam = torch.inf if rho == 0 else -_bisect(lambda v: too_far(-v), -spread / rho, -lam)
        return (p * weights(lam)).to(q0.dtype)


def _bisect(holds: Callable[[float], Any], low: float, high: float) -> float:
    """The largest number below which a monotone condition does not hold yet."""
    while low < (middle := (low + high) / 2) < high:
        low, high = (low, middle) if holds(middle) else (middle, high)
    return low


def rank1_dot(cross: Tensor, p: Tensor, q: Tensor) -> None:
    """See :func:`hrrl_ext.ops.rank1_dot`. Not differentiable either: cross is written to."""
    with torch.no_grad():
        cross += (p.double() * q.double()).sum((1, 3))


def rank1_argmin(
    cross: Tensor, square: Tensor, centre_square: Tensor, weight: Tensor, *, rtol: float = 1e-6
) -> NearestCentre:
    """See :func:`hrrl_ext.ops.rank1_argmin`. Sorts nothing and keeps [B, K] scores."""
    with torch.no_grad():
        exact = centre_square - 2 * cross + square[:, None]  # [B, K]
        scale = weight * (centre_square + square[:, None])
        score = weight * exact.clamp(min=0)
        near = score <= score.amin(1, keepdim=True) + rtol * scale
        usable = ((weight * exact).isfinite() & scale.isfinite()).all(1) & near.any(1)
        assignment = near.int().argmax(1, keepdim=True)  # [B, 1], the first that is near
        ahead = score.scatter(1, assignment, torch.inf).amin(1) - score.gather(1, assignment)[:, 0]
        gap = torch.where(ahead == 0, 0.0, ahead / scale.gather(1, assignment)[:, 0])
        distance = exact.clamp(min=0).gather(1, assignment)[:, 0]
    return NearestCentre(
        torch.where(usable, assignment[:, 0], -1),
        torch.where(usable, distance, torch.nan),
        torch.where(usable, gap, torch.nan),
    )


def hardest_negatives(
    image: Tensor,
    caption: Tensor,
    image_group: Tensor,
    caption_group: Tensor,
    similarity: Similarity = "cosine",
) -> HardestNegatives:
    """See :func:`hrrl_ext.ops.hardest_negatives`. Keeps [I, C] scores, and [I, C, D] differences."""
    wide = image.double(), caption.double()
    if similarity == "order":
        order = (wide[1] - wide[0][:, None]).clamp(min=0).square().sum(2)
        score = -torch.where(order > 0, order, 0)  # NaN is not above 0:
        score = torch.where(order.isnan(), order, score)
    else:
        score = (wide[0][:, None] * wide[1]).sum(2)
    score = score.masked_fill(image_group[:, None] == caption_group, -torch.inf)
    dtype, found = torch.promote_types(image.dtype, torch.float32), []
    for of_one in (score, score.T):
        if of_one.shape[1] == 0:
            of_one = of_one.new_full((len(of_one), 1), -torch.inf)
        index = of_one.detach().argmax(1)  # the first NaN, or of equal ones the lowest
        best = of_one.gather(1, index[:, None])[:, 0]
        if similarity == "order":
            best = torch.where(best < 0, -torch.where(best < 0, -best, 1.0).sqrt(), best)
        found += [torch.where(best > -torch.inf, index, -1), best.to(dtype)]
    return HardestNegatives(*found)


def rank1_assign(
    gradients: Sequence[LayerGradient],
    centres: Sequence[Rank1Centre],
    weight: Tensor,
    *,
    square: Tensor | None = None,
    rtol: float = 1e-6,
) -> NearestCentre:
    """See :func:`hrrl_ext.ops.rank1_assign`. Stores every gradient and every centre.

    So it has no use for ``square``.
    """
    del square
    cross = torch.zeros(len(gradients[0].act), len(weight), dtype=torch.float64)
    squares, centre_squares = torch.zeros_like(cross[:, 0]), torch.zeros_like(cross[0])
    for gradient, (centre_in, centre_out) in zip(gradients, centres, strict=True):
        g = _materialize(gradient).flatten(1)  # [B, G O J]
        c = torch.einsum("gkro,gkrj->kgoj", centre_out.double(), centre_in.double()).flatten(1)
        cross += g @ c.T
        squares += (g**2).sum(1)
        centre_squares += (c**2).sum(1)
    return rank1_argmin(cross, squares, centre_squares, weight.double(), rtol=rtol)


def _materialize(gradient: LayerGradient) -> Tensor:
    """G_i [B, G, O, J] by unfolding the patches."""
    act, dout, conv, bias = gradient
    act, dout = act.double(), dout.double()
    groups = 1 if conv is None else conv.groups
    if conv is None:
        act, dout = act[:, :, None], dout[:, :, None]  # [B, J, T], [B, O, T]
    else:
        act = F.unfold(act, conv.kernel, conv.dilation, conv.padding, conv.stride)
        dout = dout.flatten(2)
    act = act.unflatten(1, (groups, -1))
    dout = dout.unflatten(1, (groups, -1))
    if bias:
        act = F.pad(act, (0, 0, 0, 1), value=1.0)
    return dout @ act.transpose(2, 3)


def _decoded(values: Tensor, shape: tuple[int, int, int]) -> Tensor:
    """Rows of stored values [B, C, h, w], in units of their scales."""
    if values.dtype == torch.uint8:
        place = 2 ** torch.arange(8, dtype=torch.uint8, device=values.device)
        bits = ((values[:, :, None] & place) != 0).flatten(1)
        values = 2 * bits[:, : shape[0] * shape[1] * shape[2]].double() - 1
    return values.double().view(len(values), *shape)


def _looked_at(
    view: Tensor, padding: int, resolution: int, shape: torch.Size
) -> tuple[Tensor, Tensor]:
    """Number of the stored value [B, H, W] at each pixel of a view, and whether it is in the image."""
    height, width = shape[2:]
    row, column = (torch.arange(n, device=view.device) for n in (height, width))
    top, left, flip = view[:, :, None].unbind(1)
    row = top - padding + row
    column = left - padding + torch.where(flip > 0, width - 1 - column, column)
    shown = ((row >= 0) & (row < height))[:, :, None] & ((column >= 0) & (column < width))[:, None]
    row, column = row.clamp(0, height - 1), column.clamp(0, width - 1)
    row, column = row // resolution, column // resolution
    return row[:, :, None] * -(-width // resolution) + column[:, None, :], shown


def pair_gradients(
    image: Tensor,
    caption: Tensor,
    row: Tensor,
    column: Tensor,
    weight: Tensor,
    similarity: Similarity = "cosine",
) -> tuple[Tensor, Tensor]:
    """See :func:`hrrl_ext.ops.pair_gradients`. Copies the rows of every pair."""
    f, g = image.to(weight.dtype), caption.to(weight.dtype)
    total = torch.zeros_like(f), torch.zeros_like(g)
    if len(f) == 0 or len(g) == 0:
        return total
    weight = torch.where((row >= 0) & (column >= 0), weight, 0)[:, None]
    row, column = row.clamp(min=0), column.clamp(min=0)
    f, g = (torch.where(weight == 0, 0, rows) for rows in (f[row], g[column]))
    if similarity == "order":
        g = (g - f).clamp(min=0)
        square = g.square().sum(1, keepdim=True)
        weight = weight / torch.where(square == 0, torch.inf, square).sqrt()
        f = -g
    return total[0].index_add(0, row, weight * g), total[1].index_add(0, column, weight * f)


def hinge_coefficients(
    image: Tensor,
    caption: Tensor,
    image_below: Tensor,
    caption_below: Tensor,
    image_weight: Tensor,
    caption_weight: Tensor,
    image_group: Tensor,
    caption_group: Tensor,
) -> HingeCoefficients:
    """See :func:`hrrl_ext.ops.hinge_coefficients`. In float64."""
    score = (image.double()[:, None] * caption.double()).sum(2)
    below, weights = (image_below, caption_below), (image_weight, caption_weight)
    b, d, u, v = (t.double() for t in below + weights)
    found = hinges_of(score, b, d, u, v, image_group, caption_group)
    return HingeCoefficients(*(t.to(image_below.dtype) for t in found))


def hinges_of(
    score: Tensor,
    image_below: Tensor,
    caption_below: Tensor,
    image_weight: Tensor,
    caption_weight: Tensor,
    image_group: Tensor,
    caption_group: Tensor,
) -> HingeCoefficients:
    """:func:`hinge_coefficients` of scores [I, C], whatever they measure."""
    score = score.masked_fill(image_group[:, None] == caption_group, -torch.inf)
    of_pair, of_other = score + image_below[:, None], score + caption_below
    loss = of_pair.clamp(min=0) * caption_weight + of_other.clamp(min=0) * image_weight[:, None]
    row, column = (of_pair > 0) * caption_weight, (of_other > 0) * image_weight[:, None]
    return HingeCoefficients(loss.sum(), row + column, row.sum(1), column.sum(0))
