"""The bars of retrieval, in one table: losses of joint embeddings, and recall of 5,000 x 25,000.

    python bench/retrieval_bars.py > bench/results/retrieval-NAME.md
    python bench/retrieval_bars.py --only sum_hinge --threads 1

How it is measured, turns.py says. Every way is checked against float64 first. Ours take O((I + C) D)
beyond the embeddings; of all pairs of order similarity and of semi-hard negatives, which are plain torch,
they take a tile of the scores as well.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import bars
import peers
import torch
from places import Place
from retrieval_comparisons import all_negatives, hardest_negatives, semi_hard_negatives
from shapes import Embeddings
from torch import Tensor
from turns import Row, Rows, Way, compared, main

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
SEMI_HARD = [(128, 128), (128, 2048), (1024, 128)]


def rows(place: Place) -> Rows:
    cases: dict[str, Callable[[], Row]] = {}

    def add(name: str, compare: Callable[..., Any], case: Embeddings, *against: str) -> None:
        cases[f"{name} {case}"] = lambda: compared(compare(case, place.device), against, place)

    for size, batch in SIDES:
        add("max_hinge", hardest_negatives, Embeddings(batch, size), "gather", "eager")
    for size, batch in ORDER:
        few = batch * batch * size <= EAGER_ORDER
        case = Embeddings(batch, size, "order")
        add("max_hinge", hardest_negatives, case, "compile", *["gather", "eager"] * few)
    cases[f"max_hinge {LARGE_ORDER}"] = partial(large_order, place)
    for size, batch in SEMI_HARD:
        add("max_hinge, semi-hard", semi_hard_negatives, Embeddings(batch, size), "eager")
    for size, batch in SIDES:
        add("sum_hinge", all_negatives, Embeddings(batch, size), "eager")
    for size, batch in ORDER:
        if batch * batch * size <= EAGER_ORDER:
            add("sum_hinge", all_negatives, Embeddings(batch, size, "order"), "eager")
    cases["evaluate 5,000 x 25,000, D1024"] = partial(recall, place, 0.08)
    cases["evaluate 5,000 x 25,000, D1024, R@1 of a third"] = partial(recall, place, 0.3)
    return cases


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


def recall(_: Place, noise: float) -> Row:
    """All right at 0.08; at 0.3 float32 leaves some queries open, which float64 decides."""
    g = torch.Generator().manual_seed(0)
    image = torch.nn.functional.normalize(torch.randn(5000, 1024, generator=g), dim=1)
    owner = torch.arange(25_000) // 5
    caption = image[owner] + noise * torch.randn(25_000, 1024, generator=g)
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
    ranks = torch.from_numpy(found.t2i_rank)[some]
    # Beyond the tenth place what float32 cannot tell apart counts half.
    assert ((exact - ranks).abs() <= (exact > 10) * (1 + exact / 100)).all(), "not float64's ranks"
    ours = Way(lambda: evaluate(image, caption, caption_group=owner))
    limit = 1 / bars.RECALL_BAR
    ways = {"ours": ours, "product": Way(product, limit), "own product": Way(own_product, limit)}
    return Row((image, caption), ways)


if __name__ == "__main__":
    main(__doc__, rows)
