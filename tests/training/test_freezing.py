"""What is frozen stays as it is: weights, statistics and mode, through epochs, decay, averages and a resumption."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from hrrl_ext import HRRLTrainer, URRLTrainer, finetune
from hrrl_ext._modes import in_mode, to_train
from hrrl_ext.contrastive import ContrastiveConfig, MoCo
from hrrl_ext.data import ArrayImages, load_images
from hrrl_ext.robust import HRRLConfig
from hrrl_ext.training import CheckpointError
from hrrl_ext.training.freezing import freeze

_DIGITS = load_images("digits", split="train")
_SOME = (_DIGITS.target < 4).nonzero().flatten()[:48]
IMAGES = ArrayImages(_DIGITS.images[_SOME], _DIGITS.target[_SOME], name="some")  # four classes
QUICK: dict[str, Any] = {
    "epochs": 3, "batch_size": 16, "lr": 0.05, "crop_padding": 0, "flip": False, "device": "cpu",
    "concepts": "classes", "tau": 0.1, "lam": 1.0, "progress": "off",
}  # fmt: skip


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv1 = nn.Conv2d(3, 4, 3, bias=False)
        self.bn1 = nn.BatchNorm2d(4)
        self.block = nn.Sequential(
            nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4, affine=False), nn.Dropout(0.5)
        )
        self.fc = nn.Linear(64, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.block(torch.relu(self.bn1(self.conv1(x))))
        logits: Tensor = self.fc(x.flatten(1))
        return logits


def state(model: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


def moved(model: nn.Module, start: dict[str, Tensor]) -> set[str]:
    return {
        name for name, value in model.state_dict().items() if not torch.equal(value, start[name])
    }


STEM = {"conv1.weight", "bn1.weight", "bn1.bias"}
OF_STEM = STEM | {"bn1.running_mean", "bn1.running_var", "bn1.num_batches_tracked"}
OF_BLOCK = {"block.0.weight", "block.0.bias"} | {
    f"block.1.{name}" for name in ("running_mean", "running_var", "num_batches_tracked")
}
OF_FC = {"fc.weight", "fc.bias"}


@pytest.mark.parametrize("train_mode", [False, True])
@pytest.mark.parametrize("affine", [True, False])
def test_a_norm_that_its_owner_froze_does_not_thaw(train_mode: bool, affine: bool) -> None:
    """In eval mode or not: without a gradient in its weights its statistics stay as well."""
    model = Net()
    frozen = model.bn1 if affine else model.block
    frozen.requires_grad_(False).train(train_mode)
    start, modes = state(model), []
    trainer = HRRLTrainer(model, data=IMAGES, validation=IMAGES, **QUICK)
    trainer.after_step = lambda trainer, step: modes.append(
        (
            trainer.model.bn1.training,
            trainer.model.block[1].training,
            trainer.model.block[2].training,
        )
    )
    trainer.fit()
    expected = OF_STEM - {"conv1.weight"} if affine else OF_BLOCK
    assert moved(model, start) == set(start) - expected
    assert set(modes) == {(not affine, affine, affine)}  # dropout too is frozen with what it is in


def test_what_is_in_eval_mode_and_not_frozen_trains() -> None:
    """As every model that was opened from a file is."""
    model = Net().eval()
    start = state(model)
    HRRLTrainer(model, data=IMAGES, **QUICK).fit()
    assert moved(model, start) == set(start)


PATTERNS = {
    "bn1": OF_STEM - {"conv1.weight"},
    "conv1+bn?": OF_STEM,
    "block": OF_BLOCK,
    "block.1": OF_BLOCK - {"block.0.weight", "block.0.bias"},  # which has no weight, but statistics
    "block*+*1": OF_STEM | OF_BLOCK,
    "*.bias": {"block.0.bias", "fc.bias", "bn1.bias"},
    "*+!fc": OF_STEM | OF_BLOCK,
    "*+!block+!fc+block.0.weight": OF_STEM | {"block.0.weight"},
}


@pytest.mark.parametrize("train", ["train", "finetune"])
@pytest.mark.parametrize(("patterns", "frozen"), PATTERNS.items(), ids=PATTERNS)
def test_by_name(train: str, patterns: str, frozen: set[str]) -> None:
    """Decay and an average that would move what is not held: to the bit."""
    settings = QUICK | {"weight_decay": 0.5, "ema": 0.5, "epochs": 2}
    model, names = Net(), patterns.split("+")
    start = state(model)
    if train == "train":
        result = HRRLTrainer(model, data=IMAGES, freeze=names, **settings).fit()
    else:
        result = finetune(model, IMAGES, freeze=patterns, **settings)
        assert not moved(model, start)
        start |= {name: state(result.model)[name] for name in OF_FC & frozen}  # drawn anew
    assert result.ema is not None
    assert moved(result.model, start) == set(start) - frozen
    assert moved(result.ema, start) <= set(start) - frozen


@pytest.mark.parametrize(
    "optimizer", ["sgd", "adam", "adamw", "torch.optim.NAdam", "torch.optim.RMSprop"]
)
def test_no_optimiser_decays_what_is_frozen(optimizer: str) -> None:
    """Not even one whose decay is apart from the gradient, and not through momentum."""
    model = Net()
    start = state(model)
    settings = QUICK | {"optimizer": optimizer, "weight_decay": 0.5, "clip_norm": 0.1, "lr": 1e-3}
    HRRLTrainer(model, data=IMAGES, freeze="conv1+bn1", **settings).fit()
    assert moved(model, start) == set(start) - OF_STEM


def test_pretraining_freezes_by_the_networks_own_names() -> None:
    """For the keys' encoder too, whose layers would be in train mode, with other features, else."""
    model = Net()
    start = state(model)
    trainer = URRLTrainer(
        model, data=IMAGES, freeze="conv1+bn1", epochs=2, batch_size=16, norm_groups=2, queue=32, dim=8,
        device="cpu", progress="off",
    )  # fmt: skip
    trainer.fit()
    assert moved(model, start) == set(start) - OF_STEM
    assert isinstance(trainer.recipe, MoCo)
    keys = trainer.recipe.keys.encoder.backbone
    assert isinstance(keys, Net) and not keys.bn1.training and keys.fc.training


