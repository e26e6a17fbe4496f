"""Checkpoints: what a run is taken up from.

    folder/step-00000240/             the newest two
        model.safetensors             weights and buffers
        state.pt                      optimiser, scaler, random states, history, the recipe's own state
        digests.json                  SHA-256 of both, and of what the run is

A checkpoint is written to a folder of another name, forced to the disk and renamed: it is there whole
or not at all. It is read where it has the digests that it was written with: what changed since, be it by
a bit, and what another run wrote is no state of this one. Nothing that is read can execute code
(safetensors; torch.load with weights_only).
"""

from __future__ import annotations

import os
import shutil
import warnings
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from safetensors.torch import load_model as load_weights
from safetensors.torch import save_model as save_weights
from torch import nn

from .._regular import regular
from .._state_dicts import not_finite
from ..digests import FILE, check_digests
from ..storage import (
    digest_of,
    file_digest,
    read_json,
    sync,
    why_unreadable,
    write_json,
    written_whole,
)

_STATE = {"optimizer", "scaler", "rng", "rng_cuda", "history"}  # and what the recipe adds
_FILES = ("model.safetensors", "state.pt")
_KEEP = 2  # the newest, and the one before in case the newest does not load


class CheckpointError(RuntimeError):
    """A checkpoint could not be written or read; the message names the file and what is left."""


def checkpoints(folder: Path) -> list[Path]:
    """The checkpoints in a folder, oldest first; a link, which could lead anywhere, is none."""
    found = sorted(folder.glob("step-*"))
    return [path for path in found if path.is_dir() and not path.is_symlink()]


def save_checkpoint(
    folder: Path, step: int, model: nn.Module, state: Mapping[str, Any], run: Mapping[str, Any]
) -> Path:
    """Writes the checkpoint of ``step``; older ones but the last go when it is safely there.

    ``run`` describes the run, as its config.json does.
    """
    final = folder / f"step-{step:08d}"
    partial = folder / f".{final.name}.partial"
    try:
        shutil.rmtree(partial, ignore_errors=True)  # of a process that was killed
        partial.mkdir(parents=True)
        with written_whole(partial):
            save_weights(model, str(partial / "model.safetensors"))
            torch.save(dict(state), partial / "state.pt")
        shutil.copymode(partial / "state.pt", partial / "model.safetensors")  # which came as 0600
        digests = {name: file_digest(partial / name) for name in _FILES}
        write_json(partial / FILE, {"run": digest_of(run), **digests})
        for path in (*(partial / name for name in _FILES), partial):
            sync(path)
        shutil.rmtree(final, ignore_errors=True)  # one that could not be read
        os.rename(partial, final)
        sync(folder)
    except (OSError, RuntimeError, SafetensorError) as error:
        shutil.rmtree(partial, ignore_errors=True)
        kept, number = checkpoints(folder), getattr(error, "errno", None)
        raise CheckpointError(
            f"could not write the checkpoint {final}: {os.strerror(number) if number else error}. "
            + (
                f"{kept[-1]} is intact; free some space and resume"
                if kept
                else "None was saved yet"
            )
        ) from error
    for old in checkpoints(folder)[:-_KEEP]:
        shutil.rmtree(old)
    return final


def load_checkpoint(
    folder: Path, model: nn.Module, run: Mapping[str, Any], part: str | None = None
) -> tuple[int, dict[str, Any]]:
    """Fills ``model`` from the newest checkpoint of ``run`` that can be read; returns its step and state.

    ``part``: the name that ``model`` has as a submodule of the one that was saved, if it is one.
    """
    found = checkpoints(folder)
    if not found:
        raise CheckpointError(f"{folder} holds no checkpoint to resume from")
    for path in reversed(found):
        try:
            _check_digests(path, run)
            state = torch.load(regular(path / "state.pt"), map_location="cpu", weights_only=True)
            if not (isinstance(state, dict) and state.keys() >= _STATE):
                raise ValueError("state.pt is not of a run")
            _load_weights(model, regular(path / "model.safetensors"), part)
            if (name := not_finite(model.state_dict())) is not None:
                raise ValueError(f"the weights in it are not finite: {name}")
        except Exception as error:  # whatever reading can raise: there may be one before
            reason = why_unreadable(error)
            warnings.warn(f"{path} cannot be read ({reason}); trying the one before", stacklevel=2)
            continue
        return int(path.name.removeprefix("step-")), state
    raise CheckpointError(
        f"none of the checkpoints in {folder} can be read: {', '.join(p.name for p in found)}"
    )


def last_good(folder: Path, run: Mapping[str, Any]) -> Path | None:
    """The newest checkpoint of ``run`` that is as it was written, and whose weights are finite."""
    for path in reversed(checkpoints(folder)):
        with suppress(Exception):  # whatever reading can raise: it is no good one
            _check_digests(path, run)
            if not_finite(load_file(path / "model.safetensors")) is None:
                return path
    return None


def _check_digests(path: Path, run: Mapping[str, Any]) -> None:
    """ValueError naming what is not as it was written. Checkpoints of before there were digests pass."""
    if not (path / FILE).exists():
        return
    check_digests(path, _FILES)
    if read_json(path / FILE).get("run") != digest_of(run):
        raise ValueError("it is of another run than config.json tells of")


def _load_weights(model: nn.Module, path: Path, part: str | None) -> None:
    if part is None:
        load_weights(model, path)
        return
    missing, others = load_weights(nn.ModuleDict({part: model}), path, strict=False)
    wrong = [*missing, *(name for name in others if name.startswith(f"{part}."))]
    if wrong:
        raise ValueError(f"{part} has other tensors: {', '.join(sorted(wrong)[:3])}")
