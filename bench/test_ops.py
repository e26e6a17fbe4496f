"""The operators against what else a user would write, on the same tensors and in the same run."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pytest
from augmix_comparisons import mix_chains
from comparisons import (
    LARGE,
    chi_square_response,
    concept_cross_entropy,
    concept_cross_entropy_forward,
    perturb,
    project_simplex,
    step_distribution,
    update_distribution,
)
from measurement import Measurement
from places import Place
from rank1_comparisons import rank1_argmin, rank1_dot
from retrieval_comparisons import (
    all_negatives,
    hardest_negatives,
    hinge_coefficients,
    pair_gradients,
)
from shapes import (
    Centres,
    Embeddings,
    Game,
    Images,
    Logits,
    Mixtures,
    Products,
    StoredImages,
    Vector,
)
from stored_comparisons import perturb_stored, store_directions

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
] + [Images((256, 3, 224, 224), dtype) for dtype in ("fp32", "bf16")]
# The last two are beyond any cache.


@pytest.mark.parametrize(
    ("case", "provider"), product(IMAGES, "ours", "copy", "eager", "torchattacks", "compile")
)
def test_perturb(case: Images, provider: str, place: Place, measure: Measurement) -> None:
    measure.compare(perturb(case, place.device), provider)


STORED = [
    StoredImages(shape, bits)
    for shape in ((64, 3, 32, 32), (256, 3, 32, 32), (64, 3, 224, 224))
    for bits in (8, 1)
]


@pytest.mark.parametrize(("case", "provider"), product(STORED, "ours", "eager", "compile"))
def test_perturb_stored(
    case: StoredImages, provider: str, place: Place, measure: Measurement
) -> None:
    measure.compare(perturb_stored(case, place.device), provider)


@pytest.mark.parametrize(("case", "provider"), product(STORED, "ours", "eager", "compile"))
def test_store_directions(
    case: StoredImages, provider: str, place: Place, measure: Measurement
) -> None:
    measure.compare(store_directions(case, place.device), provider)


MIXTURES = [
    Mixtures(shape, operations)
    for shape in ((64, 3, 32, 32), (256, 3, 32, 32), (8, 3, 224, 224))
    for operations in ("paper", "all")
]


@pytest.mark.parametrize(("case", "provider"), product(MIXTURES, "ours", "eager", "Pillow"))
def test_mix_chains(case: Mixtures, provider: str, place: Place, measure: Measurement) -> None:
    measure.compare(mix_chains(case, place.device), provider)


LOGITS = [
    *(Logits(65536, classes) for classes in (2, 10, 16)),
    *(Logits(256, classes) for classes in (10, 100, 1000)),
    *(Logits(4096, classes) for classes in (100, 1000)),
    *(Logits(*shape, "bf16") for shape in ((65536, 10), (4096, 1000))),
]


@pytest.mark.parametrize(("case", "provider"), product(LOGITS, "ours", "eager", "compile"))
def test_concept_cross_entropy(
    case: Logits, provider: str, place: Place, measure: Measurement
) -> None:
    measure.compare(concept_cross_entropy(case, place.device), provider)


@pytest.mark.parametrize(
    ("case", "provider"), product([Logits(256, 1000), Logits(16384, 1000)], "ours", "copy")
)
def test_forward(case: Logits, provider: str, place: Place, measure: Measurement) -> None:
    measure.compare(concept_cross_entropy_forward(case, place.device), provider)


VECTORS = [
    *(Vector(size) for size in (10, 100, 1000, 10_000, 100_000, 1_000_000)),
    *(Vector(size, "near") for size in (10, 1000, 1_000_000)),
]


@pytest.mark.parametrize(
    ("case", "provider"), product(VECTORS, "ours", "eager", "entmax", "compile")
)
def test_project_simplex(case: Vector, provider: str, place: Place, measure: Measurement) -> None:
    measure.compare(project_simplex(case, place.device), provider)


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
def test_update_distribution(
    case: Vector, provider: str, place: Place, measure: Measurement
) -> None:
    measure.compare(update_distribution(case, place.device), provider)


@pytest.mark.parametrize(
    ("case", "provider"),
    product([Vector(size, "near") for size in (11, 1000)], "ours", "eager", "compile"),
)
def test_step_distribution(case: Vector, provider: str, place: Place, measure: Measurement) -> None:
    measure.compare(step_distribution(case, place.device), provider)


GAMES = [
    *(Game(size, held_by) for size in (11, 1000) for held_by in ("penalty", "cap")),
    *(Game(size) for size in (10_000, 100_000)),
]


BALLS = [Game(size, "ball") for size in (11, 1000)]  # a bisection within one is not unrolled


@pytest.mark.parametrize(
    ("case", "provider"),
    [*product(GAMES, "ours", "eager", "compile"), *product(BALLS, "ours", "eager")],
)
def test_chi_square_response(case: Game, provider: str, place: Place, measure: Measurement) -> None:
    measure.compare(chi_square_response(case, place.device), provider)


PRODUCTS = [
    *(Products(512, clusters, 1) for clusters in (100, 1000)),
    *(Products(*shape) for shape in ((64, 10, 1024), (64, 128, 64), (256, 100, 3))),
]


@pytest.mark.parametrize(
    ("case", "provider"), product(PRODUCTS, "ours", "eager", "eager32", "compile", "compile32")
)
def test_rank1_dot(case: Products, provider: str, place: Place, measure: Measurement) -> None:
    measure.compare(rank1_dot(case, place.device), provider)


EMBEDDINGS = [Embeddings(batch, size) for size in (128, 1024) for batch in (128, 512, 2048)]
ORDERED = [Embeddings(128, size, "order") for size in (128, 1024)]


@pytest.mark.parametrize(
    ("case", "provider"), product([*EMBEDDINGS, *ORDERED], "ours", "gather", "eager", "compile")
)
def test_max_hinge(case: Embeddings, provider: str, place: Place, measure: Measurement) -> None:
    measure.compare(hardest_negatives(case, place.device), provider)


@pytest.mark.parametrize(("case", "provider"), product(EMBEDDINGS, "ours", "eager"))
def test_sum_hinge(case: Embeddings, provider: str, place: Place, measure: Measurement) -> None:
    measure.compare(all_negatives(case, place.device), provider)


@pytest.mark.parametrize(("case", "provider"), product(EMBEDDINGS, "ours", "eager"))
def test_hinge_coefficients(
    case: Embeddings, provider: str, place: Place, measure: Measurement
) -> None:
    measure.compare(hinge_coefficients(case, place.device), provider)


@pytest.mark.parametrize(("case", "provider"), product([*EMBEDDINGS, *ORDERED], "ours", "eager"))
def test_pair_gradients(
    case: Embeddings, provider: str, place: Place, measure: Measurement
) -> None:
    measure.compare(pair_gradients(case, place.device), provider)


CENTRES = [Centres(*shape) for shape in ((512, 10), (512, 100), (512, 1000), (64, 10), (64, 128))]


@pytest.mark.parametrize(("case", "provider"), product(CENTRES, "ours", "eager", "compile"))
def test_rank1_argmin(case: Centres, provider: str, place: Place, measure: Measurement) -> None:
    measure.compare(rank1_argmin(case, place.device), provider)
