"""The tests and benchmarks of the operators need no more than a machine with a GPU often has."""

from __future__ import annotations

import importlib.metadata
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
# What bench/device_check.py counts on. Not among them: jsonargparse, entmax, torchvision, timm, lightning,
# accelerate, tensorboard, torchmetrics.
PACKAGES = [
    "torch",
    "triton",
    "numpy",
    "scikit-learn",
    "scipy",
    "pytest",
    "pytest-benchmark",
    "pytest-xdist",
    "hypothesis",
    "safetensors",
    "rich",
    "pybind11",
    "ninja",
    "cmake",
    "setuptools",
    "pillow",
    "matplotlib",
]
# Finders are asked in order: this one, the first, refuses what is installed beyond the list.
BLOCK = """
import importlib.abc, importlib.metadata, sys
blocked = set({blocked!r})
class Refuse(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in blocked:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)
sys.meta_path.insert(0, Refuse())
"""


def _with_requirements(names: list[str]) -> set[str]:
    """Those that are installed, and whatever they need; normalised names."""
    found: set[str] = set()
    left = list(names)
    while left:
        name = _normal(left.pop())
        try:
            needs = importlib.metadata.requires(name) or []
        except importlib.metadata.PackageNotFoundError:
            continue
        if name not in found:
            found.add(name)
            left += [
                re.split(r"[\s;\[<>=!~(]", need)[0] for need in needs if "extra ==" not in need
            ]
    return found


def _normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def _blocked() -> list[str]:
    """The modules of all other installed packages."""
    kept = _with_requirements(PACKAGES) | {"hrrl-ext", "pip", "coverage"}
    owners = importlib.metadata.packages_distributions()
    return sorted(
        module
        for module, packages in owners.items()
        if not kept & {_normal(package) for package in packages}
    )


def run(code: str) -> subprocess.CompletedProcess[str]:
    paths = [ROOT / "bench", ROOT / "tests", Path(__import__("hrrl_ext").__file__).parents[1]]
    environment = {k: v for k, v in os.environ.items() if not k.startswith("PYTEST_")}
    environment |= {"PYTHONPATH": os.pathsep.join(map(str, paths))}
    return subprocess.run(
        [sys.executable, "-c", BLOCK.format(blocked=_blocked()) + code],
        capture_output=True, text=True, cwd=ROOT, env=environment,
    )  # fmt: skip


def test_the_list_leaves_out_what_is_not_there() -> None:
    blocked = set(_blocked())
    assert not blocked & {
        "torch",
        "numpy",
        "sklearn",
        "pytest",
        "rich",
        "sympy",
        "pluggy",
        "joblib",
    }
    installed = importlib.metadata.packages_distributions()
    assert {"jsonargparse", "lightning", "torchmetrics"} & set(installed) <= blocked
    done = run("import yaml, jsonargparse")
    assert "ModuleNotFoundError: No module named" in done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("where", ["tests", "bench"])
def test_all_is_collected(where: str) -> None:
    done = run(
        "import pytest, sys\n"
        f"sys.exit(pytest.main(['--collect-only', '-q', '-p', 'no:cacheprovider', {where!r}]))"
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert "tests collected" in done.stdout


def test_the_stages_of_the_device_check_are_imported() -> None:
    names = sorted(path.stem for path in (ROOT / "bench/device").glob("[!_]*.py"))
    assert {"measure", "training", "transfer", "run"} <= set(names)
    done = run("import device_check\n" + "".join(f"import device.{name}\n" for name in names))
    assert done.returncode == 0, done.stderr


def test_the_parent_of_the_stages_needs_neither_torch_nor_the_build() -> None:
    code = "import sys, device_check\nassert not {'torch', 'hrrl_ext', 'numpy'} & set(sys.modules)"
    done = run(code)
    assert done.returncode == 0, done.stderr
