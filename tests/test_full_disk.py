"""A disk without room is told in one line by whatever writes, and what was there stays as it was."""

import resource
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from hrrl_ext.clustering import GradientClustering
from hrrl_ext.clustering.folder import ClusterFolder
from hrrl_ext.digests import check_digests
from hrrl_ext.pretrained import save_pretrained
from hrrl_ext.storage import write_rows, written_whole
from hrrl_ext.training.checkpoint import CheckpointError, save_checkpoint
from hrrl_ext.transfer import Features, save_features

CONFIG = {"model": None, "classes": ["a", "b"], "image_size": 8, "width": 2}
ROOM = 20_000


@contextmanager
def little_room() -> Iterator[None]:
    """No file can be longer, for which the system has an error of the same kind as for a full disk."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (ROOM, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, before)


def network(size: int) -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(3 * size * size, 10))


def features(path: Path, rows: int) -> None:
    x = torch.arange(rows * 8, dtype=torch.float32).view(rows, 8)
    save_features(path, Features(x, torch.zeros(rows, dtype=torch.int64)))


def clustering(folder: Path, size: int) -> None:
    state = GradientClustering(network(size), 3)
    state.state_dict = lambda: {"centres": torch.ones(size * size * 30)}  # type: ignore[method-assign]
    ClusterFolder(folder).save(state)


WRITERS: dict[str, tuple[str, Callable[[Path, int], Any]]] = {
    "a model": (
        "model/model.safetensors",
        lambda path, size: save_pretrained(network(size), path.parent, CONFIG),
    ),
    "a clustering": ("clusters/state.pt", lambda path, size: clustering(path.parent, size)),
    "features": ("a.safetensors", lambda path, size: features(path, size * size)),
    "features in an archive": ("a.npz", lambda path, size: features(path, size * size)),
    "rows": ("rows.jsonl", lambda path, size: write_rows(path, [{"a": "x"}] * size**2)),
}


@pytest.mark.parametrize("kind", WRITERS)
def test_no_room_is_told_in_one_way(kind: str, tmp_path: Path) -> None:
    name, write = WRITERS[kind]
    path = tmp_path / name
    write(path, 4)
    before = {file: file.read_bytes() for file in path.parent.rglob("*") if file.is_file()}
    with little_room(), pytest.raises(OSError, match="could not write") as told:
        write(path, 64)
    assert told.value.errno is not None
    assert str(told.value).startswith(f"could not write {path.parent}")
    assert "free some space and do the same again" in str(told.value)
    assert {f: f.read_bytes() for f in path.parent.rglob("*") if f.is_file()} == before
    check_digests(path.parent)


def test_a_checkpoint_says_so_too(tmp_path: Path) -> None:
    """Of torch.save alone the message would be "unexpected pos"."""
    save_checkpoint(tmp_path, 1, network(4), {}, {})
    with little_room(), pytest.raises(CheckpointError) as told:
        save_checkpoint(tmp_path, 2, network(4), {"optimizer": torch.ones(ROOM)}, {})
    there = tmp_path / "step-00000001"
    assert str(told.value) == (
        f"could not write the checkpoint {tmp_path / 'step-00000002'}: No space left on device. {there} is "
        "intact; free some space and resume"
    )


def test_other_errors_are_left_alone(tmp_path: Path) -> None:
    for error in (ValueError("os error 2"), OSError(5, "Input/output error"), RuntimeError("x")):
        with pytest.raises(type(error), match=str(error.args[-1])), written_whole(tmp_path):
            raise error
    with pytest.raises(OSError, match="No space left"), written_whole(tmp_path):
        raise RuntimeError("I/O error: No space left on device (os error 28)")
