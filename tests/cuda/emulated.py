"""The CUDA kernels compiled for the host (emulation/), behind functions on CPU tensors.

Every array that a kernel sees stands between red zones. Those of inputs are NaN (or ids out of all
ranges), so a read beyond the end spoils a result; those of outputs are checked after every call.
Outputs start as NaN, so an entry that is never written shows.
"""

from __future__ import annotations

import contextlib
import ctypes
import dataclasses
import fcntl
import functools
import math
import os
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from stored_cases import Kept
from torch import Tensor

ROOT = Path(__file__).resolve().parents[2]
SOURCES = Path(__file__).resolve().parent / "emulation"
# In the order of hrrl::Dtype
DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
# -fno-gnu-unique: every library keeps its own machine and shared memory, mutants as well.
FLAGS = (
    *("-std=c++17", "-fPIC", "-shared", "-fno-gnu-unique", "-fno-strict-aliasing"),
    *("-Wall", "-Wextra", "-Werror", "-Wno-unknown-pragmas", "-Wno-maybe-uninitialized"),
)
# The folder of what is compiled for all processes of a run of tests (conftest.py)
SHARED = "HRRL_EMULATION_SHARED"
# Set for a process that has the libraries of the sanitizers loaded (test_sanitized_kernels.py).
SANITIZE = bool(os.environ.get("HRRL_EMULATION_SANITIZE"))
SANITIZERS = ("-fsanitize=address,undefined", "-fno-sanitize-recover=all")

_RED_ZONE = 0 if SANITIZE else 64  # entries; the address sanitizer has red zones of its own
_BAD_ID = 2**60


Change = tuple[str, str, str]
"""A file in csrc/cuda, text that it has once, and what stands there instead."""
FLOAT_ALONE = (
    "kernel_launch.cuh",
    """    case Dtype::kDouble:
      return f(Type<double>{});
    case Dtype::kHalf:
      return f(Type<__half>{});
    case Dtype::kBFloat16:
      return f(Type<__nv_bfloat16>{});
""",
    "    default:\n      return;\n",
)
"""Of a kernel for every type that of float32, which halves the time that it takes to compile."""


@dataclass(frozen=True)
class Device:
    """What a launcher asks of a GPU. The default has few multiprocessors, so that grids that fill
    the device go round more than once."""

    multiprocessors: int = 4
    clusters: bool = True
    cooperative: bool = True
    architecture: int = 90  # that the kernels were compiled for
    blocks_at_once: int = 32  # the most on a multiprocessor, whatever else there is room for


class EmulationError(RuntimeError):
    """A kernel broke a rule of CUDA."""


class RedZoneError(AssertionError):
    """A kernel wrote outside its output."""


def build(name: str, folder: Path, csrc: Path = ROOT / "csrc", level: str = "-O1") -> ctypes.CDLL:
    """Compiles emulation/<name>.cpp against the kernels in ``csrc``, unless it is there, and loads it."""
    library, once = folder / f"{name}.so", compiled_once(level)
    header = ("-include", str(once / "runtime_emulation.h"))
    source = [f"-I{csrc}", str(SOURCES / f"{name}.cpp"), *map(str, sorted(once.glob("*.o")))]
    with alone_with(library):
        if not library.exists():
            compiled(level, *header, *source, "-o", str(library))
    return ctypes.CDLL(str(library))


@functools.cache
def compiled_once(level: str) -> Path:
    """A folder with what all libraries share: the emulation's header, and its machine, always optimised."""
    folder = Path(os.environ[SHARED]) / (level + "-sanitized" * SANITIZE)
    folder.mkdir(parents=True, exist_ok=True)
    header = SOURCES / "runtime_emulation.h"
    with alone_with(folder / "runtime.o"):
        if not (folder / "runtime.o").exists():
            compiled(
                level, "-w", "-x", "c++-header", str(header), "-o", f"{folder / header.name}.gch"
            )
            for name in ("machine", "runtime"):
                compiled("-O1", "-c", str(SOURCES / f"{name}.cpp"), "-o", str(folder / f"{name}.o"))
    return folder


