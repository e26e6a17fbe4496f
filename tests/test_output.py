"""Streams that fail, and signals that come twice: work goes on, or ends as a shell expects."""

import io
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TextIO

import numpy as np
import pytest
import torch

from hrrl_ext import _signals
from hrrl_ext._output import Output, say
from hrrl_ext.data import ArrayImages
from hrrl_ext.processes import Processes
from hrrl_ext.robust import HRRLTrainer
from hrrl_ext.training import load_model
from hrrl_ext.training.progress import Progress
from hrrl_ext.training.stopping import Stopping

pytest.importorskip("jsonargparse")
from hrrl_ext.cli import main


@contextmanager
def failing(kind: str) -> Iterator[TextIO]:
    """A stream that takes nothing, each in its own way."""
    if kind == "pipe":
        read, write = os.pipe()
        os.close(read)
        stream = os.fdopen(write, "w")
    else:
        stream = Path("/dev/full").open("w")  # noqa: SIM115  closed below
        if kind == "closed":
            stream.close()
    try:
        yield stream
    finally:
        with suppress(OSError):
            stream.close()


KINDS = {"pipe": "Broken pipe", "full": "No space left on device", "closed": "closed file"}


@pytest.mark.parametrize("kind", KINDS)
def test_progress_goes_on_and_says_why_it_shows_nothing(kind: str) -> None:
    for style in ("plain", "bar"):
        with failing(kind) as stream, Progress(style, 2, stream) as progress:
            progress.line("epoch 1")
            progress.line("epoch 2")
        assert progress.failed is not None
        assert KINDS[kind] in progress.failed
    with Progress("auto", 1, io.StringIO()) as progress:
        progress.line("epoch 1")
    assert progress.failed is None


