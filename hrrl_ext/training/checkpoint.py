"""A run's folder: what is written after each epoch, and how a run is taken up again.

    out/config.json                           settings, model, classes, concepts
    out/metrics.csv, out/metrics.jsonl        one row per epoch
    out/train.log                             the same in plain lines
    out/checkpoints/epoch-0012/               the newest two
        model.safetensors                     weights and buffers
        state.pt                              optimiser, q and its counter, scaler, random state, history

A checkpoint is written to a folder of another name, forced to the disk and renamed: it is there whole
or not at all. Nothing that is read can execute code (safetensors; torch.load with weights_only).
"""

from __future__ import annotations

import csv
import json
import os
import pickle
import shutil
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_model as load_weights
from safetensors.torch import save_model as save_weights
from torch import nn

from .._files import replacing, sync

_KEEP = 2  # the newest, and the one before in case the newest does not load


class CheckpointError(RuntimeError):
    """A checkpoint could not be written or read; the message names the file and what is left."""


def holds_run(out: Path) -> bool:
    return (out / "config.json").exists() or (out / "checkpoints").exists()


def checkpoints(out: Path) -> list[Path]:
    """The checkpoints of a run, oldest first."""
    return sorted((out / "checkpoints").glob("epoch-*"))


def save_checkpoint(out: Path, epoch: int, model: nn.Module, state: Mapping[str, Any]) -> Path:
    """Writes ``epoch``'s checkpoint; older ones but the last go when it is safely there."""
    folder = out / "checkpoints"
    final = folder / f"epoch-{epoch:04d}"
    partial = folder / f".{final.name}.{os.getpid()}.partial"
    try:
        partial.mkdir(parents=True)
        save_weights(model, str(partial / "model.safetensors"))
        torch.save(dict(state), partial / "state.pt")
        shutil.copymode(partial / "state.pt", partial / "model.safetensors")  # which came as 0600
        for path in (partial / "model.safetensors", partial / "state.pt", partial):
            sync(path)
        os.rename(partial, final)
        sync(folder)
    except (OSError, RuntimeError, SafetensorError) as error:
        shutil.rmtree(partial, ignore_errors=True)
        kept = checkpoints(out)
        raise CheckpointError(
            f"could not write the checkpoint {final}: {error}. "
            + (
                f"{kept[-1]} is intact; free some space and resume"
                if kept
                else "None was saved yet"
            )
        ) from error
    for old in checkpoints(out)[:-_KEEP]:
        shutil.rmtree(old)
    return final


def load_checkpoint(out: Path, model: nn.Module) -> dict[str, Any]:
    """Fills ``model`` from the newest checkpoint that can be read and returns its state."""
    found = checkpoints(out)
    if not found:
        raise CheckpointError(f"{out} holds no checkpoint to resume from")
    for path in reversed(found):
        try:
            state = torch.load(path / "state.pt", map_location="cpu", weights_only=True)
            load_weights(model, path / "model.safetensors")
        except (OSError, RuntimeError, EOFError, pickle.UnpicklingError, SafetensorError) as error:
            reason = str(error).partition("\n")[0] or type(error).__name__
            warnings.warn(f"{path} cannot be read ({reason}); trying the one before", stacklevel=2)
            continue
        assert isinstance(state, dict)
        return state
    raise CheckpointError(
        f"none of the checkpoints in {out} can be read: {', '.join(p.name for p in found)}"
    )


def write_config(out: Path, config: Mapping[str, Any]) -> None:
    with replacing(out / "config.json") as path:
        path.write_text(json.dumps(config, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def read_config(out: Path) -> dict[str, Any]:
    path = out / "config.json"
    if not path.is_file():
        raise FileNotFoundError(f"{out} is not the folder of a run: there is no {path.name} in it")
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise CheckpointError(f"{path} is not valid JSON: {error}") from error
    assert isinstance(config, dict)
    return config


def write_metrics(out: Path, history: Sequence[Mapping[str, Any]]) -> None:
    """metrics.jsonl as it is; metrics.csv with one column per concept for what is a dict there."""
    with replacing(out / "metrics.jsonl") as path:
        path.write_text("".join(json.dumps(row) + "\n" for row in history), encoding="utf-8")
    flat = [_flatten(row) for row in history]
    with replacing(out / "metrics.csv") as path, path.open("w", newline="", encoding="utf-8") as f:
        writer = csv.DictWriter(f, fieldnames=list(flat[0]))
        writer.writeheader()
        writer.writerows(flat)


def _flatten(row: Mapping[str, Any]) -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in row.items():
        if isinstance(value, Mapping):
            flat |= {f"{name}/{key}": entry for key, entry in value.items()}
        else:
            flat[name] = value
    return flat


def load_model(out: str | os.PathLike[str], model: nn.Module | None = None) -> nn.Module:
    """The trained model of a run's folder, in eval mode on the CPU.

    A run of a model given by name is rebuilt from its configuration; for a run of your own module
    pass a fresh one, which is filled. Raises FileNotFoundError where ``out`` is no run and
    CheckpointError where none of its checkpoints can be read.
    """
    out = Path(out)
    config = read_config(out)
    if model is None:
        if config["model"] is None:
            raise ValueError(
                f"{out} is a run of a module of your own; pass one of its kind as model="
            )
        from ..models import build_model

        model = build_model(
            config["model"],
            num_classes=len(config["classes"]),
            image_size=config["image_size"],
            width=config["training"]["width"],
        )
    load_checkpoint(out, model)
    return model.eval()
