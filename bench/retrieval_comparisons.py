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

from hrrl_ext import ops
from hrrl_ext.ops import HingeCoefficients, reference
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
def hinge_coefficients(case: Embeddings, device: str) -> Comparison:
    """One pass over the scores, of which sum_hinge has two more."""
    image, caption = (t.detach() for t in _embeddings(case, device))
    own = torch.arange(case.batch, device=device)
    below = 0.2 - (image * caption).sum(1)
    rest = (below, below, torch.ones_like(below), torch.ones_like(below), own, own)
    wide = [t.double() if t.is_floating_point() else t for t in rest]
    expected = reference.hinges_of(image.double() @ caption.double().T, *wide)

    def check(actual: HingeCoefficients) -> None:
        agree([actual.loss], [expected.loss], 10 * TOLERANCE["fp32"])
        most_rows_agree(actual.coefficient[:, :, None], expected.coefficient[:, :, None], 1e-6)

    return Comparison(
        op="hinge_coefficients",
        case=case,
        check=check,
        ways={
            "ours": plain(lambda: ops.hinge_coefficients(image, caption, *rest)),
            "eager": plain(lambda: reference.hinges_of(image @ caption.T, *rest)),
        },
        held=(image, caption),
    )


@lru_cache(maxsize=1)
def pair_gradients(case: Embeddings, device: str) -> Comparison:
    """As many pairs as max_hinge has: every row three times."""
    image, caption = (t.detach() for t in _embeddings(case, device))
    g, shape = generator(device), (3 * case.batch,)
    row, column = (torch.randint(case.batch, shape, generator=g, device=device) for _ in range(2))
    weight = torch.randn(shape, generator=g, device=device)
    pairs = row, column, weight
    wide = image.double(), caption.double(), row, column, weight.double()
    expected = reference.pair_gradients(*wide, case.similarity)
    return Comparison(
        op="pair_gradients",
        case=case,
        check=lambda actual: agree(actual, expected, TOLERANCE["fp32"]),
        ways={
            "ours": plain(lambda: ops.pair_gradients(image, caption, *pairs, case.similarity)),
            "eager": plain(
                lambda: reference.pair_gradients(image, caption, *pairs, case.similarity)
            ),
        },
        held=(image, caption),
    )


@lru_cache(maxsize=1)
def all_negatives(case: Embeddings, device: str) -> Comparison:
    losses: dict[str, Loss] = {
        "ours": lambda f, g: sum_hinge(f, g, similarity=case.similarity),
        "eager": lambda f, g: peers.eager_sum_hinge(f, g, case.similarity == "order"),
    }
    return _comparison(case, device, "sum_hinge", losses["eager"], losses)


@lru_cache(maxsize=1)
def semi_hard_negatives(case: Embeddings, device: str) -> Comparison:
    losses: dict[str, Loss] = {
        "ours": lambda f, g: max_hinge(f, g, semi_hard=True),
        "eager": peers.eager_semi_hard_hinge,
    }
    return _comparison(case, device, "semi_hard_negatives", losses["eager"], losses)
