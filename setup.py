"""Drives CMakeLists.txt, which holds the whole native build; metadata is in pyproject.toml."""

import os
import subprocess
import sys
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).resolve().parent


class CMakeBuild(build_ext):
    """Configures, builds and installs into the package: the source tree (editable) or the wheel."""

    def run(self) -> None:
        import pybind11

        prefix = ROOT if self.editable_mode or self.inplace else Path(self.build_lib).resolve()
        # One build folder per interpreter, kept between runs: a second install compiles what changed.
        build = ROOT / "build" / f"cmake-{sys.implementation.cache_tag}"
        # Tools under pip's build isolation have a new path on every run, so nothing is taken from an old cache.
        configure = [
            "cmake",
            "--fresh",
            *("-S", str(ROOT), "-B", str(build), "-G", "Ninja"),
            f"-DPython_EXECUTABLE={sys.executable}",
            f"-Dpybind11_DIR={pybind11.get_cmake_dir()}",
        ]
        for name in ("HRRL_CUDA", "HRRL_CUDA_ARCHS", "HRRL_WERROR"):
            if name in os.environ:
                configure.append(f"-D{name}={os.environ[name]}")
        subprocess.run(configure, check=True)
        jobs = os.environ.get("CMAKE_BUILD_PARALLEL_LEVEL", str(os.cpu_count() or 1))
        subprocess.run(["cmake", "--build", build, "--parallel", jobs], check=True)
        subprocess.run(["cmake", "--install", build, "--prefix", prefix], check=True)


setup(
    ext_modules=[Extension("hrrl_ext._C", sources=[])],
    cmdclass={"build_ext": CMakeBuild},
)
