"""What holds for every input: agreement with float64, and the identities of the method.

The bound is flash-attention's rule, at most twice the error of plain PyTorch in the same dtype plus
a rounding of the output; where a sharper bound can be argued it stands instead, and implies the rule.
Hypothesis draws the problems (problems.py), the same ones in every run. On a GPU the same holds.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import cases
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from hrrl_ext import ops
from hrrl_ext.ops import ConceptLoss, reference

hypothesis = pytest.importorskip("hypothesis")
import problems as p  # noqa: E402
from hypothesis import given, settings  # noqa: E402

DOUBLE_EPS = cases.EPS[torch.float64]


def repeatable(max_examples: int) -> Any:
    """The same examples in every run, in as much time as they take."""
    return settings(
        max_examples=max_examples,
        derandomize=True,
        suppress_health_check=[hypothesis.HealthCheck.too_slow],
    )


@contextlib.contextmanager
def borrowed(*values: object) -> Iterator[None]:
    """Neither the contents nor the version counter of an input may change."""
    tensors = [value for value in values if isinstance(value, Tensor)]
    before = [(cases.raw(t), t._version) for t in tensors]
    yield
    for t, (contents, version) in zip(tensors, before, strict=True):
        assert torch.equal(cases.raw(t), contents)
        assert t._version == version


def assert_within(got: Tensor, exact: Tensor, bound: Tensor | float) -> None:
    """|got - exact| <= bound; NaN and Inf, also those of rounding to ``got``'s dtype, must be equal."""
    rounded = exact.to(got.dtype).double()
    error = (got.double() - exact.double()).abs()
    agrees = (error <= bound) | (got.double() == rounded) | (got.isnan() & exact.isnan())
    assert agrees.all(), f"off by {(error - bound)[~agrees].max().item():.3g} more than allowed"


