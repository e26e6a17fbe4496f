"""Function transforms, forward mode, and tensors without values: right, or refused by name."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import cases
import pytest
import torch
from test_registration import GRID, OPS
from torch import Tensor
from torch.autograd import forward_ad

from hrrl_ext import ops
from hrrl_ext.ops import reference

Of = Callable[[Any, Tensor], Tensor]
ID = torch.tensor([0, 2, 1, 0])
COUNT = torch.tensor([3.0, 1.0, 2.0])
Q = torch.tensor([0.2, 0.5, 0.3], dtype=torch.float64)
WEIGHT = torch.tensor([1.0, -2.0, 0.5, 3.0], dtype=torch.float64)
OTHER = cases.gradients(4, 3, dtype=torch.float64, seed=5)
VALUES = torch.arange(4 * 12).view(4, 12).to(torch.int8)
VIEW = torch.tensor([[0, 1, 1], [1, 0, 0], [0, 0, 0], [0, 0, 1]])
SCALE = torch.ones(4)


def stored(of: Any, x: Tensor) -> Tensor:
    return of.perturb_stored(
        x.unsqueeze(1).unsqueeze(3).expand(-1, 1, 3, 4), VALUES, SCALE, ID, VIEW, 0.3, padding=1
    )


# With a [4, 3] argument that what is computed is differentiable in; ``of`` is ops, or its reference.
DIFFERENTIABLE: dict[str, Of] = {
    "perturb, x": lambda of, x: of.perturb(x, OTHER, 0.3)[0],
    "perturb, grad": lambda of, g: of.perturb(OTHER, g, 0.3)[0],
    "perturb, tau": lambda of, t: of.perturb(OTHER, OTHER, t.sum(1))[0],
    "perturb_stored": stored,
    "concept_cross_entropy": lambda of, z: (
        of.concept_cross_entropy(z, ID, ID, Q, COUNT, label_smoothing=0.1).loss
    ),
    "project_simplex": lambda of, v: of.project_simplex(v, dim=0),
    "project_simplex_backward": lambda of, g: of.project_simplex_backward(OTHER, g),
    "hardest_negatives": lambda of, f: of.hardest_negatives(f, OTHER, ID, ID)[1],
    "hardest_negatives, order": lambda of, f: of.hardest_negatives(f, OTHER, ID, ID, "order")[3],
    "pair_gradients": lambda of, f: of.pair_gradients(f, OTHER, ID, ID, WEIGHT)[1],
    "pair_gradients, order": lambda of, f: of.pair_gradients(f, OTHER, ID, ID, WEIGHT, "order")[0],
}
# What their documents say carries no gradient: a constant to every transform.
CONSTANT: dict[str, Of] = {
    "perturb, norm": lambda of, g: of.perturb(OTHER, g, 0.3)[1],
    "concept_cross_entropy, concepts": lambda of, z: (
        of.concept_cross_entropy(z, ID, ID, Q, COUNT).concept_loss
    ),
    "update_distribution": lambda of, g: of.update_distribution(Q, g[0], Q, 0.1, 1.0),
    "chi_square_response": lambda of, g: of.chi_square_response(g[0], Q, 1.0, rho=0.5),
    "rank1_argmin": lambda of, g: of.rank1_argmin(g, g[:, 0] ** 2, Q, Q)[1],
    "hinge_coefficients": lambda of, f: of.hinge_coefficients(
        f, OTHER, WEIGHT, WEIGHT, WEIGHT, WEIGHT, ID, ID
    )[0],
    "mix_chains": lambda of, x: of.mix_chains(
        x.abs().clamp(max=1)[:, None, :, None],
        *(ID[:, None, None] * 0, torch.ones(4, 1, 1, 6).double()),
        *(torch.ones(4, 1), torch.full((4,), 0.5)),
    ),
}
ARGUMENT = cases.gradients(4, 3, dtype=torch.float64, seed=9)
TANGENT = cases.gradients(4, 3, dtype=torch.float64, seed=10)
MANY = cases.gradients(5, 4, 3, dtype=torch.float64, seed=11)
every = pytest.mark.parametrize("name", [*DIFFERENTIABLE, *CONSTANT])
differentiable = pytest.mark.parametrize("name", DIFFERENTIABLE)


def close(got: Any, want: Any) -> None:
    """Two programs in float64, of a few terms each; some of the kernels' outputs are float32."""
    torch.testing.assert_close(got, want, rtol=1e-6, atol=1e-7)


def function(name: str, of: Any = ops) -> Callable[[Tensor], Tensor]:
    call = (DIFFERENTIABLE | CONSTANT)[name]
    return lambda t: call(of, t)


@every
def test_jvp(name: str) -> None:
    got, tangent = torch.func.jvp(function(name), (ARGUMENT,), (TANGENT,))[:2]
    close(got, function(name)(ARGUMENT))
    if name in CONSTANT:
        assert not tangent.any()
        return
    h = 1e-6
    step = [function(name)(ARGUMENT + sign * h * TANGENT) for sign in (1, -1)]
    torch.testing.assert_close(tangent, (step[0] - step[1]) / (2 * h), rtol=1e-6, atol=1e-6)
    assert tangent.any()


@every
def test_forward_mode(name: str) -> None:
    with forward_ad.dual_level():
        dual = function(name)(forward_ad.make_dual(ARGUMENT, TANGENT))
        value, tangent = forward_ad.unpack_dual(dual)
    close(value, function(name)(ARGUMENT))
    want = torch.func.jvp(function(name, reference), (ARGUMENT,), (TANGENT,))[1]
    if name in CONSTANT:
        assert tangent is None or not tangent.any()
    else:
        close(tangent, want)


