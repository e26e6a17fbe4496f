"""What the CUDA kernels are tried on, and what they must return: inputs and float64 oracles that
the emulated kernels (test_emulated_*.py) and the real ones (test_cuda.py) share.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from cases import EPS, FLOATS, ConceptCase, PointCase, ProductCase, generator
from torch import Tensor

NAN, INF = torch.nan, torch.inf

# perturb, in packs of 16 bytes: a warp takes rows of up to 128, a block up to 2048 in registers. Beyond, up to 75264
# bytes are one slice, then there are 2, 4 and 8: of floats up to 18816, 37632, 75264 and 458752.
PERTURB_SIZES = [
    *(1, 2, 8, 31, 32, 33, 128, 255, 256, 257, 258, 512, 513, 516, 1023, 1024, 1025, 1032),
    *(2047, 2048, 2049, 4096, 4098, 5003, 8192, 8196, 9408, 9410, 16384, 16385, 16392),
    *(18816, 18817, 18820, 37632, 37636, 40009, 75264, 75268),
]
LONG_ROWS = [(229_376, torch.float64), (229_378, torch.float64), (458_756, torch.float32)]
PERTURB_BATCHES = [1, 2, 9, 17]  # a block holds 8 rows that are a warp's


def perturb_input(batch: int, size: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    g = generator(1000 * batch + size)
    x = torch.rand(batch, size, generator=g, dtype=torch.float64)
    grad = torch.randn(batch, size, generator=g, dtype=torch.float64)
    return x.to(dtype), grad.to(dtype)


def check_perturb(
    x: Tensor, grad: Tensor, tau: float, tau_scale: Tensor | None, out: Tensor, norm: Tensor
) -> None:
    """One rounding of the result in its dtype, and 4 of the step in the dtype that computes.

    In float64 the oracle rounds as well, and the sums are in another order.
    """
    largest = F.pad(grad.double().abs(), (0, 1)).amax(1, keepdim=True)
    usable = (largest > 0) & largest.isfinite()
    shrunk = torch.where(usable, grad.double() / largest, 0.0)
    shrunk_norm = shrunk.norm(dim=1, keepdim=True)
    length = torch.full_like(largest, tau)
    if tau_scale is not None:
        length = length * tau_scale.double()[:, None]
    step = torch.where(usable, length * shrunk / shrunk_norm, 0.0)
    exact = x.double() + step
    computed_in = EPS[torch.float64 if x.dtype == torch.float64 else torch.float32]
    own = 0.505 * EPS[x.dtype] if x.dtype != torch.float64 else 2 * EPS[x.dtype]
    order = grad.shape[1] ** 0.5 * EPS[torch.float64]
    bound = own * exact.abs() + (4 * computed_in + order) * step.abs()
    subnormal = torch.finfo(x.dtype).smallest_normal * EPS[x.dtype]
    assert ((out.double() - exact).abs() <= bound + subnormal)[usable.squeeze(1)].all()
    still = ~usable.squeeze(1) | (length.squeeze(1) == 0)
    assert torch.equal(out[still].view(torch.uint8), x[still].view(torch.uint8))  # to the bit
    exact_norm = (largest * shrunk_norm).squeeze(1)[usable.squeeze(1)]
    close(norm[usable.squeeze(1)], exact_norm.to(norm.dtype), rtol=computed_in + order, atol=0.0)


def close(got: Tensor, expected: Tensor, rtol: float, atol: float) -> None:
    got, expected = got.double(), expected.double()
    torch.testing.assert_close(got, expected, rtol=rtol, atol=atol, equal_nan=True)


# concept_cross_entropy: a thread up to 64 classes, 64 of them to a block; a warp up to 1024, a block of 256 up to 8192, of
# 1024 beyond, in registers up to 32768. N_k of more than 256 concepts is added up by a launch of its own, losses in
# segments of 1024 examples, by a block for 32 concepts (and the one of those that do not exist).
CLASSES = [
    1,
    2,
    3,
    10,
    31,
    33,
    63,
    64,
    65,
    100,
    1000,
    1023,
    1024,
    1025,
    1032,
    5003,
    8192,
    8193,
    8200,
]
CONCEPT_CASES = [
    *(ConceptCase(5, classes, 3, dtype) for classes in CLASSES for dtype in FLOATS),
    *(ConceptCase(7, classes, 4, dtype, 0.1) for classes in (10, 72, 1100) for dtype in FLOATS),
    *(ConceptCase(batch, 10, 11) for batch in (0, 1, 63, 64, 65, 257, 1023, 1024, 1025)),
    ConceptCase(0, 100, 3),
    ConceptCase(2049, 2, 7),
    ConceptCase(2100, 3, 40),
    *(ConceptCase(2, classes, 3, torch.bfloat16) for classes in (32768, 32769, 32776)),
    *(ConceptCase(40, 3, concepts) for concepts in (1, 2, 31, 32, 33, 256, 257, 2049)),
    *(ConceptCase(9, classes, 3, scale=1e30) for classes in (12, 500, 33000)),
    ConceptCase(7, 5, 2, label_smoothing=0.9),
    ConceptCase(9, 12, 3, scale=80.0),
    ConceptCase(9, 12, 3, scale=1e4),
    ConceptCase(9, 1500, 3, scale=1e-6),
]


@dataclass(frozen=True)
class ConceptResult:
    loss: Tensor
    concept_loss: Tensor
    example_loss: Tensor
    grad_logits: Tensor


def check_concept_cross_entropy(
    case: ConceptCase, arguments: dict[str, Tensor], result: ConceptResult
) -> None:
    """example_loss and grad_logits against float64; the sums, in double, against example_loss.

    z - max rounds by up to half an eps of it, which the exponential turns into a relative error;
    the exponential, the sums of at most 32 terms per thread and the quotients add some eps.
    """
    logits = arguments["logits"].double().requires_grad_()
    target, concept, q = arguments["target"], arguments["concept"], arguments["q"].double()
    example_loss = F.cross_entropy(
        logits, target, reduction="none", label_smoothing=case.label_smoothing
    )
    share = arguments["concept_count"].double() / arguments["concept_count"].double().sum()
    weight = (q / share)[concept] / max(case.batch, 1)
    (grad,) = torch.autograd.grad((weight * example_loss).sum(), logits)
    if case.batch == 0:
        grad = torch.zeros_like(logits)

    eps = EPS[torch.float64 if case.dtype == torch.float64 else torch.float32]
    z = logits.detach()
    spread = z.amax(1, keepdim=True) - z if case.batch else z  # [B, C]
    at_target = spread.gather(1, target[:, None]).squeeze(1)
    mean = spread.mean(1) if case.batch else at_target
    error = 16 * eps * (1 + at_target + mean)
    assert ((result.example_loss.double() - example_loss.detach()).abs() <= error).all()

    p = z.softmax(1)
    at_labels = F.one_hot(target, case.classes) + case.label_smoothing / case.classes
    order = case.classes**0.5 * EPS[torch.float64]  # of the oracle's sums
    bound = weight[:, None] * (16 * eps + order) * (p * (1 + spread) + at_labels)
    bound += EPS[result.grad_logits.dtype] * grad.abs() + torch.finfo(torch.float32).tiny
    assert ((result.grad_logits.double() - grad).abs() <= bound).all()

    check_concept_sums(arguments, result)


def check_concept_sums(arguments: dict[str, Tensor], result: ConceptResult) -> None:
    q, count = arguments["q"].double(), arguments["concept_count"].double()
    example_loss = result.example_loss.double()
    sums = torch.zeros_like(q).index_add(0, arguments["concept"], example_loss)
    batch = max(len(example_loss), 1)
    expected = torch.where(sums == 0, 0.0, sums / (count / count.sum() * batch))
    rounding = 0.505 * EPS[q_dtype] if (q_dtype := arguments["q"].dtype) != torch.float64 else 0.0
    tiny = torch.finfo(q_dtype).smallest_normal * EPS[q_dtype]
    close(result.concept_loss, expected, rtol=max(1e-13, rounding), atol=tiny if rounding else 0.0)
    terms = torch.where(expected == 0, 0.0, q * expected)
    close(result.loss, terms.sum(), rtol=max(1e-13, 0.505 * EPS[result.loss.dtype]), atol=0.0)


def check_scaled(
    scale: Callable[[Tensor, Tensor], Tensor], gradient: Tensor, factor: float
) -> None:
    """The product to the bit; at 1 nothing is touched, not even a NaN that arithmetic would make a quiet one."""
    integer, loud = {
        2: (torch.int16, 0x7F81),
        4: (torch.int32, 0x7F800001),
        8: (torch.int64, 0x7FF0000000000001),
    }[gradient.itemsize]
    if factor == 1.0:
        gradient.view(integer)[::7] = loud
    by = torch.tensor(factor, dtype=torch.promote_types(gradient.dtype, torch.float32))
    want = gradient if factor == 1.0 else (gradient.to(by.dtype) * by).to(gradient.dtype)
    got = scale(gradient, by)
    assert torch.equal(got.view(integer), want.view(integer))


# project_simplex: a block has K / 8 threads, 32 to 1024, and holds 12536 entries; a cluster holds 8 times as many, a
# grid of up to 96 blocks has the rest.
SIMPLEX_SIZES = [1, 2, 3, 11, 31, 32, 33, 127, 256, 257, 1000, 1025, 4097, 8192, 8193, 12536]
WIDE_SIMPLEX_SIZES = [12537, 20011, 100_288, 100_289, 130_003]


def simplex_input(rows: int, size: int, dtype: torch.dtype, scale: float = 1.0) -> Tensor:
    g = generator(100 * rows + size)
    return (scale * torch.randn(rows, size, generator=g, dtype=torch.float64)).to(dtype)


def simplex_oracle(v: Tensor, radius: float = 1.0) -> Tensor:
    """By sorting (Duchi et al., 2008), in float64."""
    u = v.double() - v.double().amax(-1, keepdim=True)
    descending = u.sort(-1, descending=True).values
    rank = torch.arange(1, u.shape[-1] + 1)
    nu = (descending.cumsum(-1) - radius) / rank
    support = (descending > nu).sum(-1, keepdim=True)
    return (u - nu.gather(-1, support - 1)).clamp(min=0)


def check_simplex(v: Tensor, radius: float, p: Tensor) -> None:
    """The rounding of p, and of sums of K doubles no larger than the radius in p and oracle."""
    atol = radius * v.shape[-1] ** 0.5 * 4 * EPS[torch.float64]
    atol += torch.finfo(v.dtype).smallest_normal * EPS[v.dtype]
    close(p, simplex_oracle(v, radius), rtol=0.505 * EPS[v.dtype], atol=atol)


# rank1_dot: a thread per sum if M = 1, else 8 lanes up to 64 terms, a warp up to 1024, a block beyond; terms move in
# packs of 16 bytes where M is a multiple of them. 256 threads are 32, 8 and 1 teams. rank1_argmin: the same teams by K.
TERMS = [2, 3, 4, 7, 8, 31, 32, 33, 62, 63, 64, 65, 66, 68, 127, 128, 500, 1023, 1024, 1025, 1028]
PRODUCT_CASES = [
    *(ProductCase(3, 1, clusters, 1) for clusters in (1, 2, 85, 86, 257)),
    *(ProductCase(2, groups, 129, 1, dtype) for groups in (3, 9) for dtype in FLOATS[:2]),
    *(ProductCase(2, 1, 5, size, dtype) for size in TERMS for dtype in FLOATS[:2]),
    *(ProductCase(2, 3, 5, size) for size in (2, 4, 21, 22, 341, 342, 344, 700)),
    *(ProductCase(1, 1, 1, size) for size in (2, 100, 3001, 5003)),
    *(ProductCase(batch, 1, 3, 5) for batch in (10, 11, 22)),  # 32 sums to a block
    ProductCase(3, 2, 4, 601, whole=False),
]
POINT_CASES = [
    *(PointCase(3, clusters) for clusters in (1, 2, 7, 8, 9, 63, 64, 65, 100, 1023, 1024, 1025)),
    *(PointCase(batch, 9) for batch in (1, 31, 32, 33)),
    *(PointCase(batch, 70) for batch in (8, 9)),
    *(PointCase(100, clusters, spread=300) for clusters in (16, 90)),
    PointCase(2, 5003),
    PointCase(9, 70, dims=1, spread=1),
    PointCase(5, 40, spread=300, equal_weights=True),
]
RTOLS = [0.0, 2.0**-20, 2.0**-5]
