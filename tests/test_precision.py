"""full_float32, and that what promises float32 computes in it under any of torch's switches."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Callable, Iterator

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from hrrl_ext import _precision
from hrrl_ext._precision import full_float32
from hrrl_ext.clustering.centres import ClusterSums, example_centres
from hrrl_ext.evaluation.corruptions import corrupt
from hrrl_ext.ops import Convolution, LayerGradient, rank1_assign
from hrrl_ext.transfer import KNeighbours, similarity_loss

CPU = torch.device("cpu")

# A process of its own: the switches cannot be set back to what a process begins with. "follows" is what
# each one is once those above it change, so it shows which were set themselves.
STATES = """
import torch
from hrrl_ext._precision import full_float32
get, put = torch._C._get_fp32_precision_getter, torch._C._set_fp32_precision_setter
SWITCHES = [(b, o) for b in ("cuda", "mkldnn") for o in ("all", "matmul", "conv", "rnn")]

def legacy():
    for read in (lambda: torch.backends.cuda.matmul.allow_tf32, torch.get_float32_matmul_precision,
                 lambda: torch.backends.cudnn.allow_tf32):
        try:
            yield read()
        except RuntimeError:
            yield "raises"

def state():
    generic = get("generic", "all")
    now = [get(*s) for s in SWITCHES]
    put("generic", "all", "ieee")
    follows = [get(*s) for s in SWITCHES]
    put("generic", "all", generic)
    return generic, now, follows, list(legacy())

def old_matmul(): torch.backends.cuda.matmul.allow_tf32 = True
def medium(): torch.set_float32_matmul_precision("medium")
def highest(): torch.set_float32_matmul_precision("highest")
def no_cudnn(): torch.backends.cudnn.allow_tf32 = False
def cudnn(): torch.backends.cudnn.allow_tf32 = True
def generic(): torch.backends.fp32_precision = "tf32"
def new_conv(): torch.backends.cudnn.conv.fp32_precision = "tf32"
def new_matmul(): torch.backends.cuda.matmul.fp32_precision = "tf32"
def mkldnn(): put("mkldnn", "all", "bf16")
def cuda(): put("cuda", "all", "tf32")
def cuda_follows(): put("cuda", "all", "none")
def ieee(): torch.backends.fp32_precision = "ieee"
def frozen(): torch.backends.disable_global_flags()

x = torch.ones(3, 3)
for change in (lambda: None, old_matmul, medium, highest, no_cudnn, cudnn, cuda, cuda_follows, generic,
               new_conv, new_matmul, mkldnn, ieee, frozen):
    change()
    before = state()
    for device, backend in (("cuda", "cuda"), ("cpu", "mkldnn"), ("meta", None)):
        with full_float32(torch.device(device)):
            if backend:
                assert [get(backend, o) for o in ("matmul", "conv")] == ["ieee", "ieee"]
            else:
                assert state() == before
            x @ x
            assert get("generic", "all") == before[0]
        assert state() == before, (change, device, before, state())
