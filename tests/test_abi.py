"""One binary for every torch from 2.10 on: the library as built here runs under other torches.

    make test-abi

makes virtual environments with the oldest supported torch and the newest one (several GB, so this is
no part of `make test`), names their interpreters in HRRL_OTHER_PYTHONS, and runs this file.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

import hrrl_ext

ROOT = Path(__file__).resolve().parent.parent
OTHERS = [p for p in os.environ.get("HRRL_OTHER_PYTHONS", "").split(os.pathsep) if p]

pytestmark = pytest.mark.slow

FACTS = """
import sysconfig
print(sysconfig.get_config_var("EXT_SUFFIX"))
import torch, hrrl_ext
print(torch.__version__)
print(hrrl_ext.__file__)
print(hrrl_ext.build_info()["torch_headers"])
"""


def run(python: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """In an environment that has torch, but not the package: it comes from here."""
    environment = os.environ | {"PYTHONPATH": str(Path(hrrl_ext.__file__).parents[1])}
    return subprocess.run(
        [python, *arguments], capture_output=True, text=True, env=environment, cwd=ROOT
    )


@pytest.mark.skipif(not OTHERS, reason="HRRL_OTHER_PYTHONS names no interpreter; see make test-abi")
@pytest.mark.parametrize("python", OTHERS)
def test_the_same_binary_under_another_torch(python: str) -> None:
    facts = run(python, "-c", FACTS)
    suffix, *rest = facts.stdout.split()
    assert suffix == sysconfig.get_config_var("EXT_SUFFIX"), (
        f"{python} is another Python than {sys.executable}: build_info is tied to one, torch is not"
    )
    assert facts.returncode == 0, facts.stderr
    version, file, headers = rest
    assert file == hrrl_ext.__file__
    print(f"built with torch {headers}, running under {version}")
    done = run(
        python,
        *("-m", "pytest", "-q", "-p", "no:cacheprovider"),
        *("-m", "not slow and not gpu", "tests/ops", "tests/robust"),
    )
    assert done.returncode == 0, f"torch {version}:\n{done.stdout[-4000:]}{done.stderr[-2000:]}"
    assert " passed" in done.stdout


def test_a_library_that_does_not_load_is_explained(tmp_path: Path) -> None:
    """As under a torch that lacks a symbol: the error names the library, torch and the way out."""
    shutil.copytree(Path(hrrl_ext.__file__).parent, tmp_path / "hrrl_ext")
    (tmp_path / "hrrl_ext" / "libhrrl_ops.so").write_bytes(b"not a library")
    done = subprocess.run(
        [sys.executable, "-c", "import hrrl_ext"],
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": str(tmp_path)},
        cwd=tmp_path,
    )
    assert done.returncode != 0
    assert "ImportError: hrrl_ext: cannot load" in done.stderr
    assert "with torch" in done.stderr and "pip install -e ." in done.stderr
