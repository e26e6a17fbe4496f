"""The example level for the price of plain training: directions that the last epoch left behind."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .. import ops
from ..data import Augmentation
from ..processes import Processes

_AT_ONCE = 2**26  # bytes of one message between processes


class StoredPerturbation:
    """x̃_i = x_i + τ A(z_i),   z_i: the direction of i's last backward pass, in the image's coordinates.

    The pass that moves the weights also yields the gradient of x̃ for one more layer's work, so a step has
    one forward and one backward pass. A is the augmentation of this epoch; that of the last one is undone
    when z is stored. An image that was not seen yet stays as it is: the first epoch is plain.

    ::

        x = stored.perturb(x, row, view)     # a leaf, whose gradient the backward pass fills in
        ...
        stored.learn()                       # after it

    Never waits for the device.
    """

    def __init__(
        self,
        tau: float,
        directions: StoredDirections,
        augment: Augmentation,
        processes: Processes,
    ) -> None:
        self.tau, self.directions, self.augment = tau, directions, augment
        self.processes = processes
        self._moved: list[tuple[Tensor, Tensor, Tensor]] = []

    def perturb(self, x: Tensor, row: Tensor, view: Tensor) -> Tensor:
        """x [B, C, H, W], the numbers [B] of the images and their views [B, 3] → x̃, to be learned of."""
        z = self.augment.apply(self.directions.take(row, x.dtype), view)
        x_perturbed = ops.perturb(x, z, self.tau)[0].requires_grad_()
        self._moved.append((x_perturbed, row, view))
        return x_perturbed

    def learn(self) -> None:
        """Stores the directions of all that was perturbed since the last call. Any positive factor of an
        example's loss cancels: its weight, that of its part of the batch, the scale of float16."""
        moved, self._moved = self._moved, []
        for x, row, view in moved:
            if x.grad is not None:  # None: of a model that nothing of x goes through
                shown = self.augment.shown(view, *x.shape[2:])
                self.directions.put(row, self.augment.undo(x.grad, view), shown)

    def exchange(self) -> None:
        """Gives every process what the others have learned; all call it together, at any time."""
        self.directions.exchange(self.processes)

    def state_dict(self) -> dict[str, Any]:
        self.exchange()
        return self.directions.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.directions.load_state_dict(state)


