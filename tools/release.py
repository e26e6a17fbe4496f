"""The source distribution and the wheels of a release, built from HEAD and tried as a user would.

    python tools/release.py                                    # this Python, CPU
    python tools/release.py --python PY312 --cuda              # more Pythons; kernels for CUDA too
    python tools/release.py --torch "torch==2.10.*" torch      # what the wheels are tried under

Every --python is an interpreter of an environment that holds what the build needs ([build-system] in
pyproject.toml). The wheels are built from the source distribution, so that it builds. Each is then
installed in a new environment, where no compiler is on the path, and trains by the README's example with
every --torch. The wheel with CUDA kernels has the version 1.2.3+cu130.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
COMPILERS = ("cc", "c++", "gcc", "g++", "clang", "nvcc")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, default=ROOT / "dist")
    parser.add_argument("--python", nargs="+", default=[sys.executable], metavar="INTERPRETER")
    parser.add_argument("--cuda", action="store_true", help="wheels with CUDA kernels as well")
    parser.add_argument("--torch", nargs="+", default=["torch==2.10.*", "torch"], metavar="WHICH")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        sdist = build_sdist(Path(folder), args.out)
        print(f"{sdist.name}: {sdist.stat().st_size / 2**20:.1f} MiB", flush=True)
        print("| wheel | MiB | torch | seconds | says |\n| --- | --- | --- | --- | --- |")
        for python in map(interpreter, args.python):
            for cuda in (False, True)[: 1 + args.cuda]:
                wheel = build_wheel(sdist, python, cuda, Path(folder), args.out)
                for torch in args.torch:
                    begun = time.perf_counter()
                    said = tried(wheel, python, torch, Path(folder))
                    size = f"{wheel.stat().st_size / 2**20:.1f}"
                    seconds = f"{time.perf_counter() - begun:.0f}"
                    print(f"| {wheel.name} | {size} | {torch} | {seconds} | {said} |", flush=True)


def interpreter(given: str) -> str:
    """With its whole path: it is called from other folders."""
    found = shutil.which(given)
    if found is None:
        raise SystemExit(f"--python {given}: there is no such program")
    return os.path.abspath(found)


def build_sdist(folder: Path, out: Path) -> Path:
    clone = folder / "clone"
    run("git", "clone", "--quiet", "--no-hardlinks", str(ROOT), str(clone), cwd=folder)
    hook = "import sys; from setuptools.build_meta import build_sdist; build_sdist(sys.argv[1])"
    run(sys.executable, "-c", hook, str(folder / "sdist"), cwd=clone)
    (sdist,) = (folder / "sdist").glob("*.tar.gz")
    return Path(shutil.copy2(sdist, out))


def build_wheel(sdist: Path, python: str, cuda: bool, folder: Path, out: Path) -> Path:
    with tempfile.TemporaryDirectory(dir=folder) as at:
        with tarfile.open(sdist) as archive:
            archive.extractall(at, filter="data")
        (source,) = Path(at).iterdir()
        if cuda:
            mark_version(source / "hrrl_ext" / "__init__.py", f"+cu{cuda_release()}")
        built, environment = Path(at, "wheel"), {"HRRL_CUDA": "ON" if cuda else "OFF"}
        pip = [python, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation"]
        run(*pip, "--wheel-dir", str(built), ".", cwd=source, environment=environment)
        (wheel,) = built.glob("*.whl")
        # The name of the oldest system that it runs on. torch's libraries are torch's to bring.
        auditwheel = [sys.executable, "-m", "auditwheel", "repair", "--wheel-dir", str(at)]
        foreign = [f"--exclude={name}*" for name in ("libtorch", "libc10", "libcuda")]
        run(*auditwheel, *foreign, str(wheel), cwd=source)
        (wheel,) = Path(at).glob("*.whl")
        return Path(shutil.copy2(wheel, out))


def mark_version(module: Path, label: str) -> None:
    text, count = re.subn(
        r'^(__version__ = "[^"]+)"', rf'\1{label}"', module.read_text(), flags=re.M
    )
    if count != 1:
        raise SystemExit(f'{module}: expected one line __version__ = "...", found {count}')
    module.write_text(text)


def cuda_release() -> str:
    found = re.search(r"release (\d+)\.(\d+)", run("nvcc", "--version", cwd=ROOT))
    if found is None:
        raise SystemExit("nvcc --version names no release")
    return found[1] + found[2]


def tried(wheel: Path, python: str, torch: str, folder: Path) -> str:
    """What the README's example prints last, in an environment of the wheel and what it asks for."""
    with tempfile.TemporaryDirectory(dir=folder) as at:
        home = Path(at, "environment")
        run(python, "-m", "venv", str(home), cwd=folder)
        run(str(home / "bin/pip"), "install", "--quiet", torch, str(wheel), cwd=folder)
        alone = {"PATH": str(home / "bin"), "PYTHONPATH": "", "CC": "", "CXX": ""}
        for name in COMPILERS:
            assert shutil.which(name, path=alone["PATH"]) is None, f"{name} came with the wheel"
        run(str(home / "bin/hrrl"), "info", cwd=folder, environment=alone)
        printed = run(
            str(home / "bin/python"), "-c", readme_example(), cwd=Path(at), environment=alone
        )
        return printed.strip().splitlines()[-1]


def readme_example() -> str:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    found = re.search(r"^<!-- example -->\n```python\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)
    assert found is not None
    return found[1]


def run(*command: str, cwd: Path, environment: dict[str, str] | None = None) -> str:
    done = subprocess.run(
        command, cwd=cwd, env=os.environ | (environment or {}), capture_output=True, text=True
    )
    if done.returncode != 0:
        raise SystemExit(f"{' '.join(command)}\n{done.stdout[-3000:]}{done.stderr[-3000:]}")
    return done.stdout


if __name__ == "__main__":
    main()