def computed_in(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32


# --- perturb


@repeatable(800)
@given(problem=p.perturbations)
def test_perturb(device: str, problem: p.Perturbation) -> None:
    """One rounding of x̃, and 4 of the step τ z where it is computed: τ/‖g‖, its product with g and
    the sum. A float64 norm is summed in another order than the oracle's, of possibly equal terms."""
    x, grad, tau = problem.tensors(device)
    with borrowed(x, grad, tau):
        got, norm = ops.perturb(x, grad, tau)
    exact, exact_norm = reference.perturb(x.double(), grad.double(), tau)
    inner = computed_in(x.dtype)
    order = grad[:1].numel() * DOUBLE_EPS / 2
    bound = p.rounding(x.dtype) * exact.abs() + p.smallest(x.dtype)
    bound += (4 * cases.EPS[inner] + order) * (exact - x.double()).abs()
    assert_within(got, exact, bound)
    assert_within(norm, exact_norm, (2 * cases.EPS[inner] + order) * exact_norm + p.smallest(inner))
    assert (got.dtype, norm.dtype) == (x.dtype, inner)
    assert got.stride() == torch.empty_like(x).stride()

    length = torch.as_tensor(tau, device=device).expand(len(x))
    unusable = ~grad[:, None].flatten(1).isfinite().all(1) | (exact_norm == 0)
    still = unusable | (length == 0)
    assert torch.equal(cases.raw(got[still]), cases.raw(x[still]))  # to the bit


@repeatable(300)
@given(problem=p.perturbations)
def test_perturb_knows_no_order_of_the_examples(device: str, problem: p.Perturbation) -> None:
    x, grad, tau = problem.tensors(device)
    order = torch.randperm(len(x), generator=cases.generator(problem.seed)).to(device)
    shuffled_tau = tau[order] if isinstance(tau, Tensor) else tau
    got, norm = ops.perturb(x, grad, tau)
    shuffled, shuffled_norm = ops.perturb(x[order], grad[order], shuffled_tau)
    # Shuffling makes the examples dense: the same numbers, summed in another order.
    assert_within(shuffled_norm, norm[order], 1e-6 * norm[order].double())
    step = (got.double() - x.double()).abs()[order]
    bound = 1e-6 * step + 2 * cases.EPS[x.dtype] * got[order].double().abs()
    assert_within(shuffled, got[order].double(), bound + p.smallest(x.dtype))


# --- mix_chains


@repeatable(200)
@given(problem=p.mixtures)
def test_mix_chains(device: str, problem: p.Mixtures) -> None:
    """The bits of the specification, for any parameter."""
    x, *program = problem.tensors(device)
    with borrowed(x, *program):
        got = ops.mix_chains(x, *program)
    want = reference.mix_chains(*(t.cpu() for t in (x, *program)))
    assert torch.equal(got.cpu(), want)
    assert got.shape == x.shape and got.dtype == x.dtype


# --- perturb_stored and store_directions


@repeatable(200)
@given(problem=p.directions)
def test_stored_directions(device: str, problem: p.Directions) -> None:
    """As perturb: of x̃ one rounding and 3 of the step. What is stored is off by a unit at most, and but for
    values between two units by nothing; blocks are summed in float32, in which they may cancel."""
    x, grad, given = problem.tensors(device)
    settings = {"padding": problem.padding, "resolution": problem.resolution}
    with borrowed(x, *given):
        got = ops.perturb_stored(x, *given, problem.tau, **settings)
    exact = reference.perturb_stored(x.double(), *given, problem.tau, **settings)
    order = x[:1].numel() * DOUBLE_EPS / 2
    step = (3 * cases.EPS[computed_in(x.dtype)] + order) * (exact - x.double()).abs()
    assert_within(got, exact, p.rounding(x.dtype) * exact.abs() + p.smallest(x.dtype) + step)
    values, scale, row, view = given
    want = values.clone(), scale.clone()
    reference.store_directions(*want, grad, row, view, **settings)
    with borrowed(grad, row, view):
        ops.store_directions(values, scale, grad, row, view, **settings)
    if problem.resolution > 1 and problem.signs:
        return  # the sign of a sum that cancels is that of its rounding
    torch.testing.assert_close(
        scale, want[1], rtol=1e-4 if problem.resolution > 1 else 1e-6, atol=0
    )
    apart = (values.int() - want[0].int()).abs()
    assert problem.signs or (apart <= 1).all()
    assert not problem.signs or not apart.any()


# --- concept_cross_entropy


def with_gradient(
    function: Callable[..., ConceptLoss],
    arguments: dict[str, Tensor],
    smoothing: float = 0.0,
    loss_scale: float = 1.0,
) -> tuple[ConceptLoss, Tensor]:
    logits = arguments["logits"].detach().requires_grad_()
    out = function(**(arguments | {"logits": logits}), label_smoothing=smoothing)
    (grad,) = torch.autograd.grad(out.loss, logits, torch.full_like(out.loss, loss_scale))
    return out, grad


def in_double(arguments: dict[str, Tensor]) -> dict[str, Tensor]:
    return {n: t.double() if t.is_floating_point() else t for n, t in arguments.items()}


def or_zero(t: Tensor) -> Tensor:
    """A bound that is not finite allows nothing: the values themselves must be equal there."""
    return torch.where(t.isfinite(), t, 0.0)


@repeatable(800)
@given(problem=p.batches())
def test_concept_cross_entropy(device: str, problem: p.Batch) -> None:
    """Loss by loss and row by row: twice plain PyTorch's error; and, as that is zero by luck in small
    cases, 4 roundings of the terms of ℓ and of p - y where they are computed.

    z - max rounds relative to itself, and the exponential makes a relative error of that.
    """
    a, smoothing = problem.tensors(device), problem.label_smoothing
    loss_scale = 2.0 ** (problem.seed % 21 - 10)  # of mixed precision; itself without rounding
    options = (smoothing, loss_scale)
    with borrowed(*a.values()):
        got, grad = with_gradient(ops.concept_cross_entropy, a, *options)
    exact, exact_grad = with_gradient(reference.concept_cross_entropy, in_double(a), *options)
    plain, plain_grad = with_gradient(reference.concept_cross_entropy, a, *options)
    z, target, concept = a["logits"].double(), a["target"], a["concept"]
    eps = 4 * cases.EPS[computed_in(problem.dtype)]
    finite = torch.where(z.isfinite(), z, 0.0)
    spread = finite.amax(1, keepdim=True) - finite  # [B, C]
    walk = z.shape[1] ** 0.5  # additions of exp; in float32 they are shared by several lanes
    many = 1 + (walk if problem.dtype == torch.float64 else walk / 8)

    sizes = 1 + spread.gather(1, target[:, None]).squeeze(1) + (smoothing > 0) * spread.mean(1)
    bound = 2 * or_zero((plain.example_loss.double() - exact.example_loss).abs())
    assert_within(got.example_loss, exact.example_loss, bound + eps * many * sizes)

    share = a["concept_count"].double() / a["concept_count"].double().sum()
    weight = loss_scale * ((a["q"].double() / share)[concept] / max(len(z), 1))[:, None]  # [B, 1]
    at_labels = F.one_hot(target, z.shape[1]) + smoothing / z.shape[1]
    terms = or_zero(z.softmax(1) * (1 + spread)) + at_labels
    bound = 2 * or_zero((plain_grad.double() - exact_grad).abs()).amax(1, keepdim=True)
    bound = bound + or_zero(eps * many * weight * terms) + p.rounding(grad.dtype) * exact_grad.abs()
    flushed = torch.finfo(torch.float32).tiny * (1 + weight)  # exp below e^-87
    assert_within(grad, exact_grad, bound + flushed + p.smallest(grad.dtype))
    assert (grad.dtype, grad.shape) == (problem.dtype, z.shape)


def sums(a: dict[str, Tensor], example_loss: Tensor) -> Tensor:
    """ĝ, from the example losses."""
    count = a["concept_count"].double()
    total = torch.zeros_like(count).index_add(0, a["concept"], example_loss.double())
    return torch.where(total == 0, 0.0, total / (count / count.sum() * max(len(example_loss), 1)))


@repeatable(400)
@given(problem=p.batches())
def test_both_players_see_the_same_losses(device: str, problem: p.Batch) -> None:
    """ĝ from ℓ, and loss = Σ_k q_k ĝ_k from ĝ: to the roundings of ĝ and of loss, as ℓ >= 0.

    A concept without an example has ĝ_k = 0; a loss that is not finite shows in its own concept only.
    """
    a = problem.tensors(device)
    out = ops.concept_cross_entropy(**a, label_smoothing=problem.label_smoothing)
    expected = sums(a, out.example_loss)
    assert out.concept_loss.dtype == problem.q_dtype
    bound = (2 * cases.EPS[torch.float32] if problem.q_dtype == torch.float32 else 1e-12) * expected
    assert_within(out.concept_loss, expected, bound + p.smallest(problem.q_dtype))
    q = a["q"].double()
    terms = torch.where(expected == 0, 0.0, q * expected)
    eps = max(2 * cases.EPS[out.loss.dtype], 1e-12)
    assert_within(out.loss, terms.sum(), eps * terms.sum() + p.smallest(out.loss.dtype))


@repeatable(300)
@given(problem=p.batches(["normal", "±80", "large"], smoothing=False))
def test_the_game_without_an_adversary(device: str, problem: p.Batch) -> None:
    """q = q0 weighs every example by exactly 1 and K = 1 is ERM: the same bits of the gradient, and
    the plain mean of the losses. With K = 1 that mean is also ĝ_1."""
    a = problem.tensors(device)
    count = a["concept_count"].double()
    a["q"] = count / count.sum()
    one = torch.ones(1, dtype=torch.float64, device=device)
    erm = a | {"concept": torch.zeros_like(a["concept"]), "q": one, "concept_count": one}
    game, game_grad = with_gradient(ops.concept_cross_entropy, a)
    plain, plain_grad = with_gradient(ops.concept_cross_entropy, erm)
    assert torch.equal(game_grad, plain_grad)
    mean = game.example_loss.double().mean() if len(a["target"]) else torch.zeros((), device=device)
    eps = max(2 * cases.EPS[game.loss.dtype], 1e-12)
    for loss in (game.loss, plain.loss, plain.concept_loss[0]):
        assert_within(loss, mean.double(), eps * mean)


@repeatable(200)
@given(problem=p.batches())
def test_losses_know_no_order_of_the_examples(device: str, problem: p.Batch) -> None:
    a = problem.tensors(device)
    order = torch.randperm(problem.batch, generator=cases.generator(problem.seed)).to(device)
    shuffled = a | {name: a[name][order] for name in ("logits", "target", "concept")}
    before = ops.concept_cross_entropy(**a)
    after = ops.concept_cross_entropy(**shuffled)
    eps = cases.EPS[after.example_loss.dtype]
    largest = or_zero(a["logits"].double()).abs().amax(1)[order]
    assert_within(after.example_loss, before.example_loss[order].double(), 8 * eps * (1 + largest))
    if device == "cpu":  # on a GPU the order within a row depends on its alignment
        assert torch.equal(cases.raw(after.example_loss), cases.raw(before.example_loss[order]))
        eps = 2 * cases.EPS[torch.float32] if problem.q_dtype == torch.float32 else 1e-12
        expected = before.concept_loss.double()
        assert_within(after.concept_loss, expected, eps * expected)


# --- project_simplex


@repeatable(800)
@given(problem=p.rows())
def test_project_simplex(device: str, problem: p.Rows) -> None:
    """One rounding of p, and sums of K float64 terms no larger than the radius."""
    v = problem.tensor(device)
    with borrowed(v):
        got = ops.project_simplex(v, dim=problem.dim, radius=problem.radius)
    exact = reference.project_simplex(v.double(), dim=problem.dim, radius=problem.radius)
    size = v.shape[problem.dim]
    bound = 8 * DOUBLE_EPS * size**0.5 * problem.radius + p.smallest(v.dtype)
    assert_within(got, exact, p.rounding(v.dtype) * exact + bound)
    assert (got.dtype, got.shape) == (v.dtype, v.shape)
    assert bool((~(got < 0)).all())


@repeatable(300)
@given(problem=p.rows(["normal", "near", "ties"]))
def test_projection_as_geometry(device: str, problem: p.Rows) -> None:
    """Sum, shift, order, projecting twice; 1-Lipschitz: every bound a sum of K roundings in float64.

    The entries are multiples of 2^-20, so that a shift of them rounds nothing.
    """
    v = (problem.tensor(device).double() * 2**20).round() / 2**20
    dim, radius = problem.dim, problem.radius
    size = v.shape[dim]
    atol = 16 * DOUBLE_EPS * size * radius
    projected = ops.project_simplex(v, dim=dim, radius=radius)
    assert_within(projected.sum(dim), torch.full_like(projected.sum(dim), radius), atol)
    for shift in (1.0, -4096.0):
        assert_within(ops.project_simplex(v + shift, dim=dim, radius=radius), projected, atol)
    order = torch.randperm(size, generator=cases.generator(problem.seed)).to(device)
    shuffled = ops.project_simplex(v.index_select(dim, order), dim=dim, radius=radius)
    assert_within(shuffled, projected.index_select(dim, order), atol)
    assert_within(ops.project_simplex(projected, dim=dim, radius=radius), projected, 2 * atol)
    other = v.flip(dim) * 0.5
    moved = (ops.project_simplex(other, dim=dim, radius=radius) - projected).norm(dim=dim)
    assert bool((moved <= (other - v).norm(dim=dim) * (1 + 1e-12) + 2 * atol).all())


@repeatable(300)
@given(problem=p.rows(["normal", "near", "ties", "masked"]))
def test_gradient_of_the_projection(device: str, problem: p.Rows) -> None:
    """dv = 1_S (dp - mean_S dp) with the S of the p that was returned. In its own dtype the mean has
    a sum (twice its terms at most, in magnitude), a quotient, a difference: 4 roundings of max |dp|."""
    v = problem.tensor(device)
    if problem.values == "masked":  # a row of -Inf alone is NaN, and has no support
        v = torch.where(v.isinf().all(problem.dim, keepdim=True), torch.zeros_like(v), v)
    v = v.detach().requires_grad_()
    projected = ops.project_simplex(v, dim=problem.dim, radius=problem.radius)
    dp = torch.randn(v.shape, generator=cases.generator(problem.seed)).to(v.dtype).to(device)
    (grad,) = torch.autograd.grad(projected, v, dp)
    support = projected.detach() > 0
    mean = (dp.double() * support).sum(problem.dim, keepdim=True)
    mean = mean / support.sum(problem.dim, keepdim=True)
    exact = torch.where(support, dp.double() - mean, 0.0)
    largest = dp.double().abs().sum().clamp(max=4.0) if dp.numel() else 0.0
    assert_within(grad, exact, 4 * cases.EPS[v.dtype] * largest)
    with borrowed(projected, dp):
        moved = ops.project_simplex_backward(
            projected.detach().movedim(problem.dim, -1), dp.movedim(problem.dim, -1)
        )
    assert torch.equal(moved.movedim(-1, problem.dim), grad)
    assert (grad.dtype, grad.shape) == (v.dtype, v.shape)


# --- update_distribution


def ascended_atol(q: Tensor, gain: Tensor, eta: float, lam: float) -> float:
    """Every entry of q + η(ĝ - λ(q - q0)) rounds relative to its terms, and P_Δ does not enlarge the
    distance. The largest gain is what decides: entries that far below it get nothing."""
    terms = 1 + eta * (gain.double().abs().max().item() + lam)
    return float(8 * DOUBLE_EPS * len(q) ** 0.5 * terms)


@repeatable(600)
@given(problem=p.ascents)
def test_update_distribution(device: str, problem: p.Ascent) -> None:
    q, gain, q0, eta, lam = problem.tensors(device)
    with borrowed(q, gain, q0, eta):
        got = ops.update_distribution(q, gain, q0, eta, lam)
    exact = reference.update_distribution(q.double(), gain.double(), q0.double(), eta, lam)
    atol = ascended_atol(q, gain, float(eta), lam)
    assert_within(got, exact, p.rounding(q.dtype) * exact + min(atol, 1.0))
    assert got.dtype == q.dtype
    assert got.sum().item() == pytest.approx(1.0, abs=4 * len(q) * cases.EPS[q.dtype])
    if len(q) == 1:
        assert got.item() == 1.0


@repeatable(300)
@given(problem=p.ascents)
def test_limits_of_the_adversary(device: str, problem: p.Ascent) -> None:
    """η = 0 or q = q0 without losses: q stays. η = 1/λ: P(q0 + ĝ/λ), wherever q was; λ → ∞: q0."""
    q, gain, q0, _, _ = (
        t.double() if isinstance(t, Tensor) else t for t in problem.tensors(device)
    )
    q, q0 = ops.project_simplex(q), ops.project_simplex(q0)
    atol = 16 * DOUBLE_EPS * len(q)
    assert_within(ops.update_distribution(q, gain, q0, 0.0, 1.0), q, atol)
    assert_within(ops.update_distribution(q, 0 * gain, q, 0.5, 2.0), q, atol)
    for lam in (0.5, 2.0):
        expected = reference.project_simplex(q0 + gain / lam)
        got = ops.update_distribution(q, gain, q0, 1 / lam, lam)
        assert_within(got, expected, min(ascended_atol(q, gain, 1 / lam, lam), 1.0))
    if gain.max() < 100:
        got = ops.update_distribution(q, gain, q0, 1e-15, 1e15)
        assert_within(got, q0, 2e-13 * len(q) + atol)


# --- step_distribution


@repeatable(150)
@given(problem=p.ascents)
def test_step_distribution(device: str, problem: p.Ascent) -> None:
    """The update of the schedule's η, or q to the bit; s is the step before, this one, or the next."""
    q, gain, q0, eta, lam = problem.tensors(device)
    step, lam = problem.seed % 1000 + 1, lam + 1e-3
    t = torch.tensor(step - 1, device=device)
    c, s = torch.tensor(1 + float(eta), device=device), step + problem.seed % 3 - 1
    gain, got = gain.clone(), q.clone()
    if problem.seed % 7 == 0:
        gain[problem.seed % len(gain)] = torch.nan
    with borrowed(gain, q0, c):
        ops.step_distribution(got, t, gain, q0, c, lam=lam, s=s)
    assert t == step
    slowed = c.double() if step <= s else torch.ones_like(c).double()
    moved = ops.update_distribution(q, gain, q0, 1 / (lam * t.double()) / slowed, lam)
    assert torch.equal(got, moved if moved.isfinite().all() else q)
    twin = q.clone()
    reference.step_distribution(twin, t - 1, gain, q0, c, lam=lam, s=s)
    atol = ascended_atol(q, gain.nan_to_num(), 1 / (lam * step), lam)
    rounding = 2 * p.rounding(q.dtype) * twin.double()  # of either
    assert_within(got, twin.double(), rounding + min(atol, 1.0))


# --- chi_square_response


def distance(q: Tensor, q0: Tensor) -> float:
    off = (q.double() - q0.double()).square() / q0.double()
    return torch.where(q0 > 0, off, 0.0).sum().item()


@repeatable(300)
@given(problem=p.responses)
def test_chi_square_response(device: str, problem: p.Response) -> None:
    """Sums of K terms that add up to 1 round by K eps, and so does q. A ball gives λ' by the root of what
    is left of it, so where it just fits q is known to the root of a rounding alone, while what it is
    worth is known as well as ever."""
    loss, q0, lam = problem.tensors(device)
    limits = {"rho": problem.rho, "max_weight": problem.max_weight}
    with borrowed(loss, q0):
        got = ops.chi_square_response(loss, q0, lam, **limits)
    exact = reference.chi_square_response(loss, q0.double(), lam, **limits)
    rounding = p.rounding(q0.dtype)
    atol = 64 * len(q0) * DOUBLE_EPS
    close = atol if problem.rho is None else 1e-6
    assert_within(got, exact, rounding * exact + close)
    assert got.dtype == q0.dtype
    wide = q0.double()
    assert got.double().sum().item() == pytest.approx(wide.sum().item(), abs=2 * rounding + atol)
    if problem.max_weight is not None:
        assert (got.double() <= problem.max_weight * wide * (1 + 2 * rounding + atol)).all()
    if problem.rho is not None and q0.dtype == torch.float64:
        assert distance(got, q0) <= problem.rho**2 * (1 + 1e-10)
        gain = loss.double() - loss.double().min()
        worth = [(q @ gain - lam / 2 * distance(q, q0)).item() for q in (got, exact)]
        assert worth[0] >= worth[1] - 1e-11 * (gain.max().item() + abs(worth[1]))


@repeatable(150)
@given(problem=p.responses)
def test_relabelling_the_concepts(device: str, problem: p.Response) -> None:
    loss, q0, lam = problem.tensors(device)
    limits = {"rho": problem.rho, "max_weight": problem.max_weight}
    order = torch.randperm(len(q0), generator=cases.generator(problem.seed)).to(device)
    got = ops.chi_square_response(loss[order], q0[order], lam, **limits)
    plain = ops.chi_square_response(loss, q0, lam, **limits)[order]
    close = 64 * len(q0) * DOUBLE_EPS if problem.rho is None else 1e-6
    assert_within(got, plain.double(), 2 * p.rounding(q0.dtype) * plain.double() + close)


# --- hardest_negatives


@repeatable(200)
@given(problem=p.negatives)
def test_hardest_negatives(device: str, problem: p.Negatives) -> None:
    """The score is the best there is but for the rounding of D terms, and that of whoever is named."""
    image, caption, *groups = problem.tensors(device)
    wide = image.double(), caption.double()
    eps = cases.EPS[computed_in(image.dtype)]
    for similarity in ("cosine", "order"):
        with borrowed(image, caption, *groups):
            got = ops.hardest_negatives(image, caption, *groups, similarity=similarity)  # type: ignore[misc]
        best = reference.hardest_negatives(*wide, *groups, similarity=similarity)  # type: ignore[misc]
        if similarity == "cosine":
            score, size = wide[0] @ wide[1].T, wide[0].abs() @ wide[1].abs().T
        else:
            score = -(wide[1] - wide[0][:, None]).clamp(min=0).norm(dim=2)
            size = -score
        atol = (problem.size + 4) * eps * (size.max().item() if size.numel() else 0.0)
        for side in (0, 1):
            index, value = got[2 * side], got[2 * side + 1].double()
            assert torch.equal(index >= 0, best[2 * side] >= 0)
            found = index >= 0
            assert (value[~found] == -torch.inf).all()
            assert_within(value[found], best[2 * side + 1][found], atol)
            of_one = score if side == 0 else score.T
            named = of_one[found].gather(1, index[found, None])[:, 0]
            assert_within(value[found], named, atol)
            mine, others = groups[side][found], groups[1 - side]
            assert (others[index[found]] != mine).all()


# --- rank1_dot and rank1_argmin


@repeatable(400)
@given(problem=p.products)
def test_rank1_dot(device: str, problem: p.Products) -> None:
    """As many roundings as there are terms, here and in the reference, of the sum of the magnitudes."""
    cross, left, right = problem.tensors(device)
    got = cross.clone()
    with borrowed(left, right):
        ops.rank1_dot(got, left, right)
    reference.rank1_dot(cross, left, right)
    terms = (left.double() * right.double()).abs()
    roundings = 2 * (problem.groups * problem.size + 2)
    magnitude = or_zero(terms).sum((1, 3)) + 20
    assert_within(got, cross, roundings * DOUBLE_EPS * magnitude)


@repeatable(400)
@given(problem=p.neighbours)
def test_rank1_argmin(device: str, problem: p.Centres) -> None:
    """Against the differences themselves. ⟨C, g⟩ and the squares round by D terms, S by three more, each
    relative to ‖C‖² + ‖g‖²; so whatever is said of a score holds to that."""
    gradients, centres, weight = problem.tensors(device)
    square, centre_square = gradients.square().sum(1), centres.square().sum(1)
    arguments = (gradients @ centres.T, square, centre_square, weight)
    with borrowed(*arguments):
        got = ops.rank1_argmin(*arguments, rtol=problem.rtol)
    if problem.batch == 0:
        assert [len(t) for t in got] == [0, 0, 0]
        return
    size = centre_square + square[:, None]  # [B, K]
    eps = 4 * (problem.dims + 3) * DOUBLE_EPS
    distance = (gradients[:, None] - centres).square().sum(2)
    score, error, margin = weight * distance, eps * weight * size, problem.rtol * weight * size
    at = got.assignment[:, None]
    best = score.amin(1, keepdim=True)
    slack = error.gather(1, score.argmin(1, keepdim=True))  # of the best
    assert_within(got.distance, distance.gather(1, at)[:, 0], (eps * size).gather(1, at)[:, 0])

    ids = torch.arange(problem.clusters, device=device)
    assert (score <= best + margin + error + slack).gather(1, at).all()
    earlier = ids < at
    # What lies before it is not within the margin.
    assert (~earlier | (score > best + margin - error - slack)).all()
    ahead = score.masked_fill(ids == at, torch.inf).amin(1) - score.gather(1, at)[:, 0]
    own_scale = (weight * size).gather(1, at)[:, 0]
    others = score.masked_fill(ids == at, torch.inf).argmin(1, keepdim=True)
    bound = (error.gather(1, at) + error.gather(1, others))[:, 0] / own_scale
    exact = torch.where(ahead == 0, 0.0, ahead / own_scale)
    assert_within(got.gap, exact, or_zero(bound) + DOUBLE_EPS * or_zero(exact).abs())
    assert (got.gap >= -problem.rtol * (1 + 1e-9)).all()


@repeatable(200)
@given(problem=p.neighbours)
def test_relabelling_the_clusters(device: str, problem: p.Centres) -> None:
    """Another order of the clusters gives the same distances and gaps, and their names where there is
    no tie; another order of the examples gives the same bits."""
    gradients, centres, weight = problem.tensors(device)
    arguments = (gradients @ centres.T, gradients.square().sum(1), centres.square().sum(1), weight)
    plain = ops.rank1_argmin(*arguments, rtol=0.0)
    order = torch.randperm(problem.clusters, generator=cases.generator(problem.seed)).to(device)
    cross, square = arguments[:2]
    relabelled = ops.rank1_argmin(
        cross[:, order], square, *(t[order] for t in arguments[2:]), rtol=0.0
    )
    assert torch.equal(relabelled.gap == 0, plain.gap == 0)
    clear = plain.gap > 0
    assert torch.equal(order[relabelled.assignment][clear], plain.assignment[clear])
    assert torch.equal(relabelled.gap[clear], plain.gap[clear])
    order = torch.randperm(problem.batch, generator=cases.generator(problem.seed)).to(device)
    shuffled = ops.rank1_argmin(cross[order], square[order], *arguments[2:], rtol=0.0)
    assert all(torch.equal(a, b[order]) for a, b in zip(shuffled, plain, strict=True))


# --- hinge_coefficients and pair_gradients


@repeatable(100)
@given(problem=p.negatives)
def test_hinge_coefficients(device: str, problem: p.Negatives) -> None:
    """The loss is that of float64 but for the rounding of every score; coefficients are 0, 1 or 2, and add
    up to the two sums."""
    image, caption, *groups = problem.tensors(device)
    dtype = computed_in(image.dtype)
    ones = [torch.ones(len(t), dtype=dtype, device=device) for t in (image, caption)]
    with borrowed(image, caption, *groups):
        got = ops.hinge_coefficients(image, caption, *ones, *ones, *groups)
    want = reference.hinge_coefficients(
        image.double(), caption.double(), *(t.double() for t in ones * 2), *groups
    )
    score = image.double().abs() @ caption.double().abs().T
    atol = 2 * (problem.size + 4) * cases.EPS[dtype] * (score.sum().item() + 2 * score.numel())
    assert_within(got.loss, want.loss, atol)
    assert got.coefficient.unique().tolist() == [
        n for n in (0, 1, 2) if (got.coefficient == n).any()
    ]
    total = got.of_image.double().sum() + got.of_caption.double().sum()
    assert total.item() == got.coefficient.double().sum().item()


@repeatable(100)
@given(problem=p.negatives)
def test_pair_gradients(device: str, problem: p.Negatives) -> None:
    """Of every image with every caption of its group: those of the reference in float64."""
    image, caption, *groups = problem.tensors(device)
    row, column = (groups[0][:, None] == groups[1]).nonzero().T
    weight = torch.ones(len(row), dtype=computed_in(image.dtype), device=device)
    eps, terms = cases.EPS[weight.dtype], problem.size + len(row)
    for similarity in ("cosine", "order"):
        with borrowed(image, caption, row, column, weight):
            got = ops.pair_gradients(image, caption, row, column, weight, similarity)
        wide = (image.double(), caption.double(), row, column, weight.double())
        want = reference.pair_gradients(*wide, similarity)
        largest = max((t.abs().max().item() for t in wide[:2] if t.numel()), default=0.0)
        size = largest if similarity == "cosine" else 1.0
        for a, b in zip(got, want, strict=True):
            assert_within(a, b, (terms + 8) * eps * size * max(len(row), 1))
