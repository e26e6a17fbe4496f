"""No operator lacks one of the steps of CONTRIBUTING.md. The operators are those of csrc/ops.cpp."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from hrrl_ext import ops

ROOT = Path(__file__).resolve().parent.parent
SCHEMAS = ROOT / "csrc" / "ops.cpp"

pytestmark = pytest.mark.skipif(not SCHEMAS.exists(), reason="needs the source tree")

OPERATORS = re.findall(r'"(\w+)\(Tensor', SCHEMAS.read_text()) if SCHEMAS.exists() else []
# What a docstring has to say, and a word by which it says it.
DOCSTRING = {
    "arguments and their shapes": r"Args:\n.*\[",
    "what is returned": r"Returns:",
    "what carries a gradient": r"[Gg]radient|[Dd]ifferentiable",
    "determinism": r"[Dd]eterministic",
    "errors": r"[Rr]aises\s+\w*Error",
    "the equivalent in PyTorch": r"Equivalent to",
}


def said(pattern: str, *files: str) -> bool:
    """Whether one of the files (glob patterns) has the regular expression."""
    paths = [path for file in files for path in ROOT.glob(file)]
    return any(re.search(pattern, path.read_text(), re.MULTILINE) for path in paths)


def has_twin(op: str) -> bool:
    public, twin = getattr(ops, op, None), getattr(ops.reference, op, None)
    return (
        public is not None
        and twin is not None
        and inspect.signature(public) == inspect.signature(twin)
    )


def has_public_function(op: str) -> bool:
    return op in ops.__all__ and said(rf"register_fake\(\s*\"hrrl_ext::{op}\"", "hrrl_ext/ops/*.py")


def has_tests_of_its_own(op: str) -> bool:
    shared = {"test_properties.py", "test_registration.py", "test_bounds.py"}
    files = {path.name for path in ROOT.glob("tests/ops/test_*.py")} - shared
    return said(rf"\bops\.{op}\(", *(f"tests/ops/{name}" for name in files))


# The steps, by what CONTRIBUTING.md calls them and in its order. A file may serve several operators.
STEPS: dict[str, Callable[[str], bool]] = {
    "hrrl_ext/ops/reference.py": has_twin,
    "docs/algorithm.md": lambda op: said(rf"`ops\.{op}`", "docs/algorithm.md"),
    "csrc/ops.cpp": lambda op: said(rf"\"{op}\(Tensor", "csrc/ops.cpp"),
    "csrc/<op>.h": lambda op: said(rf"\bprepare_{op}\(", "csrc/*.h"),
    "csrc/cpu/<op>_cpu.cpp": lambda op: said(rf"m\.impl\(\"{op}\"", "csrc/cpu/*_cpu.cpp"),
    "csrc/cuda/<op>.cu": lambda op: said(rf"^void launch_{op}\(", "csrc/cuda/*.cu"),
    "csrc/cuda/<op>_cuda.cpp": lambda op: said(rf"m\.impl\(\"{op}\"", "csrc/cuda/*_cuda.cpp"),
    "hrrl_ext/ops/<op>.py": has_public_function,
    "tests/ops/test_<op>.py": has_tests_of_its_own,
    "tests/ops/test_properties.py": lambda op: said(rf"\bops\.{op}\(", "tests/ops/test_properties.py"),
    "tests/ops/test_registration.py": lambda op: (
        said(rf"^    \"{op}\": \(\[", "tests/ops/test_registration.py")
    ),
    "tests/cuda/test_emulated_<op>.py": lambda op: said(rf"\.{op}\(", "tests/cuda/test_emulated_*.py"),
    "tests/cuda/test_cuda.py": lambda op: said(rf"\.{op}\b", "tests/cuda/test_cuda.py"),
    "bench/": lambda op: said(rf"op=\"{op}\"", "bench/*comparisons.py"),
    "docs/kernels.md": lambda op: said(rf"^## .*\b{op}\b", "docs/kernels.md"),
}  # fmt: skip


def test_the_operators_are_found() -> None:
    assert {"perturb", "concept_cross_entropy", "project_simplex", "update_distribution"} <= set(
        OPERATORS
    )


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("op", OPERATORS)
def test_no_step_is_missing(op: str, step: str) -> None:
    assert STEPS[step](op), f"{op}: {step} is missing; see CONTRIBUTING.md, A new operator"


@pytest.mark.parametrize("op", OPERATORS)
def test_docstrings_say_what_a_user_must_know(op: str) -> None:
    text = inspect.getdoc(getattr(ops, op)) or ""
    missing = [what for what, words in DOCSTRING.items() if not re.search(words, text, re.DOTALL)]
    assert missing == []


@pytest.mark.parametrize("step", STEPS)
def test_the_steps_notice_an_operator_that_is_not_there(step: str) -> None:
    assert not STEPS[step]("rank_examples")


def test_the_steps_are_those_of_the_document() -> None:
    """Every step stands in the numbered list, in this order, and every number has a step."""
    text = (ROOT / "CONTRIBUTING.md").read_text()
    section = text.split("## A new operator")[1].split("\n## ")[0]
    places = [section.find(f"`{step}`") for step in STEPS]
    assert -1 not in places, [step for step, at in zip(STEPS, places, strict=True) if at == -1]
    assert places == sorted(places)
    numbers = [match.start() for match in re.finditer(r"^\d+\. ", section, re.MULTILINE)]
    for begin, end in zip(numbers, [*numbers[1:], len(section)], strict=True):
        assert any(begin < place < end for place in places), section[begin:end]