def test_clusters_are_of_the_layers_that_train() -> None:
    settings = QUICK | {"concepts": "clusters:2", "freeze": "*+!fc"}
    trainer = HRRLTrainer(Net(), data=IMAGES, **settings)
    assert trainer.recipe.discovery is not None
    assert trainer.recipe.discovery.clustering.parameters == ["fc.weight", "fc.bias"]


def test_a_frozen_run_resumes_to_the_same_bits_and_as_it_was_begun(tmp_path: Path) -> None:
    settings = QUICK | {"data": IMAGES, "freeze": "conv1+bn1", "ema": 0.9, "weight_decay": 0.1}
    whole = HRRLTrainer(Net(), out=tmp_path / "whole", **settings).fit()
    HRRLTrainer(Net(), out=tmp_path / "cut", **settings).fit(until=1)
    rest = HRRLTrainer(Net(), out=tmp_path / "cut", resume=True, **settings).fit()
    assert not moved(rest.model, state(whole.model))
    with pytest.raises((ValueError, CheckpointError), match="freeze"):
        HRRLTrainer(Net(), out=tmp_path / "cut", resume=True, **(settings | {"freeze": "conv1"}))


def test_the_modes_of_training() -> None:
    model = Net().eval()
    model.bn1.requires_grad_(False)
    to_train(model, freeze(model, ["block", "!block.1", "!block.0.bias"]))
    held = {name for name, module in model.named_modules() if not module.training}
    assert held == {"block", "block.0", "block.2", "bn1"}  # block.1 has no weight, and was excepted
    with in_mode(model.eval(), "train"):
        assert not model.bn1.training
        assert model.fc.training
    assert not model.fc.training


@pytest.mark.parametrize(
    ("patterns", "message"),
    [
        (["conv2"], r"freeze: Net's layer 'conv2' is not known; did you mean 'conv1'"),
        (["conv1", "!head"], "'head' is not known"),
        ("conv1+", "layer '' is not known"),
        ("*", r"no parameter of Net is left to train with freeze=\*; \*\+!NAME trains NAME alone"),
    ],
)
def test_refused(patterns: Any, message: str, tmp_path: Path) -> None:
    for train in (HRRLTrainer, finetune):
        with pytest.raises(ValueError, match=message):
            train(Net(), data=IMAGES, freeze=patterns, out=tmp_path / "run", **QUICK)
    assert not (tmp_path / "run").exists()


def test_a_model_that_is_frozen_as_a_whole_is_refused() -> None:
    with pytest.raises(ValueError, match=r"no parameter of Net is left to train$"):
        HRRLTrainer(Net().requires_grad_(False), data=IMAGES, **QUICK)


def test_as_a_setting() -> None:
    assert HRRLConfig(freeze="conv1 + layer*").freeze == ["conv1", "layer*"]
    assert ContrastiveConfig(freeze=("conv1",)).freeze == ["conv1"]
    assert HRRLConfig(freeze=[]).freeze is None
