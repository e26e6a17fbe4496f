"""The package as a user installs it: light to import, one binary for many torches, open about itself."""

from __future__ import annotations

import ast
import importlib
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
        _ = hrrl_ext.HRRLTrainr  # type: ignore[attr-defined]


def test_type_checkers_see_every_public_name() -> None:
    """Without the imports that only they read, a name would be Any to them, and its misuse no error."""
    (block,) = (
        node
        for node in ast.parse((PACKAGE / "__init__.py").read_text()).body
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
    )
    seen = set()
    for statement in block.body:
        assert isinstance(statement, ast.ImportFrom)
        for name in statement.names:
            seen.add(name.asname)
            module = importlib.import_module(f"hrrl_ext.{statement.module or name.name}")
            given = getattr(module, name.name) if statement.module else module
            assert given is getattr(hrrl_ext, name.name)
    assert seen == set(hrrl_ext.__all__) - {"__version__", "build_info", "ops"}


@pytest.mark.skipif(not (PACKAGE.parent / "setup.py").exists(), reason="needs the source tree")
def test_data_is_in_the_wheel_and_in_the_source_distribution(tmp_path: Path) -> None:
    code = {".py", ".pyi", ".pyc", ".so"}
    data = {
        str(path.relative_to(PACKAGE.parent))
        for path in PACKAGE.rglob("*")
        if path.is_file() and path.suffix not in code
    }
    assert "hrrl_ext/retrieval/embedded/images.npz" in data
    commands = ["egg_info", "--egg-base", str(tmp_path), "build_py", "--build-lib", str(tmp_path)]
    subprocess.run(
        [sys.executable, "setup.py", "-q", *commands],
        cwd=PACKAGE.parent,
        capture_output=True,
        check=True,
    )
    assert {path for path in data if not (tmp_path / path).is_file()} == set()
    listed = (tmp_path / "hrrl_ext.egg-info" / "SOURCES.txt").read_text().splitlines()
    assert data - set(listed) == set()


def test_build_info() -> None:
    info = hrrl_ext.build_info()
    assert info["torch_target"] == "2.10"
    assert re.match(r"\w+ \d+", info["compiler"])
    assert info["cpu_in_use"] in ("baseline", "avx2", "avx512")
    assert (info["cuda"] is None) == (info["cuda_architectures"] == "")
    assert (PACKAGE / "libhrrl_ops_cuda.so").exists() == (info["cuda"] is not None)


# What the libraries take from torch, all in the stable C shim since torch 2.10 (its headers:
# torch/csrc/stable/c/shim.h, torch/csrc/inductor/aoti_torch/c/shim.h). A name that is not here needs a
# decision: is it in the shim of the oldest torch we support, and is there no older way?
SHIM = {
    "aoti_torch_abi_version": "which torch is running, asked by the headers of the stable ABI",
    "aoti_torch_delete_library_object": "registration of operators",
    "aoti_torch_library_def": "registration of operators",
    "aoti_torch_library_init_def": "registration of operators",
    "aoti_torch_library_init_impl": "registration of operators",
    "torch_library_impl": "registration of operators",
    "aoti_torch_delete_tensor_object": "a tensor's lifetime",
    "aoti_torch_new_tensor_handle": "a tensor's lifetime",
    "aoti_torch_empty_strided": "outputs, straight from the allocator (csrc/common/tensor.h)",
    "aoti_torch_get_data_ptr": "facts about a tensor",
    "aoti_torch_get_device_index": "facts about a tensor",
    "aoti_torch_get_device_type": "facts about a tensor",
    "aoti_torch_get_dim": "facts about a tensor",
    "aoti_torch_get_dtype": "facts about a tensor",
    "aoti_torch_get_numel": "facts about a tensor",
    "aoti_torch_get_size": "facts about a tensor",
    "aoti_torch_get_sizes": "facts about a tensor",
    "aoti_torch_get_stride": "facts about a tensor",
    "aoti_torch_get_strides": "facts about a tensor",
    "aoti_torch_is_contiguous": "facts about a tensor",
    "torch_call_dispatcher": "contiguous, to, copy_, empty_like",
    "torch_parallel_for": "torch's own threads",
    "aoti_torch_create_device_guard": "CUDA: the device of the inputs",
    "aoti_torch_delete_device_guard": "CUDA: the device of the inputs",
    "aoti_torch_get_current_cuda_stream": "CUDA: the current stream",
    "torch_c10_cuda_check_msg": "CUDA: errors of a launch",
    "torch_c10_cuda_free_error_msg": "CUDA: errors of a launch",
}
# Numbers of enumerations, each behind a function: the headers convert all of them or none.
SHIM_ENUMERATION = re.compile(r"aoti_torch_(dtype|device_type|layout|memory_format)_\w+")


@pytest.mark.skipif(shutil.which("nm") is None, reason="needs binutils")
@pytest.mark.parametrize("library", LIBRARIES, ids=lambda path: path.stem)
def test_uses_the_stable_abi_only(library: Path) -> None:
    """What a library takes from torch are the C functions above, and none of Python's."""
    symbols = subprocess.run(
        ["nm", "-D", "--undefined-only", str(library)], capture_output=True, text=True, check=True
    ).stdout.split()
    foreign = [s for s in symbols if re.search(r"N?2at\d|3c10|5torch|^Py|^_Py", s)]
    assert foreign == []
    shim = {s for s in symbols if s.startswith(("aoti_torch_", "torch_"))}
    assert shim
    undecided = {s for s in shim - set(SHIM) if not SHIM_ENUMERATION.fullmatch(s)}
    assert undecided == set(), "not in the shim as we know it: see SHIM"


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


def test_a_release_is_marked_and_tried_by_the_example_of_the_readme(tmp_path: Path) -> None:
    """tools/release.py itself, which builds and installs, takes minutes."""
    import release

    module = tmp_path / "__init__.py"
    module.write_text((PACKAGE / "__init__.py").read_text())
    release.mark_version(module, "+cu130")
    assert f'\n__version__ = "{hrrl_ext.__version__}+cu130"\n' in module.read_text()
    module.write_text("version = 1\n")
    with pytest.raises(SystemExit, match="expected one line"):
        release.mark_version(module, "+cu130")
    assert "HRRLTrainer(" in release.readme_example()


def test_one_version() -> None:
    """pyproject.toml reads it from the package; what was installed says the same."""
    from importlib.metadata import version

    assert version("hrrl_ext") == hrrl_ext.__version__
