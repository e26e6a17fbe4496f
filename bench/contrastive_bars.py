#!/usr/bin/env python3
"""The bars of contrastive pretraining, in one table: InfoNCE with a queue, AugMix and each of its
operations, views, steps, epochs.

    python bench/contrastive_bars.py > bench/results/contrastive-NAME.md          # a quarter of an hour
    python bench/contrastive_bars.py --only info_nce --threads 1
    python bench/contrastive_bars.py --only "pretraining epoch" --threads 1       # most of that

How it is measured, turns.py says. InfoNCE is loss and gradient, every way checked against float64 first
to 1e-6; its memory is asked for as well, a share of queries, keys and queue. AugMix, an operation of
its chains, of which no bar is asked, and both views of URRL, which are asked for per core, are measured
on one thread alone. Both views of a batch are held against a step of MoCo on as many images of 32
pixels, by the network of examples/contrastive_evidence.py.

A step and an epoch of pretraining, of which no bar is asked, are those of test_pretraining.py on one
thread: beside MoCo's notebook ("eager"), lightly's parts and solo-learn's, as pretraining_peers.py has
them. The loss of the first call of each is looked at before it is timed.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from functools import partial

import bars
from comparisons import Call
from contrastive_comparisons import negatives
from places import Place
from pretraining_peers import (
    PRETRAINING_CASES,
    PRETRAINING_EPOCHS,
    PRETRAINING_STEPS,
    NotInstalled,
    PretrainingCase,
    of_peer,
    step_on_views,
)
from shapes import Negatives
from torch import Tensor
from turns import Row, Rows, Way, compared, main
from view_calls import BATCH, augmix_calls, both_views, operation_calls, photographs

from hrrl_ext.data.augmix import OPERATIONS, AugMixOperations

BATCHES, KEYS = (256, 128), (4096, 16_384, 65_536)
KINDS: tuple[AugMixOperations, ...] = ("paper", "all")
STEPS = [PretrainingCase(16, dtype, batch, channels_last=True)
         for dtype in ("bf16", "fp32") for batch in BATCHES]  # fmt: skip


def rows(place: Place) -> Rows:
    cases: dict[str, Callable[[], Row]] = {}
    for batch in BATCHES:
        for keys in KEYS:
            case = Negatives(batch, keys)
            cases[f"info_nce {case}"] = partial(info_nce, case, place)
    if place.threads == 1:
        for side in BATCH:
            images = f"{BATCH[side]}x3x{side}x{side}"
            for kind in KINDS:
                cases[f"augmix {images}-{kind}"] = partial(augmix, side, kind)
            for one in OPERATIONS:
                cases[f"operation {one.name} {images}"] = partial(operation, side, one.name)
        cases |= {f"views of URRL, {case}": partial(views, case) for case in STEPS}
        cases |= {f"pretraining step, {case}": partial(step, case) for case in PRETRAINING_CASES}
        cases |= {
            f"pretraining epoch of {case.images}, {case}": partial(epoch, case)
            for case in PRETRAINING_CASES
        }
    return cases


def info_nce(case: Negatives, place: Place) -> Row:
    comparison = negatives(case, place.device)
    row = compared(comparison, ("eager", "attention", "products"), place)
    return row._replace(memory_limit=bars.QUEUE_MEMORY_BAR)


def augmix(side: int, operations: AugMixOperations) -> Row:
    facts = {"op": "augmix", "device": "cpu", "shape": (BATCH[side], 3, side, side)}
    calls = augmix_calls(side, operations)
    ways = {name: Way(call, bars.least_ratio(facts, name)) for name, call in calls.items()}
    return Row((photographs(side),), ways)


def operation(side: int, name: str) -> Row:
    ways = {way: Way(call) for way, call in operation_calls(side, name).items()}
    return Row((photographs(side),), ways)


def views(case: PretrainingCase) -> Row:
    images = case.pictures()[: case.batch]
    step = step_on_views(case, "cpu", "ours")
    ours = Way(both_views(images, "urrl", blur=0.0))
    return Row((images,), {"ours": ours, "a step": Way(step, 1 / bars.VIEWS_BAR)})


def step(case: PretrainingCase) -> Row:
    makes = {name: partial(step_on_views, case, "cpu", name) for name in PRETRAINING_STEPS}
    return pretraining(case, case.views("cpu"), makes)


def epoch(case: PretrainingCase) -> Row:
    makes = {name: partial(make, case, "cpu") for name, make in PRETRAINING_EPOCHS.items()}
    return pretraining(case, (), makes)  # no more memory than a step, and minutes to look at it


def pretraining(
    case: PretrainingCase, held: tuple[Tensor, ...], makes: Mapping[str, Callable[[], Call]]
) -> Row:
    ways = {}
    for name, make in makes.items():
        try:
            call = of_peer(name, make)
        except NotInstalled as missing:
            print(missing, file=sys.stderr)
            ways[name] = Way(None)
            continue
        case.check(call())
        ways[name] = Way(call)
    return Row(held, ways)


if __name__ == "__main__":
    main(__doc__, rows)
