"""A folder has one writer: the second is refused, whoever it is, and nothing outlives who held it."""

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from hrrl_ext import locks
from hrrl_ext.evaluation import evaluate
from hrrl_ext.locks import FolderInUseError, FolderLock, is_empty, writing_to
from hrrl_ext.robust import HRRLTrainer
from hrrl_ext.storage import WorkFolder
from hrrl_ext.training.run_folder import RunFolder
from hrrl_ext.transfer import transfer_table, tune

pytest.importorskip("jsonargparse")
from hrrl_ext.cli import main


@contextmanager
def forked(work: Callable[[], Any]) -> Iterator[int]:
    """A process that is done with ``work`` within, and then waits to be killed."""
    done, told = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            work()
            os.write(told, b"!")
            signal.pause()
        finally:
            os._exit(1)
    os.close(told)
    try:
        assert os.read(done, 1) == b"!"
        yield pid
    finally:
        os.close(done)
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


def test_of_two_processes_the_second_is_refused_until_the_first_is_killed(tmp_path: Path) -> None:
    folder = tmp_path / "new" / "run"
    held: list[FolderLock] = []

    def hold() -> None:
        held.append(FolderLock(folder))
        held[0].take()

    with forked(hold) as pid:
        with pytest.raises(FolderInUseError) as refused:
            FolderLock(folder).take()
        said = str(refused.value)
        assert f"{folder} is being written to by process {pid} on {os.uname().nodename}, " in said
        assert "since 20" in said and "pytest" in said and "choose another folder" in said
    with writing_to(folder):  # though its file is there
        assert f"process {os.getpid()} " in (folder / ".lock").read_text()


def test_of_many_processes_at_once_one_gets_it(tmp_path: Path) -> None:
    """They are let go together, by the end of a pipe, and hold until all have tried."""
    start, go = os.pipe()
    tried, tell = os.pipe()
    pids = []
    for _ in range(8):
        pids.append(os.fork())
        if pids[-1] == 0:
            os.close(go)
            os.read(start, 1)
            mine = FolderLock(tmp_path / "out")
            os.write(tell, b"1" if mine.try_take() else b"0")
            signal.pause()
            os._exit(0)
    os.close(go)
    found = b""
    while len(found) < len(pids):
        found += os.read(tried, 8)
    for pid in pids:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
    os.close(start)
    assert sorted(found) == sorted(b"10000000")


def test_what_was_made_for_work_that_never_began_goes_with_it(tmp_path: Path) -> None:
    with writing_to(tmp_path / "a" / "b" / "c"):
        assert (tmp_path / "a/b/c/.lock").exists()
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "a").mkdir()
    with writing_to(tmp_path / "a" / "b"):
        (tmp_path / "a/b/file").touch()
    assert [path.name for path in (tmp_path / "a/b").iterdir()] == ["file"]
    work = WorkFolder(tmp_path / "work", "a test", "what.json")
    with work.held():
        assert is_empty(work.path)
        work.describe({"a": 1})
    assert {path.name for path in work.path.iterdir()} == {".lock", "what.json"}
    assert not is_empty(work.path)


