"""The table of a run made up here: whose numbers are known."""

from __future__ import annotations

from typing import Any

import pytest
from table import report


def benchmark(op: str, case: str, provider: str, seconds: float) -> dict[str, Any]:
    facts = {"device": "cpu", "threads": 2, "shape": [256, 10], "dtype": "fp32"}
    return {
        "group": f"{op} {case}",
        "extra_info": {"op": op, "case": case, "provider": provider, **facts},
        "stats": {"min": seconds, "median": 2 * seconds, "iqr": seconds / 2},
    }


def results(*benchmarks: dict[str, Any]) -> dict[str, Any]:
    ours = {
        "version": "1.2.3",
        "compiler": "g++ 13",
        "instructions": "avx2",
        "torch": "2.99",
        "cuda_device": None,
        "cores": 2,
        "load_before": 0.04,
        "load_after": 1.96,
    }
    return {
        "datetime": "2026-01-02T03:04:05",
        "benchmarks": list(benchmarks),
        "machine_info": {
            "node": "secret-host",
            "cpu": {"brand_raw": "A CPU"},
            "processor": "x86_64",
            "python_version": "3.11.0",
            "system": "Linux",
            "machine": "x86_64",
            "hrrl_ext": ours,
        },
    }


def rows(text: str, heading: str) -> list[list[str]]:
    """The table under a heading, without its two first lines."""
    section = text.split(f"## {heading}\n")[1].split("\n## ")[0]
    lines = [line for line in section.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]


def test_transfer_is_measured_over_its_base() -> None:
    text = report(
        results(
            benchmark("extraction", "resnet18", "bare", 1.0),
            benchmark("extraction", "resnet18", "ours", 1.04),
            benchmark("extraction", "resnet18", "file", 1.1),
            benchmark("finetuning_step", "resnet18", "plain", 1.0),
            benchmark("finetuning_step", "resnet18", "ours", 1.5),
        ),
        "min",
    )
    assert [row[3:] for row in rows(text, "Transfer")] == [
        ["file", "1100.0", "**1.100**"],
        ["ours", "1040.0", "1.040"],
        ["ours", "1500.0", "**1.500**"],
    ]


def test_ratios_are_the_others_time_over_ours_and_losses_are_shown() -> None:
    text = report(
        results(
            benchmark("perturb", "small", "ours", 2e-6),
            benchmark("perturb", "small", "eager", 8e-6),
            benchmark("perturb", "small", "compile", 1e-6),
            benchmark("perturb", "large", "ours", 1e-3),
            benchmark("perturb", "large", "eager", 9e-3),
            benchmark("perturb", "large", "copy", 0.9e-3),
            benchmark("call", "perturb", "ours", 6e-6),
        ),
        "min",
    )
    assert rows(text, "perturb") == [
        ["small", "256×10", "fp32", "2", "2.00", "25 %", "4.00", "**0.50**", "–"],
        ["large", "256×10", "fp32", "2", "1,000", "25 %", "9.00", "–", "0.90"],
    ]
    assert rows(text, "Summary") == [
        ["perturb", "eager", "2", "6.00", "4.00", "small, 2 threads", "2", "0"],
        ["perturb", "torch.compile", "1", "0.50", "0.50", "small, 2 threads", "1", "1"],
        ["perturb", "a copy", "1", "0.90", "0.90", "large, 2 threads", "0.8", "0"],
    ]
    assert rows(text, "Below the bar") == [
        ["perturb", "small", "2", "torch.compile", "0.50", "≥ 1"],
        ["call", "perturb", "2", "µs", "6.00", "≤ 5"],
    ]


def test_pictures_and_the_memory_of_a_queue_have_bars() -> None:
    seconds = {"ours": 1e-3, "Pillow": 11e-3, "torchvision": 19e-3}
    augmix = [benchmark("augmix", "paper", name, taken) for name, taken in seconds.items()]
    loss = benchmark("info_nce", "queue", "ours", 1e-3)
    for one in augmix:
        one["extra_info"]["shape"] = [64, 3, 32, 32]
    loss["extra_info"]["peak_over_arguments"] = 1.04
    text = report(results(*augmix, loss), "min")
    assert rows(text, "augmix")[0][-2:] == ["11.0", "**19.0**"]
    assert rows(text, "info_nce")[0][-1] == "**1.04**"
    assert rows(text, "Below the bar") == [
        ["augmix", "paper", "2", "torchvision", "19.0", "≥ 20"],
        ["info_nce", "queue", "2", "its arguments", "1.04", "≤ 1.02"],
    ]


def test_the_time_of_a_gpu_is_its_own() -> None:
    ours, copy = (benchmark("perturb", "x", who, 1.0) for who in ("ours", "copy"))
    for one, seconds in ((ours, 30e-6), (copy, 25.5e-6)):
        one["extra_info"] |= {"device": "cuda", "device_seconds": [0.0, seconds, 1.0]}
    text = report(results(ours, copy), "min")
    assert rows(text, "perturb") == [["x", "256×10", "fp32", "GPU", "30.00", "25 %", "0.85"]]
    assert rows(text, "Below the bar") == [["perturb", "x", "GPU", "µs", "30.00", "≤ 4"]]


