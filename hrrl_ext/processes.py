"""One run on several processes (torchrun), or on one."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

_SETTLING_SECONDS = 0.2


@dataclass(frozen=True)
class Processes:
    """Which of how many processes this is. ``Processes()`` is the only one, and costs nothing."""

    rank: int = 0
    size: int = 1

    @property
    def main(self) -> bool:
        """The one that writes files and talks."""
        return self.rank == 0

    def part(self, count: int) -> range:
        """The part of ``count`` neighbouring things that is this process's; sizes differ by one."""
        return range(count * self.rank // self.size, count * (self.rank + 1) // self.size)

    def sum(self, value: Tensor) -> Tensor:
        """Adds ``value`` up over all processes, in place: the same bits in each of them."""
        if self.size > 1:
            dist.all_reduce(value)
        return value

    def whole(self, rows: Tensor, count: int) -> Tensor:
        """All ``count`` rows of a batch, of which each process has its :meth:`part`, in order: the same
        bits in each of them. Differentiable: the gradient of a row is the sum of those that the
        processes have for it."""
        if self.size == 1:
            return rows
        gathered: Tensor = _Whole.apply(rows, self, count)
        return gathered

    def agree(self, tensors: Iterable[Tensor]) -> None:
        """Overwrites the floating-point ones of ``tensors`` with those of the first process."""
        if self.size == 1:
            return
        floats = [t for t in tensors if t.is_floating_point()]
        if not floats:
            return
        together = torch.cat([t.double().flatten() for t in floats])  # one message, and exact
        dist.broadcast(together, 0)
        for t, part in zip(floats, together.split([t.numel() for t in floats]), strict=True):
            t.copy_(part.view_as(t))

    def gather(self, value: Any) -> list[Any]:
        """``value`` of every process, by rank."""
        if self.size == 1:
            return [value]
        values = [None] * self.size
        dist.all_gather_object(values, value)
        return values

    def first_of(self, text: str | None) -> str | None:
        """The text of the first process that has one: all wait for each other, and no device is waited
        for."""
        if self.size == 1:
            return text
        group, count = _on_hosts(), torch.tensor(int(text is not None))
        dist.all_reduce(count, group=group)
        if not count:
            return None
        texts: list[str | None] = [None] * self.size
        dist.all_gather_object(texts, text, group=group)
        return next(found for found in texts if found is not None)

    def wait(self) -> None:
        """Until every process has come here."""
        if self.size > 1:
            dist.barrier()

    def settle(self) -> None:
        """Until the last sums are let go of, so that the interpreter may end.

        The threads of gloo drop a tensor some time after its sum is there, and need the interpreter to
        do so: one that is ending by then aborts the process ("terminate called without an active
        exception"). They come to it while this thread sleeps.
        """
        self.wait()
        self.let_go()

    def let_go(self) -> None:
        """Until the threads of gloo have let go of the last sums, so that this process may fork.

        For that they need the interpreter: a process forked meanwhile can inherit a lock of it that
        nobody in there will ever open, and hangs as it begins.
        """
        if self.size > 1:
            time.sleep(_SETTLING_SECONDS)


class _Whole(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor, processes: Processes, count: int) -> Tensor:
        ctx.processes, ctx.part = processes, processes.part(count)
        whole = rows.new_zeros(count, *rows.shape[1:])
        whole[ctx.part.start : ctx.part.stop] = rows
        return processes.sum(whole)  # parts may differ in size, which a gather does not take

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        summed = ctx.processes.sum(grad.clone(memory_format=torch.contiguous_format))
        return summed[ctx.part.start : ctx.part.stop], None, None


def start_processes(device: str = "auto") -> tuple[Processes, torch.device]:
    """The processes that torchrun has started, and the device of this one.

    They are connected by NCCL on CUDA, where "auto" and "cuda" are a GPU each, and by gloo on the
    CPU. Without torchrun there is one.
    """
    chosen = choose_device(device)
    if not dist.is_initialized():
        if int(os.environ.get("WORLD_SIZE", "1")) == 1:
            return Processes(), chosen
        if chosen.type == "cuda" and ":" not in device:
            chosen = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
            torch.cuda.set_device(chosen)
        dist.init_process_group("nccl" if chosen.type == "cuda" else "gloo")
    return current_processes(), chosen


def current_processes() -> Processes:
    """Those that are connected."""
    if not dist.is_initialized():
        return Processes()
    return Processes(dist.get_rank(), dist.get_world_size())


def stop_processes() -> None:
    """Disconnects what :func:`start_processes` connected; the last thing that a script should do."""
    if dist.is_initialized():
        current_processes().settle()
        _on_hosts.cache_clear()
        dist.destroy_process_group()


@cache
def _on_hosts() -> Any:
    """All processes, connected by their hosts."""
    return dist.group.WORLD if dist.get_backend() == "gloo" else dist.new_group(backend="gloo")


def choose_device(name: str) -> torch.device:
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    device = torch.device(name)
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ValueError(f"device {name!r} was asked for, but torch sees no CUDA device; use 'cpu'")
    return device
