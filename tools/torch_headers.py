"""The headers of another torch, to compile the native code against.

    python tools/torch_headers.py 2.10 FOLDER     # FOLDER/include

A wheel of torch for Linux has several GB with what it needs, one for macOS some 80 MB and the same
headers: of those that csrc/ includes every file is equal, byte by byte (compared for 2.13).
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

PLATFORMS = ("macosx_11_0_arm64", "macosx_14_0_arm64")  # torch's oldest macOS has risen
INCLUDE = "torch/include/"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("version", help="of torch, two numbers: 2.10")
    parser.add_argument("folder", type=Path, help="to make; it is complete when it exists")
    args = parser.parse_args()
    args.folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=args.folder.parent) as scratch:
        wheel = download(args.version, Path(scratch))
        unpacked = Path(scratch) / "torch"
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(
                scratch, [name for name in archive.namelist() if name.startswith(INCLUDE)]
            )
        unpacked.rename(args.folder)


def download(version: str, folder: Path) -> Path:
    command = [
        *(sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(folder)),
        *("--only-binary", ":all:", "--implementation", "cp", "--python-version", "3.12"),
        *(f"--platform={platform}" for platform in PLATFORMS),
        f"torch=={version}.*",
    ]
    if subprocess.run(command).returncode != 0:
        raise SystemExit(
            f"torch_headers: pip found no wheel of torch {version} for macOS; without a network, run "
            "the tests by make test-fast, which leaves out what needs these headers"
        )
    (wheel,) = folder.glob("torch-*.whl")
    return wheel


if __name__ == "__main__":
    main()
