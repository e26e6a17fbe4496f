"""The operators against what else a user would write, on the same tensors and in the same run."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import peers
import pytest
import torch
from places import Place
from torch import Tensor

from hrrl_ext import ops
from hrrl_ext.ops import reference

Measure = Callable[..., None]

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
# Largest error, relative to the largest entry of the float64 result. The peers sum up to 1e6 terms in
# float32, and round half precision three times: this asks for the right formula, tests/ for the last
# bits.
TOLERANCE = {"fp32": 2e-5, "bf16": 2e-2, "fp16": 3e-3}

# A round is half a millisecond at least, so that neither the clock nor one call's jitter shows.
pytestmark = pytest.mark.benchmark(min_time=5e-4, max_time=0.3, min_rounds=8)


def product(cases: Iterable[Any], *providers: str) -> list[Any]:
    """One test per case and provider; those of one case run after each other."""
    return [
        pytest.param(
            case,
            provider,
            id=f"{case}-{provider}",
            marks=[pytest.mark.compile] * provider.startswith("compile"),
        )
        for case in cases
        for provider in providers
        if provider != "torchattacks" or not case.channels_last  # its view() raises
        if provider != "copy" or case.bytes >= LARGE
    ]


# From so many bytes on the bandwidth of the memory is what counts, and a copy is what to compare with.
LARGE = 8_000_000


def agree(actual: Iterable[Tensor], expected: Iterable[Tensor], tolerance: float) -> None:
    for got, want in zip(actual, expected, strict=True):
        atol = tolerance * want.abs().max().item()
        torch.testing.assert_close(got.double(), want, rtol=0, atol=atol)


def copy_of(moved: int, device: str) -> Callable[[], Tensor]:
    """A copy that reads and writes so many bytes together."""
    source = torch.ones(moved // 8, dtype=torch.float32, device=device)
    target = torch.empty_like(source)
    return lambda: target.copy_(source)


def generator(device: str) -> torch.Generator:
    return torch.Generator(device).manual_seed(0)


# --- perturb


@dataclass(frozen=True)
class Images:
    shape: tuple[int, int, int, int]
    dtype: str
    channels_last: bool

    def __str__(self) -> str:
        layout = "channels_last" if self.channels_last else "contiguous"
        return f"{'x'.join(map(str, self.shape))}-{self.dtype}-{layout}"

    @property
    def bytes(self) -> int:
        return math.prod(self.shape) * DTYPES[self.dtype].itemsize

    def tensors(self, device: str) -> tuple[Tensor, Tensor]:
        """x and its gradient."""
        g = generator(device)
        layout = torch.channels_last if self.channels_last else torch.contiguous_format
        x = torch.rand(self.shape, generator=g, device=device)
        grad = torch.randn(self.shape, generator=g, device=device)
        dtype = DTYPES[self.dtype]
        return x.to(dtype, memory_format=layout), grad.to(dtype, memory_format=layout)


IMAGES = [
    Images(shape, dtype, channels_last)
    for shape in ((256, 3, 32, 32), (64, 3, 224, 224), (2, 3, 8, 8))
    for dtype, channels_last in (
        ("fp32", False),
        ("fp32", True),
        ("bf16", False),
        ("bf16", True),
        ("fp16", False),
    )
] + [Images((256, 3, 224, 224), dtype, channels_last=False) for dtype in ("fp32", "bf16")]
# The last two are beyond any cache.


@lru_cache(maxsize=1)  # for the providers of one case, which follow each other
def perturb_problem(case: Images, device: str) -> tuple[Tensor, Tensor, float, Tensor]:
    """x, grad, tau and x̃ in float64."""
    x, grad = case.tensors(device)
    tau = math.sqrt(x[0].numel())  # moves a pixel by about 1, so that a wrong direction is seen
    return x, grad, tau, reference.perturb(x.double(), grad.double(), tau)[0]


@pytest.mark.parametrize(
    ("case", "provider"), product(IMAGES, "ours", "copy", "eager", "torchattacks", "compile")
)
def test_perturb(case: Images, provider: str, place: Place, measure: Measure) -> None:
    x, grad, tau, expected = perturb_problem(case, place.device)
    calls: dict[str, Callable[[], Tensor]] = {
        "ours": lambda: ops.perturb(x, grad, tau)[0],
        "eager": lambda: peers.eager_perturb(x, grad, tau),
        "torchattacks": lambda: peers.torchattacks_perturb(x, grad, tau),
        "copy": copy_of(3 * case.bytes, place.device),
    }
    if provider == "compile":
        compiled = place.compiled(peers.eager_perturb)
        calls["compile"] = lambda: compiled(x, grad, tau)

    measure(
        calls[provider],
        lambda actual: provider == "copy" or agree([actual], [expected], TOLERANCE[case.dtype]),
        op="perturb",
        case=case,
        provider=provider,
        shape=case.shape,
        dtype=case.dtype,
        layout="channels_last" if case.channels_last else "contiguous",
    )


# --- concept_cross_entropy, forward and backward


@dataclass(frozen=True)
class Logits:
    batch: int
    classes: int
    dtype: str = "fp32"
    concepts: int = 20

    def __str__(self) -> str:
        return f"{self.batch}x{self.classes}-{self.dtype}"

    @property
    def bytes(self) -> int:
        return self.batch * self.classes * DTYPES[self.dtype].itemsize

    def tensors(self, device: str) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """logits, target, concept, q and concept_count."""
        g = generator(device)
        logits = 3 * torch.randn(self.batch, self.classes, generator=g, device=device)
        target = torch.randint(self.classes, (self.batch,), generator=g, device=device)
        concept = torch.randint(self.concepts, (self.batch,), generator=g, device=device)
        count = torch.randint(1, 500, (self.concepts,), generator=g, device=device).double()
        q = torch.rand(self.concepts, generator=g, device=device, dtype=torch.float64)
        return logits.to(DTYPES[self.dtype]).requires_grad_(), target, concept, q / q.sum(), count


LOGITS = [
    *(Logits(65536, classes) for classes in (2, 10, 16)),
    *(Logits(256, classes) for classes in (10, 100, 1000)),
    *(Logits(4096, classes) for classes in (100, 1000)),
    *(Logits(*shape, "bf16") for shape in ((65536, 10), (4096, 1000))),
]


@pytest.mark.parametrize(("case", "provider"), product(LOGITS, "ours", "eager", "compile"))
def test_concept_cross_entropy(case: Logits, provider: str, place: Place, measure: Measure) -> None:
    """loss, ĝ and the gradient of the logits."""
    logits, target, concept, q, count = case.tensors(place.device)
    wide = logits.detach().double().requires_grad_()
    reference_losses = reference.concept_cross_entropy(wide, target, concept, q, count)[:2]
    expected = _with_gradient(reference_losses, wide)

    if provider == "ours":

        def forward() -> tuple[Tensor, Tensor]:
            return ops.concept_cross_entropy(logits, target, concept, q, count)[:2]
    else:
        peer: Callable[..., tuple[Tensor, Tensor]] = peers.eager_concept_loss
        if provider == "compile":
            peer = place.compiled(peer)
        q32, inverse_share = q.float(), (count.sum() / count).float()

        def forward() -> tuple[Tensor, Tensor]:
            return peer(logits, target, concept, q32, inverse_share)

    measure(
        lambda: _with_gradient(forward(), logits),
        lambda actual: agree(actual, expected, TOLERANCE[case.dtype]),
        op="concept_cross_entropy",
        case=case,
        provider=provider,
        shape=(case.batch, case.classes),
        dtype=case.dtype,
    )


@pytest.mark.parametrize(
    ("case", "provider"), product([Logits(256, 1000), Logits(16384, 1000)], "ours", "copy")
)
def test_forward(case: Logits, provider: str, place: Place, measure: Measure) -> None:
    """The loss and ĝ alone, but with the gradient that leaves in the same visit: one read, one write."""
    logits, *labels = case.tensors(place.device)
    expected = reference.concept_cross_entropy(logits.detach().double(), *labels)[:2]
    measure(
        (lambda: ops.concept_cross_entropy(logits, *labels)[:2])
        if provider == "ours"
        else copy_of(2 * case.bytes, place.device),
        lambda actual: (
            provider == "copy"
            or agree([result.detach() for result in actual], expected, TOLERANCE[case.dtype])
        ),
        op="concept_cross_entropy forward",
        case=case,
        provider=provider,
        shape=(case.batch, case.classes),
        dtype=case.dtype,
    )


def _with_gradient(losses: tuple[Tensor, Tensor], logits: Tensor) -> tuple[Tensor, ...]:
    (grad,) = torch.autograd.grad(losses[0], logits)
    return *(loss.detach() for loss in losses), grad


# --- project_simplex and update_distribution


@dataclass(frozen=True)
class Vector:
    """normal: standard normal entries, few of which stay. near: close to the simplex, most stay."""

    size: int
    entries: str = "normal"

    def __str__(self) -> str:
        return f"K{self.size}-{self.entries}"

    def tensor(self, device: str) -> Tensor:
        v = torch.randn(self.size, generator=generator(device), device=device)
        return v if self.entries == "normal" else (1 + 0.5 * v) / self.size


VECTORS = [
    *(Vector(size) for size in (10, 100, 1000, 10_000, 100_000, 1_000_000)),
    *(Vector(size, "near") for size in (10, 1000, 1_000_000)),
]


@pytest.mark.parametrize(
    ("case", "provider"), product(VECTORS, "ours", "eager", "entmax", "compile")
)
def test_project_simplex(case: Vector, provider: str, place: Place, measure: Measure) -> None:
    v = case.tensor(place.device)
    rank = torch.arange(1, case.size + 1, device=place.device)
    expected = reference.project_simplex(v.double())
    calls: dict[str, Callable[[], Tensor]] = {
        "ours": lambda: ops.project_simplex(v),
        "eager": lambda: peers.sort_project(v, rank),
    }
    if provider == "entmax":
        entmax = pytest.importorskip("entmax", reason="pip install entmax")
        calls["entmax"] = lambda: entmax.sparsemax(v, dim=-1)
    if provider == "compile":
        compiled = place.compiled(peers.sort_project)
        calls["compile"] = lambda: compiled(v, rank)

    measure(
        calls[provider],
        lambda actual: agree([actual], [expected], TOLERANCE["fp32"]),
        op="project_simplex",
        case=case,
        provider=provider,
        shape=(case.size,),
        dtype="fp32",
        layout=case.entries,
    )


@pytest.mark.parametrize(
    ("case", "provider"),
    product(
        [
            *(Vector(size, "near") for size in (11, 1000, 10_000, 100_000, 1_000_000)),
            Vector(1000),
        ],
        *("ours", "eager", "entmax", "compile"),
    ),
)
def test_update_distribution(case: Vector, provider: str, place: Place, measure: Measure) -> None:
    lam, eta = 2.0 * case.size, 0.1 / case.size  # η = 1/(λ t) at t = 5: a tenth of an entry of q
    q = reference.project_simplex(case.tensor(place.device))
    q0 = q.flip(0)  # a uniform one would drop out: P(v + a) = P(v)
    concept_loss = torch.rand(case.size, generator=generator(place.device), device=place.device)
    rank = torch.arange(1, case.size + 1, device=place.device)
    arguments = (q, concept_loss, q0, eta, lam)
    expected = reference.update_distribution(q.double(), concept_loss, q0, eta, lam)
    calls: dict[str, Callable[[], Tensor]] = {
        "ours": lambda: ops.update_distribution(*arguments),
        "eager": lambda: peers.sort_update(*arguments, rank),
    }
    if provider == "entmax":
        entmax = pytest.importorskip("entmax", reason="pip install entmax")
        calls["entmax"] = lambda: entmax.sparsemax(peers.ascend(*arguments), dim=-1)
    if provider == "compile":
        compiled = place.compiled(peers.sort_update)
        calls["compile"] = lambda: compiled(*arguments, rank)

    measure(
        calls[provider],
        lambda actual: agree([actual], [expected], TOLERANCE["fp32"]),
        op="update_distribution",
        case=case,
        provider=provider,
        shape=(case.size,),
        dtype="fp32",
    )


# --- rank1_dot and rank1_argmin


@dataclass(frozen=True)
class Products:
    batch: int
    clusters: int
    terms: int

    def __str__(self) -> str:
        return f"B{self.batch}-K{self.clusters}-M{self.terms}"

    def tensors(self, device: str) -> tuple[Tensor, Tensor, Tensor]:
        """cross, p and q."""
        g = generator(device)
        shape = (self.batch, 1, self.clusters, self.terms)
        p, q = (torch.randn(shape, generator=g, device=device) for _ in "pq")
        cross = torch.zeros(self.batch, self.clusters, dtype=torch.float64, device=device)
        return cross, p, q


PRODUCTS = [
    *(Products(512, clusters, 1) for clusters in (100, 1000)),
    *(Products(*shape) for shape in ((64, 10, 1024), (64, 128, 64), (256, 100, 3))),
]


@pytest.mark.parametrize(
    ("case", "provider"), product(PRODUCTS, "ours", "eager", "eager32", "compile", "compile32")
)
def test_rank1_dot(case: Products, provider: str, place: Place, measure: Measure) -> None:
    """Checked at the first call: every other one adds the same again."""
    cross, p, q = case.tensors(place.device)
    expected = cross.clone()
    reference.rank1_dot(expected, p, q)

    def ours() -> Tensor:
        ops.rank1_dot(cross, p, q)
        return cross

    calls: dict[str, Callable[[], Tensor]] = {
        "ours": ours,
        "eager": lambda: peers.sum_products(cross, p, q),
        "eager32": lambda: peers.sum_narrow_products(cross, p, q),
    }
    if provider.startswith("compile"):
        wide = provider == "compile"
        compiled = place.compiled(peers.sum_products if wide else peers.sum_narrow_products)
        calls[provider] = lambda: compiled(cross, p, q)

    measure(
        calls[provider],
        lambda actual: agree([actual], [expected], TOLERANCE["fp32"]),
        op="rank1_dot",
        case=case,
        provider=provider,
        shape=(case.batch, case.clusters, case.terms),
        dtype="fp32",
    )


@dataclass(frozen=True)
class Centres:
    batch: int
    clusters: int

    def __str__(self) -> str:
        return f"B{self.batch}-K{self.clusters}"

    def tensors(self, device: str) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """cross, square, centre_square and weight."""
        g = generator(device)
        vectors, centres = (
            torch.randn(size, 8, generator=g, device=device).double()
            for size in (self.batch, self.clusters)
        )
        weight = torch.randint(1, 100, (self.clusters,), generator=g, device=device).double()
        return vectors @ centres.T, vectors.square().sum(1), centres.square().sum(1), weight


CENTRES = [Centres(*shape) for shape in ((512, 10), (512, 100), (512, 1000), (64, 10), (64, 128))]


@pytest.mark.parametrize(("case", "provider"), product(CENTRES, "ours", "eager", "compile"))
def test_rank1_argmin(case: Centres, provider: str, place: Place, measure: Measure) -> None:
    arguments = case.tensors(place.device)
    expected = [t.double() for t in reference.rank1_argmin(*arguments, rtol=1e-6)]
    calls: dict[str, Callable[[], tuple[Tensor, ...]]] = {
        "ours": lambda: ops.rank1_argmin(*arguments, rtol=1e-6),
        "eager": lambda: peers.nearest_centre(*arguments, 1e-6),
    }
    if provider == "compile":
        compiled = place.compiled(peers.nearest_centre)
        calls["compile"] = lambda: compiled(*arguments, 1e-6)

    measure(
        calls[provider],
        lambda actual: agree(actual, expected, 1e-12),
        op="rank1_argmin",
        case=case,
        provider=provider,
        shape=(case.batch, case.clusters),
        dtype="fp64",
    )
