"""Drives CMakeLists.txt, which holds the whole native build; metadata is in pyproject.toml."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).resolve().parent


class CMakeBuild(build_ext):
    """Configures, builds and installs into the source tree (editable) or the wheel."""

    def run(self) -> None:
        import pybind11

        for tool in ("cmake", "ninja"):
            if shutil.which(tool) is None:
                raise SystemExit(
                    f"building hrrl_ext needs {tool}; install it with: pip install {tool}"
                )
        prefix = ROOT if self.editable_mode or self.inplace else Path(self.build_lib).resolve()
        # One build folder per interpreter, kept between runs: a second install compiles what changed.
        build = ROOT / "build" / f"cmake-{sys.implementation.cache_tag}"
        # Under build isolation the tools have another path on every run; an old cache must not decide.
        configure = [
            "cmake",
            *("-S", str(ROOT), "-B", str(build), "-G", "Ninja"),
            f"-DCMAKE_MAKE_PROGRAM={shutil.which('ninja')}",
            f"-DPython_EXECUTABLE={sys.executable}",
            f"-Dpybind11_DIR={pybind11.get_cmake_dir()}",
        ]
        for name in ("HRRL_CUDA", "HRRL_CUDA_ARCHS", "HRRL_WERROR"):
            configure.append(f"-D{name}={os.environ[name]}" if name in os.environ else f"-U{name}")
        subprocess.run(configure, check=True)
        jobs = os.environ.get("CMAKE_BUILD_PARALLEL_LEVEL", str(os.cpu_count() or 1))
        subprocess.run(["cmake", "--build", build, "--parallel", jobs], check=True)
        subprocess.run(["cmake", "--install", build, "--prefix", prefix], check=True)


setup(
    ext_modules=[Extension("hrrl_ext._C", sources=[])],
    cmdclass={"build_ext": CMakeBuild},
)
