"""Comparisons (comparisons.py) for gradient clustering: rank1_dot, rank1_argmin, and the A step."""

from __future__ import annotations

from functools import lru_cache

import peers
import torch
from comparisons import (
    TOLERANCE,
    Call,
    Comparison,
    Compiler,
    Way,
    agree,
    copy_of,
    generator,
    plain,
)
from shapes import Centres, Layer3x3, Perceptron, Products
from torch import Tensor
from torch.nn.functional import normalize

from hrrl_ext import ops
from hrrl_ext.ops import (
    Convolution,
    LayerGradient,
    Rank1Centre,
    rank1_assign,
    reference,
)

# Scores of float32 sums differ by rounding; so close to a tie either cluster is right.
CLOSE = 1e-4


@lru_cache(maxsize=1)
def rank1_dot(case: Products, device: str) -> Comparison:
    """Checked at the first call: every other one adds the same again, to numbers of the way's own."""
    g = generator(device)
    shape = (case.batch, 1, case.clusters, case.terms)
    p, q = (torch.randn(shape, generator=g, device=device) for _ in "pq")
    zero = torch.zeros(case.batch, case.clusters, dtype=torch.float64, device=device)
    expected = zero.clone()
    reference.rank1_dot(expected, p, q)

    def ours(_: Compiler) -> Call:
        cross = zero.clone()

        def call() -> Tensor:
            ops.rank1_dot(cross, p, q)
            return cross

        return call

    def added(function: peers.Sum, compiled: bool = False) -> Way:
        def way(compiler: Compiler) -> Call:
            cross, add = zero.clone(), compiler(function) if compiled else function
            return lambda: add(cross, p, q)

        return way

    return Comparison(
        op="rank1_dot",
        case=case,
        check=lambda actual: agree([actual], [expected], TOLERANCE["fp32"]),
        ways={
            "ours": ours,
            "eager": added(peers.sum_products),
            "eager32": added(peers.sum_narrow_products),
            "compile": added(peers.sum_products, compiled=True),
            "compile32": added(peers.sum_narrow_products, compiled=True),
        },
    )


@lru_cache(maxsize=1)
def rank1_argmin(case: Centres, device: str) -> Comparison:
    g = generator(device)
    vectors, centres = (
        torch.randn(size, 8, generator=g, device=device).double()
        for size in (case.batch, case.clusters)
    )
    weight = torch.randint(1, 100, (case.clusters,), generator=g, device=device).double()
    arguments = (vectors @ centres.T, vectors.square().sum(1), centres.square().sum(1), weight)
    expected = [t.double() for t in reference.rank1_argmin(*arguments, rtol=1e-6)]

    def compiled(compiler: Compiler) -> Call:
        function = compiler(peers.nearest_centre)
        return lambda: function(*arguments, 1e-6)

    return Comparison(
        op="rank1_argmin",
        case=case,
        check=lambda actual: agree(actual, expected, 1e-12),
        ways={
            "ours": plain(lambda: ops.rank1_argmin(*arguments, rtol=1e-6)),
            "eager": plain(lambda: peers.nearest_centre(*arguments, 1e-6)),
            "compile": compiled,
        },
    )


# --- rank1_assign


def _gradients(case: Perceptron | Layer3x3, device: str) -> list[LayerGradient]:
    g = torch.Generator().manual_seed(0)
    if isinstance(case, Layer3x3):
        shape = case.batch, case.channels, case.side, case.side
        act, dout = torch.randn(2, *shape, generator=g).to(device)
        return [LayerGradient(act, dout, Convolution((3, 3), padding=(1, 1)))]
    return [
        LayerGradient(
            torch.randn(case.batch, inputs, generator=g).to(device),
            torch.randn(case.batch, outputs, generator=g).to(device),
        )
        for inputs, outputs in zip(case.widths, case.widths[1:], strict=False)
    ]


def _centres(gradients: list[LayerGradient], clusters: int) -> list[Rank1Centre]:
    g, centres = torch.Generator().manual_seed(1), []
    for gradient in gradients:
        groups, outputs, inputs = gradient.shape
        size = gradient.dout[0].numel() ** 0.5  # as long as a gradient: then directions decide
        centre_in, centre_out = (
            normalize(torch.randn(groups, clusters, 1, n, generator=g), dim=3).to(gradient.act)
            for n in (inputs, outputs)
        )
        centres.append(Rank1Centre(inputs**0.5 * centre_in, size * centre_out))
    return centres


@lru_cache(maxsize=1)
def assignment(case: Perceptron | Layer3x3, device: str) -> Comparison:
    gradients = _gradients(case, device)
    centres = _centres(gradients, case.clusters)
    weight = torch.ones(case.clusters, device=device)
    acts, douts = [x.act for x in gradients], [x.dout for x in gradients]
    inner, outer = ([factors[i][0, :, 0] for factors in centres] for i in (0, 1))
    layers = list(zip(acts, douts, inner, outer, strict=True))
    double = [tuple(t.double() for t in layer) for layer in layers]
    if gradients[0].conv is None:
        score = weight * torch.stack([peers.linear_scores(*layer) for layer in double]).sum(0)
    else:
        act, dout, centre_in, centre_out = double[0]
        conv = gradients[0].conv
        score = weight * peers.unfolded_scores(act, dout, centre_in, centre_out, conv)

    def check(chosen: Tensor) -> None:
        of_chosen = score.gather(1, chosen[:, None])[:, 0]
        assert (of_chosen <= score.amin(1) * (1 + CLOSE)).all(), "a centre that is not the nearest"
        assert len(chosen.unique()) > 1, "all in one cluster"

    linear = isinstance(case, Perceptron)
    eager, arguments = (
        (peers.assign_linear, (acts, douts, inner, outer, weight))
        if linear
        else (peers.assign_3x3, (acts[0], douts[0], inner[0], outer[0], weight))
    )

    def compiled(compiler: Compiler) -> Call:
        function = compiler(eager)
        return lambda: function(*arguments)

    ways: dict[str, Way] = {
        "ours": plain(lambda: rank1_assign(gradients, centres, weight).assignment),
        "eager": plain(lambda: eager(*arguments)),
        "compile": compiled,
    }
    held = (*acts, *douts, *inner, *outer)
    if linear:
        ways["gemm"] = plain(lambda: [(a @ c.T, d @ e.T) for a, d, c, e in layers])
        ways["copy"] = copy_of(sum(t.nbytes for t in held), device)
        ways["explicit"] = lambda _: peers.explicit_assignment(layers, weight)
    return Comparison(
        op="rank1_assign",
        case=case,
        check=check,
        ways=ways,
        held=held,
        unchecked=frozenset({"copy", "gemm"}),
    )
