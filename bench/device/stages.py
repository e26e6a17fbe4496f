"""The stages of the two calls, in their order. Limits and estimates are in seconds."""

from __future__ import annotations

import ast
from pathlib import Path

from . import cases
from .run import ROOT, Stage
from .tools import SANITIZERS

Batch = list[Stage]
"""Stages that run side by side: none of them times anything outside its turn (records.turn)."""

# Words in the names of tests/cuda/test_cuda.py, by the operators they try; the rest tries all of them.
TESTS_OF = {
    "perturb": ("perturb", "channels_last", "stored", "mix_chains"),
    "concept_cross_entropy": ("concept_cross_entropy", "logits", "labels"),
    "simplex": ("simplex", "many_rows", "update_distribution", "response"),
    "rank1": ("rank1", "bad_numbers", "hardest"),
}
TOGETHER = "together"
_PYTEST = ("-m", "pytest", "-q", "-p", "device.pytest_records", "-p", "no:cacheprovider")
OPS_TESTS = (
    "test_properties",
    "test_rank1",
    "test_registration",
    "test_hardest_negatives",
    "test_hinges",
)
_LIMITS = {"perturb": 40, "concept_cross_entropy": 45, "simplex": 35, "rank1": 40}
_ESTIMATES = {"perturb": 16, "concept_cross_entropy": 20, "simplex": 16, "rank1": 18}


def tests_by_operator(source: str) -> dict[str, list[str]]:
    """The test functions of a module, each under the first operator that its name speaks of."""
    found: dict[str, list[str]] = {group: [] for group in (*TESTS_OF, TOGETHER)}
    for node in ast.parse(source).body:
        if isinstance(node, ast.FunctionDef) and node.name.startswith("test_"):
            words = ((g, word) for g, all_words in TESTS_OF.items() for word in all_words)
            group = next((g for g, word in words if word in node.name), TOGETHER)
            found[group].append(node.name)
    return found


def call_a(dry: bool) -> list[Batch]:
    """Is it right, and how fast is it beside a copy and eager?"""
    tools = ["ncu", *SANITIZERS]
    ncu, *sanitizers = (
        Stage(tool, ("-m", "device.tools", tool, *(("--dry-run",) * dry)), limit, estimate)
        for tool, limit, estimate in zip(tools, (45, 60, 60, 60), (25, 35, 35, 35), strict=True)
    )
    return [
        [_build(dry)],
        _tests(dry),
        *([_measured("a", group, dry)] for group in cases.CALL_A),
        [ncu],
        sanitizers,
    ]


def call_b(dry: bool, data: Path | None) -> list[Batch]:
    """How fast beside torch.compile and other libraries, what a step costs, and do features transfer?"""
    dry_run = ("--dry-run",) * dry
    steps = ("-m", "device.training", *dry_run)
    transfer = ("-m", "device.transfer", *dry_run)
    if data is not None:
        transfer += ("--data", str(data.resolve()))
    return [
        [_build(dry, "build, again")],
        [_measured("b", group, dry) for group in cases.CALL_B],
        [Stage("steps", steps, 60, 40)],
        [Stage("steps, compiled", (*steps, "--compiled"), 60, 45)],
        [Stage("transfer", transfer, 300, 90, needs=("sklearn",), endless=True)],
    ]


def _build(dry: bool, name: str = "build") -> Stage:
    """Incremental where the machine is still that of the other call."""
    words = ("-m", "device.build", *(("--dry-run",) * dry))
    return Stage(name, words, 90, 35, needs=("setuptools", "pybind11"))


def _tests(dry: bool) -> Batch:
    """An operator's tests in a process of their own: an illegal access costs these alone."""
    if dry:
        file = "tests/ops/test_perturb.py"
        return [
            _tests_stage("tests, dry", (file, "-m", "not gpu", "-k", "contiguous or zero"), 60, 5)
        ]
    file = "tests/cuda/test_cuda.py"
    by_operator = tests_by_operator((ROOT / file).read_text(encoding="utf-8"))
    batch = [
        _tests_stage(f"tests, {group}", tuple(f"{file}::{name}" for name in names), 60, 25)
        for group, names in by_operator.items()
        if names
    ]
    for name in OPS_TESTS:
        words = (f"tests/ops/{name}.py", "-m", "gpu")
        batch.append(_tests_stage(f"tests, {name}", words, 60, 35))
    return batch


def _tests_stage(name: str, words: tuple[str, ...], limit: float, estimate: float) -> Stage:
    return Stage(name, (*_PYTEST, *words), limit, estimate, needs=("pytest",))


def _measured(call: str, group: str, dry: bool) -> Stage:
    """Those of call B compile, and wait for each other's timing."""
    words = ("-m", "device.measure", call, group, *(("--dry-run",) * dry))
    limit, estimate = (75, 60) if call == "b" else (_LIMITS[group], _ESTIMATES[group])
    name = group if call == "a" else f"{group}, peers"
    return Stage(name, words, limit, estimate)
