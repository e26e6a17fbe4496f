"""What the operators of stored directions are tried on, on the CPU, a GPU and the emulated one: inputs, and
what they are held to."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from cases import EPS
from torch import Tensor

from hrrl_ext.data import Augmentation
from hrrl_ext.ops import reference

SIDES = [(5, 7), (1, 1), (1, 9), (6, 1), (17, 33)]
CODES = [torch.int8, torch.uint8]
PADDED = [(0, 1), (2, 1), (9, 1), (2, 2), (1, 3), (0, 64)]  # and the resolution


@dataclass
class Kept:
    """Stored directions of 6 images, and views of 4 of them."""

    values: Tensor
    scale: Tensor
    row: Tensor
    view: Tensor
    padding: int
    resolution: int = 1

    @property
    def arguments(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        return self.values, self.scale, self.row, self.view

    @property
    def settings(self) -> dict[str, int]:
        return {"padding": self.padding, "resolution": self.resolution}

    def exact(self, x: Tensor, tau: float) -> Tensor:
        """x̃ in float64."""
        return reference.perturb_stored(x.double(), *self.arguments, tau, **self.settings)

    def expected(self, grad: Tensor) -> tuple[Tensor, Tensor]:
        """New values and scale; these stay."""
        values, scale = self.values.clone(), self.scale.clone()
        reference.store_directions(values, scale, grad, self.row, self.view, **self.settings)
        return values, scale


def kept(
    sides: tuple[int, int] = (5, 7),
    code: torch.dtype = torch.int8,
    padding: int = 2,
    resolution: int = 1,
) -> Kept:
    """Rows 1 and 4 are not known; row 2 is all zeros, which a row of bytes can be."""
    g = torch.Generator().manual_seed(sum(sides) + padding)
    count = 3 * math.prod(-(-side // resolution) for side in sides)
    width = count if code == torch.int8 else -(-count // 8)
    values = torch.randint(-127, 128, (6, width), generator=g)
    values = (values if code == torch.int8 else values + 128).to(code)
    values[2] = 0
    scale = torch.tensor(
        [0.01, 0.0, 0.02, 1e-6, 0.0, 1e-5]
    )  # of norms around 1, kept among new ones
    view = Augmentation(padding).draw(4, g)
    return Kept(values, scale, torch.tensor([5, 1, 0, 3]), view, padding, resolution)


def check_moved(x: Tensor, exact: Tensor, got: Tensor) -> None:
    """One rounding of the result in its dtype, and 3 of the step where it is computed: the factor, its
    product with a whole number, and the sum. In float64 the oracle rounds as well, and sums its norm."""
    double = x.dtype == torch.float64
    compute = EPS[torch.float64 if double else torch.float32] * (2 if double else 1)
    bound = EPS[x.dtype] * (1 if double else 0.505) * exact.abs()
    order = x[0].numel() ** 0.5 * EPS[torch.float64] if double else 0.0
    bound += (3 * compute + order) * (exact - x.double()).abs()
    assert ((got.double() - exact).abs() <= bound + torch.finfo(x.dtype).tiny).all()
    assert got.dtype == x.dtype and got.shape == x.shape


def check_stored(
    want: tuple[Tensor, Tensor], got: tuple[Tensor, Tensor], rows: Tensor | None = None
) -> None:
    """The scale to float32's rounding; a value that lies between two units may go to either. Rows that are
    not among ``rows`` are the same to the bit."""
    torch.testing.assert_close(got[1], want[1], rtol=1e-6, atol=0)
    if got[0].dtype == torch.uint8:
        assert torch.equal(got[0], want[0])
    else:
        apart = (got[0].int() - want[0].int()).abs()
        assert apart.max() <= 1 and (apart > 0).sum() <= 1e-3 * apart.numel() + 1
    if rows is not None:
        others = torch.ones(len(want[0]), dtype=torch.bool)
        others[rows] = False
        assert torch.equal(got[0][others], want[0][others])
        assert torch.equal(got[1][others], want[1][others])