class StoredDirections:
    """A direction for each of N images [C, H, W], of which any positive multiple is as good.

    It takes N C H W bytes with 8 bits, an eighth of it with 1, and 5 N bytes more, on the device.

    - 8 bits: -127 .. 127 in units of one scale a row, that of the largest value. A value is off by at
      most half a unit; one that is kept while the rest of its row is written again, by as much again.
    - 1 bit: the sign of each value. What is not known, or zero, keeps the sign that it has, at first one
      that alternates.
    """

    def __init__(
        self, count: int, image_shape: Sequence[int], bits: int, device: torch.device
    ) -> None:
        self.shape = tuple(image_shape)
        self._code = _CODES[bits](math.prod(self.shape))
        try:
            self.values = self._code.empty(count, device)
        except RuntimeError as error:  # torch's for memory, too
            gib = count * math.prod(self.shape) * bits / 8 / 2**30
            raise MemoryError(
                f"example_level='stored' keeps a direction for each of {count} images of "
                f"{list(self.shape)}, {gib:.1f} GiB with stored_bits={bits}, and {device} has no room "
                "for them; stored_bits=1 takes an eighth of 8, example_level='exact' nothing"
            ) from error
        self.scale = torch.zeros(count, device=device)
        """[N] of a row; 0 where nothing is known."""
        self._mine = torch.zeros(count, dtype=torch.bool, device=device)  # put since an exchange

    def take(self, rows: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
        """The directions [B, C, H, W] of rows [B]; zeros where nothing is known."""
        found = self._code.read(self.values[rows], dtype) * self.scale[rows, None].to(dtype)
        return found.view(len(rows), *self.shape)

    def put(self, rows: Tensor, grad: Tensor, shown: Tensor) -> None:
        """The directions of gradients [B, C, H, W], for rows [B] that all differ.

        Each is of norm 1 over the pixels that are ``shown`` [B, 1, H, W]; the others, where a gradient
        must be 0, keep what they have. So does a row whose gradient is zero, or holds an Inf or NaN.
        """
        g = grad.flatten(1)
        largest = g.abs().amax(1)  # NaN, where there is one
        usable = (largest > 0) & torch.isfinite(largest)
        z = g / torch.where(usable, largest, 1.0)[:, None]  # whose squares stay in range
        new = (shown & usable.view(-1, 1, 1, 1)).expand_as(grad).flatten(1)
        values, scale = self._code.write(z, new, usable, self.values[rows], self.scale[rows])
        self.values.index_copy_(0, rows, values)
        self.scale.index_copy_(0, rows, scale)
        self._mine.index_fill_(0, rows, True)

    def exchange(self, processes: Processes) -> None:
        """The same directions in all processes, each row as the one has it that has put it.

        An image belongs to one process in an epoch, and to another in the next. Within an epoch it comes
        once, so that an exchange changes nothing of what is left of it.
        """
        if processes.size == 1:
            return
        put = processes.sum(self._mine.to(torch.uint8)) > 0
        at_once = max(1, _AT_ONCE // (self.values.shape[1] * self.values.itemsize))
        for tensor in (self.values, self.scale):
            parts = zip(*(t.split(at_once) for t in (tensor, self._mine, put)), strict=True)
            for part, mine, anyone in parts:
                mine, anyone = (m.view(-1, *[1] * (part.ndim - 1)) for m in (mine, anyone))
                part.copy_(torch.where(anyone, processes.sum(part * mine), part))
        self._mine.fill_(False)

    def state_dict(self) -> dict[str, Any]:
        return {"values": self.values, "scale": self.scale}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        for name, tensor in self.state_dict().items():
            if state[name].shape != tensor.shape or state[name].dtype != tensor.dtype:
                raise ValueError(
                    f"stored directions: {name} must be {list(tensor.shape)} of {tensor.dtype}, got "
                    f"{list(state[name].shape)} of {state[name].dtype}"
                )
            tensor.copy_(state[name])


class _Code:
    """How rows of ``length`` values are kept. What is read is in units of the row's scale."""

    def __init__(self, length: int) -> None:
        self.length = length

    def empty(self, count: int, device: torch.device) -> Tensor:
        raise NotImplementedError

    def read(self, values: Tensor, dtype: torch.dtype) -> Tensor:
        raise NotImplementedError

    def write(
        self, z: Tensor, new: Tensor, usable: Tensor, values: Tensor, scale: Tensor
    ) -> tuple[Tensor, Tensor]:
        """The values and scale [B] of rows that are z/‖z‖ [B, P] where ``new``, else as they have been.

        z is 1 at its largest and 0 where it is not shown. A row that is not ``usable`` [B] has nothing
        new, and keeps its bits whatever z is.
        """
        raise NotImplementedError


class _Bytes(_Code):
    def empty(self, count: int, device: torch.device) -> Tensor:
        return torch.zeros(count, self.length, dtype=torch.int8, device=device)

    def read(self, values: Tensor, dtype: torch.dtype) -> Tensor:
        return values.to(dtype)

    def write(
        self, z: Tensor, new: Tensor, usable: Tensor, values: Tensor, scale: Tensor
    ) -> tuple[Tensor, Tensor]:
        per_norm = 1 / torch.linalg.vector_norm(z, dim=1)
        kept = values.masked_fill(new, 0).abs().amax(1) * scale  # the largest of what stays
        unit = torch.maximum(per_norm.to(scale.dtype), kept) / 127
        unit = torch.where(usable, unit, scale)
        per_unit = 1 / torch.where(unit > 0, unit, 1.0)
        old = values.to(z.dtype) * (scale * per_unit)[:, None]
        steps = torch.where(new, z * (per_norm * per_unit)[:, None], old)
        return steps.round_().to(torch.int8), unit


class _Signs(_Code):
    def empty(self, count: int, device: torch.device) -> Tensor:
        return torch.full(
            (count, -(-self.length // 8)), 0b10101010, dtype=torch.uint8, device=device
        )

    def read(self, values: Tensor, dtype: torch.dtype) -> Tensor:
        return self._bits(values).to(dtype) * 2 - 1

    def write(
        self, z: Tensor, new: Tensor, usable: Tensor, values: Tensor, scale: Tensor
    ) -> tuple[Tensor, Tensor]:
        bits = torch.where(new & (z != 0), z > 0, self._bits(values))
        bits = F.pad(bits, (0, 8 * values.shape[1] - self.length))
        eights = bits.view(*values.shape, 8) * self._places(values)
        return eights.sum(2, dtype=torch.uint8), torch.where(usable, 1.0, scale)

    def _bits(self, values: Tensor) -> Tensor:
        bits = values[:, :, None] & self._places(values)
        return (bits != 0).flatten(1)[:, : self.length]

    @staticmethod
    def _places(values: Tensor) -> Tensor:
        return 2 ** torch.arange(8, dtype=torch.uint8, device=values.device)


_CODES: dict[int, type[_Code]] = {8: _Bytes, 1: _Signs}
