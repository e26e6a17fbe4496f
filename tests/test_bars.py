"""bench/bars.py: the bars of a GPU, regime by regime, and that each case has the one it should."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import contrastive_bars
import memory
import pytest
import torch
from bars import bars, by_wall_clock, least_ratio, most_microseconds
from device.cases import CALL_A, CALL_B
from places import Place
from pretraining_peers import PretrainingCase
from turns import Row, Way, lines, measured

Facts = dict[str, Any]


def gpu(op: str, *shape: int, dtype: str = "fp32", **more: str) -> Facts:
    return {"op": op, "device": "cuda", "shape": shape, "dtype": dtype, **more}


LARGE, SMALL = (256, 3, 224, 224), (256, 3, 32, 32)
# 462 MB, 9.4 MB and 14 MB are moved.
BANDWIDTH, LATENCY, BETWEEN = (
    gpu("perturb", *LARGE),
    gpu("perturb", *SMALL),
    gpu("perturb", 16, *LARGE[1:], dtype="bf16"),
)


@pytest.mark.parametrize(
    ("facts", "limits"),
    [
        (BANDWIDTH, {"copy": 0.85, "eager": 1.9, "compile": 1.25, "torchattacks": 1.9}),
        (BANDWIDTH | {"dtype": "bf16"}, {"copy": 0.85, "eager": 2.5, "compile": 1.25}),
        (gpu("perturb", 2048, 3, 64, 64), {"compile": 1.0, "eager": 1.9}),  # rows of 12,288
        (gpu("perturb", *LARGE, layout="channels_last"), {"contiguous": 0.97}),
        (LATENCY, {"eager": 4.0, "compile": 1.3, "copy": 0.0}),
        (BETWEEN, {"eager": 1.0, "compile": 1.0, "copy": 0.0}),
        (
            gpu("concept_cross_entropy", 8192, 1000),
            {"copy": 0.85, "eager": 2.7, "compile": 1.35, "liger": 2.0, "flash_attn": 1.35},
        ),
        (
            gpu("concept_cross_entropy", 4096, 65_536, dtype="bf16"),
            {"copy": 0.75, "eager": 2.5, "compile": 1.5, "quack": 0.95},
        ),
        (gpu("concept_cross_entropy", 256, 1000), {"eager": 5.0, "compile": 2.0, "liger": 5.0}),
        (gpu("concept_cross_entropy", 4096, 1000), {"eager": 1.0, "compile": 1.0}),
        (gpu("update_distribution", 1024), {"eager": 10.0, "compile": 10.0, "entmax": 12.0}),
        (gpu("update_distribution", 1025), {"eager": 10.0, "compile": 10.0, "entmax": 10.0}),
        (gpu("project_simplex", 100_000), {"eager": 7.0, "compile": 7.0, "entmax": 7.0}),
        (gpu("project_simplex", 1_000_000), {"eager": 5.0, "compile": 5.0, "entmax": 5.0}),
        (gpu("project_simplex", 16_384, 1024), {"liger": 4.0, "eager": 1.0}),
        (
            gpu("project_simplex_backward", 16_384, 1024),
            {"copy": 0.8, "eager": 3.0, "compile": 1.2, "entmax": 3.0},
        ),
        (
            gpu("rank1_assign", 512, 1000, kind="linear"),
            {"gemm": 0.8, "eager": 3.0, "compile": 1.5, "explicit": 100.0},
        ),
        (
            gpu("rank1_assign", 512, 100, kind="linear"),
            {"copy": 0.75, "eager": 4.0, "compile": 2.0},
        ),
        (gpu("rank1_assign", 64, 10, kind="convolution"), {"eager": 5.0, "compile": 1.5}),
        (gpu("rank1_assign", 64, 100, kind="convolution"), {"eager": 1.5, "compile": 1.5}),
        (gpu("info_nce", 256, 65_536, 128), {"attention": 1.2, "eager": 5.0, "compile": 2.0}),
    ],
    ids=lambda value: f"{value['op']}-{value['shape']}-{value['dtype']}" if "op" in value else "",
)
def test_over_others_on_a_gpu(facts: Facts, limits: dict[str, float]) -> None:
    assert {provider: least_ratio(facts, provider) for provider in limits} == limits


@pytest.mark.parametrize(
    ("facts", "microseconds", "launches"),
    [
        (LATENCY, 4, 1),
        (BANDWIDTH, None, None),
        (BETWEEN, None, None),
        (gpu("concept_cross_entropy", 1000, 1000), 6, 2),
        (gpu("concept_cross_entropy forward", 256, 1000), 6, 2),
        (gpu("concept_cross_entropy", 1001, 1000), None, None),
        (gpu("update_distribution", 1024), 4, 1),
        (gpu("update_distribution", 10_000), 6, 1),
        (gpu("project_simplex", 100_000), 10, 1),
        (gpu("update_distribution", 1_000_000), 30, 1),
    ],
    ids=lambda value: f"{value['op']}-{value['shape']}" if isinstance(value, dict) else str(value),
)
def test_where_the_launch_is_what_counts(
    facts: Facts, microseconds: float | None, launches: int | None
) -> None:
    assert most_microseconds(facts) == microseconds
    assert [b.limit for b in bars(facts) if b.quantity == "launches"] == [launches] * (
        launches is not None
    )


def test_small_calls_are_held_to_the_wall_clock() -> None:
    assert by_wall_clock(LATENCY, "eager")
    assert by_wall_clock(gpu("concept_cross_entropy", 256, 10), "compile")
    assert not by_wall_clock(BANDWIDTH, "eager")
    assert not by_wall_clock(gpu("update_distribution", 11), "eager")


def test_memory() -> None:
    def of(facts: Facts) -> list[tuple[str, float]]:
        return [(b.against, b.limit) for b in bars(facts) if b.quantity == "memory"]

    assert of(gpu("rank1_assign", 512, 1000, kind="linear")) == [("explicit", 300)]
    assert of(gpu("rank1_assign", 64, 10, kind="convolution")) == [("", 0.02)]


def test_every_regime_is_measured() -> None:
    """Each kind of bar that the calls could try belongs to one of their cases at least."""
    tried = {
        (m.op, bar.against)
        for calls in (CALL_A, CALL_B)
        for group in calls.values()
        for m in group
        for bar in bars({"op": m.op, "device": "cuda", **m.shape.facts})
        if not bar.against or bar.against in m.providers
    }
    assert {
        *(("perturb", peer) for peer in ("copy", "eager", "compile", "torchattacks", "contiguous", "")),
        *(("concept_cross_entropy", peer) for peer in ("copy", "eager", "compile", "liger", "")),
        *(("update_distribution", peer) for peer in ("eager", "compile", "entmax", "")),
        *(("project_simplex", peer) for peer in ("eager", "liger", "")),
        *(("project_simplex_backward", peer) for peer in ("copy", "eager", "compile", "entmax")),
        *(("rank1_assign", peer) for peer in ("copy", "gemm", "eager", "compile", "explicit", "")),
        *(("info_nce", peer) for peer in ("attention", "eager", "compile")),
    } <= tried  # fmt: skip


def test_turns_show_what_is_below_its_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    """And what is not installed, and what asks nothing."""
    monkeypatch.setattr(memory, "peak_bytes", lambda call, held, _: 4000 + (call() or 0))
    ways = {
        "ours": Way(lambda: math.factorial(1000) * 0 + 3000),
        "slow": Way(lambda: math.factorial(10_000) * 0, 2),
        "fast": Way(lambda: 2000, 2),
        "any": Way(lambda: None),
        "absent": Way(None, 2),
    }
    row = Row((torch.ones(1000),), ways, memory_limit=0.5)
    cells = [line.strip("| ").split(" | ") for line in lines("sum", row, Place("cpu", 1), 2)]
    assert [(c[0], c[1], c[3]) for c in cells] == [("sum", "1", "0.003")] * 5
    shown = {c[4]: (c[5], c[7], c[8]) for c in cells}
    assert not shown["slow"][0].startswith("**") and shown["slow"][1:] == ("2.00", "0")
    assert shown["fast"][0].startswith("**") and shown["fast"][1:] == ("2.00", "0.002")
    assert not shown["any"][0].startswith("**") and shown["any"][1] == "–"
    assert shown["absent"] == ("not installed", "2.00", "–")
    assert shown["its arguments, MB"] == ("**75.0 %**", "at most 50 %", "0.004")
    (line,) = lines("sum", Row((), {"ours": ways["ours"]}), Place("cpu", 1), 2)
    assert line.split(" | ")[3] == "–"  # nothing is held: no memory is asked for


@pytest.mark.parametrize(("seconds", "calls"), [((1.5, 3.0), 7), ((0.5, 3.0), 12)])
def test_a_long_call_is_not_warmed_up_again(seconds: tuple[float, ...], calls: int) -> None:
    """As long as all ways of a row are: they meet no other caches."""
    now, counted = [0.0], [0, 0]

    def call(which: int) -> None:
        counted[which] += 1
        now[0] += seconds[which]

    ways = {str(i): lambda i=i: call(i) for i in range(2)}
    found = measured(ways, 15, lambda: now[0])
    assert counted == [calls] * 2 and found == {str(i): [seconds[i]] * 5 for i in range(2)}


def test_pretraining_beside_a_peer_that_is_missing(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """And one whose torchvision is another torch's; of ours nothing may be, nor a loss beyond chance."""
    case = PretrainingCase(4, "fp32", keys=7)

    def fails(error: Exception) -> Callable[[], Any]:
        def make() -> Any:
            raise error

        return make

    def learns(loss: float) -> Callable[[], Any]:
        return lambda: lambda: torch.tensor(loss)

    lacks, other = (
        ModuleNotFoundError("No module named 'lightly'"),
        RuntimeError("torchvision::nms"),
    )
    makes = {"ours": learns(2.0), "lightly": fails(lacks), "solo-learn": fails(other)}
    ways = contrastive_bars.pretraining(case, (), makes).ways
    assert [name for name, way in ways.items() if way.call is None] == ["lightly", "solo-learn"]
    told = capsys.readouterr().err
    assert "--no-deps lightly" in told and "torchvision::nms" in told
    for spoilt, error in ((fails(other), RuntimeError), (learns(2.1), AssertionError)):
        with pytest.raises(error):
            contrastive_bars.pretraining(case, (), makes | {"ours": spoilt})
