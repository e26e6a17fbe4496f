"""Hostile trials that take minutes: kills, full disks, races, leaks. ``python tests/hostile/long.py --minutes 10``.

A run is stopped at a random moment, gets no more space, or meets another one in its folder; then it goes on, and must
end with the bits of one that was left alone. The outcomes are those of trial.py. Nothing of the machine is touched
but a temporary folder, and a small tmpfs in it where mounting is permitted; its trials are left out where it is not.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random

TESTS = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(TESTS.parent), str(TESTS), str(TESTS / "ops")]

from families import flush, table  # noqa: E402
from trial import FAILED, Outcome, unclear_text  # noqa: E402

from hrrl_ext.cli import main as hrrl  # noqa: E402
from hrrl_ext.storage import file_digest, read_rows  # noqa: E402

TRAIN = [
    "train",
    "--data",
    "digits",
    "--validation",
    "digits",
    "--concepts",
    "classes",
    "--model",
    "convnet",
    "--width",
    "2",
    "--image_size",
    "8",
    "--epochs",
    "3",
    "--batch_size",
    "64",
    "--lr",
    "0.05",
    "--crop_padding",
    "1",
    "--flip",
    "false",
    "--checkpoint_every",
    "3",
    "--device",
    "cpu",
    "--progress",
    "off",
]
CLOCK = ("seconds", "images_per_second")
LIMIT = 120.0
"""Seconds of a run; left alone it takes two."""


class Run:
    """``hrrl`` in a process of its own, forked where the imports are done and no thread runs."""

    def __init__(self, words: list[str], log: Path) -> None:
        self.log, self.begun = log, time.monotonic()
        self.pid = os.fork()
        if self.pid == 0:
            with log.open("wb") as file:
                os.dup2(file.fileno(), 1)
                os.dup2(file.fileno(), 2)
            status = 70
            try:
                status = hrrl(words)
            except SystemExit as end:
                status = end.code if isinstance(end.code, int) else 1
            except BaseException:
                import traceback

                traceback.print_exc()
            finally:
                sys.stdout.flush()
                sys.stderr.flush()
                os._exit(status)

    def end(self, limit: float = LIMIT) -> int | None:
        """Its status, negative for a signal; None where it hangs, and is killed."""
        while time.monotonic() - self.begun < limit:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                return os.waitstatus_to_exitcode(status)
            time.sleep(0.01)
        os.kill(self.pid, signal.SIGKILL)
        os.waitpid(self.pid, 0)
        return None

    @property
    def said(self) -> str:
        return self.log.read_text(errors="replace")


def bits(folder: Path) -> tuple[str, list[dict[str, object]]]:
    """What a run came to: the weights of its best epoch, and its history but for the clock."""
    rows = read_rows(folder / "metrics.jsonl", ("epoch", "loss"), of="a run")
    kept = [{name: value for name, value in row.items() if name not in CLOCK} for row in rows]
    return file_digest(folder / "best" / "model.safetensors"), kept


class Bench:
    """A folder for trials, and the run that was left alone."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.count = folder, 0
        whole = Run([*TRAIN, "--out", str(folder / "whole")], folder / "whole.txt")
        if whole.end() != 0:
            raise RuntimeError(f"a run that is left alone fails: {whole.said}")
        self.seconds = time.monotonic() - whole.begun
        self.want = bits(folder / "whole")

    def new(self) -> Path:
        self.count += 1
        return self.folder / f"run{self.count}"

    def resumed(self, out: Path) -> Outcome:
        """To its end, whatever is there."""
        begun = (out / "config.json").exists() or (out / "checkpoints").exists()
        words = [*TRAIN, "--out", str(out), *(["--resume"] if begun else [])]
        run = Run(words, out.with_suffix(".txt"))
        status = run.end()
        if status is None:
            return Outcome("hung", "going on")
        if status != 0:
            return Outcome("raw", f"cannot go on: {run.said[-300:]}")
        return Outcome("right" if bits(out) == self.want else "wrong", "other bits than left alone")


# --- kills


def kill(bench: Bench, chance: Random) -> Outcome:
    """Up to three times, by kill -9 or a signal that can be caught."""
    out = bench.new()
    for _ in range(chance.choice((1, 2, 3))):
        begun = (out / "config.json").exists() or (out / "checkpoints").exists()
        words = [*TRAIN, "--out", str(out), *(["--resume"] if begun else [])]
        run = Run(words, out.with_suffix(".txt"))
        time.sleep(chance.uniform(0, 1.2 * bench.seconds))
        with contextlib.suppress(ProcessLookupError):
            os.kill(
                run.pid,
                chance.choice((signal.SIGKILL, signal.SIGKILL, signal.SIGTERM, signal.SIGINT)),
            )
        if run.end() is None:
            return Outcome("hung", "after a signal")
        if "Traceback" in run.said:
            return Outcome("raw", run.said[-300:])
    return bench.resumed(out)


# --- full disks


