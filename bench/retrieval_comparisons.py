"""Comparisons (comparisons.py) for the losses of joint embeddings, forward and backward to both of them.

The peer to beat is the gather form in plain PyTorch: scores and their argmax without a gradient, the
chosen pairs scored again. It is up to three times as fast as eager, which keeps every score.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache

import peers
import torch
import torch.nn.functional as F
from comparisons import (
    TOLERANCE,
    Call,
    Comparison,
    Compiler,
    Way,
    agree,
    generator,
    most_rows_agree,
    plain,
)
from shapes import Embeddings
from torch import Tensor

from hrrl_ext.retrieval import max_hinge, sum_hinge

Loss = Callable[[Tensor, Tensor], Tensor]


def _embeddings(case: Embeddings, device: str) -> tuple[Tensor, Tensor]:
    g = generator(device)
    image, caption = (
        F.normalize(torch.randn(case.batch, case.size, generator=g, device=device), dim=1)
        for _ in range(2)
    )
    # As before the first step: nearly every hinge is active, so that there is nothing to leave out.
    return image.requires_grad_(), caption.requires_grad_()


def _comparison(
    case: Embeddings, device: str, op: str, exact: Loss, losses: dict[str, Loss]
) -> Comparison:
    image, caption = _embeddings(case, device)

    def call(loss: Loss, image: Tensor = image, caption: Tensor = caption) -> Call:
        def run() -> list[Tensor]:
            value = loss(image, caption)
            return [value.detach(), *torch.autograd.grad(value, (image, caption))]

        return run

    def compiled(compiler: Compiler) -> Call:
        return call(compiler(losses["gather"]))

    def check(actual: list[Tensor]) -> None:
        tolerance = 10 * TOLERANCE["fp32"]
        agree(actual[:1], expected[:1], tolerance)
        for got, want in zip(actual[1:], expected[1:], strict=True):
            most_rows_agree(got, want, tolerance)  # of millions of hinges one may lie on its edge

    wide = (t.detach().double().requires_grad_() for t in (image, caption))
    expected = call(exact, *wide)()
    ways: dict[str, Way] = {name: plain(call(loss)) for name, loss in losses.items()}
    if "gather" in losses:
        ways["compile"] = compiled
    return Comparison(
        op=op,
        case=case,
        check=check,
        ways=ways,
        held=(image, caption),
    )


@lru_cache(maxsize=1)
def hardest_negatives(case: Embeddings, device: str) -> Comparison:
    """As max_hinge uses it."""
    order = case.similarity == "order"
    losses: dict[str, Loss] = {
        "ours": lambda f, g: max_hinge(f, g, similarity=case.similarity),
        "gather": lambda f, g: peers.gather_max_hinge(f, g, order),
        "eager": lambda f, g: peers.eager_max_hinge(f, g, order),
    }
    exact = losses["gather" if order else "eager"]
    return _comparison(case, device, op="hardest_negatives", exact=exact, losses=losses)


@lru_cache(maxsize=1)
def all_negatives(case: Embeddings, device: str) -> Comparison:
    losses: dict[str, Loss] = {"ours": sum_hinge, "eager": peers.eager_sum_hinge}
    return _comparison(case, device, "sum_hinge", losses["eager"], losses)
