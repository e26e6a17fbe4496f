r"""What nvcc made of the CUDA kernels: registers, spills, instructions, the width of loads.

    python tools/sass.py                            # every kernel of the library, for sm_90
    python tools/sass.py "perturb_\w*kernel<float"  # those whose name, without namespaces, has it
    nvcc -cubin -arch=sm_90 -std=c++17 -Icsrc csrc/cuda/perturb.cu -o perturb.cubin
    python tools/sass.py --library perturb.cubin    # of one file, without a build

It needs no GPU, and compiles nothing: it reads the library as it was built. cuobjdump and nvdisasm come
with CUDA's toolkit, or by `pip install nvidia-cuda-cuobjdump nvidia-cuda-nvdisasm`.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import re
import shutil
import subprocess
import tempfile
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

LIBRARY = Path(__file__).resolve().parent.parent / "hrrl_ext" / "libhrrl_ops_cuda.so"
USE = re.compile(r"Function (\S+):\s*REG:(\d+) STACK:(\d+) SHARED:(\d+) LOCAL:(\d+)")
INSTRUCTION = re.compile(r"^\s*/\*([0-9a-f]{4,})\*/\s+(?:@!?U?P\w+\s+)?([A-Z][\w.]*)(.*?);")
DOUBLE = re.compile(r"D(ADD|MUL|FMA|SETP|MNMX)\b|MUFU\.\w*64|(F2F|I2F|F2I)\S*F64")
LOAD = re.compile(r"LDG\.E(?:\.\w+)*?(?:\.(64|128|U8|S8|U16|S16))?(?:\.\w+)*$")
BYTES = {"128": 16, "64": 8, None: 4, "U16": 2, "S16": 2, "U8": 1, "S8": 1}


@dataclass(frozen=True)
class Kernel:
    name: str
    registers: int
    spilled: int  # bytes of a thread's stack and local memory
    shared: int  # bytes that are static
    instructions: int
    loop: int  # of them in the longest loop
    inner: int  # in the longest that has no loop within
    doubles: int  # of them in double, or between double and another type
    loads: dict[int, int]  # of global memory, by their bytes


def find_tools() -> Path | None:
    """The folder of cuobjdump and nvdisasm: on PATH, beside nvcc, or where pip puts them."""
    found = [Path(p).resolve().parent for p in map(shutil.which, ("cuobjdump", "nvcc")) if p]
    package = importlib.util.find_spec("nvidia")
    for root in (package.submodule_search_locations or []) if package else []:
        found += sorted(Path(root).glob("*/bin"))
    for folder in found:
        if all((folder / tool).exists() for tool in ("cuobjdump", "nvdisasm")):
            return folder
    return None


def kernels(
    pattern: str = "", library: Path = LIBRARY, architecture: str = "sm_90"
) -> list[Kernel]:
    """Of the library, or of a cubin, those whose demangled name has the pattern. None of a library that
    was not compiled for the architecture."""
    folder = find_tools()
    if folder is None:
        raise SystemExit(
            "sass: found no cuobjdump and nvdisasm on PATH, beside nvcc or in the packages of pip; "
            "pip install nvidia-cuda-cuobjdump nvidia-cuda-nvdisasm"
        )
    with tempfile.TemporaryDirectory() as scratch:
        cubins = [library.resolve()]
        if library.suffix != ".cubin":
            call(folder, "-arch", architecture, "-xelf", "all", cubins[0], within=scratch)
            cubins = sorted(Path(scratch).glob("*.cubin"))
        found = [kernel for cubin in cubins for kernel in kernels_of(folder, cubin, pattern)]
    return sorted(found, key=lambda kernel: kernel.name)


def call(folder: Path, *arguments: str | Path, within: str | None = None) -> str:
    """What cuobjdump, which looks for nvdisasm on PATH, says."""
    environment = os.environ | {"PATH": f"{folder}{os.pathsep}{os.environ['PATH']}"}
    command = [folder / "cuobjdump", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=within)
    if done.returncode != 0:
        raise SystemExit(f"sass: cuobjdump cannot read {arguments[-1]}: {done.stderr.strip()}")
    return done.stdout


def kernels_of(folder: Path, cubin: Path, pattern: str) -> list[Kernel]:
    use = {found[1]: found for found in USE.finditer(call(folder, "-res-usage", cubin))}
    plain = subprocess.run(
        ["c++filt"], input="\n".join(use), capture_output=True, text=True, check=True
    )
    lines = plain.stdout.replace("hrrl::cuda::", "").splitlines()
    pairs = zip(use, lines, strict=True)
    names = {symbol: name for symbol, name in pairs if re.search(pattern, name)}
    if not names:
        return []
    code = call(folder, "-sass", "-fun", ",".join(names), cubin)
    parts = re.split(r"^\s*Function : (\S+)\n", code, flags=re.MULTILINE)
    found = []
    for symbol, text in zip(parts[1::2], parts[2::2], strict=True):
        registers, stack, shared, local = map(int, use[symbol].groups()[1:])
        counts = count(text.splitlines())
        found.append(Kernel(names[symbol], registers, stack + local, shared, *counts))
    return found


def count(lines: list[str]) -> tuple[int, int, int, int, dict[int, int]]:
    """The last five of Kernel. Padding is no instruction, and the branch to itself before it no loop."""
    listed = [(int(m[1], 16), m[2], m[3]) for m in map(INSTRUCTION.match, lines) if m]
    listed = [entry for entry in listed if entry[1] != "NOP"]
    loops = set()
    for address, name, operands in listed:
        target = re.search(r"0x([0-9a-f]+)", operands) if name.startswith("BRA") else None
        if target and (begin := int(target[1], 16)) < address:
            loops.add((begin, address))
    sizes = {(begin, end): sum(begin <= at <= end for at, *_ in listed) for begin, end in loops}
    inner = [
        size
        for (begin, end), size in sizes.items()
        if not any((begin, end) != (b, e) and begin <= b and e <= end for b, e in loops)
    ]
    loads = Counter(BYTES[m[1]] for _, name, _ in listed if (m := LOAD.match(name)))
    doubles = sum(bool(DOUBLE.match(name)) for _, name, _ in listed)
    longest = max(sizes.values(), default=0), max(inner, default=0)
    return len(listed), *longest, doubles, dict(sorted(loads.items()))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("pattern", nargs="?", default="", help="of the demangled name; all kernels")
    parser.add_argument("--library", type=Path, default=LIBRARY, help="or a .cubin")
    parser.add_argument("--architecture", default="sm_90")
    args = parser.parse_args()
    print("registers  spilled  shared  instructions  loop  inner  doubles  loads by bytes")
    for k in kernels(args.pattern, args.library, args.architecture):
        loads = ", ".join(f"{n} x {size}" for size, n in k.loads.items())
        print(
            f"{k.registers:9}  {k.spilled:7}  {k.shared:6}  {k.instructions:12}  {k.loop:4}  "
            f"{k.inner:5}  {k.doubles:7}  {loads or '-'}\n    {k.name}"
        )


if __name__ == "__main__":
    main()
