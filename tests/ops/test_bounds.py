"""The vector loops read nothing behind their arrays: the next page of memory is forbidden to touch."""

from __future__ import annotations

import subprocess
import sys

import pytest

# Puts tensors at the very end of a page whose neighbour may not be read, in a process of its own: a read
# too far ends it with SIGSEGV.
SCRIPT = """
import ctypes, mmap, sys, torch
from hrrl_ext import ops

libc = ctypes.CDLL(None, use_errno=True)
kept = []

def at_the_edge(t):
    size = t.numel() * t.element_size()
    pages = -(-size // mmap.PAGESIZE)
    memory = mmap.mmap(-1, (pages + 1) * mmap.PAGESIZE)
    start = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    forbidden = ctypes.c_void_p(start + pages * mmap.PAGESIZE)
    assert libc.mprotect(forbidden, ctypes.c_size_t(mmap.PAGESIZE), 0) == 0
    kept.append(memory)
    edge = torch.frombuffer(memory, dtype=t.dtype, count=t.numel(), offset=pages * mmap.PAGESIZE - size)
    return edge.copy_(t.flatten()).view(t.shape)

if sys.argv[1] == "read too far":  # the net holds
    ctypes.string_at(at_the_edge(torch.zeros(5)).data_ptr(), 21)
for dtype in (torch.float32, torch.bfloat16, torch.float16, torch.float64):
    for size in (1, 3, 7, 8, 9, 15, 16, 17, 31, 33, 67):
        x = at_the_edge(torch.rand(3, size).to(dtype))
        ops.perturb(x, at_the_edge(torch.randn(3, size).to(dtype)), 0.1)
        ids = at_the_edge(torch.zeros(3, dtype=torch.int64))
        one = at_the_edge(torch.ones(1, dtype=torch.float64))
        for smoothing in (0.0, 0.1):
            ops.concept_cross_entropy(x, ids, ids, one, one, label_smoothing=smoothing)
        ops.project_simplex(x)
        if dtype in (torch.float32, torch.float64):
            cross = at_the_edge(torch.zeros(3, size, dtype=torch.float64))
            ops.rank1_dot(cross, x.view(3, 1, size, 1), x.view(3, 1, size, 1))
            ops.rank1_dot(cross[:, :1].contiguous(), x.view(3, 1, 1, size), x.view(3, 1, 1, size))
            squares = at_the_edge(torch.ones(size, dtype=torch.float64))
            ops.rank1_argmin(cross, squares[:1].expand(3), squares, squares)
        ids = [at_the_edge(torch.arange(n)) for n in (3, size)]
        for image, of in ((x, ids[0]), (x.view(size, 3), ids[1])):
            for similarity in ("cosine", "order"):
                ops.hardest_negatives(image, image, of, of, similarity)
                one = at_the_edge(torch.ones(len(image), dtype=torch.promote_types(dtype, torch.float32)))
                ops.pair_gradients(image, image, of, of, one, similarity)
            ops.hinge_coefficients(image, image, one, one, one, one, of, of)
        x, row = x.view(3, 1, 1, size), at_the_edge(torch.arange(3))
        view, scale = at_the_edge(torch.tensor([[1, 0, 1], [1, 2, 0], [1, 1, 1]])), at_the_edge(torch.ones(3))
        for code, length in ((torch.int8, size), (torch.uint8, -(-size // 8))):
            values = at_the_edge(torch.ones(3, length, dtype=code))
            ops.perturb_stored(x, values, scale, row, view, 0.1, padding=1)
            ops.store_directions(values, scale, x, row, view, padding=1)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs mprotect")
@pytest.mark.parametrize("mode", ["stay inside", "read too far"])
def test_no_read_behind_the_end(mode: str) -> None:
    done = subprocess.run([sys.executable, "-c", SCRIPT, mode], capture_output=True, text=True)
    assert done.returncode == (0 if mode == "stay inside" else -11), done.stderr