def test_a_bar_on_the_wall_clock_is_on_the_wall_clock_of_a_gpu() -> None:
    """An H100's small perturb: 4 times eager by the wall clock of a call, whatever the GPU's own time."""
    found = {"ours": 5e-6, "eager": 19e-6}
    small = [benchmark("perturb", "x", who, seconds) for who, seconds in found.items()]
    for one in small:
        one["extra_info"] |= {"device": "cuda", "device_seconds": [0.0, 2e-6, 1.0]}
    text = report(results(*small), "min")
    assert rows(text, "perturb") == [["x", "256×10", "fp32", "GPU", "2.00", "25 %", "**3.80**"]]
    assert rows(text, "Below the bar") == [["perturb", "x", "GPU", "eager", "3.80", "≥ 4"]]


@pytest.mark.parametrize(("ours", "shown"), [(0.174, "1.74"), (0.176, "**1.76**")])
def test_the_step_is_held_to_its_bar(ours: float, shown: str) -> None:
    text = report(
        results(
            benchmark("training_step", "net", "erm", 0.1),
            benchmark("training_step", "net", "ours", ours),
            benchmark("training_step", "net", "by_hand", 2 * ours),
            benchmark("training_step", "net", "passes", 0.168),
            benchmark("training_step", "net", "stored", 0.106),
        ),
        "min",
    )
    (row,) = rows(text, "Training step")
    assert row[3:] == [
        f"{1e3 * ours:.1f}",
        "25 %",
        shown,
        "1.68",
        "**1.06**",
        "–",
        "2.00",
        "–",
        "–",
    ]
    assert "## Summary" not in text


def test_the_memory_of_a_step_and_what_compiling_gains() -> None:
    step = [
        benchmark("training_step", "net", who, seconds)
        for who, seconds in {"erm": 1.0, "ours": 1.7, "erm_compile": 0.5, "compile": 0.9}.items()
    ]
    step[0]["extra_info"]["peak_bytes"] = 1000
    step[1]["extra_info"]["peak_bytes"] = 1101
    (row,) = rows(report(results(*step), "min"), "Training step")
    assert row[5:] == ["1.70", "–", "–", "**1.10**", "–", "1.89", "1.80"]


@pytest.mark.parametrize(("ours", "shown"), [(1.049, "1.049"), (1.051, "**1.051**")])
def test_the_loop_is_held_to_its_bar(ours: float, shown: str) -> None:
    loop = [
        benchmark("training_loop", "net", who, s) for who, s in {"bare": 1.0, "ours": ours}.items()
    ]
    text = report(results(*loop), "min")
    assert rows(text, "Training loop") == [["net", "2", f"{1e3 * ours:.1f}", "25 %", shown]]
    assert "## Summary" not in text


def test_efficiency_is_per_process() -> None:
    runs = []
    for processes, rate in ((1, 400.0), (2, 720.0)):
        runs.append(benchmark("scaling", f"net {processes}", "trainer", 1.0))
        runs[-1]["extra_info"] |= {
            "case": "net",
            "processes": processes,
            "images_per_second": rate,
        }
    text = report(results(*runs), "min")
    assert rows(text, "Several processes") == [
        ["net", "1", "400", "1.00", "100 %"],
        ["net", "2", "720", "1.80", "90 %"],
    ]


def test_the_parts_of_a_round_over_back_propagation() -> None:
    found = [
        benchmark("clustering_step", "net", part, seconds)
        for part, seconds in {"back-propagation": 0.2, "A": 0.05}.items()
    ]
    for one in found:
        one["extra_info"]["allocated"] = 3 * 2**20
    text = report(results(*found), "min")
    assert rows(text, "A round of gradient clustering") == [
        ["net", "2", "back-propagation", "200", "1.00", "3"],
        ["net", "2", "A", "50", "0.25", "3"],
    ]


def test_partial_runs_and_nothing_lost() -> None:
    text = report(
        results(
            benchmark("perturb", "peer only", "eager", 1.0),
            benchmark("call", "perturb", "ours", 1e-6),
            benchmark("call", "perturb", "eager", 3e-6),
            benchmark("training_step", "net", "ours", 0.2),
        ),
        "median",
    )
    assert "peer only" not in text
    assert rows(text, "call")[0][4] == "2.00"  # the median
    assert rows(text, "Training step")[0][5:] == ["–"] * 7
    assert "Nowhere in this run." in text


def test_the_header_names_the_processor_and_the_load_and_not_the_host() -> None:
    text = report(results(), "min")
    assert text.startswith("# hrrl_ext 1.2.3 on A CPU")
    assert "load before and after: 0.0, 2.0" in text
    assert "secret-host" not in text
