"""The A step of gradient clustering: against what a user would write, and against back-propagation."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any, NamedTuple

import memory
import peers
import pytest
import torch
from measurement import Measurement
from places import Place
from pytest_benchmark.fixture import BenchmarkFixture
from rank1_comparisons import assignment
from shapes import Layer3x3, Perceptron
from test_ops import product
from torch import Tensor, nn

from hrrl_ext.clustering.centres import ClusterSums
from hrrl_ext.clustering.examples import cross_entropy
from hrrl_ext.clustering.layers import Layer, find_layers, layer_gradients
from hrrl_ext.models import resnet18
from hrrl_ext.ops import LayerGradient, Rank1Centre, rank1_assign, rank1_products

pytestmark = pytest.mark.benchmark(min_time=5e-4, max_time=0.5, min_rounds=5)

CASES: list[Perceptron | Layer3x3] = [
    *(Perceptron(batch, clusters) for batch, clusters in ((512, 100), (512, 1000), (128, 128))),
    *(Layer3x3(64, 16, 32, clusters) for clusters in (10, 32, 100)),
    *(Layer3x3(64, 64, 8, clusters) for clusters in (32, 128)),
    *(Layer3x3(16, 256, 14, clusters) for clusters in (32, 100)),
]


@pytest.mark.parametrize(("case", "provider"), product(CASES, "ours", "eager", "compile"))
def test_rank1_assign(
    case: Perceptron | Layer3x3, provider: str, place: Place, measure: Measurement
) -> None:
    measure.compare(assignment(case, place.device), provider)


# --- a whole network

BATCH, CLUSTERS, CLASSES = 16, 128, 100


class Network(NamedTuple):
    model: nn.Module
    layers: dict[str, Layer]
    x: Tensor
    target: Tensor
    gradients: list[LayerGradient]
    centres: list[Rank1Centre]
    weight: Tensor


@lru_cache(maxsize=1)
def network(device: str) -> Network:
    torch.manual_seed(0)
    model = resnet18(CLASSES, stem="small").eval().to(device)
    x = torch.rand(BATCH, 3, 32, 32).to(device)
    target = torch.randint(CLASSES, (BATCH,)).to(device)
    layers = find_layers(model)
    gradients = layer_gradients(model, layers, x, target, cross_entropy)
    centres = []
    for groups, outputs, inputs in (gradient.shape for gradient in gradients):
        shape = groups, CLUSTERS, 1
        factors = (torch.randn(*shape, size).to(device) for size in (inputs, outputs))
        centres.append(Rank1Centre(*factors))
    return Network(model, layers, x, target, gradients, centres, torch.ones(CLUSTERS).to(device))


def back_propagation(here: Network) -> Callable[[], Any]:
    """What training does with the batch, the gradients of the weights included."""

    def step() -> Any:
        here.model.zero_grad()
        cross_entropy(here.model(here.x), here.target).sum().backward()
        return here.model

    return step


def a_pass(here: Network) -> Callable[[], Any]:
    return lambda: layer_gradients(here.model, here.layers, here.x, here.target, cross_entropy)


def assign(here: Network) -> Callable[[], Any]:
    return lambda: rank1_assign(here.gradients, here.centres, here.weight)


def assign_again(here: Network) -> Callable[[], Any]:
    """In all rounds but the first the squares are known."""
    square = rank1_products(here.gradients, here.centres).square
    return lambda: rank1_assign(here.gradients, here.centres, here.weight, square=square)


def move_centres(here: Network) -> Callable[[], Any]:
    assignment = torch.arange(BATCH, device=here.x.device)
    sums = ClusterSums(here.centres, "svd", hold_outputs=True)
    return lambda: sums.add(here.gradients, assignment)


def stored(here: Network) -> Callable[[], Any]:
    """Per-example gradients by torch.func, all of them in memory, and no distance yet."""
    parameters = {name: p.detach() for name, p in here.model.named_parameters()}

    def loss(p: dict[str, Tensor], x: Tensor, target: Tensor) -> Tensor:
        return cross_entropy(torch.func.functional_call(here.model, p, (x[None],)), target[None])[0]

    gradients = torch.func.vmap(torch.func.grad(loss), (None, 0, 0))
    return lambda: gradients(parameters, here.x, here.target)


def unfolded(here: Network) -> Callable[[], Any]:
    """The A step as peers.assign_3x3 has it, layer by layer; the last layer is linear."""

    def step() -> Any:
        for gradient, (centre_in, centre_out) in zip(here.gradients, here.centres, strict=True):
            factors = gradient.act, gradient.dout, centre_in[0, :, 0], centre_out[0, :, 0]
            if gradient.conv is None:
                inputs = nn.functional.pad(gradient.act, (0, 1), value=1.0)
                peers.linear_scores(inputs, *factors[1:])
            else:
                peers.unfolded_scores(*factors, gradient.conv)

    return step


PARTS: dict[str, Callable[[Network], Callable[[], Any]]] = {
    "back-propagation": back_propagation,
    "forward, backward to outputs": a_pass,
    "A, first round": assign,
    "A, later rounds": assign_again,
    "U, one side": move_centres,
    "A, unfolded (eager)": unfolded,
    "gradients by torch.func": stored,
}


@pytest.mark.parametrize("part", PARTS)
def test_clustering_step(
    part: str, place: Place, measure: Callable[..., None], benchmark: BenchmarkFixture
) -> None:
    """What the parts of a round cost, over one back-propagation of the same batch."""
    here = network(place.device)
    call = PARTS[part](here)
    measure(
        call,
        lambda _: None if part != "A, first round" else check_network(here),
        op="clustering_step",
        case=f"resnet18-w64-32x32-B{BATCH}-K{CLUSTERS}",
        provider=part,
        shape=(BATCH, 3, 32, 32),
        dtype="fp32",
        rounds=5,
    )
    held = [*here.model.state_dict().values(), here.x]
    benchmark.extra_info["allocated"] = memory.peak_bytes(call, held, None)


def check_network(here: Network) -> None:
    """The factors give back-propagation's own gradient of each weight."""
    back_propagation(here)()
    for layer, gradient in zip(here.layers.values(), here.gradients, strict=True):
        assert layer.weight.grad is not None
        formed = gradient.materialize().double().sum(0).flatten(0, 1)[:, : layer.weight[0].numel()]
        expected = layer.weight.grad.flatten(1).double()
        assert (formed - expected).abs().max() <= 1e-3 * expected.abs().max()
