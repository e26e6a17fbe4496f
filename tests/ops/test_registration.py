"""What torch asks of an operator: schema, fake kernel, gradient, tracing. And one build per processor."""

from __future__ import annotations

import functools
import math
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cases
import pytest
import torch
from cases import LAYOUTS
from torch import Tensor

import hrrl_ext
from hrrl_ext import ops

OPS = torch.ops.hrrl_ext


def perturb_calls(x: Tensor) -> list[tuple[Any, ...]]:
    grad = LAYOUTS["transposed"](x.flip(-1))  # not the layout of x
    tau = torch.linspace(-1, 2, len(x), device=x.device)
    return [(x, x.roll(1, -1), 0.3), (x, grad, 1.0, tau)]


def cross_entropy_calls(logits: Tensor) -> list[tuple[Any, ...]]:
    batch, classes = logits.shape
    ids = torch.arange(batch, device=logits.device)
    q = torch.full((3,), 1 / 3, device=logits.device)
    count = torch.tensor([5, 7, 0], device=logits.device)
    labels = (ids % classes, ids % 2)
    return [
        (logits, *labels, q.double(), count, 0.0, False),
        (logits, *labels, q, count.to(logits.dtype), 0.1, True),
    ]


def projection_calls(v: Tensor) -> list[tuple[Any, ...]]:
    return [(v, 2.5)]


def slope_calls(p: Tensor) -> list[tuple[Any, ...]]:
    return [(p, LAYOUTS["transposed"](p.flip(-1)))]


def ascent_calls(gain: Tensor) -> list[tuple[Any, ...]]:
    q = torch.full(gain.shape, 1 / len(gain), device=gain.device)
    eta = torch.tensor(0.1, device=gain.device)
    return [(q, gain, q, 0.1, 1.0), (q.double(), gain, q.to(gain.dtype), 1.0, 2.0, eta)]


def step_calls(gain: Tensor) -> list[tuple[Any, ...]]:
    q = torch.full(gain.shape, 1 / len(gain), device=gain.device)
    t, c = torch.tensor(4, device=gain.device), torch.tensor(2.0, device=gain.device)
    return [(q, t, gain, q.double(), c, 0.5, 4), (q.double(), t, gain, q, c.to(gain.dtype), 1.0, 5)]


def response_calls(loss: Tensor) -> list[tuple[Any, ...]]:
    q0 = torch.full(loss.shape, 1 / len(loss), device=loss.device)
    return [(loss, q0, 1.0, math.inf, 4.0), (loss, q0.double(), 0.0, 0.5, math.inf)]


def product_calls(p: Tensor) -> list[tuple[Any, ...]]:
    p = p if p.dtype in (torch.float32, torch.float64) else p.float()
    cross = torch.ones(p.shape[0], p.shape[2], dtype=torch.float64, device=p.device)
    return [(cross, p, p), (cross, p, p.roll(1, -1))]


def nearest_calls(cross: Tensor) -> list[tuple[Any, ...]]:
    cross = LAYOUTS["transposed"](cross.double())
    squares = [torch.linspace(1, 2, size, device=cross.device).double() for size in cross.shape]
    return [(cross, *squares, squares[1].flip(0), 1e-6)]


