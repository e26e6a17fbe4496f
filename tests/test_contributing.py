"""No operator, recipe, attack, corruption or source lacks one of the steps that CONTRIBUTING.md lists."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from test_house import METHODS, WITHOUT_RECIPE

from hrrl_ext import ops
from hrrl_ext.evaluation import attacks
from hrrl_ext.evaluation.corruptions import CORRUPTIONS, EXTRA_CORRUPTIONS

ROOT = Path(__file__).resolve().parent.parent
SCHEMAS = ROOT / "csrc" / "ops.cpp"

pytestmark = pytest.mark.skipif(not SCHEMAS.exists(), reason="needs the source tree")

# One that begins with _ is for a gradient alone: nobody else calls it.
OPERATORS = re.findall(r'"([a-z]\w*)\(Tensor', SCHEMAS.read_text()) if SCHEMAS.exists() else []
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


Steps = dict[str, Callable[[str], bool]]
"""By what CONTRIBUTING.md calls them, in its order. A file may serve several of a kind."""

OPERATOR_STEPS: Steps = {
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

ROOM = {"robust": "HRRL", "retrieval": "Retrieval", "contrastive": "URRL"}
"""What the pages call the method of a room."""

RECIPE_STEPS: Steps = {
    "docs/algorithm.md": lambda room: said(rf"hrrl_ext/{room}/recipe\.py", "docs/algorithm.md"),
    "hrrl_ext/<room>/config.py": lambda room: (
        said(r"^@dataclass\(frozen=True, kw_only=True\)$", f"hrrl_ext/{room}/config.py")
    ),
    "hrrl_ext/<room>/recipe.py": lambda room: (
        said(r"^class \w+\(Recipe\):$", f"hrrl_ext/{room}/recipe.py")
    ),
    "hrrl_ext/<room>/trainer.py": lambda room: (
        said(r"^class \w+Trainer\(Trainer\):$", f"hrrl_ext/{room}/trainer.py")
    ),
    "tests/test_house.py": lambda room: room in METHODS,
    "tests/<room>/": lambda room: said(r"^def test_", f"tests/{room}/test_*.py"),
    "tests/training/test_resume.py": lambda room: (
        said(rf"\b{ROOM.get(room, room)}Trainer\(", "tests/training/test_resume.py")
    ),
    "bench/test_training_step.py": lambda room: (
        said(rf"\b{ROOM.get(room, room)}Trainer\(", "bench/*.py")
    ),
}  # fmt: skip

ATTACKS = ["fgsm", "pgd", "apgd", "square"]
ATTACK_STEPS: Steps = {
    "hrrl_ext/evaluation/attacks/<attack>.py": lambda name: (
        said(rf"^def {name}\($", "hrrl_ext/evaluation/attacks/*.py")
    ),
    "hrrl_ext/evaluation/attacks/__init__.py": lambda name: name in attacks.__all__,
    "hrrl_ext/evaluation/attacks/worst_case.py": lambda name: (
        said(rf"\b{name}\(", "hrrl_ext/evaluation/attacks/worst_case.py")
    ),
    "tests/evaluation/attacks/": lambda name: said(rf"\b{name}\(", "tests/evaluation/attacks/test_*.py"),
    "docs/attacks.md": lambda name: said(rf"^\| `{name}`", "docs/attacks.md"),
}  # fmt: skip

CORRUPTION_STEPS: Steps = {
    "hrrl_ext/evaluation/corruptions/<kind of cause>.py": lambda kind: (
        said(rf"^def {kind}\(", "hrrl_ext/evaluation/corruptions/*.py")
    ),
    "hrrl_ext/evaluation/corruptions/severities.py": lambda kind: (
        said(rf"\b_{kind.upper()}(_32)?\b", "hrrl_ext/evaluation/corruptions/severities.py")
    ),
    "hrrl_ext/evaluation/corruptions/kinds.py": lambda kind: kind in CORRUPTIONS + EXTRA_CORRUPTIONS,
    "tests/evaluation/corruptions/": lambda kind: (
        said(rf"\b{kind}\b", "tests/evaluation/corruptions/test_*.py")
    ),
    "docs/corruptions.md": lambda kind: said(rf"^\| `{kind}`", "docs/corruptions.md"),
}  # fmt: skip

SOURCES = ["archives", "folders", "hub_sets", "lists", "shards", "torchvision_sets"]
SOURCE_ROW = {
    "archives": r"^\| .*\.npz",
    "folders": r"^\| a folder",
    "hub_sets": r"^\| .*hf:",
    "lists": r"^\| .*\.csv",
    "shards": r"^\| .*wds:",
    "torchvision_sets": r"^\| .*torchvision:",
}
SOURCE_STEPS: Steps = {
    "hrrl_ext/data/<source>.py": lambda name: said(r"^(class \w+\(.*Images\)|def open_)", f"hrrl_ext/data/{name}.py"),
    "hrrl_ext/data/sources.py": lambda name: said(rf"^from \.{name} import", "hrrl_ext/data/sources.py"),
    "tests/data/test_<source>.py": lambda name: said(r"^def test_", f"tests/data/test_{name}.py"),
    "docs/data.md": lambda name: said(SOURCE_ROW.get(name, rf"^\|.*{name}"), "docs/data.md"),
}  # fmt: skip


@dataclass(frozen=True)
class Kind:
    """of things that are added by a list of steps"""

    section: str
    steps: Steps
    members: list[str]

    def __str__(self) -> str:
        return self.section.removeprefix("A new ")


KINDS = [
    Kind("A new operator", OPERATOR_STEPS, OPERATORS),
    Kind("A new recipe", RECIPE_STEPS, sorted(METHODS - WITHOUT_RECIPE)),
    Kind("A new attack", ATTACK_STEPS, ATTACKS),
    Kind("A new corruption", CORRUPTION_STEPS, [*CORRUPTIONS, *EXTRA_CORRUPTIONS]),
    Kind("A new source of images", SOURCE_STEPS, SOURCES),
]


def test_the_operators_are_found() -> None:
    assert {"perturb", "concept_cross_entropy", "project_simplex", "update_distribution"} <= set(
        OPERATORS
    )


@pytest.mark.parametrize(
    ("kind", "step"), [(kind, step) for kind in KINDS for step in kind.steps], ids=str
)
def test_no_step_is_missing(kind: Kind, step: str) -> None:
    missing = [name for name in kind.members if not kind.steps[step](name)]
    assert not missing, f"{step} is missing for {missing}; see CONTRIBUTING.md, {kind.section}"


@pytest.mark.parametrize(
    ("kind", "step"), [(kind, step) for kind in KINDS for step in kind.steps], ids=str
)
def test_the_steps_notice_what_is_not_there(kind: Kind, step: str) -> None:
    assert not kind.steps[step]("rank_examples")


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_the_steps_are_those_of_the_document(kind: Kind) -> None:
    """Every step stands in the numbered list, in this order, and every number has a step."""
    text = (ROOT / "CONTRIBUTING.md").read_text()
    section = text.split(f"## {kind.section}")[1].split("\n## ")[0]
    section = section[section.index("\n1. ") :]
    places = [section.find(f"`{step}`") for step in kind.steps]
    assert -1 not in places, [step for step, at in zip(kind.steps, places, strict=True) if at == -1]
    assert places == sorted(places)
    numbers = [match.start() for match in re.finditer(r"^\d+\. ", section, re.MULTILINE)]
    for begin, end in zip(numbers, [*numbers[1:], len(section)], strict=True):
        assert any(begin < place < end for place in places), section[begin:end]


@pytest.mark.parametrize("op", OPERATORS)
def test_docstrings_say_what_a_user_must_know(op: str) -> None:
    text = inspect.getdoc(getattr(ops, op)) or ""
    missing = [what for what, words in DOCSTRING.items() if not re.search(words, text, re.DOTALL)]
    assert missing == []


# --- commits


def test_what_a_commit_must_say() -> None:
    from commit_subject import faults

    assert faults("training: one loop for several methods\n\nSo that a second one can come.") == []
    assert faults("cli, docs: names are as elsewhere\n\nThey differed.\n# a comment of git") == []
    assert faults("Merge branch 'x'") == []
    for message, fault in (
        ("", "`area: what changes`"),
        ("Fixed things\n\nwhy", "`area: what changes`"),
        ("training: " + "x" * 63 + "\n\nwhy", "73 characters, at most 72"),
        ("training: x\nwhy", "second line must be empty"),
        ("training: x\n\n# only a comment", "a body must say why"),
    ):
        assert any(fault in found for found in faults(message)), message
