"""What a call costs where there is nothing to compute: one element, one thread, no gradient."""

from __future__ import annotations

from collections.abc import Callable

import peers
import pytest
import torch
from places import Place, all_places, as_parameters
from torch import Tensor

from hrrl_ext import ops
from hrrl_ext.data import Augmentation

pytestmark = pytest.mark.benchmark(min_time=5e-4, max_time=0.3, min_rounds=8)

OPS = (
    *("perturb", "concept_cross_entropy", "project_simplex", "update_distribution"),
    *("chi_square_response", "rank1_dot", "rank1_argmin"),
    *("perturb_stored", "store_directions", "hardest_negatives", "mix_chains"),
)


def calls(op: str, device: str) -> tuple[Callable[[], Tensor], Callable[[], Tensor], float]:
    """Ours, eager, and the value that both must give."""
    one, zero = torch.ones(1, device=device), torch.zeros(1, device=device)
    ids = torch.zeros(1, device=device, dtype=torch.int64)
    image, logits = one.view(1, 1, 1, 1), one.view(1, 1)
    wide, row = one.double(), one.double().view(1, 1)

    byte, view, whole = (
        (ids + 1).to(torch.int8).view(1, 1),
        ids.repeat(1, 3),
        Augmentation(0, False),
    )
    known = one.clone()
    level = byte.byte().view(1, 1, 1, 1)
    inverted = (ids + 3).view(1, 1, 1), wide.new_zeros(1, 1, 1, 6), logits, one  # solarize

    def put(store: Callable[..., None], *last: Augmentation) -> Tensor:
        store(byte, known, image, ids, view, *last)
        return byte

    def add() -> Tensor:
        ops.rank1_dot(row, image, zero.view(1, 1, 1, 1))
        return row

    return {
        "perturb": (
            lambda: ops.perturb(image, image, 0.5)[0],
            lambda: peers.eager_perturb(image, image, 0.5),
            1.5,
        ),
        "concept_cross_entropy": (
            lambda: ops.concept_cross_entropy(logits, ids, ids, one, one).loss,
            lambda: peers.eager_concept_loss(logits, ids, ids, one, one)[0],
            0.0,  # one class: nothing to tell apart
        ),
        "project_simplex": (
            lambda: ops.project_simplex(zero),
            lambda: peers.sort_project(zero, one),
            1.0,
        ),
        "update_distribution": (
            lambda: ops.update_distribution(one, zero, one, 0.1, 2.0),
            lambda: peers.sort_update(one, zero, one, 0.1, 2.0, one),
            1.0,
        ),
        "chi_square_response": (
            lambda: ops.chi_square_response(wide, wide, 1.0),
            lambda: peers.sort_response(wide, wide, 1.0),
            1.0,
        ),
        "rank1_dot": (
            add,
            lambda: peers.sum_products(row, image, zero.view(1, 1, 1, 1)),
            1.0,
        ),
        "rank1_argmin": (
            lambda: ops.rank1_argmin(row, wide, wide, wide).distance,
            lambda: peers.nearest_centre(row, wide, wide, wide, 1e-6)[1],
            0.0,  # the centre on the gradient
        ),
        "perturb_stored": (
            lambda: ops.perturb_stored(image, byte, known, ids, view, 0.5),
            lambda: peers.eager_perturb_stored(image, byte, ids, view, 0.5, whole),
            1.5,
        ),
        "hardest_negatives": (
            lambda: ops.hardest_negatives(logits, logits, ids, ids + 1).caption_score,
            lambda: (logits @ logits.T).masked_fill(ids[:, None] == ids + 1, -torch.inf).amax(1),
            1.0,
        ),
        "mix_chains": (
            lambda: ops.mix_chains(level, *inverted),
            lambda: ops.reference.mix_chains(level, *inverted),
            254.0,
        ),
        "store_directions": (
            lambda: put(ops.store_directions),
            lambda: put(peers.eager_store_directions, whole),
            127.0,
        ),
    }[op]


ONE_THREAD = [place for place in all_places() if place.threads == 1]


@pytest.mark.parametrize("place", as_parameters(ONE_THREAD), indirect=True)
@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("provider", ["ours", "eager"])
def test_call(op: str, provider: str, place: Place, measure: Callable[..., None]) -> None:
    ours, eager, value = calls(op, place.device)

    def check(actual: Tensor) -> None:
        assert actual.item() == value

    measure(
        ours if provider == "ours" else eager,
        check,
        op="call",
        case=op,
        provider=provider,
        shape=(1,),
        dtype="fp32",
    )
