"""Problems as data: what the operators are tried on, with names that show in the tests' ids."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

FLOATS = [torch.float32, torch.float64, torch.bfloat16, torch.float16]
EPS = {dtype: torch.finfo(dtype).eps for dtype in FLOATS}


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@dataclass(frozen=True)
class ConceptCase:
    """A batch for concept_cross_entropy."""

    batch: int
    classes: int
    concepts: int
    dtype: torch.dtype = torch.float32
    label_smoothing: float = 0.0
    scale: float = 3.0

    def __str__(self) -> str:
        name = f"B{self.batch}-C{self.classes}-K{self.concepts}-{str(self.dtype)[6:]}"
        name += f"-eps{self.label_smoothing:g}" if self.label_smoothing else ""
        return name + (f"-scale{self.scale:g}" if self.scale != 3.0 else "")

    def arguments(self) -> dict[str, Tensor]:
        g = generator(hash((self.batch, self.classes, self.concepts)) % 2**31)
        q = torch.rand(self.concepts, generator=g, dtype=torch.float64)
        return {
            "logits": (self.scale * torch.randn(self.batch, self.classes, generator=g)).to(
                self.dtype
            ),
            "target": torch.randint(self.classes, (self.batch,), generator=g),
            "concept": torch.randint(self.concepts, (self.batch,), generator=g),
            "q": q / q.sum(),
            "concept_count": torch.randint(1, 500, (self.concepts,), generator=g),
        }


# Widths of the vector loops are 4, 8 and 16: one less, one more, several, primes.
SIZES = [1, 2, 3, 4, 7, 8, 9, 15, 16, 17, 31, 33, 64, 65, 127, 251, 1000]
CONCEPT_CASES = [
    ConceptCase(1, 1, 1),
    ConceptCase(0, 5, 3),
    ConceptCase(3, 2, 7),  # absent concepts
    *(ConceptCase(13, classes, 4) for classes in SIZES),
    *(ConceptCase(13, classes, 4, dtype) for dtype in FLOATS[1:] for classes in (1, 10, 37, 100)),
    *(ConceptCase(29, 37, 5, dtype, label_smoothing=0.1) for dtype in FLOATS),
    ConceptCase(7, 5, 2, label_smoothing=0.9),
    ConceptCase(257, 10, 11),
    ConceptCase(1024, 3, 1009),  # nearly every concept once
    ConceptCase(16, 12, 3, scale=80.0),
    ConceptCase(16, 12, 3, scale=1e4),
    ConceptCase(16, 12, 3, scale=1e-6),
]


@dataclass(frozen=True)
class ProductCase:
    """p and q for rank1_dot. Of whole numbers every product and every sum is exact."""

    batch: int
    groups: int
    clusters: int
    size: int
    dtype: torch.dtype = torch.float32
    whole: bool = True

    def __str__(self) -> str:
        shape = f"B{self.batch}-G{self.groups}-K{self.clusters}-M{self.size}"
        return f"{shape}-{str(self.dtype)[6:]}" + ("" if self.whole else "-random")

    def arguments(self) -> dict[str, Tensor]:
        shape = (self.batch, self.groups, self.clusters, self.size)
        g = generator(hash(shape) % 2**31)
        draw = lambda: torch.randn(shape, generator=g, dtype=torch.float64)  # noqa: E731
        p, q = ((3 * draw()).round() if self.whole else draw() for _ in "pq")
        cross = torch.randint(-9, 9, (self.batch, self.clusters), generator=g).double()
        return {"cross": cross, "p": p.to(self.dtype), "q": q.to(self.dtype)}

    def check(self, arguments: dict[str, Tensor], result: Tensor) -> None:
        """Exact for whole numbers. Others: as many roundings as there are terms, in here as in there,
        of the sum of the magnitudes."""
        terms = arguments["p"].double() * arguments["q"].double()  # [B, G, K, M]
        exact = arguments["cross"] + terms.sum((1, 3))
        if self.whole:
            assert torch.equal(result, exact)
            return
        magnitude = arguments["cross"].abs() + terms.abs().sum((1, 3))
        roundings = 2 * (self.groups * self.size + 2)
        assert ((result - exact).abs() <= roundings * EPS[torch.float64] * magnitude).all()


PRODUCT_CASES = [
    *(ProductCase(*shape) for shape in ((0, 1, 3, 1), (2, 0, 3, 4), (2, 1, 0, 4), (2, 3, 4, 0))),
    *(ProductCase(3, 1, clusters, 1) for clusters in SIZES),
    *(ProductCase(2, 1, 3, size) for size in SIZES),
    *(ProductCase(2, groups, 5, size) for groups in (2, 3) for size in (1, 2, 7, 40, 131)),
    *(ProductCase(2, 2, 5, size, torch.float64) for size in (1, 3, 16, 131)),
    *(ProductCase(2, 2, 131, size) for size in (2, 3, 7, 9, 70)),  # several blocks of sums
    *(
        ProductCase(7, 2, 11, size, dtype, whole=False)
        for size in (1, 5, 64, 1009)
        for dtype in (torch.float32, torch.float64)
    ),
]


@dataclass(frozen=True)
class PointCase:
    """Gradients and centres for rank1_argmin, as vectors of small whole numbers. Every number is
    exact, and many centres are equally near."""

    batch: int
    clusters: int
    dims: int = 3
    spread: int = 3
    equal_weights: bool = False

    def __str__(self) -> str:
        name = f"B{self.batch}-K{self.clusters}-D{self.dims}-{self.spread}"
        return name + ("-equal" if self.equal_weights else "")

    def vectors(self) -> tuple[Tensor, Tensor, Tensor]:
        """gradients [B, D], centres [K, D] and weight [K]"""
        g = generator(hash((self.batch, self.clusters, self.dims)) % 2**31)
        low, high = -self.spread, self.spread + 1
        gradients = torch.randint(low, high, (self.batch, self.dims), generator=g)
        centres = torch.randint(low, high, (self.clusters, self.dims), generator=g)
        weight = torch.randint(1, 6, (self.clusters,), generator=g)
        return gradients, centres, torch.ones_like(weight) if self.equal_weights else weight

    def arguments(self) -> dict[str, Tensor]:
        gradients, centres, weight = self.vectors()
        return {
            "cross": (gradients @ centres.T).double(),
            "square": gradients.square().sum(1).double(),
            "centre_square": centres.square().sum(1).double(),
            "weight": weight.double(),
        }

    def nearest(self, rtol: float) -> tuple[Tensor, Tensor, Tensor]:
        """assignment, distance and gap from the differences themselves; rtol a power of two or 0."""
        gradients, centres, weight = self.vectors()
        distance = (gradients[:, None] - centres).square().sum(2)  # [B, K]
        score = (weight * distance).double()
        scale = (
            weight * (gradients.square().sum(1, keepdim=True) + centres.square().sum(1))
        ).double()
        ids = torch.arange(self.clusters)
        near = score <= score.amin(1, keepdim=True) + rtol * scale
        assignment = torch.where(near, ids, self.clusters).amin(1)  # [B]
        own = ids == assignment[:, None]
        if self.clusters > 1:
            ahead = score[~own].view(self.batch, self.clusters - 1).amin(1) - score[own]
        else:
            ahead = torch.full((self.batch,), torch.inf, dtype=torch.float64)
        gap = torch.where(ahead == 0, 0.0, ahead / scale[own])
        return assignment, distance[own].double(), gap


POINT_CASES = [
    PointCase(0, 3),
    *(PointCase(11, clusters) for clusters in SIZES),
    *(PointCase(11, clusters, dims=1, spread=1) for clusters in (1, 2, 9, 33)),  # zeros, ties
    *(PointCase(7, clusters, spread=300) for clusters in (5, 100)),
    PointCase(257, 10, equal_weights=True),
    PointCase(3, 10_007),
]


@dataclass(frozen=True)
class ResponseCase:
    """A game for chi_square_response: losses about 2, shares that differ up to a hundredfold."""

    lam: float
    rho: float | None = None
    max_weight: float | None = None

    def __str__(self) -> str:
        name = f"lam{self.lam:g}" + (f"-rho{self.rho:g}" if self.rho is not None else "")
        return name + (f"-cap{self.max_weight:g}" if self.max_weight is not None else "")

    @property
    def settings(self) -> dict[str, float | None]:
        return {"lam": self.lam, "rho": self.rho, "max_weight": self.max_weight}

    @staticmethod
    def draw(concepts: int, seed: int = 0) -> tuple[Tensor, Tensor]:
        """concept_loss and q0"""
        g = generator(1000 * concepts + seed)
        loss = 2 + torch.randn(concepts, generator=g, dtype=torch.float64)
        q0 = 10 ** (2 * torch.rand(concepts, generator=g, dtype=torch.float64))
        return loss, q0 / q0.sum()

    def check(self, loss: Tensor, q0: Tensor, q: Tensor) -> None:
        """The conditions of a maximum, to 1e-10 of the range of the losses: q is feasible; with one η and
        one μ ≥ λ, which is λ where the ball has room, ℓ_k - μ (w_k - 1) is η for the free concepts, at
        most η for those of weight 0 and at least η for those at the cap."""
        weight, most = q / q0, torch.inf if self.max_weight is None else self.max_weight
        below = weight < most * (1 - 1e-12)
        assert (q.sum() - q0.sum()).abs() <= 1e-13 * q0.sum()
        assert (weight >= 0).all() and (weight <= most * (1 + 1e-14)).all()
        mu = self.lam
        if self.rho is not None:
            distance = ((q - q0).square() / q0).sum().item()
            assert distance <= self.rho**2 * (1 + 1e-11)
            free = (weight > 0) & below
            centred = weight[free] - weight[free].mean()
            if distance > self.rho**2 * (1 - 1e-9):
                if not (centred.abs() > 1e-6).any():
                    return  # which μ it is the free concepts do not tell
                mu = (centred @ loss[free] / centred.square().sum()).item()
                assert mu >= self.lam * (1 - 1e-9)
        slope = loss - mu * (weight - 1)
        at_most = slope[weight > 0].min()  # η is not above these
        at_least = torch.where(below, slope, -torch.inf).max()  # nor below those
        assert at_least - at_most <= 1e-10 * (loss.max() - loss.min() + 1e-300)


RESPONSE_CASES = [
    ResponseCase(lam, rho, max_weight)
    for lam in (0.0, 0.3, 2.0)
    for rho in (None, 0.05, 0.7)
    for max_weight in (None, 1.3, 4.0)
    if lam > 0 or rho is not None or max_weight is not None
]


def images(batch: int, *shape: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> Tensor:
    return torch.rand(batch, *shape, generator=generator(seed)).to(dtype)


def gradients(batch: int, *shape: int, dtype: torch.dtype = torch.float32, seed: int = 1) -> Tensor:
    return torch.randn(batch, *shape, generator=generator(seed)).to(dtype)


def _behind_others(t: Tensor) -> Tensor:
    """At a storage offset of 3 elements, which breaks every alignment."""
    whole = t.new_zeros(3 + t.numel())
    return whole[3:].view(t.shape).copy_(t)


# How a tensor of any shape may lie in memory. All but the last three keep its values; those that make
# no sense for its shape return it as it is.
LAYOUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "contiguous": lambda t: t.contiguous(),
    "channels_last": lambda t: (
        t.contiguous(memory_format=torch.channels_last) if t.dim() == 4 else t
    ),
    "transposed": lambda t: t.mT.contiguous().mT if t.dim() > 1 else t,
    "batch inside": lambda t: t.movedim(0, -1).contiguous().movedim(-1, 0),
    "every second": lambda t: t.repeat_interleave(2, -1)[..., ::2],
    "offset": _behind_others,
    "expanded rows": lambda t: t[:1].expand_as(t),  # stride 0 between examples
    "expanded inside": lambda t: t[..., :1].expand_as(t),  # stride 0 in an example
    "empty": lambda t: t[:0],
}


def raw(t: Tensor) -> Tensor:
    """The bytes of the values: NaN equals itself, and -0.0 is not 0.0."""
    dense = torch.empty(t.numel(), dtype=t.dtype, device=t.device)
    return dense.copy_(t.detach().reshape(-1)).view(torch.uint8)
