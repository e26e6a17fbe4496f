"""The cases of both calls, most important first, and small ones for a dry run. Needs no torch."""

from __future__ import annotations

from typing import NamedTuple

from shapes import (
    Centres,
    Embeddings,
    Game,
    Images,
    Layer3x3,
    Logits,
    Mixtures,
    Negatives,
    Perceptron,
    Products,
    Rows,
    Shape,
    StoredImages,
    Vector,
)


class Measured(NamedTuple):
    op: str
    shape: Shape
    providers: tuple[str, ...]


def _each(op: str, shapes: list[Shape], *providers: str) -> list[Measured]:
    return [Measured(op, shape, providers) for shape in shapes]


_LARGE, _SMALL = (256, 3, 224, 224), (256, 3, 32, 32)
_FORWARD = "concept_cross_entropy forward"
_BACKWARD = "project_simplex_backward"
_EAGER = ("ours", "eager")
_MANY_CLASSES = [Logits(8192, 32_000, "bf16"), Logits(4096, 65_536, "bf16")]

CALL_A: dict[str, list[Measured]] = {
    "perturb": [
        *_each("perturb", [Images(_LARGE), Images(_LARGE, "bf16"), Images((64, 3, 224, 224))],
               "ours", "copy", "eager", "torchattacks"),
        *_each("perturb", [Images(_SMALL), Images(_SMALL, "bf16")], *_EAGER),
        *_each("perturb", [Images(_LARGE, "bf16", True), Images(_LARGE, "fp32", True)],
               "ours", "contiguous", "copy", "eager"),
        *_each("perturb", [Images((64, 3, 224, 224), "bf16"), Images((2, 3, 8, 8))], *_EAGER),
        *_each("perturb_stored", [StoredImages(_LARGE), StoredImages(_SMALL), StoredImages(_SMALL, 1)],
               *_EAGER),
        *_each("mix_chains", [Mixtures(_SMALL), Mixtures(_LARGE, "all")], *_EAGER),
        *_each("store_directions", [StoredImages(_LARGE), StoredImages(_SMALL), StoredImages(_SMALL, 1)],
               *_EAGER),
    ],
    "concept_cross_entropy": [
        *_each("concept_cross_entropy", [Logits(8192, 1000), Logits(256, 1000)], "ours", "copy", "eager"),
        *_each(_FORWARD, [Logits(8192, 1000), Logits(256, 1000)], "ours", "copy"),
        *_each("concept_cross_entropy",
               [Logits(16384, 1000, "bf16"), *_MANY_CLASSES],
               "ours", "copy", "eager"),
        *_each("concept_cross_entropy",
               [Logits(256, 10), Logits(256, 100), Logits(65_536, 10), Logits(256, 1000, "bf16")],
               *_EAGER),
    ],
    "simplex": [
        *_each("update_distribution",
               [Vector(size, "near") for size in (11, 1000, 10_000, 100_000, 1_000_000)], *_EAGER),
        *_each("step_distribution", [Vector(11, "near")], *_EAGER),
        *_each("chi_square_response", [Game(20), Game(1000), Game(100_000)], *_EAGER),
        *_each("project_simplex", [Vector(1000), Vector(1_000_000)], *_EAGER),
        *_each(_BACKWARD, [Rows(16_384, 1024)], "ours", "copy", "eager"),
        *_each("project_simplex", [Rows(16_384, 1024)], *_EAGER),
    ],
    "rank1": [
        *_each("rank1_assign", [Perceptron(512, 1000)], "ours", "gemm", "eager", "explicit"),
        *_each("rank1_assign", [Perceptron(512, 100), Perceptron(128, 128)], "ours", "copy", "eager"),
        *_each("rank1_assign",
               [Layer3x3(128, 16, 32, 10), Layer3x3(128, 16, 32, 100), Layer3x3(256, 256, 14, 100)],
               *_EAGER),
        *_each("rank1_dot", [Products(64, 128, 1024), Products(512, 1000, 1)], *_EAGER),
        *_each("rank1_argmin", [Centres(512, 1000)], *_EAGER),
        *_each("hinge_coefficients", [Embeddings(4096, 1024)], "ours", "eager"),
        *_each("pair_gradients", [Embeddings(4096, 1024)], "ours", "eager"),
        *_each("hardest_negatives", [Embeddings(4096, 1024), Embeddings(128, 1024, "order")],
               "ours", "gather"),
        *_each("info_nce", [Negatives(256, 65_536)], "ours", "eager", "attention"),
    ],
}  # fmt: skip
"""Ours, a copy, eager and what needs no package of its own."""

