"""CMakeLists.txt and setup.py refuse what they cannot do, and say so; setup.py does with an old setuptools."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent

pytestmark = pytest.mark.skipif(
    not (ROOT / "CMakeLists.txt").exists() or shutil.which("cmake") is None,
    reason="needs the source tree and cmake",
)


def configure(folder: Path, *options: str) -> subprocess.CompletedProcess[str]:
    """CMake with a PATH that has its tools and no nvcc."""
    tools = folder / "tools"
    tools.mkdir()
    for tool in ("cmake", "ninja", "cc", "c++", "ld", "as", "ar", "ranlib"):
        found = shutil.which(tool)
        assert found, tool
        (tools / tool).symlink_to(found)
    environment = {k: v for k, v in os.environ.items() if not k.startswith("CUDA")}
    command = [
        *("cmake", "-S", str(ROOT), "-B", str(folder / "build"), "-G", "Ninja"),
        f"-DPython_EXECUTABLE={sys.executable}",
        *options,
    ]
    return subprocess.run(
        command, env=environment | {"PATH": str(tools)}, capture_output=True, text=True
    )


@pytest.mark.slow
def test_cuda_on_without_nvcc_is_an_error(tmp_path: Path) -> None:
    done = configure(tmp_path, "-DHRRL_CUDA=ON")
    assert done.returncode != 0
    assert "HRRL_CUDA=ON needs nvcc, and none was found" in " ".join(done.stderr.split())


def test_unknown_value(tmp_path: Path) -> None:
    done = configure(tmp_path, "-DHRRL_CUDA=MAYBE")
    assert done.returncode != 0
    assert "HRRL_CUDA must be AUTO, ON or OFF, got MAYBE" in done.stderr


STUB = """
__version__ = "{}"
def Extension(*arguments, **others): ...
def setup(**arguments): print("setup was reached")
"""


@pytest.mark.parametrize(
    ("version", "message"),
    [
        ("64.0.3", "needs setuptools 65.5 or newer, found 64.0.3; install it with: pip install"),
        ("65.5.0", "with setuptools 65.5.0 needs the package wheel"),
        ("70.1.0", None),
        ("100.dev1", None),
    ],
)
def test_old_setuptools(tmp_path: Path, version: str, message: str | None) -> None:
    """Before setuptools reads pyproject.toml, in one line. -S: no package wheel is found."""
    (tmp_path / "setuptools/command").mkdir(parents=True)
    (tmp_path / "setuptools/__init__.py").write_text(STUB.format(version))
    (tmp_path / "setuptools/command/build_ext.py").write_text("class build_ext: ...\n")
    done = subprocess.run(
        [sys.executable, "-S", str(ROOT / "setup.py"), "dist_info"],
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": str(tmp_path)},
    )
    if message is None:
        assert (done.returncode, done.stdout) == (0, "setup was reached\n")
    else:
        assert done.returncode == 1
        assert message in done.stderr and done.stderr.count("\n") == 1


OLDEST_SETUPTOOLS = os.environ.get("HRRL_OLDEST_SETUPTOOLS")


@pytest.mark.skipif(not OLDEST_SETUPTOOLS, reason="HRRL_OLDEST_SETUPTOOLS is not set: make test")
def test_metadata_by_the_oldest_setuptools(tmp_path: Path) -> None:
    """pyproject.toml as images with an older setuptools read it; the licence is not there, which old and new
    ones want in two ways."""
    for file in ("pyproject.toml", "setup.py", "README.md", "LICENSE"):
        shutil.copy(ROOT / file, tmp_path)
    for folder in ("hrrl_ext", "made"):
        (tmp_path / folder).mkdir()
    shutil.copy(ROOT / "hrrl_ext" / "__init__.py", tmp_path / "hrrl_ext")  # has the version
    make = "from setuptools import build_meta as b; b.prepare_metadata_for_build_editable('made')"
    assert OLDEST_SETUPTOOLS
    done = subprocess.run(
        [sys.executable, "-c", "import setuptools; print(setuptools.__version__);" + make],
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": OLDEST_SETUPTOOLS},
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.startswith("65.5")
    (metadata,) = (tmp_path / "made").glob("*/METADATA")
    lines = metadata.read_text().splitlines()
    assert "License: Apache-2.0" in lines
