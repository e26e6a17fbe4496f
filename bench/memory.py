"""The most memory that tensors have at once during a step, and what becomes of it afterwards."""

from __future__ import annotations

import ctypes
import platform
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4  # of glibc's malloc.h


def peak_bytes(
    step: Callable[[], Any], held: Iterable[Tensor], optimizer: torch.optim.Optimizer | None
) -> int:
    """Of one step that is not the first, with what lies there before: weights, gradients, momentum, data.

    On CUDA what its allocator says. On the CPU, whose allocator keeps no account: the bytes of ``held``,
    of the gradients and of the optimiser's state, and the highest running sum of what the profiler saw
    allocated and freed since. What a library allocates past torch (oneDNN's scratch) is in neither.
    """
    held = list(held)
    if held[0].is_cuda:
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        step()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated()
    if optimizer is not None:
        for p in (p for group in optimizer.param_groups for p in group["params"]):
            held += [p.grad, *optimizer.state[p].values()]
    before = sum(t.numel() * t.element_size() for t in held if isinstance(t, Tensor))
    with torch.profiler.profile(
        activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True, acc_events=True
    ) as profile:
        step()
    changes = [
        (event.start_ns(), event.nbytes())
        for event in profile.profiler.kineto_results.events()
        if event.name() == "[memory]"
    ]
    now = peak = 0
    for _, change in sorted(changes, key=lambda one: one[0]):  # stable: equal times in their order
        now += change
        peak = max(peak, now)
    return before + peak


def keep_freed_memory() -> None:
    """Tells glibc to give no freed memory back to the system; elsewhere does nothing.

    By default it maps a tensor of more than 32 MiB anew for each call, whose page faults then take five
    times as long as perturb; and a smaller one depending on what ran before, which made ratios jump.
    """
    libc = ctypes.CDLL(None) if platform.system() == "Linux" else None
    if libc is not None and hasattr(libc, "mallopt"):
        libc.mallopt(_M_MMAP_MAX, 0)
        libc.mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)
