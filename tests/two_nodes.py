"""Two machines, as two network namespaces of one host with a cable between them: a training over both, the second
killed in the middle, resumed to the same bits. ``make test-nodes``; needs root and iproute2.

A node has a process of torchrun, which starts one of ours; they meet by c10d at the first node's address.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

ADDRESS = ("10.77.21.1", "10.77.21.2")
PORT = 29521
TRAINING = [
    *("--data", "digits", "--concepts", "classes", "--model", "convnet", "--width", "4"),
    *(
        "--epochs",
        "8",
        "--batch_size",
        "64",
        "--lr",
        "0.05",
        "--crop_padding",
        "1",
        "--device",
        "cpu",
    ),
    *("--progress", "plain", "--checkpoint_every", "5"),
]
PATIENCE = 600  # seconds, for the slowest host


def main() -> int:
    if os.geteuid() != 0 or shutil.which("ip") is None:
        print("not run: network namespaces need root and iproute2", file=sys.stderr)
        return 2
    with tempfile.TemporaryDirectory() as folder, namespaces() as names:
        whole, cut = Path(folder) / "whole", Path(folder) / "cut"
        wait(start(names, whole), [0, 0])

        nodes = start(names, cut)
        until(lambda: len(list(cut.glob("checkpoints/step-*"))) >= 1)
        os.killpg(nodes[1].pid, signal.SIGKILL)  # as a machine that stops
        killed = time.monotonic()
        nodes[1].wait()
        status = nodes[0].wait(PATIENCE)
        took = time.monotonic() - killed
        steps = sorted(path.name for path in cut.glob("checkpoints/step-*"))
        assert status != 0 and not (cut / "results.json").exists(), "it was through before the kill"
        print(f"killed with {steps}; the other node ended {took:.1f} s later, with status {status}")

        wait(start(names, cut, "--resume"), [0, 0])
        one, other = (weights(out) for out in (whole, cut))
        assert one[0] == other[0] and all(torch.equal(one[1][n], other[1][n]) for n in one[1])
        print(f"{one[0]} of a run that was resumed and of one that was not: the same bits")
    return 0


@contextmanager
def namespaces() -> Iterator[list[str]]:
    """Their names; each end of the cable is called cable."""
    names = [f"hrrl-{os.getpid()}-{node}" for node in range(2)]
    try:
        for name in names:
            ip("netns", "add", name)
        ends = ["type", "veth", "peer", "name", "cable", "netns", names[1]]
        ip("link", "add", "cable", "netns", names[0], *ends)
        for name, address in zip(names, ADDRESS, strict=True):
            ip("-n", name, "address", "add", f"{address}/24", "dev", "cable")
            for device in ("lo", "cable"):
                ip("-n", name, "link", "set", device, "up")
        yield names
    finally:
        for name in names:
            found = subprocess.run(["ip", "netns", "pids", name], check=False, capture_output=True)
            for pid in map(int, found.stdout.split()):  # where something went wrong
                os.kill(pid, signal.SIGKILL)
            subprocess.run(["ip", "netns", "del", name], check=False, capture_output=True)


def ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True)


def start(names: list[str], out: Path, *more: str) -> list[subprocess.Popen[bytes]]:
    """torchrun on each node, in a process group of its own."""
    root = str(Path(__file__).resolve().parent.parent)
    environment = os.environ | {
        "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "cable",
        "PYTHONPATH": os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH")])),
    }  # fmt: skip
    nodes = []
    for node, (name, address) in enumerate(zip(names, ADDRESS, strict=True)):
        launcher = ["-m", "torch.distributed.run", "--nnodes", "2", "--nproc-per-node", "1"]
        launcher += ["--rdzv-backend", "c10d", "--rdzv-endpoint", f"{ADDRESS[0]}:{PORT}"]
        launcher += ["--rdzv-id", out.name + "".join(more), "--local-addr", address]
        launcher += [
            "--rdzv-conf",
            f"is_host={int(node == 0)}",
        ]  # without names of hosts to tell by
        command = ["ip", "netns", "exec", name, sys.executable, *launcher]
        command += ["-m", "hrrl_ext", "train", *TRAINING, "--out", str(out), *more]
        nodes.append(subprocess.Popen(command, env=environment, start_new_session=True))
    return nodes


def wait(nodes: list[subprocess.Popen[bytes]], expected: list[int]) -> None:
    found = [node.wait(PATIENCE) for node in nodes]
    assert found == expected, found


def until(done: Callable[[], bool]) -> None:
    end = time.monotonic() + PATIENCE
    while not done():
        assert time.monotonic() < end, f"nothing happened for {PATIENCE} s"
        time.sleep(0.02)


def weights(out: Path) -> tuple[str, dict[str, Tensor]]:
    newest = sorted((out / "checkpoints").glob("step-*"))[-1]
    return newest.name, load_file(newest / "model.safetensors")


if __name__ == "__main__":
    raise SystemExit(main())
