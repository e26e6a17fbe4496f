"""The operators beside what else a user would write: the same tensors, and a check for every way.

A comparison names its ways by provider. A way is a function of a compiler (torch.compile for the
place at hand) that returns the call to time; all but one leave the compiler alone.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import peers
import torch
import torch._functorch.config
from shapes import Game, Images, Logits, Rows, Vector
from torch import Tensor

from hrrl_ext import ops
from hrrl_ext.ops import reference

Call = Callable[[], Any]
Compiler = Callable[[Callable[..., Any]], Callable[..., Any]]
Way = Callable[[Compiler], Call]

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
# Largest error, relative to the largest entry of the float64 result. The peers sum up to 1e6 terms in
# float32, and round half precision three times: this asks for the right formula, tests/ for the last
# bits.
TOLERANCE = {"fp32": 2e-5, "bf16": 2e-2, "fp16": 3e-3}
# From so many bytes on the bandwidth of the memory is what counts, and a copy is what to compare with.
LARGE = 8_000_000


@dataclass(frozen=True)
class Comparison:
    op: str
    case: object
    check: Callable[[Any], object]
    """Raises where a result is not that of float64."""
    ways: dict[str, Way]
    held: tuple[Tensor, ...] = ()
    """The arguments of ours, for the memory that a call takes beyond them."""
    unchecked: frozenset[str] = field(default=frozenset({"copy"}))
    """Providers that compute something else."""

    @property
    def facts(self) -> dict[str, Any]:
        return self.case.facts  # type: ignore[attr-defined]

    def checked_call(self, provider: str, compiler: Compiler) -> Call:
        """The call, after one that was checked (and that compiled what compiles)."""
        call = self.ways[provider](compiler)
        result = call()
        if provider not in self.unchecked:
            self.check(result)
        return call


def plain(call: Call) -> Way:
    return lambda _: call


def agree(actual: Iterable[Tensor], expected: Iterable[Tensor], tolerance: float) -> None:
    for got, want in zip(actual, expected, strict=True):
        atol = tolerance * want.abs().max().item()
        torch.testing.assert_close(got.double(), want, rtol=0, atol=atol)


def most_rows_agree(actual: Tensor, expected: Tensor, tolerance: float) -> None:
    """All but one in a thousand: where an entry lies on the threshold, float32 may decide otherwise."""
    error = (actual.double() - expected).abs() / expected.abs().max()
    share = (error <= tolerance).all(-1).double().mean().item()
    assert share >= 0.999, f"only {100 * share:.2f} % of the rows agree"


def copy_of(moved: int, device: str) -> Way:
    """A copy that reads and writes so many bytes together."""

    def way(_: Compiler) -> Call:
        source = torch.ones(moved // 8, dtype=torch.float32, device=device)
        target = torch.empty_like(source)
        return lambda: target.copy_(source)

    return way


def generator(device: str) -> torch.Generator:
    return torch.Generator(device).manual_seed(0)


# --- perturb


@lru_cache(maxsize=1)  # for the providers of one case, which follow each other
def perturb(case: Images, device: str) -> Comparison:
    layout = torch.channels_last if case.channels_last else torch.contiguous_format
    g = generator(device)
    x = torch.rand(case.shape, generator=g, device=device)
    grad = torch.randn(case.shape, generator=g, device=device)
    x, grad = (t.to(DTYPES[case.dtype], memory_format=layout) for t in (x, grad))
    tau = math.sqrt(x[0].numel())  # moves a pixel by about 1, so that a wrong direction is seen
    expected = reference.perturb(x.double(), grad.double(), tau)[0]
    flat_x, flat_grad = x.contiguous(), grad.contiguous()  # beside ours in channels_last
    ways: dict[str, Way] = {
        "ours": plain(lambda: ops.perturb(x, grad, tau)[0]),
        "contiguous": plain(lambda: ops.perturb(flat_x, flat_grad, tau)[0]),
        "eager": plain(lambda: peers.eager_perturb(x, grad, tau)),
        "torchattacks": plain(lambda: peers.torchattacks_perturb(x, grad, tau)),
        "copy": copy_of(3 * case.bytes, device),
    }

    def compiled(compiler: Compiler) -> Call:
        function = compiler(peers.eager_perturb)
        return lambda: function(x, grad, tau)

    ways["compile"] = compiled
    tolerance = TOLERANCE[case.dtype]
    return Comparison(
        op="perturb", case=case, check=lambda y: agree([y], [expected], tolerance), ways=ways
    )


# --- concept_cross_entropy, forward and backward


def _labelled(case: Logits, device: str) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """logits, target, concept, q and concept_count."""
    g = generator(device)
    logits = 3 * torch.randn(case.batch, case.classes, generator=g, device=device)
    target = torch.randint(case.classes, (case.batch,), generator=g, device=device)
    concept = torch.randint(case.concepts, (case.batch,), generator=g, device=device)
    count = torch.randint(1, 500, (case.concepts,), generator=g, device=device).double()
    q = torch.rand(case.concepts, generator=g, device=device, dtype=torch.float64)
    return logits.to(DTYPES[case.dtype]).requires_grad_(), target, concept, q / q.sum(), count


@lru_cache(maxsize=1)
def concept_cross_entropy(case: Logits, device: str) -> Comparison:
    """loss, ĝ and the gradient of the logits."""
    logits, target, concept, q, count = _labelled(case, device)
    q32, inverse_share = q.float(), (count.sum() / count).float()
    wide = logits.detach().double().requires_grad_()
    losses = reference.concept_cross_entropy(wide, target, concept, q, count)[:2]
    expected = _with_gradient(losses, wide)

    def with_losses(function: Callable[..., tuple[Tensor, Tensor]], logits: Tensor) -> Call:
        arguments = (logits, target, concept, q32, inverse_share)
        return lambda: _with_gradient(function(*arguments), logits)

    def ours() -> tuple[Tensor, ...]:
        out = ops.concept_cross_entropy(logits, target, concept, q, count)
        return _with_gradient(out[:2], logits)

    def liger(_: Compiler) -> Call:
        own = logits.detach().clone().requires_grad_()  # its forward writes the gradient over them
        return with_losses(peers.liger_concept_loss(), own)

    ways: dict[str, Way] = {
        "ours": plain(ours),
        "eager": plain(with_losses(peers.eager_concept_loss, logits)),
        "compile": lambda compiler: with_losses(compiler(peers.eager_concept_loss), logits),
        "liger": liger,
        "copy": copy_of(2 * case.bytes, device),
    }
    return Comparison(
        op="concept_cross_entropy",
        case=case,
        check=lambda actual: agree(actual, expected, TOLERANCE[case.dtype]),
        ways=ways,
    )


@lru_cache(maxsize=1)
def concept_cross_entropy_forward(case: Logits, device: str) -> Comparison:
    """The loss and ĝ alone, but with the gradient that leaves in the same visit: one read, one write."""
    logits, *labels = _labelled(case, device)
    expected = reference.concept_cross_entropy(logits.detach().double(), *labels)[:2]
    ways: dict[str, Way] = {
        "ours": plain(lambda: ops.concept_cross_entropy(logits, *labels)[:2]),
        "copy": copy_of(2 * case.bytes, device),
    }
    return Comparison(
        op="concept_cross_entropy forward",
        case=case,
        check=lambda actual: agree(
            [result.detach() for result in actual], expected, TOLERANCE[case.dtype]
        ),
        ways=ways,
    )


def _with_gradient(losses: tuple[Tensor, Tensor], logits: Tensor) -> tuple[Tensor, ...]:
    (grad,) = torch.autograd.grad(losses[0], logits)
    return *(loss.detach() for loss in losses), grad


# --- project_simplex and update_distribution


def _vector(case: Vector | Rows, device: str) -> Tensor:
    v = torch.randn(case.facts["shape"], generator=generator(device), device=device)
    return (1 + 0.5 * v) / v.shape[-1] if case.facts.get("layout") == "near" else v


@lru_cache(maxsize=1)
def project_simplex(case: Vector | Rows, device: str) -> Comparison:
    """One vector, or many rows."""
    v = _vector(case, device)
    rank = torch.arange(1, v.shape[-1] + 1, device=device)
    expected = reference.project_simplex(v.double())

    def compiled(compiler: Compiler) -> Call:
        function = compiler(peers.sort_project)
        return lambda: function(v, rank)

    return Comparison(
        op="project_simplex",
        case=case,
        check=lambda actual: agree([actual], [expected], TOLERANCE["fp32"]),
        ways={
            "ours": plain(lambda: ops.project_simplex(v)),
            "eager": plain(lambda: peers.sort_project(v, rank)),
            "entmax": lambda _: _of(peers.entmax_project(), v),
            "liger": lambda _: _of(peers.liger_project(), v),
            "compile": compiled,
        },
    )


def _of(function: Callable[[Tensor], Tensor], v: Tensor) -> Call:
    return lambda: function(v)


@lru_cache(maxsize=1)
def project_simplex_backward(case: Rows, device: str) -> Comparison:
    """The gradient of the rows alone, after one forward pass: two reads, one write."""
    v = _vector(case, device).requires_grad_()
    above = torch.randn(v.shape, generator=generator(device), device=device)
    rank = torch.arange(1, v.shape[-1] + 1, device=device)
    wide = v.detach().double().requires_grad_()
    (expected,) = torch.autograd.grad(reference.project_simplex(wide), wide, above.double())

    def backward(function: Callable[[Tensor], Tensor]) -> Call:
        p = function(v)
        return lambda: torch.autograd.grad(p, v, above, retain_graph=True)

    def compiled(compiler: Compiler) -> Call:
        with torch._functorch.config.patch(donated_buffer=False):  # backward runs more than once
            function = compiler(peers.sort_project)
            call = backward(lambda v: function(v, rank))
            call()
        return call

    return Comparison(
        op="project_simplex_backward",
        case=case,
        check=lambda actual: most_rows_agree(actual[0], expected, TOLERANCE["fp32"]),
        ways={
            "ours": lambda _: backward(ops.project_simplex),
            "eager": lambda _: backward(lambda v: peers.sort_project(v, rank)),
            "entmax": lambda _: backward(peers.entmax_project()),
            "copy": copy_of(3 * case.bytes, device),
            "compile": compiled,
        },
    )


@lru_cache(maxsize=1)
def update_distribution(case: Vector, device: str) -> Comparison:
    lam, eta = 2.0 * case.size, 0.1 / case.size  # η = 1/(λ t) at t = 5: a tenth of an entry of q
    q = reference.project_simplex(_vector(case, device))
    q0 = q.flip(0)  # a uniform one would drop out: P(v + a) = P(v)
    concept_loss = torch.rand(case.size, generator=generator(device), device=device)
    rank = torch.arange(1, case.size + 1, device=device)
    arguments = (q, concept_loss, q0, eta, lam)
    expected = reference.update_distribution(q.double(), concept_loss, q0, eta, lam)

    def entmax(_: Compiler) -> Call:
        project = peers.entmax_project()
        return lambda: project(peers.ascend(*arguments))

    def compiled(compiler: Compiler) -> Call:
        function = compiler(peers.sort_update)
        return lambda: function(*arguments, rank)

    return Comparison(
        op="update_distribution",
        case=case,
        check=lambda actual: agree([actual], [expected], TOLERANCE["fp32"]),
        ways={
            "ours": plain(lambda: ops.update_distribution(*arguments)),
            "eager": plain(lambda: peers.sort_update(*arguments, rank)),
            "entmax": entmax,
            "compile": compiled,
        },
    )


@lru_cache(maxsize=1)
def step_distribution(case: Vector, device: str) -> Comparison:
    """In float64, as the adversary has it, at q0 and with equal losses: q stays there, whatever t."""
    q0 = reference.project_simplex(_vector(case, device).double())
    rank = torch.arange(1, case.size + 1, device=device)
    c, lam, s = torch.tensor(10.0, device=device, dtype=torch.float64), 2.0 * case.size, 1000

    def state() -> tuple[Tensor, ...]:
        return q0.clone(), torch.zeros((), dtype=torch.int64, device=device), q0.new_ones(case.size)

    def ours(_: Compiler) -> Call:
        q, t, concept_loss = state()

        def call() -> Tensor:
            ops.step_distribution(q, t, concept_loss, q0, c, lam=lam, s=s)
            return q

        return call

    def eager(compiler: Compiler = lambda function: function) -> Call:
        given, function = state(), compiler(peers.eager_step)
        return lambda: function(*given, q0, c, lam, s, rank)

    return Comparison(
        op="step_distribution",
        case=case,
        check=lambda actual: agree([actual], [q0], TOLERANCE["fp32"]),
        ways={"ours": ours, "eager": lambda _: eager(), "compile": eager},
    )


# --- chi_square_response


@lru_cache(maxsize=1)
def chi_square_response(case: Game, device: str) -> Comparison:
    """Losses about 2, shares that differ up to a hundredfold, in float64 as the adversary has them."""
    g, (lam, rho, cap) = generator(device), case.limits
    loss = 2 + torch.randn(case.size, generator=g, device=device, dtype=torch.float64)
    q0 = 10 ** (2 * torch.rand(case.size, generator=g, device=device, dtype=torch.float64))
    q0 = q0 / q0.sum()
    limits = {"rho": rho if rho < math.inf else None, "max_weight": cap if cap < math.inf else None}
    expected = reference.chi_square_response(loss, q0, lam, **limits)
    eager, arguments = (
        (peers.sort_response, (loss, q0, lam))
        if case.held_by == "penalty"
        else (peers.bisect_response, (loss, q0, lam, rho, cap))
    )

    def compiled(compiler: Compiler) -> Call:
        function = compiler(eager)
        return lambda: function(*arguments)

    return Comparison(
        op="chi_square_response",
        case=case,
        check=lambda actual: agree([actual], [expected], 1e-9),
        ways={
            "ours": plain(lambda: ops.chi_square_response(loss, q0, lam, **limits)),
            "eager": plain(lambda: eager(*arguments)),
            "compile": compiled,
        },
    )
