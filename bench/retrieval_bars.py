#!/usr/bin/env python3
"""The bars of retrieval, in one table: losses of joint embeddings, and recall of 5,000 x 25,000.

    python bench/retrieval_bars.py > bench/results/retrieval-NAME.md
    python bench/retrieval_bars.py --only sum_hinge --threads 1

Ways take turns, for a machine that others use: other load meets neighbours alike. Of one thread it is
processor time, of two the wall clock. A ratio is theirs over ours, of the fastest turns; the quartiles
are those of neighbouring turns. Every way is checked against
float64 first. MB is what torch allocates at most beyond the embeddings; ours take O((I + C) D) more.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import bars
import memory
import peers
import torch
from conftest import keep_freed_memory
from places import Place
from retrieval_comparisons import all_negatives, hardest_negatives
from shapes import Embeddings
from torch import Tensor

from hrrl_ext import ops
from hrrl_ext._products import inner_products
from hrrl_ext.retrieval import evaluate, max_hinge

SIDES = [
    (128, 128),
    (128, 512),
    (128, 2048),
    (256, 512),
    (256, 2048),
    (1024, 128),
    (1024, 512),
    (1024, 2048),
]
ORDER = [(128, 128), (128, 512), (1024, 128)]
LARGE_ORDER = Embeddings(2048, 1024, "order")
EAGER_ORDER = 2**24
"""Differences beyond which eager, which keeps each several times, is left out."""
TURN = 2e-3
"""Seconds of a turn at least."""


class Way(NamedTuple):
    call: Callable[[], Any]
    limit: float = 0.0
    """Its time over ours at least; that of ours is not looked at."""


class Row(NamedTuple):
    held: tuple[Tensor, ...]
    ways: dict[str, Way]


def rows() -> dict[str, Callable[[Place], Row]]:
    """By operator and case; what it takes is drawn and checked when it is called."""
    cases: dict[str, Callable[[Place], Row]] = {}

    def add(compare: Callable[..., Any], case: Embeddings, *against: str) -> None:
        name = "sum_hinge" if compare is all_negatives else "max_hinge"
        cases[f"{name} {case}"] = lambda place: _row(compare, case, against, place)

    for size, batch in SIDES:
        add(hardest_negatives, Embeddings(batch, size), "gather", "eager")
    for size, batch in ORDER:
        few = batch * batch * size <= EAGER_ORDER
        case = Embeddings(batch, size, "order")
        add(hardest_negatives, case, "compile", *["gather", "eager"] * few)
    cases[f"max_hinge {LARGE_ORDER}"] = large_order
    for size, batch in SIDES:
        add(all_negatives, Embeddings(batch, size), "eager")
    return cases | {"evaluate 5,000 x 25,000, D1024": recall}


def _row(
    compare: Callable[..., Any], case: Embeddings, against: Sequence[str], place: Place
) -> Row:
    comparison = compare(case, place.device)
    facts = {"op": comparison.op, "device": place.device, **comparison.facts}
    ways = {
        name: Way(comparison.checked_call(name, place.compiled), bars.least_ratio(facts, name))
        for name in ("ours", *against)
    }
    return Row(comparison.held, ways)


def large_order(_: Place) -> Row:
    """Where eager needs 17 GB for the differences alone."""
    image, caption = (torch.rand(2048, 1024).sub_(0.5).requires_grad_() for _ in range(2))

    def loss_and_gradients() -> list[Tensor]:
        loss = max_hinge(image, caption, similarity="order")
        return [loss.detach(), *torch.autograd.grad(loss, (image, caption))]

    f, g = image.detach().double(), caption.detach().double()
    exact = max_hinge(f, g, similarity="order")
    torch.testing.assert_close(loss_and_gradients()[0].double(), exact, rtol=1e-5, atol=0)
    some, own = torch.arange(0, 2048, 128), torch.arange(2048)
    score = peers.all_scores(f[some], g, True).masked_fill(own == some[:, None], -torch.inf)
    found = ops.hardest_negatives(f, g, own, own, "order")
    torch.testing.assert_close(found.caption_score[some], score.amax(1), rtol=1e-12, atol=0)
    return Row((image, caption), {"ours": Way(loss_and_gradients)})


def recall(_: Place) -> Row:
    g = torch.Generator().manual_seed(0)
    image = torch.nn.functional.normalize(torch.randn(5000, 1024, generator=g), dim=1)
    owner = torch.arange(25_000) // 5
    caption = image[owner] + 0.08 * torch.randn(25_000, 1024, generator=g)
    caption = torch.nn.functional.normalize(caption, dim=1)
    out = image.new_empty(500, 25_000)

    def product() -> None:
        for rows in image.split(500):
            torch.mm(rows, caption.T, out=out)

    def own_product() -> None:
        for rows in image.split(500):
            inner_products(rows, caption)

    found = evaluate(image, caption, caption_group=owner)
    some = torch.arange(0, 25_000, 250)
    score = caption[some].double() @ image.double().T
    right = score.gather(1, owner[some, None])
    exact = 1 + (score > right).sum(1)
    assert exact.tolist() == found.t2i_rank[some].tolist(), "ranks differ from float64's"
    ours = Way(lambda: evaluate(image, caption, caption_group=owner))
    limit = 1 / bars.RECALL_BAR
    ways = {"ours": ours, "product": Way(product, limit), "own product": Way(own_product, limit)}
    return Row((image, caption), ways)


def measured(row: Row, rounds: int, clock: Callable[[], float]) -> dict[str, list[float]]:
    """Seconds of a call, by way and turn."""
    calls: dict[str, int] = {}
    seconds: dict[str, list[float]] = {name: [] for name in row.ways}
    for name, way in row.ways.items():
        way.call()
        begun = clock()
        way.call()
        calls[name] = max(1, round(TURN / (clock() - begun)))
    slow = max(calls.values()) == 1
    for _ in range(min(rounds, 5) if slow else rounds):
        for name, way in row.ways.items():
            way.call()  # meets the caches as another way left them, and is not counted
            begun = clock()
            for _ in range(calls[name]):
                way.call()
            seconds[name].append((clock() - begun) / calls[name])
    return seconds


def lines(case: str, row: Row, place: Place, rounds: int) -> Iterator[str]:
    # Of one thread the processor's time, in which others have no part.
    clock = time.process_time if place.threads == 1 else time.perf_counter
    seconds = measured(row, rounds, clock)
    held = sum(t.numel() * t.element_size() for t in row.held)
    peak = {
        n: (memory.peak_bytes(w.call, row.held, None) - held) / 1e6 for n, w in row.ways.items()
    }
    ours = [case, place.threads, f"{1e3 * min(seconds['ours']):.3g}", f"{peak['ours']:.3g}"]
    if len(row.ways) == 1:
        yield _cells(*ours, *["–"] * 5)
    for name, way in list(row.ways.items())[1:]:
        ratios = [b / a for a, b in zip(seconds["ours"], seconds[name], strict=True)]
        ratio = min(seconds[name]) / min(seconds["ours"])
        quartiles = ", ".join(f"{q:.2f}" for q in statistics.quantiles(ratios, n=4))
        shown = f"{ratio:.2f}" if ratio >= way.limit else f"**{ratio:.2f}**"
        yield _cells(*ours, name, shown, quartiles, f"{way.limit:.2f}", f"{peak[name]:.3g}")


def _cells(*cells: object) -> str:
    return "| " + " | ".join(map(str, cells)) + " |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--only", default="", help="a word of the operator or the case")
    args = parser.parse_args()
    keep_freed_memory()
    print(_cells("case", "threads", "ms", "MB", "against", "ratio", "quartiles", "bar", "its MB"))
    print("| --- | ---: | ---: | ---: | --- | ---: | --- | ---: | ---: |")
    for threads in args.threads:
        torch.set_num_threads(threads)
        place = Place("cpu", threads)
        for case, build in rows().items():
            if args.only in case:
                for line in lines(case, build(place), place, args.rounds):
                    print(line, flush=True)


if __name__ == "__main__":
    main()