def stored(images: Tensor) -> list[tuple[Any, ...]]:
    """values, scale, row, view, padding and resolution, for bytes and for signs."""
    batch, channels, height, width = images.shape
    place = torch.arange(3 * channels * height * width, device=images.device)
    values = place.view(3, -1).to(torch.int8)
    signs = values[:, : -(-channels * -(-height // 3) * -(-width // 3) // 8)].contiguous()
    scale = torch.tensor([0.5, 0.0, 1.0], device=images.device)
    row = torch.tensor([2, 1, 0], device=images.device)[:batch]
    view = torch.tensor([[1, 0, 1], [0, 2, 0], [2, 1, 1]], device=images.device)[:batch]
    return [(values, scale, row, view, 1, 1), (signs.view(torch.uint8), scale, row, view, 1, 3)]


def moving_calls(x: Tensor) -> list[tuple[Any, ...]]:
    return [(x, *given, 0.3, *settings) for *given, p, r in stored(x) for settings in [(p, r)]]


def storing_calls(grad: Tensor) -> list[tuple[Any, ...]]:
    return [(*kept, grad, *rest) for a, b, *rest in stored(grad) for kept in [(a, b)]]


def mixing_calls(images: Tensor) -> list[tuple[Any, ...]]:
    images = images.abs().clamp(max=1)
    operation = torch.tensor([[[0, 4], [8, -1]]], device=images.device).expand(len(images), -1, -1)
    parameter = torch.linspace(-1, 2, 6).double().to(images.device).expand(*operation.shape, 6)
    weight = torch.full((len(images), 2), 0.5, device=images.device)
    calls = [(images, operation, parameter, weight, weight[:, 0])]
    if images.is_contiguous():  # uint8 is not among the dtypes of the grid
        calls += [((images * 255).to(torch.uint8), *calls[0][1:])]
    return calls


def hardest_calls(image: Tensor) -> list[tuple[Any, ...]]:
    caption = LAYOUTS["transposed"](image.flip(0))  # not the layout of the image
    group = torch.arange(len(image), device=image.device) // 2
    return [(image, caption, group, group, False), (image, image[:1], group, group[:1], True)]


def hinge_calls(image: Tensor) -> list[tuple[Any, ...]]:
    group = torch.arange(len(image), device=image.device) // 2
    side = group.to(torch.promote_types(image.dtype, torch.float32)) / 4
    return [(image, image.flip(0), *(side,) * 4, group, group)]


def pair_calls(image: Tensor) -> list[tuple[Any, ...]]:
    row = torch.arange(len(image), device=image.device) - 1
    weight = row.to(torch.promote_types(image.dtype, torch.float32))
    return [(image, image.flip(0), row, row.flip(0), weight, order) for order in (False, True)]


# Per operator: the shapes of the tensor whose layout and dtype vary, and the calls made with it.
GRID: dict[str, tuple[list[tuple[int, ...]], Callable[[Tensor], list[tuple[Any, ...]]]]] = {
    "perturb": ([(3, 2, 4, 5), (3, 7)], perturb_calls),
    "concept_cross_entropy": ([(6, 5)], cross_entropy_calls),
    "project_simplex": ([(3, 2, 4, 5), (6,)], projection_calls),
    "project_simplex_backward": ([(3, 2, 4, 5), (6,)], slope_calls),
    "update_distribution": ([(4,)], ascent_calls),
    "step_distribution": ([(4,)], step_calls),
    "chi_square_response": ([(4,)], response_calls),
    "rank1_dot": ([(3, 2, 4, 5), (3, 2, 5, 1)], product_calls),
    "rank1_argmin": ([(6, 5)], nearest_calls),
    "perturb_stored": ([(3, 2, 4, 5)], moving_calls),
    "store_directions": ([(3, 2, 4, 5)], storing_calls),
    "hardest_negatives": ([(6, 5)], hardest_calls),
    "hinge_coefficients": ([(6, 5)], hinge_calls),
    "pair_gradients": ([(6, 5)], pair_calls),
    "mix_chains": ([(3, 3, 4, 5), (2, 1, 4, 5)], mixing_calls),
}


@pytest.mark.slow
@pytest.mark.parametrize("dtype", cases.FLOATS, ids=str)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", GRID)
def test_opcheck(name: str, layout: str, dtype: torch.dtype, device: str) -> None:
    """Schema (nothing written to but what it names, nothing aliased) and fake kernel; dispatch keys and tracing with dynamic
    shapes, which take most of the time, of each layout and of each dtype. Without gradients: those are the
    public functions', below."""
    shapes, calls = GRID[name]
    checks = ["test_schema", "test_faketensor"]
    if dtype == torch.float32 or layout == "contiguous":
        checks += ["test_autograd_registration", "test_aot_dispatch_dynamic"]
    for shape in shapes:
        if layout == "empty" and len(shape) == 1:
            continue  # refused: a distribution has an entry
        t = LAYOUTS[layout](cases.gradients(*shape, dtype=dtype).to(device))
        for arguments in calls(t):
            torch.library.opcheck(getattr(OPS, name).default, arguments, test_utils=checks)


@pytest.mark.parametrize("layout", [name for name in LAYOUTS if name != "empty"])
def test_gradients_in_any_layout(layout: str, device: str) -> None:
    """First order for the loss, second for the others; through a leaf that lies as the layout says."""
    count = torch.tensor([5, 7, 1], device=device)
    ids = torch.arange(6, device=device)
    labels = (ids % 5, ids % 3, torch.full((3,), 1 / 3, device=device), count)

    def leaf(*shape: int) -> Tensor:
        # gradcheck refuses leaves that share memory with themselves: expanded ones are copied
        t = LAYOUTS[layout](cases.gradients(*shape, dtype=torch.float64).to(device))
        return (t.clone() if "expanded" in layout else t).requires_grad_()

    check, check_twice = torch.autograd.gradcheck, torch.autograd.gradgradcheck
    assert check(
        lambda z: ops.concept_cross_entropy(z, *labels, label_smoothing=0.1).loss, leaf(6, 5)
    )
    for dim in (0, -1):
        projected = functools.partial(ops.project_simplex, dim=dim, radius=2.0)
        v = leaf(3, 4)
        assert check(projected, v) and check_twice(projected, v)
    x, grad = leaf(3, 2, 2, 2), leaf(3, 2, 2, 2).detach().mul(0.5).requires_grad_()
    tau = torch.tensor([0.5, -1.0, 2.0], dtype=torch.float64, device=device, requires_grad=True)
    perturbed = lambda *a: ops.perturb(*a)[0]  # noqa: E731
    assert check(perturbed, (x, grad, tau)) and check_twice(perturbed, (x, grad, tau))


def test_every_operator_has_its_files_and_its_twin() -> None:
    registered = {
        name.split("::")[1]
        for name in torch._C._dispatch_get_all_op_names()
        if name.startswith("hrrl_ext::")
    }
    public = {name for name in registered if not name.startswith("_")}
    assert public == set(GRID)
    for name in public:
        assert callable(getattr(ops, name))
        assert callable(getattr(ops.reference, name))
        assert torch._C._dispatch_has_kernel_for_dispatch_key(f"hrrl_ext::{name}", "CPU")


@pytest.mark.slow
def test_compiles_as_one_graph() -> None:
    """Whole step, forward and backward: no graph break, same numbers to float32 rounding."""

    def step(x, grad, weight, target, concept, q, count):
        x, norm = ops.perturb(x, grad, 0.1)
        out = ops.concept_cross_entropy(x @ weight, target, concept, q, count)
        q = ops.update_distribution(q, out.concept_loss, q, 0.5, 2.0)
        q = ops.chi_square_response(out.concept_loss, q, 1.0, rho=0.5)
        cross = torch.zeros(6, 7, dtype=torch.float64)
        ops.rank1_dot(cross, x[:, None, :, None], grad[:, None, :, None])
        square = norm.double().square()
        centre = ops.rank1_argmin(cross, square, 1 + square.sum() * q.new_ones(7), q.new_ones(7))
        found = ops.hardest_negatives(x, x @ weight @ weight.T, target, target)
        loss = out.loss + found.caption_score.sum() + found.image_score.square().sum()
        return loss, q, ops.project_simplex(norm), *centre, *(t.detach() for t in found)

    a = cases.ConceptCase(6, 5, 3).arguments()
    results = []
    for function in (step, torch.compile(step, fullgraph=True)):
        weight = cases.gradients(7, 5).requires_grad_()
        loss, *others = function(
            cases.images(6, 7), cases.gradients(6, 7), weight, torch.arange(6) % 5, a["concept"], a["q"],
            a["concept_count"],
        )  # fmt: skip
        loss.backward()
        results.append((loss.detach(), *others, weight.grad))
    for plain, compiled in zip(*results, strict=True):
        torch.testing.assert_close(compiled, plain, rtol=1e-5, atol=1e-7)


@pytest.mark.slow
@pytest.mark.parametrize("capability", ["baseline", "avx2", "avx512"])
def test_every_build_of_the_kernels(capability: str) -> None:
    """The same tests on each instruction set that this processor has."""
    best = ["baseline", "avx2", "avx512"].index(hrrl_ext.build_info()["cpu_best"])
    if ["baseline", "avx2", "avx512"].index(capability) > best:
        pytest.skip(f"this processor has no {capability}")
    here = Path(__file__).parent
    environment = os.environ | {"HRRL_CPU_CAPABILITY": capability}
    asked = "import hrrl_ext; print(hrrl_ext.build_info()['cpu_in_use'])"
    used = subprocess.run(
        [sys.executable, "-c", asked], env=environment, capture_output=True, text=True, check=True
    )
    assert used.stdout.strip() == capability
    if capability == hrrl_ext.build_info()["cpu_in_use"]:
        return  # by all other tests
    files = [
        str(here / f"test_{name}.py")
        for name in (
            *("perturb", "concept_cross_entropy", "rank1", "stored_operators", "mix_chains"),
            *("count_scores", "max_hinge"),
        )
    ]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *files],
        env=environment, cwd=here.parent.parent, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-3000:]


PERTURB_BAD = {
    "scalar": ((torch.tensor(1.0), torch.tensor(1.0), 1.0), "x must have a batch dimension"),
    "shape": ((torch.rand(2, 3), torch.rand(2, 4), 1.0), r"grad must have the shape of x, \[2, 3\], got \[2, 4\]"),
    "dtype": ((torch.rand(2), torch.rand(2).double(), 1.0), "grad must have the dtype of x"),
    "uint8": ((torch.zeros(2, dtype=torch.uint8),) * 2 + (1.0,), "x must be float16"),
    "tau": ((torch.rand(2), torch.rand(2), float("nan")), "tau must be finite, got nan"),
    "tau shape": ((torch.rand(2, 3), torch.rand(2, 3), torch.rand(3)), r"tau must be a number or have shape \[2\].*got \[3\]"),
    "tau dtype": ((torch.rand(2, 3), torch.rand(2, 3), torch.ones(2).long()), "tau must be a floating"),
}  # fmt: skip


@pytest.mark.parametrize("name", PERTURB_BAD)
def test_perturb_bad_input(name: str) -> None:
    arguments, message = PERTURB_BAD[name]
    with pytest.raises(ValueError, match=f"^perturb: {message}"):
        ops.perturb(*arguments)


def test_perturb_bad_input_with_gradients() -> None:
    with pytest.raises(ValueError, match=r"^perturb: grad must have the shape of x"):
        ops.perturb(torch.rand(2, 3, requires_grad=True), torch.rand(2, 4), 1.0)