def test_a_file_that_was_removed_meanwhile_locks_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever opened it before its owner removed it finds so, and takes the one that is there now."""
    file, flock = tmp_path / "out" / ".lock", locks.flock
    file.parent.mkdir()
    first = file.open("w")  # as another process would
    flock(first, locks.LOCK_EX)

    def late(second: Any, operation: int) -> None:
        monkeypatch.setattr(locks, "flock", flock)
        file.unlink()
        first.close()
        flock(second, operation)  # of a file without a name

    monkeypatch.setattr(locks, "flock", late)
    lock = FolderLock(file.parent)
    lock.take()
    assert first.closed
    with file.open() as third, pytest.raises(BlockingIOError):
        flock(third, locks.LOCK_EX | locks.LOCK_NB)


def test_a_process_that_was_forked_from_the_holder_holds_nothing(tmp_path: Path) -> None:
    lock = FolderLock(tmp_path)
    lock.take()
    with forked(lambda: lock.release()):  # which is nothing to it
        assert not FolderLock(tmp_path, shared=False).try_take()
        lock.release()
        assert FolderLock(tmp_path, shared=False).try_take()


def test_within_a_process_threads_are_told_apart(tmp_path: Path) -> None:
    one, other = FolderLock(tmp_path), FolderLock(tmp_path)
    one.take()
    other.take()  # of the same thread, one after the other
    tried: list[bool] = []
    late = FolderLock(tmp_path)
    thread = threading.Thread(target=lambda: tried.append(late.try_take()))
    thread.start()
    thread.join()
    one.release()
    assert tried == [False] and not FolderLock(tmp_path, shared=False).try_take()
    other.release()
    other.release()
    assert FolderLock(tmp_path, shared=False).try_take()


def test_without_locks_of_the_file_system_a_warning_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unsupported(*_: Any) -> None:
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(locks, "flock", unsupported)
    with pytest.warns(UserWarning, match=r"cannot be locked here \(Operation not supported\)"):
        FolderLock(tmp_path).take()


def test_the_import_needs_no_fcntl() -> None:
    code = "import sys; sys.modules['fcntl'] = None; import runpy, tempfile\n"
    code += f"found = runpy.run_path({locks.__file__!r})\n"
    code += "with found['writing_to'](tempfile.mkdtemp()): print('written')"
    run = subprocess.run([sys.executable, "-SEc", code], capture_output=True, text=True)
    assert (run.stdout, run.stderr) == ("written\n", "")


# --- who takes one


@pytest.fixture
def taken(tmp_path: Path) -> Iterator[Path]:
    """A folder that another process writes to, though there is nothing in it yet."""
    lock = FolderLock(tmp_path / "out")
    with forked(lock.take):
        yield tmp_path / "out"


COMMANDS = [
    ["train", "--data", "nowhere"],
    ["finetune", "nowhere", "--data", "nowhere"],
    ["pretrain", "--data", "nowhere"],
    ["train-retrieval", "--data", "nowhere"],
    ["evaluate", "nowhere", "--data", "nowhere"],
    ["cluster", "nowhere", "--data", "nowhere", "--clusters", "2"],
    ["tune", "--data", "nowhere"],
    ["demo"],
    ["demo", "--system", "retrieval"],
    ["plot", "nowhere"],
    ["robust-linear", "nowhere"],
    ["export-retrieval", "nowhere"],
]


def test_commands_refuse_it_before_they_open_anything(
    taken: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("jsonargparse")
    for command in COMMANDS:
        assert main([*command, "--out", str(taken)]) == 1
        said = capsys.readouterr().err
        assert f"hrrl {command[0]}: error: {taken} is being written to by process " in said
    assert [path.name for path in taken.iterdir()] == [".lock"]


def test_functions_refuse_it(taken: Path) -> None:
    from torch import nn

    images, options = "digits", {"out": taken, "epochs": 1}
    model = nn.Sequential(nn.Flatten(), nn.Linear(3 * 8 * 8, 10))
    with pytest.raises(FolderInUseError):
        HRRLTrainer("convnet", data="nowhere", **options)
    with pytest.raises(FolderInUseError):
        tune("convnet", data=images, concepts="classes", **options)
    with pytest.raises(FolderInUseError):
        transfer_table("nowhere", targets=[], tau=0.1, lam=1.0, **options)
    with pytest.raises(FolderInUseError):
        evaluate(model, images, out=taken, points=20, attacks=(), corruptions=("none",))


def test_a_run_is_let_go_of_when_it_is_through(tmp_path: Path) -> None:
    settings: dict[str, Any] = {
        "data": "digits",
        "concepts": "classes",
        "tau": 0.0,
        "epochs": 1,
        "max_steps": 1,
    }
    settings |= {"progress": "off", "width": 4, "out": tmp_path / "run"}
    unused = HRRLTrainer("convnet", **settings)
    trainer = HRRLTrainer("convnet", **settings)
    trainer.fit()
    with pytest.raises(FileExistsError, match="already holds a run"):
        unused.fit()  # it was free when this one was made
    del unused
    resumed = HRRLTrainer("convnet", resume=True, **settings)
    resumed.fit()
    assert resumed.run is not None
    run = RunFolder(resumed.run.path)
    with forked(run.take), pytest.raises(FolderInUseError):
        resumed.fit()
