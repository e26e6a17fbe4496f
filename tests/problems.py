"""Problems that hypothesis draws for the operators: any shape, dtype and layout, values to the extremes.

A drawn problem is a small frozen record, which is what a failing test prints; its tensors come from
its seed.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from cases import EPS, FLOATS, LAYOUTS, generator
from hypothesis import strategies as st
from torch import Tensor

from hrrl_ext.ops import IMAGE_OPERATIONS

INF, NAN = math.inf, math.nan
SIZES = [0, 1, 2, 3, 5, 7, 8, 13, 16, 17, 31, 33, 67]  # primes, and the vectors' widths ± 1
KEEPING_SHAPE = [name for name in LAYOUTS if name != "empty"]  # size 0 is drawn as a shape

dtypes = st.sampled_from(FLOATS)
layouts = st.sampled_from(KEEPING_SHAPE)
seeds = st.integers(0, 2**31)


def place(t: Tensor, layout: str, device: str) -> Tensor:
    return LAYOUTS[layout](t.to(device))


def exponents(dtype: torch.dtype) -> tuple[float, float]:
    """Powers of ten from the smallest subnormal number of a type to its largest."""
    info = torch.finfo(dtype)
    return math.log10(info.smallest_normal) + math.log10(info.eps), math.log10(info.max)


def cast(t: Tensor, dtype: torch.dtype) -> Tensor:
    """Rounded to ``dtype``; what is too large becomes its largest number."""
    largest = torch.finfo(dtype).max
    return torch.where(t.isinf(), t, t.clamp(-largest, largest)).to(dtype)


def at_any_scale(t: Tensor, dtype: torch.dtype, g: torch.Generator) -> Tensor:
    """Every first index by its own power of ten."""
    low, high = exponents(dtype)
    power = low + (high - low) * torch.rand(len(t), generator=g, dtype=torch.float64)
    return t * 10.0 ** power.view(-1, *[1] * (t.dim() - 1))


def spoil(t: Tensor, g: torch.Generator) -> Tensor:
    """Rows of zeros, of one NaN, Inf or -Inf, of the largest and the smallest number; others kept."""
    info = torch.finfo(t.dtype)
    smallest = info.smallest_normal * info.eps
    for row, kind in zip(t, torch.randint(8, (len(t),), generator=g).tolist(), strict=True):
        if row.numel() == 0:
            continue
        j = int(torch.randint(row.numel(), (1,), generator=g))
        flat = row.view(-1)
        if kind < 3:
            flat[j] = (NAN, INF, -INF)[kind]
        elif kind < 6:
            flat[:] = (0.0, info.max, smallest)[kind - 3]
    return t


@dataclass(frozen=True)
class Perturbation:
    shape: tuple[int, ...]
    dtype: torch.dtype
    x_values: str
    grad_values: str
    x_layout: str
    grad_layout: str
    tau: float
    tau_dtype: torch.dtype | None
    """None for a number, else that of a tensor with one value per example."""
    seed: int

    def tensors(self, device: str) -> tuple[Tensor, Tensor, float | Tensor]:
        g = generator(self.seed)
        x = torch.rand(self.shape, generator=g, dtype=torch.float64)
        if self.x_values == "signed":
            x = 100 * (x - 0.5)
        elif self.x_values == "tiny":
            x = x * torch.finfo(self.dtype).smallest_normal
        x = cast(x, self.dtype)
        if self.x_values == "special":
            x = spoil(x, g)
            x.view(-1)[:1] = -0.0
        grad = torch.randn(self.shape, generator=g, dtype=torch.float64)
        if self.grad_values == "any scale":
            grad = at_any_scale(grad, self.dtype, g)
        grad = cast(grad, self.dtype)
        if self.grad_values == "spoiled":
            grad = spoil(grad, g)
        tau: float | Tensor = self.tau
        if self.tau_dtype is not None:
            signs = torch.randint(-1, 2, (len(x),), generator=g)
            tau = place((self.tau * signs).to(self.tau_dtype), "every second", device)
        return place(x, self.x_layout, device), place(grad, self.grad_layout, device), tau


shapes = st.lists(st.sampled_from(SIZES), min_size=1, max_size=4).filter(
    lambda shape: math.prod(shape) <= 20_000
)
perturbations = st.builds(
    Perturbation,
    shape=shapes.map(tuple),
    dtype=dtypes,
    x_values=st.sampled_from(["image", "signed", "tiny", "special"]),
    grad_values=st.sampled_from(["normal", "any scale", "spoiled"]),
    x_layout=layouts,
    grad_layout=layouts,
    tau=st.sampled_from([0.0, -0.0, 1e-30, 0.03, 0.37, -2.0, 1e4]),
    tau_dtype=st.sampled_from([None, None, torch.float32, torch.float64]),
    seed=seeds,
)


@dataclass(frozen=True)
class Directions:
    """Images and their gradients, beside what is stored of them: rows of bytes or of signs, some unknown."""

    shape: tuple[int, int, int, int]
    dtype: torch.dtype
    signs: bool
    padding: int
    resolution: int
    x_layout: str
    grad_layout: str
    grad_values: str
    tau: float
    seed: int

    def tensors(self, device: str) -> tuple[Tensor, Tensor, tuple[Tensor, Tensor, Tensor, Tensor]]:
        """x, grad; and values, scale, row and view."""
        g = generator(self.seed)
        batch, channels, *sides = self.shape
        x = torch.rand(self.shape, generator=g, dtype=torch.float64).to(self.dtype)
        grad = torch.randn(self.shape, generator=g, dtype=torch.float64)
        if self.grad_values == "any scale":
            grad = at_any_scale(grad, self.dtype, g)
        grad = cast(grad, self.dtype)
        if self.grad_values == "spoiled":
            grad = spoil(grad, g)
        count = channels * math.prod(-(-side // self.resolution) for side in sides)
        width = -(-count // 8) if self.signs else count
        values = torch.randint(-127, 128, (batch + 2, width), generator=g)
        values = (values + 128).to(torch.uint8) if self.signs else values.to(torch.int8)
        scale = torch.rand(batch + 2, generator=g) * torch.randint(2, (batch + 2,), generator=g)
        row = torch.randperm(batch + 2, generator=g)[:batch]
        view = torch.randint(2 * self.padding + 3, (batch, 3), generator=g) - 1
        values, scale, row, view = (t.to(device) for t in (values, scale, row, view))
        given = values, scale, row, view
        return place(x, self.x_layout, device), place(grad, self.grad_layout, device), given


@dataclass(frozen=True)
class Mixtures:
    """Images, and chains of operations with parameters that need not be sensible."""

    shape: tuple[int, int, int, int]
    dtype: torch.dtype
    layout: str
    chains: int
    steps: int
    spoiled: bool
    seed: int

    def tensors(self, device: str) -> tuple[Tensor, ...]:
        """The arguments of mix_chains."""
        g = generator(self.seed)
        x = torch.rand(self.shape, generator=g)
        x = (x * 255).to(torch.uint8) if self.dtype == torch.uint8 else x.to(self.dtype)
        shape = (self.shape[0], self.chains, self.steps)
        operation = torch.randint(-1, len(IMAGE_OPERATIONS), shape, generator=g)
        parameter = torch.randn(*shape, 6, generator=g, dtype=torch.float64)
        parameter *= 10.0 ** torch.randint(-1, 3, (*shape, 1), generator=g)
        if self.spoiled:
            wrong = torch.tensor([torch.nan, torch.inf, -torch.inf, 1e300, 0.0]).double()
            parameter.view(-1)[::7] = wrong[torch.arange(-(-parameter.numel() // 7)) % 5]
        weight, mix = (torch.rand(*size, generator=g) for size in (shape[:2], shape[:1]))
        weight = weight / weight.sum(1, keepdim=True)
        given = operation, parameter, weight, mix
        return place(x, self.layout, device), *(t.to(device) for t in given)


sides = st.sampled_from([1, 2, 3, 5, 8, 17, 33])
mixtures = st.builds(
    Mixtures,
    shape=st.tuples(st.sampled_from([0, 1, 3]), st.sampled_from([1, 3]), sides, sides),
    dtype=st.one_of(st.just(torch.uint8), dtypes),
    layout=layouts,
    chains=st.sampled_from([1, 2, 3]),
    steps=st.sampled_from([1, 2, 4]),
    spoiled=st.booleans(),
    seed=seeds,
)
directions = st.builds(
    Directions,
    shape=st.tuples(st.sampled_from([0, 1, 3]), st.sampled_from([1, 3]), sides, sides),
    dtype=dtypes,
    signs=st.booleans(),
    padding=st.sampled_from([0, 1, 4]),
    resolution=st.sampled_from([1, 1, 2, 5]),
    x_layout=layouts,
    grad_layout=layouts,
    grad_values=st.sampled_from(["normal", "any scale", "spoiled"]),
    tau=st.sampled_from([0.0, 1e-30, 0.03, 0.37, -2.0, 1e4]),
    seed=seeds,
)


@dataclass(frozen=True)
class Batch:
    """Arguments of concept_cross_entropy."""

    batch: int
    classes: int
    concepts: int
    dtype: torch.dtype
    logits_values: str
    logits_layout: str
    labels_layout: str
    q_values: str
    q_dtype: torch.dtype
    count_dtype: torch.dtype
    label_smoothing: float
    seed: int

    def tensors(self, device: str) -> dict[str, Tensor]:
        g = generator(self.seed)
        target = torch.randint(self.classes, (self.batch,), generator=g)
        concept = torch.randint(self.concepts, (self.batch,), generator=g)
        logits = place(self._logits(target, g), self.logits_layout, device)
        target = place(target, self.labels_layout, device)
        concept = place(concept, self.labels_layout, device)
        count = torch.randint(1, 500, (self.concepts,), generator=g)
        absent = torch.ones(self.concepts, dtype=torch.bool)
        absent[concept.cpu()] = False
        if self.concepts > 1 and not absent.all():
            count[absent & (torch.rand(self.concepts, generator=g) < 0.5)] = 0
        return {
            "logits": logits,
            "target": target,
            "concept": concept,
            "q": place(self._q(count, g).to(self.q_dtype), "every second", device),
            "concept_count": place(count.to(self.count_dtype), "offset", device),
        }

    def _logits(self, target: Tensor, g: torch.Generator) -> Tensor:
        z = torch.randn(self.batch, self.classes, generator=g, dtype=torch.float64)
        at_target = torch.arange(self.classes) == target[:, None]
        match self.logits_values:
            case "±80":
                z = 80 * z.sign()
            case "tiny" | "large" | "huge":
                z = z * {"tiny": 1e-6, "large": 1e4, "huge": 1e30}[self.logits_values]
            case "confident":
                z = z + 30 * at_target
            case "constant":
                z = torch.full_like(z, -7.5)
            case "masked":
                z[(torch.rand(z.shape, generator=g) < 0.4) & ~at_target] = -INF
            case "spoiled":
                return spoil(cast(3 * z, self.dtype), g)
        return cast(z, self.dtype)

    def _q(self, count: Tensor, g: torch.Generator) -> Tensor:
        match self.q_values:
            case "of the data":
                return count.double() / count.sum()
            case "one-hot":
                return torch.eye(self.concepts, dtype=torch.float64)[self.seed % self.concepts]
        q = torch.rand(self.concepts, generator=g, dtype=torch.float64) ** 4
        return q / q.sum()


LOGITS = ["normal", "tiny", "±80", "large", "huge", "confident", "constant", "masked", "spoiled"]


def batches(logits_values: list[str] = LOGITS, smoothing: bool = True) -> st.SearchStrategy[Batch]:
    return st.builds(
        Batch,
        batch=st.sampled_from(SIZES),
        classes=st.sampled_from([*SIZES[1:], 130, 1009]),
        concepts=st.sampled_from([1, 2, 3, 11, 101]),
        dtype=dtypes,
        logits_values=st.sampled_from(logits_values),
        logits_layout=layouts,
        labels_layout=layouts,
        q_values=st.sampled_from(["random", "of the data", "one-hot"]),
        q_dtype=st.sampled_from([torch.float32, torch.float64]),
        count_dtype=st.sampled_from([torch.int64, torch.int32, torch.float32, torch.float64]),
        label_smoothing=st.sampled_from([0.0, 0.1, 0.9]) if smoothing else st.just(0.0),
        seed=seeds,
    )


@dataclass(frozen=True)
class Rows:
    """Vectors for project_simplex, along ``dim``."""

    shape: tuple[int, ...]
    dim: int
    radius: float
    dtype: torch.dtype
    values: str
    layout: str
    seed: int

    def tensor(self, device: str) -> Tensor:
        g = generator(self.seed)
        v = torch.randn(self.shape, generator=g, dtype=torch.float64)
        match self.values:
            case "near":  # close to the simplex, where q lives
                v = v.softmax(self.dim) * self.radius + 1e-3 * v
            case "ties":
                v = (2 * v).round()
            case "any scale":
                v = at_any_scale(v, self.dtype, g)
            case "masked":
                v[torch.rand(v.shape, generator=g) < 0.3] = -INF
        v = cast(v, self.dtype)
        if self.values == "spoiled":
            v = spoil(v, g)
        if self.dtype == torch.float64:  # the oracle's sums must not overflow
            v = torch.where(v.isinf(), v, v.clamp(-1e300, 1e300))
        return place(v, self.layout, device)


VECTORS = ["normal", "near", "ties", "any scale", "masked", "spoiled"]


@st.composite
def rows(draw: st.DrawFn, values: list[str] = VECTORS) -> Rows:
    shape = draw(shapes)
    dim = draw(st.integers(-len(shape), len(shape) - 1))
    if shape[dim] == 0:  # refused: test_simplex.py
        shape[dim] = 1
    return Rows(
        tuple(shape),
        dim,
        draw(st.sampled_from([1.0, 1e-3, 2.5, 1e3])),
        draw(dtypes),
        draw(st.sampled_from(values)),
        draw(layouts),
        draw(seeds),
    )


@dataclass(frozen=True)
class Ascent:
    """Arguments of update_distribution."""

    concepts: int
    q_values: str
    q_dtype: torch.dtype
    gain_dtype: torch.dtype
    gain: float
    layout: str
    eta: float
    eta_dtype: torch.dtype | None
    lam: float
    seed: int

    def tensors(self, device: str) -> tuple[Tensor, Tensor, Tensor, float | Tensor, float]:
        g = generator(self.seed)
        q0 = torch.rand(self.concepts, generator=g, dtype=torch.float64)
        q = torch.rand(self.concepts, generator=g, dtype=torch.float64) ** 4
        if self.q_values == "one-hot":
            q = torch.eye(self.concepts, dtype=torch.float64)[self.seed % self.concepts]
        gain = self.gain * (7 + torch.randn(self.concepts, generator=g, dtype=torch.float64))
        gain[torch.rand(self.concepts, generator=g) < 0.3] = 0.0  # absent from the batch
        q, q0 = q / q.sum(), q0 / q0.sum()
        eta = self.eta if self.eta_dtype is None else torch.tensor(self.eta, dtype=self.eta_dtype)
        return (
            place(q.to(self.q_dtype), self.layout, device),
            place(cast(gain, self.gain_dtype), self.layout, device),
            place(q0.to(self.q_dtype), "every second", device),
            eta.to(device) if isinstance(eta, Tensor) else eta,
            self.lam,
        )


ascents = st.builds(
    Ascent,
    concepts=st.sampled_from([*SIZES[1:], 1009]),
    q_values=st.sampled_from(["random", "one-hot"]),
    q_dtype=st.sampled_from([torch.float32, torch.float64]),
    gain_dtype=dtypes,
    gain=st.sampled_from([0.0, 1e-40, 1e-3, 1.0, 1e30]),
    # "expanded": equal entries
    layout=st.sampled_from(["contiguous", "every second", "offset", "expanded rows"]),
    eta=st.sampled_from([0.0, 1e-3, 0.1, 1000.0]),
    eta_dtype=st.sampled_from([None, torch.float32, torch.float64]),
    lam=st.sampled_from([0.0, 1e-3, 1.0, 100.0]),
    seed=seeds,
)


@dataclass(frozen=True)
class Response:
    """Arguments of chi_square_response. lam is in units of ``scale``."""

    concepts: int
    shares: str
    losses: str
    loss_dtype: torch.dtype
    q0_dtype: torch.dtype
    scale: float
    layout: str
    lam: float
    rho: float | None
    max_weight: float | None
    seed: int

    def tensors(self, device: str) -> tuple[Tensor, Tensor, float]:
        """concept_loss, q0 and lam"""
        g = generator(self.seed)
        q0 = torch.rand(self.concepts, generator=g, dtype=torch.float64)
        if self.shares == "wide":
            q0 = 10 ** (6 * q0)
        elif self.shares == "with zeros":
            q0[torch.rand(self.concepts, generator=g) < 0.3] = 0.0
            q0[self.seed % self.concepts] = 0.5
        loss = torch.randn(self.concepts, generator=g, dtype=torch.float64)
        match self.losses:
            case "ties":
                loss = loss.round()
            case "one stands out":
                loss[self.seed % self.concepts] = 40.0
            case "close together":
                loss = 1 + 1e-9 * loss
        return (
            place(cast(self.scale * (3 + loss), self.loss_dtype), self.layout, device),
            place((q0 / q0.sum()).to(self.q0_dtype), "every second", device),
            self.scale * self.lam,
        )


responses = st.builds(
    Response,
    concepts=st.sampled_from([*SIZES[1:], 130, 1009]),
    shares=st.sampled_from(["random", "wide", "with zeros"]),
    losses=st.sampled_from(["normal", "ties", "one stands out", "close together"]),
    loss_dtype=dtypes,
    q0_dtype=st.sampled_from([torch.float32, torch.float64]),
    scale=st.sampled_from([1e-3, 1.0, 300.0]),
    layout=st.sampled_from(["contiguous", "every second", "offset", "expanded rows"]),
    lam=st.sampled_from([0.0, 1e-9, 0.1, 1.0, 30.0]),
    rho=st.sampled_from([None, None, 1e-3, 0.5, 3.0]),
    max_weight=st.sampled_from([None, 1.0, 1.25, 4.0, 50.0]),
    seed=seeds,
)


@dataclass(frozen=True)
class Negatives:
    """Arguments of hardest_negatives."""

    images: int
    captions: int
    size: int
    dtype: torch.dtype
    scale: float
    groups: int
    layout: str
    seed: int

    def tensors(self, device: str) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        g = generator(self.seed)
        sides = (self.images, self.captions)
        image, caption = (
            place(
                cast(
                    self.scale * torch.randn(n, self.size, generator=g, dtype=torch.float64),
                    self.dtype,
                ),
                self.layout,
                device,
            )
            for n in sides
        )
        image_group, caption_group = (
            torch.randint(self.groups, (n,), generator=g).to(device) for n in sides
        )
        return image, caption, image_group, caption_group


negatives = st.builds(
    Negatives,
    images=st.sampled_from([0, 1, 2, 6, 7, 65, 193]),
    captions=st.sampled_from([0, 1, 2, 16, 65, 130]),
    size=st.sampled_from([0, 1, 3, 16, 37]),
    dtype=dtypes,
    scale=st.sampled_from([1e-3, 1.0, 100.0]),
    groups=st.sampled_from([1, 2, 50]),
    layout=st.sampled_from(["contiguous", "every second", "offset", "expanded rows"]),
    seed=seeds,
)


@dataclass(frozen=True)
class Products:
    """Arguments of rank1_dot."""

    batch: int
    groups: int
    clusters: int
    size: int
    dtype: torch.dtype
    values: str
    p_layout: str
    q_layout: str
    seed: int

    def tensors(self, device: str) -> tuple[Tensor, Tensor, Tensor]:
        g = generator(self.seed)
        shape = (self.batch, self.groups, self.clusters, self.size)
        p, q = (torch.randn(shape, generator=g, dtype=torch.float64) for _ in "pq")
        if self.values == "any scale" and self.dtype == torch.float32:
            # of doubles the products would leave the range of double
            p, q = (at_any_scale(t, self.dtype, g) for t in (p, q))
        p, q = cast(p, self.dtype), cast(q, self.dtype)
        if self.values == "spoiled":
            p, q = spoil(p, g), spoil(q, g)
            if self.dtype == torch.float64:  # whether a sum overflows would depend on its order
                p, q = (torch.where(t.isinf(), t, t.clamp(-1e150, 1e150)) for t in (p, q))
        cross = torch.randn(self.batch, self.clusters, generator=g, dtype=torch.float64)
        return cross.to(device), place(p, self.p_layout, device), place(q, self.q_layout, device)


products = st.builds(
    Products,
    batch=st.sampled_from([0, 1, 2, 5]),
    groups=st.sampled_from([0, 1, 1, 2, 3]),
    clusters=st.sampled_from([*SIZES, 130]),
    size=st.sampled_from([*SIZES, 130, 1009]),
    dtype=st.sampled_from([torch.float32, torch.float64]),
    values=st.sampled_from(["normal", "any scale", "spoiled"]),
    p_layout=layouts,
    q_layout=layouts,
    seed=seeds,
).filter(lambda c: c.batch * c.groups * c.clusters * c.size <= 100_000)


@dataclass(frozen=True)
class Centres:
    """Gradients and centres as explicit vectors, for rank1_argmin."""

    batch: int
    clusters: int
    dims: int
    values: str
    weight: str
    rtol: float
    seed: int

    def tensors(self, device: str) -> tuple[Tensor, Tensor, Tensor]:
        """gradients [B, D], centres [K, D], weight [K]"""
        g = generator(self.seed)
        gradients = torch.randn(self.batch, self.dims, generator=g, dtype=torch.float64)
        centres = torch.randn(self.clusters, self.dims, generator=g, dtype=torch.float64)
        match self.values:
            case "any scale":
                gradients, centres = (t * 10.0 ** (60 * torch.rand(len(t), 1, generator=g) - 30)
                                      for t in (gradients, centres))  # fmt: skip
            case "on centres" if self.clusters > 0:
                own = torch.randint(self.clusters, (self.batch,), generator=g)
                gradients = centres[own]
            case "ties":
                gradients, centres = gradients.round(), centres.round()
            case "zero":
                gradients = torch.zeros_like(gradients)
        sizes = torch.randint(
            1, 2 if self.weight == "equal" else 1000, (self.clusters,), generator=g
        )
        return gradients.to(device), centres.to(device), sizes.double().to(device)


neighbours = st.builds(
    Centres,
    batch=st.sampled_from(SIZES),
    clusters=st.sampled_from([*SIZES[1:], 130, 1009]),
    dims=st.sampled_from([1, 2, 10]),
    values=st.sampled_from(["normal", "any scale", "on centres", "ties", "zero"]),
    weight=st.sampled_from(["equal", "sizes"]),
    rtol=st.sampled_from([0.0, 1e-12, 1e-6, 1e-2]),
    seed=seeds,
)


def rounding(dtype: torch.dtype) -> float:
    """Half a unit in the last place, relative; in float64, where the oracle rounds as well, more."""
    return 4 * EPS[dtype] if dtype == torch.float64 else 0.505 * EPS[dtype]


def smallest(dtype: torch.dtype) -> float:
    info = torch.finfo(dtype)
    return info.smallest_normal * info.eps