@differentiable
def test_jacobians(name: str) -> None:
    leaf = ARGUMENT.clone().requires_grad_()
    want = torch.autograd.functional.jacobian(function(name), leaf)
    close(torch.func.jacfwd(function(name))(ARGUMENT), want)
    close(torch.func.jacrev(function(name))(ARGUMENT), want)
    close(torch.func.vmap(torch.func.jacfwd(function(name)))(ARGUMENT[None])[0], want)


@every
@pytest.mark.filterwarnings(
    "ignore:There is a performance drop"
)  # torch calls the kernel in a loop
def test_vmap(name: str) -> None:
    got = torch.func.vmap(function(name))(MANY)
    close(got, torch.stack([function(name)(t) for t in MANY]))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["perturb, grad", "project_simplex", "concept_cross_entropy"])
def test_transforms_under_compile(name: str) -> None:
    """And what is compiled without one keeps the operator."""
    transforms: list[Callable[[Tensor], Any]] = [
        lambda t: torch.func.jvp(function(name), (t,), (TANGENT,))[1],
        torch.func.grad(lambda t: function(name)(t).square().sum()),
    ]
    for call in transforms:
        torch._dynamo.reset()
        close(torch.compile(call, backend="aot_eager", fullgraph=True)(ARGUMENT), call(ARGUMENT))
    seen: list[str] = []

    def backend(graph: torch.fx.GraphModule, _: Any) -> Callable[..., Any]:
        seen.append(graph.code)
        return graph.forward

    torch._dynamo.reset()
    close(torch.compile(function(name), backend=backend)(ARGUMENT), function(name)(ARGUMENT))
    assert "hrrl_ext" in "".join(seen)


@differentiable
def test_backward_through_vmap(name: str) -> None:
    together, alone = (MANY.clone().requires_grad_() for _ in range(2))
    torch.func.vmap(function(name))(together).square().sum().backward()
    torch.stack([function(name)(t) for t in alone]).square().sum().backward()
    assert together.grad is not None and together.grad.any()
    close(together.grad, alone.grad)


@differentiable
def test_gradients_of_gradients(name: str) -> None:
    """By torch.func, and by autograd: the same, but for the loss, which is differentiable once."""

    def total(t: Tensor) -> Tensor:
        return function(name)(t).sin().sum()

    want = torch.func.grad(lambda t: torch.func.grad(total)(t).square().sum())(ARGUMENT)
    leaf = ARGUMENT.clone().requires_grad_()
    if name == "concept_cross_entropy":
        with pytest.raises(RuntimeError, match="concept_cross_entropy is differentiable once"):
            torch.autograd.grad(total(leaf), leaf, create_graph=True)
        return
    (first,) = torch.autograd.grad(total(leaf), leaf, create_graph=True)
    (second,) = torch.autograd.grad(first.square().sum(), leaf)
    close(second, want)


WRITING = ["rank1_dot", "store_directions", "step_distribution"]


@pytest.mark.parametrize("name", WRITING)
def test_writing_in_place_under_vmap_is_refused(name: str) -> None:
    """One memory for all of them would be written to by each."""
    if name == "rank1_dot":
        cross = torch.zeros(4, 3, dtype=torch.float64)
        call = torch.func.vmap(
            lambda p: ops.rank1_dot(cross, p[:, None, :, None], p[:, None, :, None])
        )
    elif name == "step_distribution":
        call = torch.func.vmap(
            lambda g: ops.step_distribution(
                Q.clone(), torch.tensor(0), g[0], Q, torch.tensor(1.0), lam=1.0, s=0
            )
        )
    else:
        call = torch.func.vmap(
            lambda g: ops.store_directions(
                VALUES.clone(), SCALE.clone(), g[:, None, :, None].expand(-1, 1, 3, 4), ID, VIEW
            )
        )
    with pytest.raises((RuntimeError, ValueError), match=name):
        call(MANY)


def outcome(name: str, arguments: list[Any]) -> str:
    try:
        getattr(OPS, name).default(*arguments)
    except (ValueError, RuntimeError) as error:
        return "refused" if str(error).startswith(f"{name}: ") else str(error)
    return "taken"


@pytest.mark.parametrize("name", GRID)
def test_tensors_without_values_are_held_to_the_same(name: str) -> None:
    """A row more, a dimension more, another dtype, in every argument: the kernels and their fakes refuse and
    take the same; and a tensor without values beside those that have some is refused."""
    shapes, calls = GRID[name]
    for arguments in calls(cases.gradients(*shapes[0])):
        for place, t in enumerate(arguments):
            if not isinstance(t, Tensor):
                continue
            mixed = [*arguments]
            mixed[place] = t.to("meta")
            others = [a for a in arguments if isinstance(a, Tensor)]
            if len(others) > 1:
                assert outcome(name, mixed) == "refused", place
            longer = [torch.cat([t, t.narrow(d, 0, 1)], d) for d in range(t.dim()) if t.numel()]
            kind = torch.int64 if t.dtype.is_floating_point else torch.int32
            for changed in (t, *longer, t[None], t.to(kind)):
                case = [*arguments]
                case[place] = changed
                without = [a.to("meta") if isinstance(a, Tensor) else a for a in case]
                if name in WRITING:
                    case = [a.clone() if isinstance(a, Tensor) else a for a in case]
                told = f"argument {place}, {changed.dtype} {list(changed.shape)}"
                assert outcome(name, without) == outcome(name, case), told