print(before)
"""


def test_switches_are_put_back_as_they_were() -> None:
    """In states set by the old way, by the new one and by both, where reading the old one raises."""
    done = subprocess.run([sys.executable, "-c", STATES], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "raises" in done.stdout  # the last state is such a one


def precision() -> str:
    return torch._C._get_fp32_precision_getter("mkldnn", "matmul")


@pytest.fixture
def _reduced() -> Iterator[None]:
    torch._C._set_fp32_precision_setter("mkldnn", "all", "bf16")
    assert precision() == "bf16"
    yield
    assert precision() == "bf16"
    torch._C._set_fp32_precision_setter("mkldnn", "all", "none")


@pytest.mark.parametrize("casts", [False, True])
def test_autocast_is_off_within(casts: bool) -> None:
    x = torch.ones(2, 2)
    with torch.autocast("cpu", enabled=casts):
        with full_float32(CPU), full_float32(torch.device("meta")):
            assert (x @ x).dtype == torch.float32
        assert (x @ x).dtype == (torch.bfloat16 if casts else torch.float32)


@pytest.mark.usefixtures("_reduced")
def test_errors_and_nesting() -> None:
    def fail() -> None:
        with full_float32(CPU):
            with full_float32(CPU):
                assert precision() == "ieee"
            assert precision() == "ieee"
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert precision() == "bf16"


@pytest.mark.usefixtures("_reduced")
def test_the_last_thread_puts_back() -> None:
    inside, leave = threading.Event(), threading.Event()

    def other() -> None:
        with full_float32(CPU):
            inside.set()
            leave.wait(10)

    thread = threading.Thread(target=other)
    with full_float32(CPU):
        thread.start()
        assert inside.wait(10)
    assert precision() == "ieee"
    leave.set()
    thread.join()
    assert precision() == "bf16"


PRODUCTS = ("mm", "convolution", "linear")


class Products(TorchDispatchMode):
    """What precision products and convolutions of float32 ran in."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: dict[str, set[str]] = {}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        if any(part in name for part in PRODUCTS) and args[0].dtype == torch.float32:
            self.seen.setdefault(name, set()).add(precision())
        return func(*args, **(kwargs or {}))


def drawn(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)))


CONV = LayerGradient(drawn(4, 3, 8, 8), drawn(4, 5, 6, 6), Convolution((3, 3)), bias=True)
LINEAR = LayerGradient(drawn(4, 7), drawn(4, 5), bias=True)
LAYERS = [CONV, LINEAR]


def assign() -> None:
    rank1_assign(LAYERS, example_centres(LAYERS, "mean", 1), torch.ones(4))


def sums(hold_outputs: bool) -> None:
    centres = example_centres(LAYERS, "mean", 1)
    ClusterSums(centres, "svd", hold_outputs=hold_outputs).add(LAYERS, torch.arange(4))


def vote() -> None:
    KNeighbours(k=2).fit(drawn(6, 4).numpy(), np.arange(6) % 2).predict(drawn(3, 4).numpy())


PROMISES: dict[str, Callable[[], object]] = {
    "rank1_assign": assign,
    "sums of clusters, inputs": lambda: sums(True),
    "sums of clusters, outputs": lambda: sums(False),
    "centres of examples": lambda: example_centres(LAYERS, "svd", 1),
    "neighbours": vote,
    "similarity": lambda: similarity_loss(drawn(6, 4), drawn(6, 5)),
    "corruptions": lambda: corrupt(drawn(2, 3, 32, 32).sigmoid(), "gaussian_blur", 3),
}


@pytest.mark.usefixtures("_reduced")
@pytest.mark.parametrize("name", PROMISES)
def test_what_promises_float32(name: str) -> None:
    with Products() as products:
        PROMISES[name]()
    assert products.seen and set().union(*products.seen.values()) == {"ieee"}, products.seen


@pytest.mark.usefixtures("_reduced")
@pytest.mark.parametrize("by_gradients", [False, True])
def test_both_ways_of_a_convolution(monkeypatch: pytest.MonkeyPatch, by_gradients: bool) -> None:
    module = sys.modules["hrrl_ext.ops.rank1_assign"]
    monkeypatch.setattr(module, "_by_gradients", lambda *_: by_gradients)
    centres = example_centres([CONV], "mean", 1)
    with Products() as products:
        rank1_assign([CONV], centres, torch.ones(4))
    assert "convolution" in str(products.seen)
    assert set().union(*products.seen.values()) == {"ieee"}, products.seen


@pytest.mark.usefixtures("_reduced")
def test_without_the_context_it_would_be_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_precision, "_SWITCHES", {})
    with Products() as products:
        assign()
    assert set().union(*products.seen.values()) == {"bf16"}


def test_compiled() -> None:
    """A graph is traced through it in one piece."""
    inputs = drawn(6, 4), drawn(6, 5)
    compiled = torch.compile(similarity_loss, fullgraph=True, backend="eager")
    assert torch.equal(compiled(*inputs), similarity_loss(*inputs))
