"""The package as a user installs it: light to import, one binary for many torches, open about itself."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import hrrl_ext

PACKAGE = Path(hrrl_ext.__file__).parent
LIBRARIES = sorted(PACKAGE.glob("libhrrl_ops*.so"))


def test_import_is_light() -> None:
    heavy = ("torchvision", "sklearn", "matplotlib", "PIL", "rich", "jsonargparse", "yaml")
    code = f"import sys, hrrl_ext; print([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_every_public_name_exists_and_is_explained() -> None:
    for name in hrrl_ext.__all__:
        value = getattr(hrrl_ext, name)
        assert name == "__version__" or value.__doc__, name
    assert set(hrrl_ext.__all__) <= set(dir(hrrl_ext))
    with pytest.raises(AttributeError, match="no attribute 'HRRLTrainr'"):
        _ = hrrl_ext.HRRLTrainr


def test_build_info() -> None:
    info = hrrl_ext.build_info()
    assert info["torch_target"] == "2.10"
    assert re.match(r"\w+ \d+", info["compiler"])
    assert info["cpu_in_use"] in ("baseline", "avx2", "avx512")
    assert (info["cuda"] is None) == (info["cuda_architectures"] == "")
    assert (PACKAGE / "libhrrl_ops_cuda.so").exists() == (info["cuda"] is not None)


@pytest.mark.skipif(shutil.which("nm") is None, reason="needs binutils")
@pytest.mark.parametrize("library", LIBRARIES, ids=lambda path: path.stem)
def test_uses_the_stable_abi_only(library: Path) -> None:
    """What a library takes from torch are C functions of the stable shim, and none of Python's."""
    symbols = subprocess.run(
        ["nm", "-D", "--undefined-only", str(library)], capture_output=True, text=True, check=True
    ).stdout.split()
    foreign = [s for s in symbols if re.search(r"N?2at\d|3c10|5torch|^Py|^_Py", s)]
    assert foreign == []
    assert any(s.startswith(("aoti_torch_", "torch_")) for s in symbols)


@pytest.mark.skipif(shutil.which("readelf") is None, reason="needs binutils")
@pytest.mark.parametrize("library", LIBRARIES, ids=lambda path: path.stem)
def test_finds_torch_by_name_alone(library: Path) -> None:
    """The loader must take the torch that is imported: its name is needed, no path is recorded."""
    dynamic = subprocess.run(
        ["readelf", "-d", str(library)], capture_output=True, text=True, check=True
    ).stdout
    assert "libtorch_cpu.so" in dynamic
    assert ("libtorch_cuda.so" in dynamic) == library.stem.endswith("cuda")
    assert "RPATH" not in dynamic
    assert "RUNPATH" not in dynamic
