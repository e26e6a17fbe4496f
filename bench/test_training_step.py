"""One step of HRRL (Algorithm 1) against one of plain training, and against the step written by hand.

HRRL needs two forward passes, a backward pass to the input and one to the weights: 5 units of work where
ERM needs 3, so 5/3 is the floor of their ratio. The bar is 1.75, at a peak memory of 1.1 times ERM's.
With stored directions it needs ERM's 3, and the gradient of the first layer's input: the bar is 1.05.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import memory
import peers
import pytest
import torch
from places import Place
from pytest_benchmark.fixture import BenchmarkFixture
from steps import STEPS, StepCase, expected_losses, tolerance
from torch import Tensor, nn

from hrrl_ext.retrieval import Pairs, RetrievalTrainer

CASES = [
    StepCase(width, dtype, last)
    for width in (16, 64)
    for dtype in ("fp32", "bf16")
    for last in (False, True)
]


def compiles(case: StepCase) -> bool:
    """Two cases are enough: each compilation takes the better part of a minute."""
    return case.width == 16 and case.channels_last == (case.dtype == "bf16")


@pytest.fixture(scope="module")
def erm_seconds() -> dict[str, float]:
    """The fastest ERM step of each case and place so far."""
    return {}


@pytest.mark.parametrize(
    ("case", "provider"),
    [
        pytest.param(
            case,
            provider,
            id=f"{case}-{provider}",
            marks=[pytest.mark.compile] * ("compile" in provider),
        )
        for case in CASES
        for provider in STEPS
        if compiles(case) or "compile" not in provider
    ],
)
def test_training_step(
    case: StepCase,
    provider: str,
    place: Place,
    measure: Callable[..., None],
    benchmark: BenchmarkFixture,
    erm_seconds: dict[str, float],
) -> None:
    plain, perturbed = expected_losses(case)

    def check(loss: Tensor) -> None:
        expected = plain if provider.startswith(("erm", "passes")) else perturbed
        assert loss.item() == pytest.approx(expected, rel=tolerance(case, place.device))

    here = case.setting(place.device)
    step = STEPS[provider](here, place.compiled)
    measure(
        step,
        check,
        op="training_step",
        case=case,
        provider=provider,
        rounds=15 if case.width == 16 else 3,
        **case.facts,
    )
    if "compile" not in provider:
        benchmark.extra_info["peak_bytes"] = memory.peak_bytes(step, here.held, here.optimizer)
    if benchmark.stats is None:
        return  # --benchmark-disable
    fastest, key = benchmark.stats.stats.min, f"{case} {place}"
    if provider == "erm":
        erm_seconds[key] = fastest
    elif key in erm_seconds:
        benchmark.extra_info["ratio_to_erm"] = fastest / erm_seconds[key]


# --- a step of joint embeddings

PAIRS, WIDTH = 128, 1280
LEVEL = {"concepts": [n % 9 for n in range(PAIRS)], "lam": 0.3}
PLAYERS: dict[str, dict[str, Any]] = {"ours": {}, "q": LEVEL, "q, tau": LEVEL | {"tau": 0.1}}
"""By provider, what HRRL's players add to the step."""


def joint_trainer(device: str, **players: Any) -> RetrievalTrainer:
    """VSE++ on features, as many pairs as a batch has, at sizes for a laptop: a GRU of 256, D = 256."""
    g = torch.Generator().manual_seed(0)
    numbers = torch.randint(2000, (PAIRS, 10), generator=g).tolist()
    captions = [" ".join(f"w{n}" for n in row) for row in numbers]
    return RetrievalTrainer(
        data=Pairs(torch.randn(PAIRS, WIDTH, generator=g), captions, range(PAIRS)),
        min_count=1,
        dim=256,
        text_width=256,
        device=device,
        progress="off",
        **players,
    )


def joint_step(trainer: RetrievalTrainer) -> Callable[[], Tensor]:
    (batch,) = trainer.batches.epoch(0)
    return lambda: trainer.train_step(*batch)


def gather_step(trainer: RetrievalTrainer) -> Callable[[], Tensor]:
    """The same lines by hand, with the loss in its gather form, and no groups."""
    model, optimizer = trainer.model, trainer.loop.move.optimizer
    (batch,) = trainer.batches.epoch(0)

    def step() -> Tensor:
        image, caption = model(*batch[:3], precomputed=True)
        loss = peers.gather_max_hinge(image, caption, False)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 2.0)
        optimizer.step()
        return loss.detach() / PAIRS

    return step


@pytest.mark.parametrize("provider", ["gather", *PLAYERS])
def test_joint_embedding_step(provider: str, place: Place, measure: Callable[..., None]) -> None:
    """Of RetrievalTrainer, against the plain one; the first loss of both is the same, whatever the pairs
    count for, and higher where images have moved."""
    trainer = joint_trainer(place.device, **PLAYERS.get(provider, {}))
    trainer.model.train()
    (batch,) = trainer.batches.epoch(0)
    with torch.no_grad():
        image, caption = trainer.model(*batch[:3], precomputed=True)
        expected = peers.gather_max_hinge(image, caption, False)
    trainer.loop.move.set_lr(1e-9)  # so that every step is at the same weights, or nearly
    step = (gather_step if provider == "gather" else joint_step)(trainer)

    def check(loss: Tensor) -> None:
        if "tau" in provider:
            assert loss > expected / PAIRS
        else:
            torch.testing.assert_close(loss.float(), expected / PAIRS, rtol=1e-4, atol=0)

    measure(
        step,
        check,
        op="joint_embedding_step",
        case="128 pairs, GRU 256, D = 256",
        provider=provider,
        rounds=30,
        shape=(PAIRS, WIDTH),
        dtype="fp32",
    )
