"""The example level for the price of plain training: directions that the last epoch left behind."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
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
        padding = self.augment.crop_padding
        x_perturbed = self.directions.perturb(x, row, view, self.tau, padding).requires_grad_()
        self._moved.append((x_perturbed, row, view))
        return x_perturbed

    def learn(self) -> None:
        """Stores the directions of all that was perturbed since the last call. Any positive factor of an
        example's loss cancels: its weight, that of its part of the batch, the scale of float16."""
        moved, self._moved = self._moved, []
        for x, row, view in moved:
            if x.grad is not None:  # None: of a model that nothing of x goes through
                self.directions.put(row, x.grad, view, self.augment.crop_padding)

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

    It takes N C H W bytes with 8 bits, an eighth of it with 1, and 5 N bytes more, on the device. With
    ``resolution`` r a value is shared by a block of r x r pixels, for 1/r² of the room: the sum over the
    block of what is put, and the same for all its pixels when it is looked at.

    - 8 bits: -127 .. 127 in units of one scale a row, that of the largest value. A value is off by at
      most half a unit; one that is kept while the rest of its row is written again, by as much again.
    - 1 bit: the sign of each value. What is not known, or zero, keeps the sign that it has, at first one
      that alternates.

    What is put and looked at is a view (:class:`hrrl_ext.data.Augmentation`, with its ``padding``).
    """

    def __init__(
        self,
        count: int,
        image_shape: Sequence[int],
        bits: int,
        device: torch.device,
        resolution: int = 1,
    ) -> None:
        channels, *sides = image_shape
        self.shape = (channels, *(math.ceil(side / resolution) for side in sides))
        self.resolution = resolution
        row = math.prod(self.shape) if bits == 8 else math.ceil(math.prod(self.shape) / 8)
        try:
            self.values = (
                torch.zeros(count, row, dtype=torch.int8, device=device)
                if bits == 8
                else torch.full((count, row), 0b10101010, dtype=torch.uint8, device=device)
            )
        except RuntimeError as error:  # torch's for memory, too
            raise MemoryError(
                f"example_level='stored' keeps a direction for each of {count} images of "
                f"{list(image_shape)}, {count * row / 2**30:.1f} GiB with stored_bits={bits} and "
                f"stored_resolution={resolution}, and {device} has no room for them; stored_bits=1 takes "
                f"an eighth of 8, stored_resolution={2 * resolution} a quarter, example_level='exact' "
                "nothing"
            ) from error
        self.scale = torch.zeros(count, device=device)
        """[N] of a row; 0 where nothing is known."""
        self._mine = torch.zeros(count, dtype=torch.bool, device=device)  # put since an exchange

    def perturb(self, x: Tensor, row: Tensor, view: Tensor, tau: float, padding: int) -> Tensor:
        """x [B, C, H, W], moved by tau along the directions of rows [B] as views [B, 3] show them."""
        return ops.perturb_stored(
            x, self.values, self.scale, row, view, tau, padding=padding, resolution=self.resolution
        )

    def put(self, row: Tensor, grad: Tensor, view: Tensor, padding: int) -> None:
        """Stores the directions of gradients [B, C, H, W], for rows [B] that all differ.

        What their views do not show keeps what it has. So does a row whose gradient is zero, or holds an
        Inf or NaN.
        """
        ops.store_directions(
            self.values, self.scale, grad, row, view, padding=padding, resolution=self.resolution
        )
        self._mine.index_fill_(0, row, True)

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
