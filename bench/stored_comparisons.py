"""Comparisons (comparisons.py) for the example level by stored directions."""

from __future__ import annotations

import math
from functools import lru_cache

import peers
import torch
from comparisons import DTYPES, TOLERANCE, Call, Comparison, Compiler, agree, generator, plain
from shapes import StoredImages
from torch import Tensor

from hrrl_ext import ops
from hrrl_ext.data import Augmentation
from hrrl_ext.ops import reference

_AUGMENT = Augmentation(4)


def _stored(
    case: StoredImages, device: str
) -> tuple[Tensor, tuple[Tensor, Tensor, Tensor, Tensor]]:
    """x, or a gradient of it; and values, scale, row and view. All rows are known, and read in another
    order than they lie in; what is hidden is small beside what is stored."""
    g = generator(device)
    batch, size = case.shape[0], math.prod(case.shape[1:])
    images = torch.randn(case.shape, generator=g, device=device).to(DTYPES[case.dtype])
    width, code = (size, torch.int8) if case.bits == 8 else (size // 8, torch.uint8)
    values = torch.randint(-127, 128, (batch, width), generator=g, device=device)
    values = (values if case.bits == 8 else values + 128).to(code)
    row = torch.randperm(batch, generator=g, device=device)
    view = _AUGMENT.draw(batch, torch.Generator().manual_seed(0)).to(device)
    return images, (values, torch.full((batch,), 1e-9, device=device), row, view)


@lru_cache(maxsize=1)
def perturb_stored(case: StoredImages, device: str) -> Comparison:
    x, given = _stored(case, device)
    values, _, row, view = given
    tau = math.sqrt(x[0].numel())  # moves a pixel by about 1, so that a wrong direction is seen
    padding = _AUGMENT.crop_padding
    expected = reference.perturb_stored(x.double(), *given, tau, padding=padding)

    def compiled(compiler: Compiler) -> Call:
        function = compiler(peers.eager_perturb_stored)
        return lambda: function(x, values, row, view, tau, _AUGMENT)

    return Comparison(
        op="perturb_stored",
        case=case,
        check=lambda moved: agree([moved], [expected], TOLERANCE[case.dtype]),
        ways={
            "ours": plain(lambda: ops.perturb_stored(x, *given, tau, padding=padding)),
            "eager": plain(lambda: peers.eager_perturb_stored(x, values, row, view, tau, _AUGMENT)),
            "compile": compiled,
        },
    )


@lru_cache(maxsize=1)
def store_directions(case: StoredImages, device: str) -> Comparison:
    """Checked where a view shows the pixel: of what it does not, the others keep less."""
    grad, given = _stored(case, device)
    padding, row, view = _AUGMENT.crop_padding, given[2], given[3]
    want = given[0].clone(), given[1].clone()
    reference.store_directions(*want, grad, row, view, padding=padding)
    still = torch.zeros_like(grad)

    def along(kept: tuple[Tensor, Tensor]) -> Tensor:
        """A step of norm 1 along what is stored, in the same view."""
        return ops.perturb_stored(still, *kept, row, view, 1.0, padding=padding)

    expected = along(want).double()

    def check(kept: tuple[Tensor, Tensor]) -> None:
        """To a unit of 1/127 of the largest, by which the hidden ones can change the scale."""
        agree([along(kept)], [expected], TOLERANCE[case.dtype] + 1 / 64)

    def ours(_: Compiler) -> Call:
        values, scale = given[0].clone(), given[1].clone()

        def call() -> tuple[Tensor, Tensor]:
            ops.store_directions(values, scale, grad, row, view, padding=padding)
            return values, scale

        return call

    def eager(compiler: Compiler) -> Call:
        values, scale = given[0].clone(), given[1].clone()

        def call() -> tuple[Tensor, Tensor]:
            compiler(peers.eager_store_directions)(values, scale, grad, row, view, _AUGMENT)
            return values, scale

        return call

    return Comparison(
        op="store_directions",
        case=case,
        check=check,
        ways={"ours": ours, "eager": lambda _: eager(lambda function: function), "compile": eager},
    )
