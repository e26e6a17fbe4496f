"""Weights as they are found: what trainings write, read to the bit, and nothing of a file is run."""

from __future__ import annotations

import argparse
import enum
import re
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from hrrl_ext.models import Normalise
from hrrl_ext.pretrained import from_pretrained, load_weights, save_pretrained

State = dict[str, Tensor]
_ADDED = {"n": 0}


def network(classes: int = 3) -> nn.Sequential:
    """A stem, a stage and a classifier, under the names that such have."""
    return nn.Sequential(
        OrderedDict(
            conv1=nn.Conv2d(3, 4, 3),
            bn1=nn.BatchNorm2d(4),
            layer1=nn.Sequential(nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)),
            pool=nn.AdaptiveAvgPool2d(1),
            flatten=nn.Flatten(),
            fc=nn.Linear(4, classes),
        )
    )


def drawn(seed: int = 1) -> nn.Sequential:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = network()
        for value in model.state_dict().values():
            if value.is_floating_point():
                value.normal_()
    return model


def behind(prefix: str, state: State) -> State:
    return {prefix + name: value for name, value in state.items()}


def other(state: State) -> State:
    """Of the same shapes, and other values."""
    return {name: value + 1 for name, value in state.items()}


def same(model: nn.Module, state: State) -> bool:
    return all(torch.equal(value, state[name]) for name, value in model.state_dict().items())


