"""One run on several processes (torchrun), or on one."""

from __future__ import annotations

import os
import re
import socket
import stat
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from functools import cache
from itertools import islice
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.distributed_c10d import _set_pg_timeout
from torch.distributed.rendezvous import rendezvous

T = TypeVar("T")

_SETTLING_SECONDS = 0.2
_NO_LIMIT = timedelta(days=365)
_FAILED = "hrrl_ext/failed"  # what the process that failed first says, on the board
_SILENCE = 300  # seconds, where HRRL_KEEPALIVE does not say


class ProcessFailedError(RuntimeError):
    """Another process failed first; the message says which, and what it said."""


class ProcessLostError(RuntimeError):
    """Another process left without a word: it was killed, or its machine is gone."""


@dataclass(frozen=True)
class Processes:
    """Which of how many processes this is; where it is the only one it costs nothing."""

    rank: int = 0
    size: int = 1

    @property
    def main(self) -> bool:
        """The one that writes files and talks."""
        return self.rank == 0

    def part(self, count: int) -> range:
        """The part of ``count`` neighbouring things that is this process's; sizes differ by one."""
        return range(count * self.rank // self.size, count * (self.rank + 1) // self.size)

    def turns(self, things: Iterable[T]) -> Iterator[T]:
        """Those of ``things`` that are this process's where all take one in turn."""
        return islice(things, self.rank, None, self.size)

    def in_order(self, mine: Iterable[T]) -> Iterator[T]:
        """What every process makes of its :meth:`turns`, in the order of the things: the same in each.

        Round by round: at any time there is one of each process. Whoever is done waits for the others
        for as long as they work; where one ends or fails, this one does. None is nothing.
        """
        if self.size == 1:
            yield from mine
            return
        own = iter(mine)
        while True:
            found = self.gather(next(own, None))
            yield from (one for one in found if one is not None)
            if any(one is None for one in found):
                return

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
        """``value`` of every process, by rank: all wait for each other, for as long as it takes, and
        no device is waited for."""
        if self.size == 1:
            return [value]
        values = [None] * self.size
        dist.all_gather_object(values, value, group=_on_hosts())
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


ALONE = Processes()
"""The only one."""


def start_processes(device: str = "auto") -> tuple[Processes, torch.device]:
    """The processes that torchrun has started, and the device of this one.

    They are connected by NCCL on CUDA, where "auto" and "cuda" are a GPU each, and by gloo on the
    CPU. Without torchrun there is one.
    """
    global _board
    chosen = choose_device(device)
    several = dist.is_initialized() or int(os.environ.get("WORLD_SIZE", "1")) > 1
    if several and chosen.type == "cuda" and ":" not in device:
        chosen = torch.device(
            "cuda", int(os.environ.get("LOCAL_RANK", torch.cuda.current_device()))
        )
        torch.cuda.set_device(chosen)
    if several and not dist.is_initialized():
        others, seconds = _sockets(), _seconds_of_silence()
        _board, rank, size = next(rendezvous("env://"))
        of_the_board = _sockets() - others
        _keep_alive(of_the_board, seconds, answers=True)
        if rank == 0:
            _board.delete_key(_FAILED)  # of a start before: torchrun keeps it when it starts again
        backend = "nccl" if chosen.type == "cuda" else "gloo"
        dist.init_process_group(backend, store=_board, rank=rank, world_size=size)
        _on_hosts()  # while all are there
        _keep_alive(_sockets() - others - of_the_board, seconds)
    return current_processes(), chosen


@contextmanager
def joined(device: str = "auto") -> Iterator[tuple[Processes, torch.device]]:
    """:func:`start_processes`, for all of a program: its processes end together.

    At its end each waits for the others, for as long as they work. Where one raises, it leaves what it
    says on a board and ends; the others lose their connection to it wherever they next wait, and raise
    :class:`ProcessFailedError` with what it said, in the place of an error about connections or time.
    Where it said nothing, the first to notice raises :class:`ProcessLostError`.
    """
    processes, chosen = start_processes(device)
    try:
        with naming_the_lost(lambda: "Start all of them again, with resume where there is one"):
            yield processes, chosen
            processes.gather(None)
    except Exception as error:
        if processes.size > 1:
            said = _said_first(processes, error)
            processes.let_go()
            if said is not None:
                raise ProcessFailedError(said) from error
        raise
    stop_processes()


@contextmanager
def naming_the_lost(advice: Callable[[], str]) -> Iterator[None]:
    """Within, the error of a connection that broke is a :class:`ProcessLostError`, with what to do."""
    try:
        yield
    except RuntimeError as error:
        said = str(error)
        broken = isinstance(error, dist.DistNetworkError) or re.search(_BROKEN, said)
        if not broken or isinstance(error, ProcessLostError):
            raise
        said = re.sub(r"^\[[^]]*\] ", "", said.partition(" This is typically")[0]).rstrip(".")
        raise ProcessLostError(
            "another process of this run left without a word: it was killed, its machine is gone, or it "
            f"hangs ({said}). {advice()}".rstrip()
        ) from error


_BROKEN = r"gloo/transport|ncclRemoteError"
"""What gloo and NCCL say where another process has left: they have no class of errors for it."""


def current_processes() -> Processes:
    """Those that are connected."""
    if not dist.is_initialized():
        return ALONE
    return Processes(dist.get_rank(), dist.get_world_size())


def stop_processes() -> None:
    """Disconnects what :func:`start_processes` connected; the last thing that a script should do."""
    global _board
    if dist.is_initialized():
        current_processes().settle()
        _on_hosts.cache_clear()
        dist.destroy_process_group()
        _board = None


_board: Any = None
"""The store by which the processes found each other. torchrun keeps it, so it outlives each of them."""


def _said_first(processes: Processes, error: Exception) -> str | None:
    """What another process said that failed before this one; None where this one is the first."""
    mine = f"process {processes.rank} of {processes.size}, on {socket.gethostname()}: {error}"
    mine = mine.encode(errors="backslashreplace").decode()  # names of files need not be valid
    try:
        said = mine if _board is None else _board.compare_set(_FAILED, "", mine).decode()
    except RuntimeError:  # gone with the process that kept it
        return None
    return None if said == mine else said


@cache
def _on_hosts() -> Any:
    """All processes, connected by their hosts, without a limit of time: some wait while others work, be
    it for hours. One that ends is noticed at once, as its connections close; one whose machine is gone,
    as that does not answer (:func:`_keep_alive`)."""
    group = dist.new_group(backend="gloo")
    _set_pg_timeout(
        _NO_LIMIT, group
    )  # not before, since it would be that of finding each other, too
    return group


def _sockets() -> set[int]:
    """Descriptors of this process, where the system lists them."""
    found = set()
    if sys.platform == "linux":
        for number in map(int, os.listdir("/proc/self/fd")):
            with suppress(OSError):  # that of the list itself is closed by now
                if stat.S_ISSOCK(os.fstat(number).st_mode):
                    found.add(number)
    return found


def _keep_alive(connections: Iterable[int], seconds: int, *, answers: bool = False) -> None:
    """Has the system ask the other end where nothing is said: a machine without power closes nothing, and
    who waits for its result would wait for ever. Gloo and the store leave this off.

    ``answers``: what is sent, too, is to be received by then, where Linux tries for a quarter of an hour.
    Not between trainings, one of which may be held, with a buffer that is full.
    """
    for number in connections:
        with socket.socket(fileno=os.dup(number)) as connection, suppress(OSError):
            if connection.proto == socket.IPPROTO_TCP:
                every = max(1, seconds // 6)  # from the first question to the end: five unanswered
                connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, every)
                connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, every)
                connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 5)
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
                if answers:
                    connection.setsockopt(
                        socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, 1000 * seconds
                    )


def _seconds_of_silence() -> int:
    given = os.environ.get("HRRL_KEEPALIVE", str(_SILENCE))
    if not given.isdecimal() or not 6 <= int(given) <= 86400:
        raise ValueError(
            "HRRL_KEEPALIVE: expected the seconds after which a machine that does not answer counts as "
            f"gone, 6 to 86400, got {given!r}; leave it out for {_SILENCE}"
        )
    return int(given)


def choose_device(name: str) -> torch.device:
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    device = torch.device(name)
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ValueError(f"device {name!r} was asked for, but torch sees no CUDA device; use 'cpu'")
    return device