CALL_B: dict[str, list[Measured]] = {
    "perturb": _each(
        "perturb",
        [Images(_LARGE), Images(_LARGE, "bf16"), Images(_SMALL), Images(_SMALL, "bf16")],
        "ours", "compile",
    ),
    "concept_cross_entropy": _each(
        "concept_cross_entropy",
        [Logits(8192, 1000), Logits(256, 1000), *_MANY_CLASSES],
        "ours", "compile", "liger",
    ),
    "simplex": [
        *_each("update_distribution",
               [Vector(size, "near") for size in (1000, 1_000_000, 100_000, 10_000)],
               "ours", "compile", "entmax"),
        *_each(_BACKWARD, [Rows(16_384, 1024)], "ours", "compile", "entmax"),
        *_each("project_simplex", [Rows(16_384, 1024)], "ours", "liger", "entmax"),
    ],
    "rank1": [
        *_each("rank1_assign",
               [Perceptron(512, 1000), Perceptron(512, 100),
                Layer3x3(128, 16, 32, 10), Layer3x3(128, 16, 32, 100)],
               "ours", "compile"),
        *_each("info_nce", [Negatives(256, 65_536)], "ours", "compile"),
    ],
}  # fmt: skip
"""torch.compile, Liger and entmax."""

_DRY: dict[str, list[Shape]] = {
    "perturb": [Images((2, 3, 8, 8)), Images((2, 3, 8, 8), "bf16", True)],
    "perturb_stored": [StoredImages((2, 3, 8, 8))],
    "store_directions": [StoredImages((2, 3, 8, 8))],
    "mix_chains": [Mixtures((2, 3, 8, 8))],
    "concept_cross_entropy": [Logits(16, 10)],
    _FORWARD: [Logits(16, 10)],
    "update_distribution": [Vector(11, "near")],
    "step_distribution": [Vector(11, "near")],
    "chi_square_response": [Game(11)],
    "project_simplex": [Vector(11), Rows(4, 11)],
    _BACKWARD: [Rows(4, 11)],
    "rank1_assign": [Perceptron(8, 6, (20, 16, 5)), Layer3x3(8, 4, 5, 6)],
    "rank1_dot": [Products(4, 5, 6)],
    "rank1_argmin": [Centres(8, 6)],
    "hardest_negatives": [Embeddings(8, 6), Embeddings(8, 6, "order")],
    "hinge_coefficients": [Embeddings(8, 6)],
    "pair_gradients": [Embeddings(8, 6)],
    "info_nce": [Negatives(8, 40, 6)],
}

HOT: list[tuple[str, Shape]] = [
    ("perturb", Images(_LARGE)),
    ("perturb", Images(_LARGE, "bf16")),
    ("perturb", Images(_SMALL)),
    (_FORWARD, Logits(8192, 1000)),
    (_FORWARD, Logits(256, 1000)),
    ("update_distribution", Vector(1_000_000, "near")),
    ("update_distribution", Vector(1000, "near")),
    ("rank1_dot", Products(64, 128, 1024)),
]
"""The calls whose kernels' counters are read."""

HOT_LAUNCHES = [call for call in HOT for _ in range(2 if call[0] == _FORWARD else 1)]
"""Of the cross-entropy its rows and its sums, of the others one each."""

SANITISED: list[tuple[str, Shape]] = [
    *(("perturb", Images((3, 1, 1, size))) for size in (64, 2048, 9410, 40_009, 150_528)),
    *(
        (op, StoredImages((3, 3, 40, 24), bits))
        for op in ("perturb_stored", "store_directions")
        for bits in (8, 1)
    ),
    *(("mix_chains", Mixtures((3, 3, side, side), "all")) for side in (9, 50)),
    *((_FORWARD, Logits(70, classes)) for classes in (10, 200, 1500)),
    *(("update_distribution", Vector(size, "near")) for size in (100, 5003, 20_011, 200_003)),
    *(("chi_square_response", Game(size, "ball")) for size in (100, 6200)),
    *(("rank1_dot", Products(5, 7, terms)) for terms in (1, 37, 300, 1500)),
    *(
        (op, Embeddings(70, 19, kind))
        for op in ("hardest_negatives", "pair_gradients")
        for kind in ("cosine", "order")
    ),
    ("hinge_coefficients", Embeddings(70, 19)),
    *(("rank1_argmin", Centres(9, clusters)) for clusters in (5, 100, 1100)),
]
"""One for every way in which the kernels lay out their work, as small as that allows."""


def of(call: str, group: str, dry: bool) -> list[Measured]:
    """What a stage measures. A dry run has one small shape for every kind, and the same providers."""
    planned = {"a": CALL_A, "b": CALL_B}[call][group]
    if not dry:
        return planned
    kinds = dict.fromkeys((m.op, type(m.shape), m.providers) for m in planned)
    small = []
    for op, kind, providers in kinds:
        shapes = [shape for shape in _DRY[op] if type(shape) is kind]
        shape = shapes[-1] if "contiguous" in providers else shapes[0]
        small.append(Measured(op, shape, providers))
    return small
