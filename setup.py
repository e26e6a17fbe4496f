"""Drives CMakeLists.txt, which holds the whole native build; metadata is in pyproject.toml."""

import importlib.util
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import setuptools
from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).resolve().parent
OLDEST_SETUPTOOLS = (65, 5)
WITHOUT_WHEEL = (70, 1)  # the first that needs no package of that name


def check_setuptools() -> None:
    """Without build isolation nobody else compares versions, and setuptools fails in its own words."""
    found = tuple(int(part) for part in re.findall(r"\d+", setuptools.__version__)[:2])
    if found < OLDEST_SETUPTOOLS:
        raise SystemExit(
            f"building hrrl_ext needs setuptools {'.'.join(map(str, OLDEST_SETUPTOOLS))} or newer, found "
            f"{setuptools.__version__}; install it with: pip install --upgrade setuptools"
        )
    # egg_info asks what the build needs, and runs before an isolated build has it.
    if (
        found < WITHOUT_WHEEL
        and "egg_info" not in sys.argv
        and not importlib.util.find_spec("wheel")
    ):
        raise SystemExit(
            f"building hrrl_ext with setuptools {setuptools.__version__} needs the package wheel, which "
            "newer ones do without; install it with: pip install wheel"
        )


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


check_setuptools()
# The licence stands here because pyproject.toml has two ways to say it: before setuptools 77 the one is
# an error, after it the other is deprecated.
setup(
    license="Apache-2.0",
    license_files=[
        "LICENSE",
        "hrrl_ext/data/WORDNET-LICENSE.txt",
        "hrrl_ext/retrieval/embedded/NOTO-LICENSE.txt",
        "hrrl_ext/retrieval/embedded/UNICODE-LICENSE.txt",
    ],
    ext_modules=[Extension("hrrl_ext._C", sources=[])],
    cmdclass={"build_ext": CMakeBuild},
)
