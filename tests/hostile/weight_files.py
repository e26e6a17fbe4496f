"""Weights and states: files of others, saved models, checkpoints of a run, the state of a clustering."""

from __future__ import annotations

import copy
import zipfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from random import Random
from typing import Any

import torch
from array_files import safetensors
from damage import BYTES, JSON, Files
from json_files import CLUSTERED, images
from safetensors.torch import save_file
from torch import nn
from trial import Attempt, Family, same

from hrrl_ext.clustering import GradientClustering
from hrrl_ext.clustering.folder import ClusterFolder
from hrrl_ext.models import build_model
from hrrl_ext.pretrained import from_pretrained, load_weights, save_pretrained
from hrrl_ext.training.checkpoint import load_checkpoint, save_checkpoint

CONFIG = {"model": "convnet", "classes": ["a", "b"], "image_size": 8, "width": 1}


def network(seed: int) -> nn.Module:
    torch.manual_seed(seed)
    return build_model("convnet", num_classes=2, image_size=8, width=1)


def state(model: nn.Module) -> dict[str, Any]:
    return {name: value.clone() for name, value in model.state_dict().items()}


def weights(folder: Path) -> Callable[[Random], Attempt]:
    """Of other libraries. A .safetensors has no checksum, and says what it says; a .pt has one of each part."""
    trained = network(1)
    save_file(trained.state_dict(), folder / "weights.safetensors")
    torch.save({"epoch": 3, "state_dict": trained.state_dict()}, folder / "weights.pt")

    def read(path: Path) -> Any:
        model = network(2)
        return load_weights(model, path).complete, state(model)

    def said(path: Path) -> Any:
        """What is there, into what a fresh network has; the rest is told by a warning or the report."""
        model = network(2)
        own = model.state_dict()
        if path.suffix == ".pt":
            with zipfile.ZipFile(path) as archive:
                if archive.testzip() is not None:
                    raise ValueError("damaged")
            found = torch.load(path, weights_only=True)["state_dict"]
        else:
            found = {n: torch.from_numpy(v.copy()) for n, v in safetensors(path)[0].items()}
        fitting = {n: v for n, v in found.items() if n in own and v.shape == own[n].shape}
        model.load_state_dict(fitting, strict=False)
        return found.keys() == own.keys() == fitting.keys(), state(model)

    def close(got: Any, want: Any) -> bool:
        return bool(got[0] == want[0]) and all(
            same(a, b) for a, b in zip(got[1].values(), want[1].values(), strict=True)
        )

    files = [
        Files(
            {path: BYTES},
            partial(read, path),
            said=partial(said, path),
            close=close,
        )
        for path in (folder / "weights.safetensors", folder / "weights.pt")
    ]
    return lambda chance: chance.choice(files)(chance)


def saved_models(folder: Path) -> Callable[[Random], Attempt]:
    """As the library writes them, with digests: no other weights are ever taken for these."""
    save_pretrained(network(1), folder / "model", CONFIG)
    damaged = {
        path: JSON if path.suffix == ".json" else BYTES
        for path in sorted((folder / "model").iterdir())
        if path.is_file()
    }
    return Files(damaged, lambda: state(from_pretrained(folder / "model")), named=[str(folder)])


def checkpoints(folder: Path) -> Callable[[Random], Attempt]:
    """The newest of two is damaged: it is named, and the one before is taken."""
    steps = {}
    for step in (3, 5):
        model = network(step)
        kept: dict[str, Any] = dict.fromkeys(("scaler", "rng_cuda", "history"))
        kept |= {"optimizer": {"step": step}, "rng": torch.get_rng_state()}
        save_checkpoint(folder, step, model, kept, {"model": "convnet"})
        steps[step] = step, state(model), kept
    newest = folder / "step-00000005"

    def read() -> Any:
        model = network(0)
        step, found = load_checkpoint(folder, model, {"model": "convnet"})
        return step, state(model), found

    damaged = dict.fromkeys(sorted(newest.iterdir()), BYTES)
    return Files(damaged, read, told=lambda: copy.deepcopy(steps[3]), named=[str(newest)])


def clusterings(folder: Path) -> Callable[[Random], Attempt]:
    """Its state to go on from, and what was found, for others."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(48, 2))
    found = GradientClustering(model, 2).fit(images(), rounds=2)
    written = ClusterFolder(folder)
    written.begin(CLUSTERED)
    written.save(found)
    written.write_found(found, images())

    def read() -> Any:
        fresh = GradientClustering(model, 2)
        ClusterFolder(folder).resume(fresh)
        kept = fresh.state_dict()
        return {n: kept[n] for n in sorted(kept)}, ClusterFolder(folder).assignment()

    damaged = {folder / name: BYTES for name in ("state.pt", "assignment.safetensors")}
    return Files(damaged, read)


FAMILIES: dict[str, Family] = {
    "weights": weights,
    "saved models": saved_models,
    "checkpoints": checkpoints,
    "states of a clustering": clusterings,
}