@contextlib.contextmanager
def alone_with(file: Path) -> Iterator[None]:
    """Until it is left other processes of the same tests wait here."""
    with open(file.with_suffix(".lock"), "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def compiled(*arguments: str) -> None:
    command = ["g++", *FLAGS, *(SANITIZERS if SANITIZE else ()), f"-I{SOURCES}", *arguments]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    if result.returncode != 0:
        raise RuntimeError(f"{arguments[-1]} does not compile:\n{result.stderr}")


def filler_of(dtype: torch.dtype) -> float:
    if dtype in (torch.int8, torch.uint8):
        return 77
    return torch.nan if dtype.is_floating_point else _BAD_ID


class Array:
    """A contiguous copy of ``t`` between red zones, ``offset`` entries off 64-byte alignment. They hold a
    row of ``t`` at least: a broken kernel that writes to one too many must not write into the heap."""

    def __init__(self, t: Tensor, offset: int = 0, filler: float | None = None) -> None:
        self._filler = filler_of(t.dtype) if filler is None else filler
        # torch aligns what it allocates to 64 bytes, and the red zone is a multiple of that.
        row = t[0].numel() if t.ndim > 1 and len(t) else 0
        zone = -(-max(row, 1) // 64) * _RED_ZONE
        self._whole = torch.full((2 * zone + offset + t.numel(),), self._filler, dtype=t.dtype)
        self._begin = zone + offset
        self.values = self._whole[self._begin : self._begin + t.numel()].view(t.shape)
        self.values.copy_(t)
        self._before = self._whole.clone()

    @classmethod
    def output(cls, *shape: int, dtype: torch.dtype, offset: int = 0) -> Array:
        return cls(torch.full(shape, filler_of(dtype), dtype=dtype), offset)

    @property
    def pointer(self) -> ctypes.c_void_p:
        return ctypes.c_void_p(self._whole.data_ptr() + self._begin * self._whole.element_size())

    def check_red_zones(self) -> None:
        for zone in (slice(None, self._begin), slice(self._begin + self.values.numel(), None)):
            if not same_bits(self._whole[zone], self._before[zone]):
                raise RedZoneError("a kernel wrote outside its output")

    def check_unchanged(self) -> None:
        if not same_bits(self._whole, self._before):
            raise RedZoneError("a kernel wrote to its input")


def dtyped(t: Tensor, array: Array) -> tuple[int, Array]:
    return DTYPES.index(t.dtype), array


def same_bits(a: Tensor, b: Tensor) -> bool:
    return a.dtype == b.dtype and torch.equal(
        a.reshape(-1).view(torch.uint8), b.reshape(-1).view(torch.uint8)
    )


class Emulation:
    """The operators as the CUDA library computes them.

    ``seed`` is the order of blocks, warps and lanes: 0 as numbered, 1 backwards, others shuffled.
    ``device`` is what the launchers find; ``launches`` what the last call took.
    """

    def __init__(self, folder: Path, csrc: Path = ROOT / "csrc", level: str = "-O1") -> None:
        self.folder, self._csrc, self._level = folder, csrc, level
        compiled_once(level)  # before a process that is forked from this one would
        self._libraries: dict[str, ctypes.CDLL] = {}
        self.seed = 0
        self.device = Device()
        self.launches = 0

    @contextlib.contextmanager
    def on(self, device: Device) -> Iterator[None]:
        before, self.device = self.device, device
        try:
            yield
        finally:
            self.device = before

    def _call(self, operator: str, function: str, inputs: list[Array], *args: object) -> None:
        if operator not in self._libraries:
            self._libraries[operator] = build(
                *(f"entry_{operator}", self.folder, self._csrc, self._level)
            )
        library = self._libraries[operator]
        device = self.device
        library.reset(self.seed, *map(int, dataclasses.astuple(device)))
        entry = getattr(library, function)
        entry.restype = ctypes.c_char_p
        failure = entry(*(a.pointer if isinstance(a, Array) else a for a in args))
        self.launches = library.launches()
        if failure is not None:
            raise EmulationError(failure.decode())
        for array in inputs:
            array.check_unchanged()
        for arg in args:
            if isinstance(arg, Array):
                arg.check_red_zones()

    def perturb(
        self,
        x: Tensor,
        grad: Tensor,
        tau: float,
        tau_scale: Tensor | None = None,
        *,
        offset: int = 0,
    ) -> tuple[Tensor, Tensor]:
        batch = x.shape[0]
        size = x[0].numel() if batch else 0
        inputs = [Array(x, offset), Array(grad, offset)]
        out = Array.output(*x.shape, dtype=x.dtype, offset=offset)
        norm = Array.output(batch, dtype=torch.promote_types(x.dtype, torch.float32))
        scale = None if tau_scale is None else Array(tau_scale.double())
        self._call(
            "perturb",
            "emulate_perturb",
            inputs + ([scale] if scale else []),
            *(DTYPES.index(x.dtype), *inputs, out, norm, scale),
            *(ctypes.c_double(tau), ctypes.c_int64(batch), ctypes.c_int64(size)),
        )
        return out.values, norm.values

    def concept_cross_entropy(
        self,
        logits: Tensor,
        target: Tensor,
        concept: Tensor,
        q: Tensor,
        concept_count: Tensor,
        label_smoothing: float = 0.0,
        with_grad: bool = True,
        *,
        offset: int = 0,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        batch, classes = logits.shape
        if not concept_count.dtype.is_floating_point:
            concept_count = concept_count.double()
        inputs = [
            *(Array(logits, offset), Array(target), Array(concept)),
            *(Array(q), Array(concept_count)),
        ]
        dtype = torch.promote_types(logits.dtype, torch.float32)
        dtype = torch.float64 if logits.dtype == torch.float64 else dtype
        loss, concept_loss = (
            Array.output(dtype=dtype),
            Array.output(len(q), dtype=q.dtype),
        )
        example_loss = Array.output(batch, dtype=dtype)
        grad_dtype = torch.float32 if logits.dtype == torch.float16 else logits.dtype
        grad = Array.output(batch, classes, dtype=grad_dtype, offset=offset) if with_grad else None
        self._call(
            "concept_cross_entropy",
            "emulate_concept_cross_entropy",
            inputs,
            *(DTYPES.index(logits.dtype), *inputs[:3]),
            *(*dtyped(q, inputs[3]), *dtyped(concept_count, inputs[4])),
            *(loss, concept_loss, example_loss, grad),
            *(ctypes.c_int64(batch), ctypes.c_int64(classes), ctypes.c_int64(len(q))),
            ctypes.c_double(label_smoothing),
        )
        grad_logits = grad.values if grad else logits.new_empty(0, dtype=grad_dtype)
        return loss.values, concept_loss.values, example_loss.values, grad_logits

    def scale_gradient(self, gradient: Tensor, factor: Tensor) -> Tensor:
        """The scaled gradient: the one given is left as it is."""
        scaled, by = Array(gradient), Array(factor)
        self._call(
            "concept_cross_entropy",
            "emulate_scale_gradient",
            [by],
            *(DTYPES.index(gradient.dtype), scaled, by, ctypes.c_int64(gradient.numel())),
        )
        return scaled.values

    def project_simplex(self, v: Tensor, radius: float = 1.0) -> Tensor:
        given, out = Array(v), Array.output(*v.shape, dtype=v.dtype)
        size = v.shape[-1]
        self._call(
            "project_simplex",
            "emulate_project_simplex",
            [given],
            *(DTYPES.index(v.dtype), given, out),
            *(ctypes.c_int64(v.numel() // size), ctypes.c_int64(size), ctypes.c_double(radius)),
        )
        return out.values

    def project_simplex_backward(self, p: Tensor, grad: Tensor, *, offset: int = 0) -> Tensor:
        inputs = [Array(p, offset), Array(grad, offset)]
        out = Array.output(*p.shape, dtype=p.dtype, offset=offset)
        self._call(
            "project_simplex_backward",
            "emulate_project_simplex_backward",
            inputs,
            *(DTYPES.index(p.dtype), *inputs, out),
            *(ctypes.c_int64(size) for size in (p.numel() // p.shape[-1], p.shape[-1])),
        )
        return out.values

    def update_distribution(
        self,
        q: Tensor,
        concept_loss: Tensor,
        q0: Tensor,
        eta: float,
        lam: float,
        eta_scale: Tensor | None = None,
    ) -> Tensor:
        inputs = [Array(q), Array(concept_loss), Array(q0)]
        scale = None if eta_scale is None else Array(eta_scale)
        out = Array.output(len(q), dtype=q.dtype)
        self._call(
            "project_simplex",
            "emulate_update_distribution",
            inputs + ([scale] if scale else []),
            *(
                part
                for t, a in zip((q, concept_loss, q0), inputs, strict=True)
                for part in dtyped(t, a)
            ),
            *(scale, out),
            *(ctypes.c_int64(len(q)), ctypes.c_double(eta), ctypes.c_double(lam)),
            *(None, 0, None, ctypes.c_int64(0)),
        )
        return out.values

    def step_distribution(
        self,
        q: Tensor,
        t: Tensor,
        concept_loss: Tensor,
        q0: Tensor,
        c: Tensor,
        lam: float,
        s: int,
    ) -> tuple[Tensor, Tensor]:
        """The new q and t; those given stay."""
        inputs, written = [Array(concept_loss), Array(q0), Array(c)], [Array(q), Array(t)]
        loss_type, q0_type, c_type = (
            dtyped(of, a) for of, a in zip((concept_loss, q0, c), inputs, strict=True)
        )
        self._call(
            "project_simplex",
            "emulate_update_distribution",
            inputs,
            *(*dtyped(q, written[0]), *loss_type, *q0_type, None, written[0]),
            *(ctypes.c_int64(len(q)), ctypes.c_double(1.0), ctypes.c_double(lam)),
            *(written[1], *c_type, ctypes.c_int64(s)),
        )
        return written[0].values, written[1].values

    def chi_square_response(
        self,
        concept_loss: Tensor,
        q0: Tensor,
        lam: float,
        rho: float = math.inf,
        max_weight: float = math.inf,
    ) -> Tensor:
        inputs, out = [Array(concept_loss), Array(q0)], Array.output(len(q0), dtype=q0.dtype)
        self._call(
            "chi_square_response",
            "emulate_chi_square_response",
            inputs,
            *(*dtyped(concept_loss, inputs[0]), *dtyped(q0, inputs[1]), out),
            ctypes.c_int64(len(q0)),
            *(ctypes.c_double(value) for value in (lam, rho, max_weight)),
        )
        return out.values

    def rank1_dot(self, cross: Tensor, p: Tensor, q: Tensor, *, offset: int = 0) -> Tensor:
        """The new cross: the one given is left as it is."""
        # Added to: a NaN in its red zone would stay one, whatever is added.
        inputs, sums = [Array(p, offset), Array(q, offset)], Array(cross, filler=0.0)
        self._call(
            "rank1",
            "emulate_rank1_dot",
            inputs,
            *(DTYPES.index(p.dtype), sums, *inputs),
            *(ctypes.c_int64(size) for size in p.shape),
        )
        return sums.values

    def rank1_argmin(
        self, cross: Tensor, square: Tensor, centre_square: Tensor, weight: Tensor, rtol: float
    ) -> tuple[Tensor, Tensor, Tensor]:
        inputs = [Array(t) for t in (cross, square, centre_square, weight)]
        batch, clusters = cross.shape
        assignment = Array.output(batch, dtype=torch.int64)
        distance, gap = (Array.output(batch, dtype=torch.float64) for _ in range(2))
        self._call(
            "rank1",
            "emulate_rank1_argmin",
            inputs,
            *(*inputs, assignment, distance, gap),
            *(ctypes.c_int64(batch), ctypes.c_int64(clusters), ctypes.c_double(rtol)),
        )
        return assignment.values, distance.values, gap.values

    def info_nce(
        self,
        query: Tensor,
        key: Tensor,
        queue: Tensor,
        temperature: float,
        with_grad: bool = True,
        *,
        offset: int = 0,
    ) -> tuple[Tensor, Tensor]:
        inputs = [Array(t, offset) for t in (query, key, queue)]
        loss = Array.output(len(query), dtype=query.dtype)
        grad = Array.output(*query.shape, dtype=query.dtype, offset=offset) if with_grad else None
        self._call(
            "info_nce",
            "emulate_info_nce",
            inputs,
            *(DTYPES.index(query.dtype), *inputs, loss, grad),
            *(ctypes.c_int64(size) for size in (len(query), len(queue), query.shape[1])),
            ctypes.c_double(temperature),
        )
        return loss.values, grad.values if grad else query.new_empty(0)

    def hardest_negatives(
        self,
        image: Tensor,
        caption: Tensor,
        image_group: Tensor,
        caption_group: Tensor,
        order: bool,
        *,
        offset: int = 0,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        inputs = [Array(image, offset), Array(caption, offset)]
        inputs += [Array(image_group), Array(caption_group)]
        sides, dtype = (len(image), len(caption)), torch.promote_types(image.dtype, torch.float32)
        index = [Array.output(n, dtype=torch.int64) for n in sides]
        score = [Array.output(n, dtype=dtype) for n in sides]
        self._call(
            "hardest_negatives",
            "emulate_hardest_negatives",
            inputs,
            *(DTYPES.index(image.dtype), *inputs, *index, DTYPES.index(dtype), *score),
            *(ctypes.c_int64(size) for size in (*sides, image.shape[1])),
            order,
        )
        return index[0].values, score[0].values, index[1].values, score[1].values

    def hinge_coefficients(self, *arguments: Tensor, offset: int = 0) -> tuple[Tensor, ...]:
        inputs = [Array(t, offset) for t in arguments[:2]] + [Array(t) for t in arguments[2:]]
        image, caption, dtype = *arguments[:2], arguments[2].dtype
        sides = (len(image), len(caption))
        shapes = ((), sides, sides[:1], sides[1:])
        out = [Array.output(*shape, dtype=dtype) for shape in shapes]
        self._call(
            "hinge_coefficients",
            "emulate_hinge_coefficients",
            inputs,
            *(DTYPES.index(image.dtype), DTYPES.index(dtype), *inputs, *out),
            *(ctypes.c_int64(size) for size in (*sides, image.shape[1])),
        )
        return tuple(t.values for t in out)

    def pair_gradients(
        self,
        image: Tensor,
        caption: Tensor,
        row: Tensor,
        column: Tensor,
        weight: Tensor,
        order: bool,
        *,
        offset: int = 0,
    ) -> tuple[Tensor, Tensor]:
        inputs = [Array(image, offset), Array(caption, offset)]
        inputs += [Array(t) for t in (row, column, weight)]
        grads = [Array.output(*t.shape, dtype=weight.dtype) for t in (image, caption)]
        self._call(
            "pair_gradients",
            "emulate_pair_gradients",
            inputs,
            *(DTYPES.index(image.dtype), DTYPES.index(weight.dtype), *inputs, *grads),
            *(ctypes.c_int64(n) for n in (len(image), len(caption), image.shape[1], len(weight))),
            order,
        )
        return grads[0].values, grads[1].values

    def perturb_stored(self, x: Tensor, z: Kept, tau: float) -> Tensor:
        """x dense, in any layout."""
        inputs = [Array(in_memory(x)), *(Array(t) for t in z.arguments)]
        out = Array.output(x.numel(), dtype=x.dtype)
        self._call(
            "stored",
            "emulate_perturb_stored",
            inputs,
            *(DTYPES.index(x.dtype), *_sides(x), inputs[0], out, *inputs[1:], ctypes.c_double(tau)),
            *_stored(z),
        )
        return out.values.as_strided(x.shape, x.stride())

    def store_directions(self, z: Kept, grad: Tensor) -> tuple[Tensor, Tensor]:
        """New values and scale; those of z stay."""
        values, scale = Array(z.values), Array(z.scale)
        inputs = [Array(in_memory(grad)), Array(z.row), Array(z.view)]
        self._call(
            "stored",
            "emulate_store_directions",
            inputs,
            *(DTYPES.index(grad.dtype), *_sides(grad), inputs[0], values, scale, *inputs[1:]),
            *_stored(z),
        )
        return values.values, scale.values

    def mix_chains(
        self, images: Tensor, operation: Tensor, parameter: Tensor, weight: Tensor, mix: Tensor
    ) -> Tensor:
        """images dense, in any layout."""
        inputs = [Array(in_memory(images))]
        inputs += [Array(t) for t in (operation, parameter, weight, mix)]
        out = Array.output(images.numel(), dtype=images.dtype)
        self._call(
            "mix_chains",
            "emulate_mix_chains",
            inputs,
            *((torch.uint8, *DTYPES).index(images.dtype), *_sides(images)),
            *(inputs[0], out, *inputs[1:]),
            *(ctypes.c_int64(size) for size in operation.shape[1:]),
        )
        return out.values.as_strided(images.shape, images.stride())


def in_memory(t: Tensor) -> Tensor:
    """The elements of a dense tensor in the order in which they lie."""
    return t.as_strided((t.numel(),), (1,))


def _sides(t: Tensor) -> tuple[object, object]:
    return (ctypes.c_int64 * 4)(*t.shape), (ctypes.c_int64 * 4)(*t.stride())


def _stored(z: Kept) -> tuple[object, ...]:
    signs = z.values.dtype == torch.uint8
    return (
        ctypes.c_int64(z.padding),
        ctypes.c_int64(z.resolution),
        signs,
        ctypes.c_int64(len(z.values)),
    )
