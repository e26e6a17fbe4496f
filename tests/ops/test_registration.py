"""What torch asks of an operator: schema, fake kernel, gradient, tracing. And one build per processor."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import cases
import pytest
import torch

import hrrl_ext
from hrrl_ext import ops

OPS = torch.ops.hrrl_ext
NAMES = ("perturb", "concept_cross_entropy", "project_simplex", "update_distribution")


def perturb_arguments(dtype: torch.dtype) -> list[tuple]:
    x, grad = cases.images(3, 3, 4, 5, dtype=dtype), cases.gradients(3, 3, 4, 5, dtype=dtype)
    last = torch.channels_last
    return [
        (x, grad, 0.3),
        (x.to(memory_format=last), grad.to(memory_format=last), 0.3),
        (x.transpose(0, 1), grad.transpose(0, 1), 0.3),
        (x[:0], grad[:0], 0.3),
        (x, grad, 1.0, torch.rand(3)),
    ]


def loss_arguments(dtype: torch.dtype) -> list[tuple]:
    a = cases.ConceptCase(6, 5, 3, dtype).arguments()
    plain = tuple(a.values())
    return [
        (*plain, 0.0, False),
        (*plain, 0.1, True),
        (a["logits"].clone().requires_grad_(), *plain[1:], 0.0, True),
        (a["logits"], *plain[1:3], a["q"].float(), a["concept_count"], 0.0, True),
    ]


def projection_arguments(dtype: torch.dtype) -> list[tuple]:
    v = cases.gradients(4, 6, dtype=dtype)
    return [(v, 1.0), (v.clone().requires_grad_(), 2.0), (v.t(), 1.0), (v[0], 1.0), (v[:0], 1.0)]


@pytest.mark.parametrize("dtype", cases.FLOATS, ids=str)
def test_opcheck(dtype: torch.dtype) -> None:
    for arguments in perturb_arguments(dtype):
        torch.library.opcheck(OPS.perturb.default, arguments)
    for arguments in loss_arguments(dtype):
        torch.library.opcheck(OPS.concept_cross_entropy.default, arguments)
    for arguments in projection_arguments(dtype):
        torch.library.opcheck(OPS.project_simplex.default, arguments)
    if dtype in (torch.float32, torch.float64):
        q = torch.full((4,), 0.25, dtype=dtype)
        torch.library.opcheck(OPS.update_distribution.default, (q, q, q, 0.1, 1.0))
        torch.library.opcheck(
            OPS.update_distribution.default, (q, q, q, 1.0, 1.0, torch.tensor(0.1))
        )


def test_every_operator_has_its_files_and_its_twin() -> None:
    registered = {
        name.split("::")[1]
        for name in torch._C._dispatch_get_all_op_names()
        if name.startswith("hrrl_ext::")
    }
    assert registered == set(NAMES)
    for name in registered:
        assert callable(getattr(ops, name))
        assert callable(getattr(ops.reference, name))
        assert torch._C._dispatch_has_kernel_for_dispatch_key(f"hrrl_ext::{name}", "CPU")


@pytest.mark.slow
def test_compiles_as_one_graph() -> None:
    """Whole step, forward and backward: no graph break, same numbers to float32 rounding."""

    def step(x, grad, weight, target, concept, q, count):  # type: ignore[no-untyped-def]
        x, norm = ops.perturb(x, grad, 0.1)
        out = ops.concept_cross_entropy(x @ weight, target, concept, q, count)
        q = ops.update_distribution(q, out.concept_loss, q, 0.5, 2.0)
        return out.loss, q, ops.project_simplex(norm)

    a = cases.ConceptCase(6, 5, 3).arguments()
    results = []
    for function in (step, torch.compile(step, fullgraph=True)):
        weight = cases.gradients(7, 5).requires_grad_()
        loss, q, p = function(
            cases.images(6, 7), cases.gradients(6, 7), weight, a["target"], a["concept"], a["q"],
            a["concept_count"],
        )  # fmt: skip
        loss.backward()
        results.append((loss.detach(), q, p, weight.grad))
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
    files = [str(here / f"test_{name}.py") for name in ("perturb", "concept_cross_entropy")]
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
