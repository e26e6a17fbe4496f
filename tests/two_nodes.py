"""Two machines, as two network namespaces of one host with a cable between them: a training over both loses the first
machine, then the cable, at either end, and is then told to stop; each time it ends soon, says why, and goes on to the
same bits as one that nothing happened to. ``make test-nodes``; needs iproute2, and root or namespaces of users.

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
    *("--data=digits", "--concepts=classes", "--model=convnet", "--width=4", "--epochs=8"),
    *("--batch_size=64", "--lr=0.05", "--crop_padding=1", "--device=cpu"),
    *("--progress=plain", "--checkpoint_every=5"),
]
PATIENCE = 300  # seconds, for the slowest host
SILENCE = 6  # after which a machine that does not answer counts as gone
LEFT = "another process of this run left without a word"


def main() -> int:
    if os.geteuid() != 0 or shutil.which("ip") is None:
        print("not run: it needs iproute2, and make test-nodes or root", file=sys.stderr)
        return 2
    with tempfile.TemporaryDirectory() as folder, namespaces() as names:
        whole, cut = Path(folder) / "whole", Path(folder) / "cut"
        for node in start(names, whole):
            assert node.wait(PATIENCE) == 0, said(whole)

        nodes = started(names, cut)
        everywhere(names[0], signal.SIGKILL)  # torchrun as well, which has the store
        took = seconds_until(nodes[1], 30)
        assert f"error: process 1 of 2: {LEFT}" in said(cut, 1), said(cut)
        assert f"The run is saved in {cut}; continue it with resume" in said(cut, 1), said(cut)
        print(f"the first node was killed: the second said so and ended after {took:.1f} s")

        nodes = started(names, cut, "--resume")
        with unplugged(names[1]):
            took = seconds_until(nodes[0], SILENCE + 30)
        assert f"error: process 0 of 2: {LEFT}" in said(cut, 0), said(cut)
        print(f"the second was unplugged: the first said so and ended after {took:.1f} s")

        nodes = started(names, cut, "--resume")
        with unplugged(names[0]):  # which has the store
            begun = time.monotonic()
            until(lambda: f"error: process 1 of 2: {LEFT}" in said(cut, 1), 2 * SILENCE + 30)
            took = time.monotonic() - begun
        everywhere(names[1], signal.SIGKILL)  # torchrun, which waits for its store
        print(f"the first was unplugged: the second said so after {took:.1f} s")

        nodes = started(names, cut, "--resume")
        for node in nodes:
            node.terminate()  # as a batch system does
        took = sum(seconds_until(node, 30) for node in nodes)
        assert "stopped by SIGTERM: saved in" in said(cut, 0), said(cut)
        print(f"both were told to stop: saved, and ended after {took:.1f} s")

        assert not (cut / "results.json").exists(), "it was through before the last stop"
        for node in start(names, cut, "--resume"):
            assert node.wait(PATIENCE) == 0, said(cut)
        one, other = (weights(out) for out in (whole, cut))
        assert one[0] == other[0] and all(torch.equal(one[1][n], other[1][n]) for n in one[1])
        print(f"{one[0]} of that run and of one that was not stopped: the same bits")
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
            everywhere(name, signal.SIGKILL)  # where something went wrong
            subprocess.run(["ip", "netns", "del", name], check=False, capture_output=True)


def ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True)


def everywhere(name: str, number: signal.Signals) -> None:
    """To all processes of a namespace: torchrun's are in sessions of their own."""
    found = subprocess.run(["ip", "netns", "pids", name], check=False, capture_output=True)
    for pid in map(int, found.stdout.split()):
        os.kill(pid, number)


@contextmanager
def unplugged(name: str) -> Iterator[None]:
    """Within, a node that the other waits for is silent; it has ended without a word."""
    everywhere(name, signal.SIGSTOP)
    time.sleep(1)  # until all that was sent has come
    ip("-n", name, "link", "set", "cable", "down")
    everywhere(name, signal.SIGKILL)  # of which nobody hears
    yield
    ip("-n", name, "link", "set", "cable", "up")


def start(names: list[str], out: Path, *more: str) -> list[subprocess.Popen[bytes]]:
    """torchrun on each node."""
    root = str(Path(__file__).resolve().parent.parent)
    environment = os.environ | {
        "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "cable", "HRRL_KEEPALIVE": str(SILENCE),
        "PYTHONPATH": os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH")])),
    }  # fmt: skip
    nodes = []
    for node, (name, address) in enumerate(zip(names, ADDRESS, strict=True)):
        launcher = ["-m", "torch.distributed.run", "--nnodes", "2", "--nproc-per-node", "1"]
        launcher += ["--rdzv-backend", "c10d", "--rdzv-endpoint", f"{ADDRESS[0]}:{PORT}"]
        launcher += ["--rdzv-id", out.name, "--local-addr", address]
        launcher += ["--rdzv-conf", f"is_host={int(node == 0)}"]  # there are no names to tell by
        command = ["ip", "netns", "exec", name, sys.executable, *launcher]
        command += ["-m", "hrrl_ext", "train", *TRAINING, "--out", str(out), *more]
        with log(out, node).open("wb") as file:
            nodes.append(subprocess.Popen(command, env=environment, stdout=file, stderr=file))
    return nodes


def started(names: list[str], out: Path, *more: str) -> list[subprocess.Popen[bytes]]:
    """That have trained and saved."""
    before = checkpoints(out)[-1:]
    nodes = start(names, out, *more)
    until(lambda: checkpoints(out)[-1:] > before or any(node.poll() is not None for node in nodes))
    assert all(node.poll() is None for node in nodes), said(out)
    return nodes


def seconds_until(node: subprocess.Popen[bytes], at_most: float) -> float:
    """Until it ended, by a failure."""
    begun = time.monotonic()
    assert node.wait(at_most) != 0
    return time.monotonic() - begun


def until(done: Callable[[], bool], seconds: float = PATIENCE) -> None:
    end = time.monotonic() + seconds
    while not done():
        assert time.monotonic() < end, f"nothing happened for {seconds} s"
        time.sleep(0.02)


def log(out: Path, node: int) -> Path:
    return out.with_name(f"{out.name}-{node}.log")


def said(out: Path, *nodes: int) -> str:
    return "\n".join(log(out, node).read_text(errors="replace") for node in nodes or range(2))


def checkpoints(out: Path) -> list[str]:
    return sorted(path.name for path in (out / "checkpoints").glob("step-*"))


def weights(out: Path) -> tuple[str, dict[str, Tensor]]:
    newest = checkpoints(out)[-1]
    return newest, load_file(out / "checkpoints" / newest / "model.safetensors")


if __name__ == "__main__":
    raise SystemExit(main())
