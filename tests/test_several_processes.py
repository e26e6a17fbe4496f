"""Every command that processes share has the results of one process; and all of them end with the first that
fails, saying what it says."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import sys
import traceback
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from retrieval_cases import pairs, trainer
from safetensors.torch import load_file
from torch import Tensor

from hrrl_ext import load_model
from hrrl_ext.data import load_images
from hrrl_ext.evaluation.attacks import evaluate_attack, max_epsilon
from hrrl_ext.models import build_model
from hrrl_ext.pretrained import from_pretrained, save_pretrained
from hrrl_ext.processes import (
    Processes,
    ProcessLostError,
    _seconds_of_silence,
    _sockets,
    joined,
    naming_the_lost,
)
from hrrl_ext.retrieval import JointEmbedding, embed
from hrrl_ext.transfer import Similarity

pytest.importorskip("jsonargparse")
from hrrl_ext.cli import main

IMAGES = 14  # four batches of at most four: two processes have two each, and one of them is smaller
Command = list[str | Path]


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A network that knows most of a few images, and one from before it did."""
    folder = tmp_path_factory.mktemp("several")
    digits = load_images("digits", split="train")
    rows = [
        *dict(zip(digits.target.tolist()[::-1], range(len(digits))[::-1], strict=True)).values()
    ]
    image, label = digits.__getitems__([*rows, *range(IMAGES - len(rows))])
    names = [*"0123456789"]
    config = {"model": "convnet", "classes": names, "image_size": 8, "width": 2}
    torch.manual_seed(5)
    model = build_model("convnet", num_classes=10, image_size=8, width=2)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.03)
    for name in ("earlier", "model"):
        for _ in range(20):
            optimizer.zero_grad()
            F.cross_entropy(model(image.float() / 255), label).backward()
            optimizer.step()
        save_pretrained(model, folder / name, config)
    label[:2] = label[:2].flip(0)
    np.savez(folder / "images.npz", image=image, label=label, class_names=np.array(names))
    return folder


@cache
def joint() -> JointEmbedding:
    """Made before there are several processes, which its trainer would join."""
    return trainer(pairs(7)).model


def work(here: Path, out: Path, joining: Callable[[], None]) -> None:
    """All commands one after the other, and what none has."""

    def hrrl(*command: str | Path) -> None:
        joining()
        assert main([*map(str, command)]) == 0, command

    model, data = here / "model", ["--data", here / "images.npz", "--device", "cpu"]
    each, features = [*data, "--batch_size", "4"], out / "features.safetensors"
    hrrl("extract", "--model", model, *each, "--out", features)
    hrrl("probe", "--train", features, "--test", features, "--C", "1", "--out", out / "probe.json")
    report = [
        "evaluate",
        model,
        *each,
        "--attacks",
        "l2:0.5",
        "--attack_points",
        "8",
        "--out",
        out / "report",
    ]
    hrrl(*report, "--corruptions", "gaussian_noise")
    hrrl(*report, "--corruptions", "gaussian_noise", "contrast", "--resume")
    hrrl("cluster", model, *each, "--clusters", "3", "--rounds", "2", "--out", out / "clusters")
    variance = ["--clusters", out / "clusters", "--snapshot", here / "earlier"]
    variance += ["--num_batches", "3", "--out", out / "variance.json"]
    hrrl("variance", model, *each, *variance)
    run = ["--batch_size", "7", "--epochs", "1", "--progress", "off", "--freeze", "stage?.1"]
    similarity = ["--method", "similarity:w_sim=30,gather=true"]
    hrrl("finetune", model, *data, *run, *similarity, "--out", out / "run")

    joining()
    images = load_images(str(here / "images.npz"))
    x, target = images.__getitems__(range(IMAGES))
    with joined("cpu") as (processes, _):
        given: dict[str, Any] = {"batch_size": 3, "processes": processes}
        attacked = evaluate_attack(
            from_pretrained(model), x.float() / 255, target, "linf:12/255", quick=True, **given
        )
        curve = max_epsilon(
            from_pretrained(model), x.float() / 255, target, eps=[0.03, 0.05], steps=3, **given
        )
        gallery = embed(joint(), pairs(7), batch_size=2, processes=processes)
        found = {
            "survived": attacked.survived, "adversarial": attacked.adversarial,
            "image": gallery.image, "caption": gallery.caption,
        }  # fmt: skip
        for name, value in similarity_of(here, x[:13].double() / 255, processes).items():
            found[f"similarity {name}"] = value
        torch.save(
            found | {"curve": torch.tensor(curve.accuracy)}, out / f"rank-{processes.rank}.pt"
        )