@contextlib.contextmanager
def disk(folder: Path, kilobytes: int) -> Iterator[Callable[[str], None]]:
    """A file system of that size; yields what gives it another one. OSError: not permitted here."""
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={kilobytes}k", "tmpfs", str(folder)]
    try:
        if subprocess.run(mount, capture_output=True, check=False).returncode:
            raise PermissionError("mounting is not permitted")
    except FileNotFoundError:
        raise PermissionError("there is no mount") from None

    def resize(size: str) -> None:
        again = ["mount", "-o", f"remount,size={size}", str(folder)]
        subprocess.run(again, check=True, capture_output=True)

    try:
        yield resize
    finally:
        subprocess.run(["umount", str(folder)], check=True, capture_output=True)


def full_disk(bench: Bench, chance: Random) -> Outcome:
    """Space ends anywhere in the run; it says so in a line, and goes on where there is some."""
    place = bench.new()
    with disk(place, chance.randrange(8, 220)) as resize:
        out = place / "run"
        run = Run([*TRAIN, "--out", str(out)], place.with_suffix(".txt"))
        status = run.end()
        if status is None:
            return Outcome("hung", "on a full disk")
        if status == 0:
            return Outcome(
                "right" if bits(out) == bench.want else "wrong", "on a disk that sufficed"
            )
        said = [line for line in run.said.splitlines() if "error: " in line]
        if why := unclear_text("\n".join(said), [str(place)]):
            return Outcome("raw", f"{why}: {run.said[-400:]}")
        resize("64m")
        after = bench.resumed(out)
        return Outcome("clear", said[0]) if after.kind == "right" else after


# --- races


def race(bench: Bench, chance: Random) -> Outcome:
    """Two runs of one new folder: one is refused at once, and the other is not disturbed."""
    out = bench.new()
    words = [*TRAIN, "--out", str(out)]
    runs = [Run(words, bench.folder / f"race{n}.txt") for n in range(2)]
    found = [run.end() for run in runs]
    if None in found:
        return Outcome("hung", "a race")
    if sorted(status != 0 for status in found) != [False, True]:
        return Outcome("wrong", f"both ended with {found}")
    loser = runs[0] if found[0] else runs[1]
    said = [line for line in loser.said.splitlines() if "error: " in line]
    if why := unclear_text("\n".join(said), [str(out)]):
        return Outcome("raw", f"{why}: {loser.said[-300:]}")
    return Outcome("clear" if bits(out) == bench.want else "wrong", "the winner was disturbed")


# --- leaks

_LEAK = """
import gc, sys
sys.path.insert(0, {root!r})
import torch
from hrrl_ext import HRRLTrainer, load_images
torch.set_num_threads(1)
def resident():
    gc.collect()
    return int(open("/proc/self/statm").read().split()[1]) * 4096
images = load_images("digits").subset(range(200))
settings = dict(concepts="classes", width=2, image_size=8, epochs={epochs}, batch_size=100, tau=0.1, lam=20.0, seed={seed},
                validation=images, crop_padding=1, flip=False, device="cpu", progress="off", checkpoint_every=1)
seen = []
trainer = HRRLTrainer("convnet", data=images, out={out!r}, **settings)
for until in range(1, {epochs} + 1):
    trainer.fit(until=until)
    seen.append(resident())
third = len(seen) // 3
print((sum(seen[-third:]) - sum(seen[third : 2 * third])) / third / third)
"""


def leak(bench: Bench, chance: Random) -> Outcome:
    """Memory of a process over 60 epochs with all files: bytes that each epoch adds once it is warm."""
    out = bench.new()
    program = _LEAK.format(
        root=str(TESTS.parent), out=str(out), epochs=60, seed=chance.randrange(1000)
    )
    ended = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False
    )
    if ended.returncode:
        return Outcome("raw", ended.stderr[-300:])
    each = float(ended.stdout.split()[-1])
    # A history grows by a row of some hundred bytes; a leaked batch or state would be 40 kB and more.
    return Outcome("right" if each < 16384 else "wrong", f"{each:.0f} bytes an epoch")


KINDS: dict[str, Callable[[Bench, Random], Outcome]] = {
    "kills": kill, "full disks": full_disk, "races": race, "leaks": leak,
}  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=5.0)
    parser.add_argument("--seed", type=int, default=0, help="the first of each kind")
    parser.add_argument("--only", nargs="+", choices=KINDS, default=list(KINDS))
    args = parser.parse_args()
    counts: dict[str, Counter[str]] = {kind: Counter() for kind in args.only}
    left = {kind: args.minutes * 60 / len(args.only) for kind in args.only}
    os.environ["OMP_NUM_THREADS"] = "1"
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(Path(folder))
        for kind in args.only:
            seed, begun = args.seed, time.monotonic()
            while seed == args.seed or time.monotonic() - begun < left[kind]:
                try:
                    outcome = KINDS[kind](bench, Random(f"{kind} {seed}"))
                except PermissionError as error:
                    flush(f"{kind}: left out, as {error}")
                    break
                counts[kind][outcome.kind] += 1
                if outcome.kind in FAILED:
                    flush(
                        f"{outcome.kind}: {kind} {seed}: {outcome.why}\n"
                        f"    alone: python tests/hostile/long.py --only '{kind}' --seed {seed} --minutes 0"
                    )
                seed += 1
    flush(table(counts))
    flush(f"{args.minutes:g} minutes; seeds from {args.seed} of each kind")
    return 1 if any(count[kind] for count in counts.values() for kind in FAILED) else 0


if __name__ == "__main__":
    sys.exit(main())
