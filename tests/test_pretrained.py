"""Weights from anywhere: what matches is loaded, what does not is told, nothing is executed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from hrrl_ext import HRRLTrainer
from hrrl_ext.data import load_images
from hrrl_ext.models import Normalise, build_model, resnet18
from hrrl_ext.pretrained import from_pretrained, from_weights, load_weights, save_pretrained
from hrrl_ext.training import load_model

CONFIG = {"model": "resnet18", "classes": ["a", "b", "c"], "image_size": 32, "width": 4}


def network(classes: int = 3) -> nn.Module:
    return resnet18(classes, stem="small", width=4)


def same(a: nn.Module, b: nn.Module) -> bool:
    return all(torch.equal(v, b.state_dict()[k]) for k, v in a.state_dict().items())


def test_a_folder_and_back(tmp_path: Path) -> None:
    model = network()
    save_pretrained(model, tmp_path / "model", CONFIG)
    loaded = from_pretrained(tmp_path / "model")
    assert not loaded.training
    assert same(loaded, model)
    assert same(from_pretrained(tmp_path / "model", network()), model)
    with pytest.raises(
        ValueError, match=r"does not fit the model: .* 2 mismatched \(fc.weight, fc"
    ):
        from_pretrained(tmp_path / "model", network(classes=5))
    with pytest.raises(ValueError, match="config lacks image_size, width"):
        save_pretrained(model, tmp_path, {"model": None, "classes": []})
    with pytest.raises(FileNotFoundError, match="holds no model and no run"):
        from_pretrained(tmp_path)


@pytest.mark.parametrize("prefix", ["", "module.", "module._orig_mod."])
@pytest.mark.parametrize("nested", [None, "state_dict", "model"])
@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_state_dicts_as_they_come(
    tmp_path: Path, prefix: str, nested: str | None, suffix: str
) -> None:
    model, path = network(), tmp_path / f"weights{suffix}"
    state: dict[str, Any] = {prefix + name: value for name, value in model.state_dict().items()}
    if suffix == ".safetensors":
        save_file({name: value.clone() for name, value in state.items()}, path)
    else:
        torch.save({nested: state, "epoch": 3} if nested else state, path)
    fresh = network()
    report = load_weights(fresh, path)
    assert report.complete
    assert len(report.loaded) == len(model.state_dict())
    assert same(fresh, model)


@pytest.mark.parametrize(
    ("part", "others"),
    [
        (
            "module.encoder_q.",
            ["module.encoder_k.conv1.weight", "module.queue", "module.queue_ptr"],
        ),
        ("backbone.", ["momentum_backbone.conv1.weight", "projector.0.weight", "classifier.bias"]),
        ("backbone.", ["projection_head.layers.0.weight", "backbone_momentum.conv1.weight"]),
    ],
    ids=["MoCo", "solo-learn", "lightly"],
)
def test_the_network_of_a_pretraining(tmp_path: Path, part: str, others: list[str]) -> None:
    """MoCo has its head in the place of the last layer, the others have none there."""
    model = network()
    state = {
        part + n: v for n, v in model.state_dict().items() if not n.startswith(("fc.", "norm"))
    }
    state |= {f"{part}fc.{i}.weight": torch.zeros(2, 2) for i in (0, 2)}
    state |= dict.fromkeys(others, torch.zeros(3))
    torch.save({"epoch": 200, "state_dict": state}, tmp_path / "pretrained.pt")
    fresh = network()
    report = load_weights(fresh, tmp_path / "pretrained.pt")
    assert report.missing == ["fc.weight", "fc.bias"] and report.mismatched == []
    assert report.unexpected == ["fc.0.weight", "fc.2.weight"]
    for name, value in model.state_dict().items():
        assert torch.equal(fresh.state_dict()[name], value) == (not name.startswith("fc.")), name
    opened = from_weights("resnet18", tmp_path / "pretrained.pt", image_size=32, width=4)
    assert torch.equal(opened.layer4[1].conv2.weight, model.layer4[1].conv2.weight)


def test_a_resnet_by_the_places_of_its_layers(tmp_path: Path) -> None:
    """As lightly's examples train it: Sequential(conv1, bn1, relu, maxpool, layer1, ..., avgpool), and the
    one that follows it beside."""
    model = network()
    places = {"conv1": 0, "bn1": 1, "layer1": 4, "layer2": 5, "layer3": 6, "layer4": 7}
    state = {
        f"backbone.{places[top]}.{rest}": value
        for name, value in model.state_dict().items()
        for top, _, rest in [name.partition(".")]
        if top in places
    }
    follower = {n.replace("backbone", "backbone_momentum"): v + 1 for n, v in state.items()}
    head = {"projection_head.0.weight": torch.zeros(2)}
    torch.save(follower | state | head, tmp_path / "w.pt")
    fresh = network()
    report = load_weights(fresh, tmp_path / "w.pt")
    assert report.missing == ["fc.weight", "fc.bias"] and report.unexpected == []
    assert report.beside == [*follower, *head, "names behind 'backbone_momentum.'"]
    assert torch.equal(fresh.layer3[0].downsample[0].weight, model.layer3[0].downsample[0].weight)


def test_a_network_with_a_backbone_of_its_own(tmp_path: Path) -> None:
    """Names that agree as they are win."""
    model = nn.ModuleDict({"backbone": nn.Linear(2, 2), "weight": nn.Linear(3, 3)})
    torch.save(model.state_dict(), tmp_path / "w.pt")
    fresh = nn.ModuleDict({"backbone": nn.Linear(2, 2), "weight": nn.Linear(3, 3)})
    assert load_weights(fresh, tmp_path / "w.pt").complete and same(fresh, model)


def test_the_report_names_what_did_not_match(tmp_path: Path) -> None:
    """A bare network into one behind our normaliser, with another classifier and a layer more."""
    bare = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(16, 7))
    save_file({**bare.state_dict(), "extra": torch.zeros(2)}, tmp_path / "w.safetensors")
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(16, 5), nn.Linear(5, 5))
    model = nn.Sequential()
    model.add_module("normalise", Normalise())
    model.add_module("network", network)
    before = network[2].weight.clone()
    report = load_weights(model, tmp_path / "w.safetensors")
    assert report.loaded == ["network.0.weight", "network.0.bias"]
    assert report.missing == ["network.3.weight", "network.3.bias"]
    assert report.unexpected == ["network.extra"]
    assert report.mismatched == ["network.2.weight", "network.2.bias"]
    assert str(report).startswith("2 tensors loaded; 2 missing (network.3.weight, network.3.bias);")
    assert torch.equal(network[0].weight, bare[0].weight)
    assert torch.equal(network[2].weight, before)


def test_files_that_are_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no weights at"):
        load_weights(network(), tmp_path / "nothing.pt")
    (tmp_path / "foreign.pt").write_bytes(b"not a model")
    (tmp_path / "foreign.safetensors").write_bytes(b"not a model")
    torch.save([torch.zeros(2)], tmp_path / "list.pt")
    torch.save({"other": torch.zeros(2)}, tmp_path / "other.pt")
    for name, message in {
        "foreign.pt": "cannot be read", "foreign.safetensors": "cannot be read",
        "list.pt": "must hold a state dict, got list", "other.pt": "no name and shape agrees",
    }.items():  # fmt: skip
        with pytest.raises(ValueError, match=message):
            load_weights(network(), tmp_path / name)

    class Evil:
        def __reduce__(self) -> tuple[Any, ...]:
            return ((tmp_path / "executed").touch, ())

    torch.save({"state_dict": Evil()}, tmp_path / "evil.pt")
    with pytest.raises(ValueError, match="cannot be read"):
        load_weights(network(), tmp_path / "evil.pt")
    assert not (tmp_path / "executed").exists()


def test_init_and_best_of_a_run(tmp_path: Path) -> None:
    """A run's best epoch begins another run, with another classifier."""
    digits = load_images("digits").subset(range(96))
    settings: dict[str, Any] = {
        "data": digits, "concepts": "classes", "tau": 0.0, "lam": None, "epochs": 3, "batch_size": 32, "width": 4,
        "crop_padding": 1, "lr": 0.05, "progress": "off",
    }  # fmt: skip
    first = HRRLTrainer(
        **settings, validation=digits, out=tmp_path / "run", select="worst_concept"
    ).fit()
    config = json.loads((tmp_path / "run/best/config.json").read_text())
    worst = [row["worst_concept_accuracy"] for row in first.history]
    assert config["best"]["epoch"] == 1 + worst.index(max(worst))
    best = load_model(tmp_path / "run", which="best")
    again = HRRLTrainer(**settings, init=tmp_path / "run/best")
    assert same(again.model.cpu(), best)
    with pytest.raises(ValueError, match="give one of the two"):
        HRRLTrainer(**settings, out=tmp_path / "run", resume=True, init=tmp_path / "run/best")
    bare = {k: v for k, v in best.state_dict().items() if not k.startswith("fc.")}
    save_file(bare, tmp_path / "trunk.safetensors")
    with pytest.warns(UserWarning, match=r"init .*trunk.safetensors: .* 2 missing \(fc.weight"):
        HRRLTrainer(**settings, init=tmp_path / "trunk.safetensors")


@pytest.mark.parametrize("name", ["torchvision:resnet18", "timm:resnet10t"])
def test_networks_of_other_libraries(name: str) -> None:
    try:
        model = build_model(name, num_classes=5, image_size=64)
    except ImportError as error:
        pytest.skip(str(error))
    assert model(torch.rand(2, 3, 64, 64)).shape == (2, 5)
    with pytest.raises(ValueError, match="has no model 'resnet18x'; near are"):
        build_model(name.partition(":")[0] + ":resnet18x", num_classes=5, image_size=64)
