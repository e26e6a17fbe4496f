"""The CUDA kernel of chi_square_response, emulated on the host."""

from __future__ import annotations

import pytest
import torch
from cases import EPS, FLOATS, RESPONSE_CASES, ResponseCase
from emulated import Device, Emulation
from kernel_cases import INF, NAN
from torch import Tensor

# A block has K / 4 threads, 32 to 1024; what it holds in shared memory are up to 6144 concepts.
SIZES = [1, 2, 3, 11, 31, 32, 33, 127, 128, 129, 257, 1000, 4096, 4097, 6144, 6145, 7001]


def respond(emulation: Emulation, loss: Tensor, q0: Tensor, case: ResponseCase) -> Tensor:
    limits = [INF if limit is None else limit for limit in (case.rho, case.max_weight)]
    return emulation.chi_square_response(loss, q0, case.lam, *limits)


@pytest.mark.parametrize("size", SIZES)
def test_conditions_of_a_maximum(emulation: Emulation, size: int) -> None:
    for case in RESPONSE_CASES[:: 1 if size < 1000 else 6]:
        loss, q0 = ResponseCase.draw(size)
        case.check(loss, q0, respond(emulation, loss, q0, case))
        assert emulation.launches == 1


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_any_type(emulation: Emulation, dtype: torch.dtype) -> None:
    """In double inside: one rounding of q."""
    case = ResponseCase(0.3, 0.6, 3.0)
    for size in (5, 200, 6200):
        loss, q0 = ResponseCase.draw(size)
        loss, narrow = loss.to(dtype), q0.float()
        q = respond(emulation, loss, narrow, case)
        exact = respond(emulation, loss.double(), narrow.double(), case)
        assert torch.equal(q, exact.float())
        case.check(loss.double(), q0, respond(emulation, loss, q0, case))


@pytest.mark.parametrize("size", [1, 4, 40, 1000, 6200])
def test_extremes(emulation: Emulation, size: int) -> None:
    loss, q0 = ResponseCase.draw(size)
    for case in (ResponseCase(1.0, 0.5, 3.0), ResponseCase(0.0, 0.5), ResponseCase(0.0, None, 2.5)):
        plain = respond(emulation, loss, q0, case)
        # Of the weights, that sums of K terms in two orders give; λ' of a ball is a quotient of such.
        atol = 100 * size * EPS[torch.float64] * q0.max().item()
        for scale in (1e-305, 1e305):
            scaled = ResponseCase(scale * case.lam, case.rho, case.max_weight)
            q = respond(emulation, scale * loss, q0, scaled)
            torch.testing.assert_close(q, plain, rtol=1e-11, atol=atol)
        assert torch.equal(respond(emulation, torch.full_like(loss, 3.0), q0, case), q0)
        for bad in (NAN, INF, -INF):
            spoiled = loss.clone()
            spoiled[size // 2] = bad
            assert respond(emulation, spoiled, q0, case).isnan().all()
        spoiled = q0.clone()
        spoiled[-1] = -0.1
        assert respond(emulation, loss, spoiled, case).isnan().all()
        if size > 1:
            without = q0.clone()
            without[0] = 0.0
            top = loss.clone()
            top[0] = 1e308
            assert respond(emulation, top, without, case)[0] == 0.0
            case.check(loss[1:], q0[1:], respond(emulation, top, without, case)[1:])


def test_a_device_of_any_kind(emulation: Emulation) -> None:
    """One block needs no more than 99 KB of shared memory, and nothing that only some devices have."""
    case, (loss, q0) = ResponseCase(0.1, 0.7, 4.0), ResponseCase.draw(6144)
    plain = respond(emulation, loss, q0, case)
    with emulation.on(Device(1, clusters=False, cooperative=False, architecture=80)):
        assert torch.equal(respond(emulation, loss, q0, case), plain)