def similarity_of(here: Path, x: Tensor, processes: Processes) -> dict[str, Tensor]:
    """The penalty of a batch that processes share, and its gradients as a training puts them together; and
    what is said where it is shared as 5 and 8."""
    net = from_pretrained(here / "earlier").double().eval()
    penalised = Similarity(w_sim=3.0, gather=True)(net)
    net.load_state_dict(from_pretrained(here / "model").state_dict())
    part = x[processes.part(len(x))]
    _, penalty = penalised(net, part)
    (penalty * len(part) / len(x)).backward()
    gradients = {n: processes.sum(p.grad) for n, p in net.named_parameters() if p.grad is not None}
    if processes.size == 2:
        with pytest.raises(ValueError, match=r"13 images as .* shares it, \[6, 7\], got \[5, 8\]"):
            penalised(net, (x[:5], x[5:])[processes.rank])
    return gradients | {"penalty": penalty.detach()}


@pytest.fixture
def _one_thread() -> Iterator[None]:
    """As each of the two has it: with other threads sums have another order."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("_one_thread")
def test_two_processes_have_the_results_of_one(here: Path, tmp_path: Path) -> None:
    """To the bit, since batches are whole and rows are put together in order; but where gradients of
    parts are summed: the rounding of float64 for clusters and SVRG, of float32 for a training."""
    one, two = tmp_path / "1", tmp_path / "2"
    one.mkdir()
    two.mkdir()
    work(here, one, lambda: None)
    statuses, said = on_two(lambda joining: work(here, two, joining), tmp_path)
    assert statuses == [0, 0], said
    assert said[1] == ""  # the first alone talks
    assert "deprecated" not in said[0]
    assert said[0].count("saved") == 6 and said[0].count("  attack l2:0.5  ") == 2, said[0]

    for name in ("features.safetensors", "probe.json"):
        assert (one / name).read_bytes() == (two / name).read_bytes()
    reports = [timeless(read(out / "report" / "model" / "report.json")) for out in (one, two)]
    assert reports[0] == reports[1]
    assert 0 < reports[0]["attacks"][0]["accuracy"] < reports[0]["accuracy"]["accuracy"] < 1
    (first,) = (torch.load(file) for file in one.glob("rank-*.pt"))
    for rank in range(2):
        found = torch.load(two / f"rank-{rank}.pt")
        for name, value in first.items():
            if name.startswith("similarity"):  # sums over 13 images, in another order
                torch.testing.assert_close(found[name], value, rtol=1e-12, atol=1e-14)
            else:
                assert torch.equal(value, found[name]), name
    assert first["similarity penalty"] > 0.1
    assert len(first["survived"].unique()) == 2 and len(first["curve"].unique()) == 2

    clusters = [load_file(out / "clusters" / "assignment.safetensors") for out in (one, two)]
    assert torch.equal(clusters[0]["assignment"], clusters[1]["assignment"])
    torch.testing.assert_close(clusters[0]["distance"], clusters[1]["distance"], rtol=1e-5, atol=0)
    rows = [read(out / "variance.json")["estimators"] for out in (one, two)]
    for mine, theirs in zip(*rows, strict=True):
        for name, value in mine.items():
            summed = mine["estimator"] == "SVRG" and isinstance(value, float)
            assert theirs[name] == (pytest.approx(value, rel=1e-9) if summed else value), name
    weights = [load_model(out / "run").state_dict() for out in (one, two)]
    torch.testing.assert_close(*weights, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("rank", [0, 1])
def test_all_end_with_the_first_that_fails(here: Path, tmp_path: Path, rank: int) -> None:
    """A file that one alone cannot read, as on another machine, in the second of its batches."""

    def fail(joining: Callable[[], None]) -> None:
        from hrrl_ext.data import ArrayImages

        whole = ArrayImages.__getitems__

        def damaged(self: ArrayImages, rows: Any) -> Any:
            if int(os.environ["RANK"]) == rank and min(rows) >= 8:
                raise OSError("cannot decode\n cat.png")
            return whole(self, rows)

        ArrayImages.__getitems__ = damaged  # type: ignore[method-assign, assignment]
        joining()
        out = tmp_path / "features.npz"
        command = [
            "extract",
            "--model",
            here / "model",
            "--data",
            here / "images.npz",
            "--out",
            out,
        ]
        sys.exit(main([*map(str, command), "--batch_size", "4", "--device", "cpu"]))

    statuses, said = on_two(fail, tmp_path)
    assert statuses == [1, 1]
    message = f"hrrl extract: error: process {rank} of 2: cannot decode cat.png\n"
    assert said[rank] == message and said[1 - rank] == ""
    assert not list(tmp_path.glob("*features*"))


def test_one_that_is_killed_is_told_of_by_the_other(tmp_path: Path) -> None:
    """And one whose machine is gone would be, as it is asked for where nothing is said."""

    def one_of_two(joining: Callable[[], None]) -> None:
        joining()
        others = _sockets()
        with joined("cpu") as (processes, _):
            for number in _sockets() - others:
                with socket.socket(fileno=os.dup(number)) as connection:
                    kept = connection.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
                    every = connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE)
                    timeout = connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT)
                    print(kept, every, timeout)
            if processes.rank == 1:
                os.kill(os.getpid(), signal.SIGKILL)
            processes.gather(None)

    statuses, said = on_two(one_of_two, tmp_path)
    assert statuses == [99, -signal.SIGKILL], said
    connections, _, trace = said[0].partition("Traceback")
    assert sorted(set(connections.splitlines())) == ["1 50 0", "1 50 300000"], said  # of the store
    error = trace.splitlines()[-1]
    assert "ProcessLostError: another process of this run left without a word: " in error
    assert re.search("hangs .*(closed|reset) by peer.*Start all of them again", error), error


def test_what_connections_say_is_told_from_other_errors(monkeypatch: pytest.MonkeyPatch) -> None:
    gloo = "[/a/gloo/transport/tcp/pair.cc:537] Read error [10.0.0.2]:7: No route to host. This is typically b"
    for error, said in (
        (RuntimeError(gloo), r"hangs \(Read error \[10.0.0.2\]:7: No route to host\)\. Go on$"),
        (
            RuntimeError("NCCL error: ncclRemoteError: A call failed"),
            "hangs .NCCL error: ncclRemote",
        ),
        (dist.DistNetworkError("Broken pipe"), "hangs .Broken pipe.. Go on$"),
    ):
        with (
            pytest.raises(ProcessLostError, match=said),
            naming_the_lost(lambda: "Start"),
            naming_the_lost(lambda: "Go on"),  # which knows more
        ):
            raise error
    with pytest.raises(RuntimeError, match=r"^shapes$") as other, naming_the_lost(lambda: ""):
        raise RuntimeError("shapes")
    assert not isinstance(other.value, ProcessLostError)
    for given in ("5", "86401", "1.5", "-9", ""):
        monkeypatch.setenv("HRRL_KEEPALIVE", given)
        with pytest.raises(ValueError, match=f"seconds .* 6 to 86400, got '{given}'; leave it out"):
            _seconds_of_silence()


def on_two(body: Callable[[Callable[[], None]], None], folder: Path) -> tuple[list[int], list[str]]:
    """Two processes, forked from this one and connected as by torchrun, which keeps their store: the status
    of each, and what it said. ``body`` is given what to call before they connect, each time."""
    stores = [
        dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False) for _ in range(9)
    ]
    connected = {
        "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "TORCHELASTIC_USE_AGENT_STORE": "True",
    }  # fmt: skip
    pids, files = [], [folder / f"said-{rank}.txt" for rank in range(2)]
    for rank, file in enumerate(files):
        pids.append(os.fork())
        if pids[-1] == 0:
            ports = iter([str(store.port) for store in stores])
            _be_one_of_two(body, connected | {"RANK": str(rank)}, ports, file)
    statuses = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids]
    return statuses, [file.read_text() for file in files]


def _be_one_of_two(
    body: Callable[[Callable[[], None]], None],
    connected: dict[str, str],
    ports: Iterator[str],
    file: Path,
) -> None:
    status = 99
    try:
        torch.set_num_threads(1)
        said = os.open(file, os.O_CREAT | os.O_WRONLY)
        os.dup2(said, 1)
        os.dup2(said, 2)
        sys.stdout, sys.stderr = (os.fdopen(os.dup(said), "w", buffering=1) for _ in range(2))
        os.environ.update(connected)
        body(lambda: os.environ.update(MASTER_PORT=next(ports)))
        status = 0
    except SystemExit as end:
        status = int(end.code or 0)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        os._exit(status)


def read(file: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(file.read_text())
    return found


def timeless(report: dict[str, Any]) -> dict[str, Any]:
    """What was measured."""

    def without(value: Any) -> Any:
        if isinstance(value, dict):
            return {k: without(v) for k, v in value.items() if k not in ("seconds", "about")}
        return [*map(without, value)] if isinstance(value, list) else value

    found: dict[str, Any] = without(report)
    return found