W = drawn().state_dict()
HEAD = {"projector.0.weight": torch.zeros(4, 4), "criterion.weight": torch.ones(3)}
FOUND: dict[str, tuple[Any, str, list[str]]] = {
    "DataParallel, with a loss beside": (
        behind("module.", W) | {"criterion.weight": torch.ones(3)},
        "names behind 'module.'", ["criterion.weight"],
    ),
    "Lightning": (
        {"epoch": 3, "pytorch-lightning_version": "2", "state_dict": behind("model.", W) | HEAD},
        "'state_dict', names behind 'model.'", list(HEAD),
    ),
    "Lightning, compiled": (
        {"state_dict": behind("model._orig_mod.", W)}, "'state_dict', names behind 'model.'", [],
    ),
    "SWA": (AveragedModel(drawn()).state_dict(), "names behind 'module.'", []),
    "timm": (
        {"state_dict": W, "state_dict_ema": other(W), "args": argparse.Namespace(lr=0.1)},
        "'state_dict'", ["'state_dict_ema'"],
    ),
    "timm, the average alone": ({"epoch": 1, "state_dict_ema": behind("module.", W)},
        "'state_dict_ema', names behind 'module.'", []),
    "torchvision's references": (
        {"model": W, "model_ema": behind("module.", other(W)) | {"n_averaged": torch.tensor(7)}},
        "'model'", ["'model_ema', names behind 'module.'"],
    ),
    "MoCo": (
        {"state_dict": behind("module.encoder_q.", W) | behind("module.encoder_k.", other(W))},
        "'state_dict', names behind 'module.encoder_q.'",
        [*behind("module.encoder_k.", W), "'state_dict', names behind 'module.encoder_k.'"],
    ),
    "lightly": (
        {"state_dict": behind("backbone.", W) | behind("backbone_momentum.", other(W)) | HEAD},
        "'state_dict', names behind 'backbone.'",
        [*behind("backbone_momentum.", W), *HEAD, "'state_dict', names behind 'backbone_momentum.'"],
    ),
    "DINO": (
        {"student": behind("module.backbone.", other(W)), "teacher": behind("backbone.", W)},
        "'teacher', names behind 'backbone.'", ["'student', names behind 'module.backbone.'"],
    ),
    "BYOL": (behind("online.", W) | behind("target.", other(W)), "names behind 'online.'",
        [*behind("target.", W), "names behind 'target.'"]),
    "an encoder in a checkpoint within one": (
        {"checkpoint": {"net": behind("encoder.", W), "epoch": 4}}, "'checkpoint.net', names behind 'encoder.'", [],
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", FOUND)
def test_checkpoints_of_trainings(name: str, tmp_path: Path) -> None:
    saved, part, beside = FOUND[name]
    torch.save(saved, tmp_path / "w.pt")
    model = network()
    report = load_weights(model, tmp_path / "w.pt")
    assert same(model, W) and report.complete and len(report.loaded) == len(W)
    assert (report.part, sorted(report.beside)) == (part, sorted(beside))
    assert part in str(report) and (f"{len(beside)} beside them left out" in str(report)) == bool(
        beside
    )


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
@pytest.mark.parametrize(
    "inside", [lambda n: n, lambda n: nn.ModuleDict({"student": n, "aux": nn.Linear(2, 2)})]
)
@pytest.mark.parametrize("written", ["", "module.", "encoder."])
@pytest.mark.parametrize("name", ["network", "1", "backbone.body"])
def test_a_model_behind_a_normaliser_reads_bare_weights_and_its_own(
    suffix: str, inside: Callable[[nn.Module], nn.Module], written: str, name: str, tmp_path: Path
) -> None:
    def wrapped(network: nn.Module) -> nn.Module:
        for part in reversed(name.split(".")):
            network = nn.Sequential(
                OrderedDict([("normalise", Normalise((0.5,) * 3, (0.2,) * 3)), (part, network)])
            )
        return network

    bare = inside(drawn())
    for state in (bare.state_dict(), wrapped(bare).state_dict()):
        state = {n: v.clone() for n, v in behind(written, state).items()}
        save_file(state, tmp_path / "w.safetensors")
        torch.save(state, tmp_path / "w.pt")
        model = wrapped(inside(network()))
        report = load_weights(model, tmp_path / f"w{suffix}")
        assert report.complete and not report.beside, str(report)
        (fc,) = (value for name, value in model.state_dict().items() if name.endswith("fc.weight"))
        assert torch.equal(fc, W["fc.weight"])


def test_which_of_several_is_said_or_asked_for(tmp_path: Path) -> None:
    path = tmp_path / "w.pt"
    torch.save(
        {"state_dict": behind("left.", W) | behind("right.", other(W)), "ema": other(other(W))},
        path,
    )
    with pytest.raises(ValueError, match=re.escape(
        "holds several networks that fit the model equally ('state_dict', names behind 'left.'; "
        "'state_dict', names behind 'right.'); say which with load_weights(model, "
    )):  # fmt: skip
        load_weights(network(), path)
    for part, state in {
        "left.": W,
        "state_dict.right": other(W),
        "right": other(W),
        "ema": other(other(W)),
    }.items():
        model = network()
        assert load_weights(model, path, part=part).complete and same(model, state), part
    with pytest.raises(
        ValueError, match="no name and shape agrees with the model in part 'middle'"
    ):
        load_weights(network(), path, part="middle")


def test_without_counts_of_batches(tmp_path: Path) -> None:
    """Of before torch 0.4.1, and of all who leave them out: they change no output."""
    state = {name: value for name, value in W.items() if not name.endswith("num_batches_tracked")}
    save_pretrained(
        drawn(), tmp_path, {"model": None, "classes": ["a"] * 3, "image_size": 8, "width": 1}
    )
    save_file(state, tmp_path / "model.safetensors")
    (tmp_path / "digests.json").unlink()
    model = from_pretrained(tmp_path, network())
    assert all(torch.equal(model.state_dict()[name], value) for name, value in state.items())
    save_file(
        {n: v for n, v in state.items() if n != "bn1.running_mean"}, tmp_path / "model.safetensors"
    )
    with pytest.raises(ValueError, match=r"1 missing \(bn1.running_mean\)"):
        from_pretrained(tmp_path, network())


def test_tied_weights(tmp_path: Path) -> None:
    """safetensors keeps one of the names."""

    def tied() -> nn.ModuleDict:
        model = nn.ModuleDict(
            {
                "embed": nn.Embedding(5, 4),
                "mix": nn.Linear(4, 4),
                "out": nn.Linear(4, 5, bias=False),
            }
        )
        model["out"].weight = model["embed"].weight
        return model

    model = tied()
    save_pretrained(model, tmp_path, {"model": None, "classes": [], "image_size": 8, "width": 1})
    again = from_pretrained(tmp_path, tied())
    assert torch.equal(again["out"].weight, model["embed"].weight)
    free = tied()
    free["out"] = nn.Linear(4, 5, bias=False)
    with pytest.raises(ValueError, match="1 missing"):
        from_pretrained(tmp_path, free)


def test_what_matches_nothing_is_refused(tmp_path: Path) -> None:
    """Counts of batches fit any network, and a layer somewhere is not yet a network."""
    counts = {name: value for name, value in W.items() if value.ndim == 0}
    for state in (
        counts,
        behind("deep.", {"fc.bias": W["fc.bias"], "x": torch.ones(2)}),
        {"y": W["fc.weight"]},
    ):
        torch.save(state, tmp_path / "w.pt")
        with pytest.raises(
            ValueError, match=r"no name and shape agrees with the model; it has .*, the model conv1"
        ):
            load_weights(network(), tmp_path / "w.pt")


# --- what torch's safe reader refuses


class Settings:
    """Of a script that is not there any more."""

    def __init__(self) -> None:
        self.lr, self.inner = 0.1, {"name": SimpleNamespace(a=1)}


class Phase(enum.Enum):
    WARM = 1


class Bad:
    def __reduce__(self) -> tuple[Any, ...]:
        return (_ran, (1,))


def _ran(by: int) -> int:
    _ADDED["n"] += by
    return 7


class Box(dict[str, Any]):
    pass


@pytest.mark.parametrize(
    "held",
    [
        argparse.Namespace(lr=0.1, out=Path("runs")), Settings(), Phase.WARM, np.float64(0.5),
        np.random.RandomState(0).get_state(), [Bad(), Bad()], SimpleNamespace(a=Settings()), nn.ReLU(),
    ],
    ids=["argparse", "a class", "an enum", "numpy's number", "numpy's state", "code", "classes", "a module"],
)  # fmt: skip
def test_objects_beside_a_state_dict_are_passed_over(held: Any, tmp_path: Path) -> None:
    torch.save({"epoch": 1, "args": held, "model": W, "best": held}, tmp_path / "w.pt")
    model = network()
    assert load_weights(model, tmp_path / "w.pt").complete and same(model, W)
    assert _ADDED["n"] == 0  # nothing ran


@pytest.mark.parametrize(
    ("saved", "kind"),
    [
        (drawn(), "torch.nn.modules"), ({"model": drawn()}, "torch.nn.modules"), ({"model": Bad()}, f"{__name__}._ran"),
        ({"state_dict": W, "box": Box(a=1)}, f"{__name__}.Box"), (Settings(), f"{__name__}.Settings"),
    ],
    ids=["a model", "a model in a checkpoint", "code", "a kind of dict", "a class"],
)  # fmt: skip
def test_what_cannot_be_read_is_named_with_a_way_out(saved: Any, kind: str, tmp_path: Path) -> None:
    torch.save(saved, tmp_path / "w.pt")
    with pytest.raises(
        ValueError, match=r"w.pt cannot be read: it holds objects that only code could make"
    ) as raised:
        load_weights(network(), tmp_path / "w.pt")
    assert kind in str(raised.value) and "weights_only=False" in str(raised.value)
    assert _ADDED["n"] == 0
