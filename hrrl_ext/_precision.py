"""Products and convolutions of float32 in float32, whatever the process allows elsewhere."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

import torch


@contextmanager
def full_float32(device: torch.device) -> Iterator[None]:
    """Within, torch rounds the factors of float32 products on ``device`` neither to TensorFloat-32 nor
    to bfloat16, and autocast is off.

    cuDNN's convolutions do by default: three digits, where a difference of large terms needs seven. The
    switches are the process's, one set for all CUDA devices and one for the CPU. They are put back as
    they were when the last thread has left, errors included; other threads compute in float32
    meanwhile, and what they set meanwhile is lost. A graph that torch.compile traces is left to the
    switches that it is traced under, and a gradient to those of the backward pass.
    """
    switches = None if torch.compiler.is_compiling() else _SWITCHES.get(device.type)
    # Asked first: to turn it off takes as long as a small product.
    kind = device.type
    casting = torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind)
    with torch.autocast(kind, enabled=False) if casting else nullcontext():
        if switches is None:
            yield
            return
        switches.enter()
        try:
            yield
        finally:
            switches.leave()


# torch has two sets of switches, allow_tf32 and float32_matmul_precision on the one hand, fp32_precision
# on the other, and raises where the first is read after the second was set. The operators go by the
# second, so that one is set here, and the first never read. Not by the attributes of torch.backends: that
# of oneDNN sets another switch than it reads, and all may be frozen.
class _Switches:
    """Those of one backend: "all", and "matmul" and "conv", which follow it where they are not set. "all"
    follows a generic one in turn, which belongs to the other backends as well and stays as it is. (An
    "all" that was set to what the generic one is cannot be told from one that follows, and is left to
    follow.)"""

    def __init__(self, backend: str) -> None:
        self._backend = backend
        self._lock = threading.Lock()
        self._inside = 0
        self._before: list[tuple[str, str]] = []

    def enter(self) -> None:
        with self._lock:
            if self._inside == 0:
                generic = torch._C._get_fp32_precision_getter("generic", "all")
                for operator in ("all", "matmul", "conv"):
                    # "matmul" and "conv" are not "ieee" now only if they were set themselves.
                    value = torch._C._get_fp32_precision_getter(self._backend, operator)
                    if value != "ieee":
                        self._set(operator, "ieee")
                        follows = operator == "all" and value == generic
                        self._before.append((operator, "none" if follows else value))
            self._inside += 1

    def leave(self) -> None:
        with self._lock:
            self._inside -= 1
            while self._inside == 0 and self._before:
                self._set(*self._before.pop())

    def _set(self, operator: str, value: str) -> None:
        torch._C._set_fp32_precision_setter(self._backend, operator, value)


_SWITCHES = {"cuda": _Switches("cuda"), "cpu": _Switches("mkldnn")}
