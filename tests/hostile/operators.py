"""Operators under transforms of functions, and with arguments that do not fit together."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from random import Random
from typing import Any

import cases
import torch
from test_registration import GRID, OPS
from test_transforms import CONSTANT, DIFFERENTIABLE
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd import forward_ad
from torch.func import functionalize, grad, hessian, jacfwd, jacrev, jvp, vjp, vmap
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils.checkpoint import checkpoint
from trial import Attempt, Family

from hrrl_ext import ops
from hrrl_ext.ops import reference

Function = Callable[[Tensor], Tensor]
Over = Callable[..., Any]
"""`vmap`, or `looped`, which has its meaning without its rules."""


def looped(f: Callable[..., Any], in_dims: int = 0) -> Callable[[Tensor], Any]:
    return lambda x: torch.utils._pytree.tree_map(
        lambda *parts: torch.stack(parts), *[f(part) for part in x.unbind(in_dims)]
    )


def _total(f: Function) -> Function:
    return lambda x: f(x).double().sin().sum()


def _leaf(x: Tensor) -> Tensor:
    return x.detach().clone().requires_grad_()


def _twice(f: Function, x: Tensor, _: Tensor, __: Over) -> Any:
    leaf = _leaf(x)
    total = _total(f)(leaf)
    if not total.requires_grad:  # of what is a constant
        return torch.zeros_like(x)
    (first,) = torch.autograd.grad(total, leaf, create_graph=True)
    return torch.autograd.grad(first.square().sum(), leaf)[0]


def _dual(f: Function, x: Tensor, t: Tensor, _: Over) -> Any:
    with forward_ad.dual_level():
        value, tangent = forward_ad.unpack_dual(f(forward_ad.make_dual(x, t)))
        return value, torch.zeros_like(value) if tangent is None else tangent


def _saved(f: Function, x: Tensor, _: Tensor, __: Over) -> Any:
    leaf = _leaf(x)
    total = _total(lambda y: checkpoint(f, y, use_reentrant=False))(leaf)
    if total.requires_grad:
        total.backward()
    return torch.zeros_like(x) if leaf.grad is None else leaf.grad


def _without_gradient(f: Function, x: Tensor, _: Tensor, __: Over) -> Any:
    with torch.inference_mode():
        return f(x.clone()).clone()


Transform = Callable[[Function, Tensor, Tensor, Over], Any]

# Of a function, an argument and a direction.
OF_VALUES: dict[str, Transform] = {
    "value": lambda f, x, t, _: f(x),
    "inference_mode": _without_gradient,
    "vmap": lambda f, x, t, over: over(f)(torch.stack([x, t, x + t])),
    "vmap, last": lambda f, x, t, over: over(f, in_dims=-1)(torch.stack([x, t], -1)),
    "vmap of vmap": lambda f, x, t, over: over(over(f))(torch.stack([x, t])[None]),
    "functionalize": lambda f, x, t, _: functionalize(f)(x),
    "make_fx": lambda f, x, t, _: make_fx(f)(x)(x),
}
OF_DERIVATIVES: dict[str, Transform] = {
    "grad": lambda f, x, t, _: grad(_total(f))(x),
    "vjp": lambda f, x, t, _: vjp(_total(f), x)[1](torch.tensor(1.0, dtype=torch.float64))[0],
    "jvp": lambda f, x, t, _: jvp(f, (x,), (t,)),
    "forward_ad": _dual,
    "jacfwd": lambda f, x, t, _: jacfwd(f)(x),
    "jacrev": lambda f, x, t, _: jacrev(f)(x),
    "hessian": lambda f, x, t, _: hessian(_total(f))(x),
    "double backward": _twice,
    "grad of grad": lambda f, x, t, _: grad(lambda y: grad(_total(f))(y).square().sum())(x),
    "jvp of grad": lambda f, x, t, _: jvp(grad(_total(f)), (x,), (t,)),
    "grad of jvp": lambda f, x, t, _: grad(lambda y: jvp(_total(f), (y,), (t,))[1].square())(x),
    "vmap of grad": lambda f, x, t, over: over(grad(_total(f)))(torch.stack([x, t])),
    "vmap of jvp": lambda f, x, t, over: over(lambda d: jvp(f, (x,), (d,))[1])(torch.stack([t, x])),
    "make_fx of grad": lambda f, x, t, _: make_fx(grad(_total(f)))(x)(x),
    "checkpoint": _saved,
}
OTHERS = (torch.int64, torch.complex64)
# What changes no number; the reference cannot be traced, as it asks for values.
PLAIN = {
    **dict.fromkeys(("make_fx", "functionalize", "inference_mode"), "value"),
    **dict.fromkeys(("make_fx of grad", "checkpoint", "vjp"), "grad"),
}


def _argument(chance: Random) -> Tensor:
    """[4, 3], but now and then of another shape, dtype or layout."""
    generator = torch.Generator().manual_seed(chance.randrange(2**31))
    shape = chance.choice(((4, 3),) * 16 + ((5, 3), (4, 1), (1, 3), (3, 3)))
    x = torch.randn(shape, generator=generator, dtype=torch.float64)
    x *= 10.0 ** chance.choice((0, 0, 0, 0, -3, 3))
    if chance.random() < 0.1 and x.numel():
        x[chance.randrange(len(x))] = 0
    dtype = chance.choice((torch.float64,) * 12 + (torch.float32, torch.bfloat16, *OTHERS))
    x = x.to(dtype)
    return chance.choice((x, x, x, x.mT.contiguous().mT, x.repeat(2, 1)[::2]))


def transforms(_: Path) -> Callable[[Random], Attempt]:
    """Against the reference, in plain PyTorch, under the same transform; vmap against a loop."""
    functions = DIFFERENTIABLE | CONSTANT

    def attempt(chance: Random) -> Attempt:
        name, x = chance.choice(list(functions)), _argument(chance)
        known = OF_VALUES if x.dtype in OTHERS else OF_VALUES | OF_DERIVATIVES
        how = chance.choice(list(known))
        direction = torch.randn(
            x.shape, generator=torch.Generator().manual_seed(chance.randrange(2**31))
        )
        direction = direction.to(x.dtype)
        call = functions[name]

        def result(of: Any, over: Over, how: str = how) -> Any:
            found = known[how](lambda y: call(of, y), x.clone(), direction.clone(), over)
            return torch.utils._pytree.tree_map(
                Tensor.detach, list(found) if isinstance(found, tuple) else found
            )

        plain = reference if name in DIFFERENTIABLE else Constant()
        return Attempt(
            lambda: result(ops, vmap),
            [lambda: result(plain, looped, PLAIN.get(how, how))],
            [name.partition(",")[0]],
            what=f"{name}, {how}, {x.dtype} {list(x.shape)}",
            native=True,
            close=_close,
        )

    return attempt


class Constant:
    """The reference of what carries no gradient: in plain PyTorch it would."""

    def __getattr__(self, operator: str) -> Any:
        def call(*arguments: Any, **settings: Any) -> Any:
            found = getattr(reference, operator)(*arguments, **settings)
            return torch.utils._pytree.tree_map(Tensor.detach, found)

        return call


def _close(got: Any, want: Any) -> bool:
    """To what a few terms lose in the dtype; some outputs of the kernels are float32."""
    if isinstance(want, list):
        return len(got) == len(want) and all(map(_close, got, want))
    if got.shape != want.shape:
        return False
    eps = max(torch.finfo(t.dtype).eps if t.is_floating_point() else 0 for t in (got, want))
    eps = max(eps, torch.finfo(torch.float32).eps)
    scale = float(want.double().abs().amax()) if want.numel() else 0.0
    return torch.allclose(
        got.double(), want.double(), rtol=64 * eps, atol=64 * eps * scale + 1e-9, equal_nan=True
    )


# --- arguments that do not fit together


def mixtures(_: Path) -> Callable[[Random], Attempt]:
    """Shapes, dtypes and devices of several arguments are changed: the kernel, its fake and meta agree on
    what is refused, by name, and on the shapes and dtypes of what is not."""
    grid = {name: calls(cases.gradients(*shapes[0])) for name, (shapes, calls) in GRID.items()}

    def attempt(chance: Random) -> Attempt:
        name = chance.choice(list(grid))
        given = list(chance.choice(grid[name]))
        places = [at for at, value in enumerate(given) if isinstance(value, Tensor)]
        for at in chance.sample(places, min(len(places), chance.choice((1, 1, 2, 3)))):
            given[at] = _changed(chance, given[at])
        told = [
            f"{v.dtype} {list(v.shape)} {v.device}" if isinstance(v, Tensor) else v for v in given
        ]

        def real() -> Any:
            return _shapes(_called(name, given))

        def fake() -> Any:
            with FakeTensorMode() as mode:
                return _shapes(
                    _called(
                        name, [mode.from_tensor(v) if isinstance(v, Tensor) else v for v in given]
                    )
                )

        return Attempt(
            real, [fake], [f"{name}: ", f"'hrrl_ext::{name}'"], what=f"{name}{told}", native=True
        )

    return attempt


def _called(name: str, given: Sequence[Any]) -> Any:
    own = [value.clone() if isinstance(value, Tensor) else value for value in given]
    return getattr(OPS, name).default(*own)


def _shapes(value: Any) -> Any:
    if isinstance(value, Tensor):
        return str(value.dtype), list(value.shape), str(value.device)
    return [_shapes(inner) for inner in value] if isinstance(value, tuple | list) else value


def _changed(chance: Random, t: Tensor) -> Tensor:
    at = chance.randrange(max(t.dim(), 1))
    ways: list[Callable[[], Tensor]] = [
        lambda: t.to(
            chance.choice(
                (*cases.FLOATS, torch.int64, torch.int32, torch.uint8, torch.bool, torch.complex64)
            )
        ),
        lambda: t.to("meta"),
        lambda: t[None],
        lambda: t.flatten(),
        lambda: t.reshape(()) if t.numel() == 1 else t.flatten()[0],
        lambda: torch.cat([t, t], at) if t.dim() else t,
        lambda: t.narrow(at, 0, 0) if t.dim() else t,
        lambda: t.narrow(at, 0, t.shape[at] - 1) if t.dim() and t.shape[at] else t,
        lambda: t.mT if t.dim() > 1 else t,
        lambda: t.to_sparse(),
        lambda: (
            torch.full_like(t, -1)
            if not t.is_floating_point()
            else torch.full_like(t, float("nan"))
        ),
    ]
    return chance.choice(ways)()


FAMILIES: dict[str, Family] = {
    "operators, transforms": transforms,
    "operators, mixed arguments": mixtures,
}