def test_no_stream_at_all_is_none_to_fail(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("stdout", "stderr"):  # as Python has them where they are closed
        monkeypatch.setattr(sys, name, None)
    with Progress("auto", 1) as progress:
        progress.line("epoch 1")
    say("nobody hears it")
    assert main(["info"]) == 0


def images() -> ArrayImages:
    x = torch.arange(8 * 3 * 8 * 8, dtype=torch.uint8).view(8, 3, 8, 8)
    return ArrayImages(x, torch.arange(8) % 2)


SETTINGS: dict[str, Any] = {"concepts": "classes", "tau": 0.0, "width": 2, "batch_size": 4}


@pytest.mark.parametrize("kind", KINDS)
def test_a_training_goes_on_and_its_log_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    settings = SETTINGS | {"data": images(), "epochs": 2, "progress": "plain"}
    with failing(kind) as stream:
        monkeypatch.setattr(sys, "stderr", stream)
        HRRLTrainer("convnet", out=tmp_path / "run", **settings).fit(until=1)
    HRRLTrainer(
        "convnet", out=tmp_path / "run", resume=True, **settings | {"progress": "off"}
    ).fit()
    first, second, note = (tmp_path / "run/train.log").read_text().splitlines()
    assert first.startswith("epoch 1/2 ") and second.startswith("epoch 2/2 ")
    assert note.startswith("note: standard error failed (")
    assert KINDS[kind] in note
    load_model(tmp_path / "run")
    assert (tmp_path / "run/results.json").exists()


def run_main(stream: TextIO, monkeypatch: pytest.MonkeyPatch, *words: str) -> int:
    with monkeypatch.context() as patch:
        patch.setattr(sys, "stdout", stream)
        try:
            return main(words)
        except SystemExit as end:
            return int(end.code or 0)


def test_a_command_that_is_what_it_prints_ends(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("jsonargparse")
    for words in (["info"], ["--help"], ["train", "--help"]):
        with failing("pipe") as stream:
            assert run_main(stream, monkeypatch, *words) == 141
        assert capsys.readouterr().err == ""
        with failing("full") as stream:
            assert run_main(stream, monkeypatch, *words) == 1
        assert capsys.readouterr().err == (
            "hrrl: error: standard output failed: No space left on device\n"
        )


def test_a_command_that_writes_a_folder_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("jsonargparse")
    x, label = images().images.permute(0, 2, 3, 1).numpy(), images().target.numpy()
    np.savez(tmp_path / "a.npz", images=x, label=label)
    words = ["train", "--data", str(tmp_path / "a.npz"), "--concepts", "classes", "--tau", "0"]
    words += ["--model", "convnet", "--width", "2", "--epochs", "1", "--out", str(tmp_path / "run")]
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)  # without pictures
    with failing("full") as stream:
        assert run_main(stream, monkeypatch, *words) == 0
    log = (tmp_path / "run/train.log").read_text().splitlines()
    assert log[1:] == ["note: standard output failed (No space left on device)"]
    load_model(tmp_path / "run")


def test_descriptors_that_are_closed_are_not_taken_by_files(tmp_path: Path) -> None:
    """Else what a library writes to standard error lands in the file that got its place."""
    code = "import os, sys\nfrom hrrl_ext._output import standard_streams\n"
    code += "with standard_streams():\n    file = open(sys.argv[1], 'w')\n    print('lost')\n"
    code += "    os.write(2, b'noise')\n    file.write(str(file.fileno() > 2))\n    file.close()\n"
    package = Path(__file__).resolve().parents[1]
    stub = f"import sys, types\nroot = types.ModuleType('hrrl_ext')\nroot.__path__ = [{str(package / 'hrrl_ext')!r}]\nsys.modules['hrrl_ext'] = root\n"
    run = subprocess.run(
        [
            "sh",
            "-c",
            '"$@" <&- >&- 2>&-',
            "sh",
            sys.executable,
            "-Sc",
            stub + code,
            str(tmp_path / "f"),
        ],
        check=False,
    )
    assert run.returncode == 0
    assert (tmp_path / "f").read_text() == "True"


def test_what_is_no_failure_of_the_stream_is_raised() -> None:
    stream = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    with pytest.raises(UnicodeEncodeError):
        Output(stream).write("ü")


# --- signals


def status_of_a_blocked_run(signals: list[signal.Signals]) -> int:
    """Of a process within :class:`Stopping` whose read never returns; each is sent when it has the last."""
    told, tell = os.pipe()
    pid = os.fork()
    if pid == 0:
        signal.signal(
            signal.SIGINT, signal.default_int_handler
        )  # a run in the background ignores it
        _signals.APART = 0.0
        with Stopping(Processes()) as stopping:

            def told_of() -> None:
                while not stopping.asked(everywhere=True):
                    signal.sigtimedwait([], 0.001)
                os.write(tell, b"!")

            threading.Thread(target=told_of, daemon=True).start()
            os.write(tell, b"!")
            os.read(os.pipe()[0], 1)
        os._exit(0)
    os.close(tell)
    for number in signals:
        assert os.read(told, 1)
        os.kill(pid, number)
    os.close(told)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


@pytest.mark.parametrize(("second", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_second_signal_ends_what_the_first_waits_for(second: signal.Signals, status: int) -> None:
    assert status_of_a_blocked_run([signal.SIGTERM, second]) == status


def test_two_signals_at_once_are_one_request(monkeypatch: pytest.MonkeyPatch) -> None:
    """As timeout sends them, to a process and to its group."""
    ended: list[int] = []
    monkeypatch.setattr(os, "_exit", ended.append)
    for apart, expected in ((1e9, []), (0.0, [143, 130])):
        monkeypatch.setattr(_signals, "APART", apart)
        receive, send = os.pipe()
        os.write(send, bytes([signal.SIGWINCH, signal.SIGTERM, signal.SIGTERM, signal.SIGINT]))
        os.close(send)
        _signals._watch(receive)
        assert ended == expected


def test_signals_of_a_forked_process_are_its_own() -> None:
    with _signals.second_ends(), _signals.second_ends():
        pid = os.fork()
        if pid == 0:
            os._exit(signal.set_wakeup_fd(-1) != -1)
        assert os.waitpid(pid, 0)[1] == 0
        fd = signal.set_wakeup_fd(-1)
        assert fd != -1
        signal.set_wakeup_fd(fd)
    assert signal.set_wakeup_fd(-1) == -1


def test_ctrl_c_has_the_status_that_shells_know(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("jsonargparse")

    def interrupted() -> dict[str, str]:
        raise KeyboardInterrupt

    monkeypatch.setattr("hrrl_ext.build_info", interrupted)
    assert main(["info"]) == 130
    assert capsys.readouterr().err == "hrrl info: interrupted\n"
