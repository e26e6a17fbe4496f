"""What was saved is opened as it was written, or named: by a bit, by a file, by a value that is no number."""

import json
import math
import os
import random
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from hrrl_ext import digests
from hrrl_ext.data import ArrayImages
from hrrl_ext.digests import FILE, check_digests, replacing_together
from hrrl_ext.models import build_model
from hrrl_ext.pretrained import from_pretrained, load_weights, save_pretrained
from hrrl_ext.robust import HRRLTrainer
from hrrl_ext.training import load_model
from hrrl_ext.training.checkpoint import CheckpointError, last_good, load_checkpoint
from hrrl_ext.transfer import extract_features

CONFIG = {"model": "convnet", "classes": ["a", "b"], "image_size": 8, "width": 2}
IMAGES = ArrayImages(torch.zeros(4, 3, 8, 8, dtype=torch.uint8), torch.tensor([0, 1, 0, 1]))


def built() -> nn.Module:
    return build_model("convnet", num_classes=2, image_size=8, width=2)


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    save_pretrained(built(), tmp_path / "model", CONFIG)
    return tmp_path / "model"


@pytest.mark.parametrize("name", ["model.safetensors", "config.json"])
def test_a_flipped_bit_of_a_saved_model_is_named(saved: Path, name: str) -> None:
    """Wherever it is, with what was expected and got, and by whatever opens the folder."""
    chance, whole = random.Random(name), (saved / name).read_bytes()
    expected = json.loads((saved / FILE).read_text())[name]
    for _ in range(30):
        damaged = bytearray(whole)
        damaged[chance.randrange(len(whole))] ^= 1 << chance.randrange(8)
        (saved / name).write_bytes(damaged)
        with pytest.raises(ValueError, match="is not as it was written") as refused:
            from_pretrained(saved)
        said = str(refused.value)
        assert f"{saved / name} " in said and f"expected the SHA-256 {expected} " in said
        assert "got " in said and "put a copy of it back" in said
    for source in (saved, saved / "model.safetensors"):
        with pytest.raises(ValueError, match="is not as it was written"):
            load_weights(built(), source)
    (saved / name).unlink()
    with pytest.raises(ValueError, match=r"got no such file"):
        from_pretrained(saved)
    (saved / name).write_bytes(whole)
    from_pretrained(saved)


def test_a_folder_without_digests_is_of_before_there_were_any(saved: Path) -> None:
    (saved / FILE).unlink()
    model = from_pretrained(saved)
    save_pretrained(built(), saved, CONFIG)  # has them now
    check_digests(saved)
    before, now = (next(m.parameters()) for m in (model, from_pretrained(saved)))
    assert not torch.equal(before, now)


@pytest.mark.parametrize("older", [False, True])
def test_a_kill_between_any_two_files_leaves_what_can_be_opened(
    saved: Path, monkeypatch: pytest.MonkeyPatch, older: bool
) -> None:
    """The weights of one save beside the configuration of another are both as they were written."""
    if older:
        (saved / FILE).unlink()
    replace = os.replace
    for last in range(5):
        left = iter(range(last))

        def killed(old: Any, new: Any, left: Any = left) -> None:
            if next(left, None) is None:
                raise KeyboardInterrupt
            replace(old, new)

        with monkeypatch.context() as patch:
            patch.setattr(os, "replace", killed)
            with pytest.raises(KeyboardInterrupt):
                save_pretrained(built(), saved, CONFIG)
        from_pretrained(saved)
        assert not list(saved.glob(".*"))
    assert (saved / FILE).exists()


def test_files_that_are_replaced_while_they_are_checked_are_no_damage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def write(text: str) -> None:
        with replacing_together(tmp_path) as partial:
            (partial / "file").write_text(text)

    write("old")
    read = digests.file_digest

    def meanwhile(path: Path) -> str:
        monkeypatch.setattr(digests, "file_digest", read)
        write("new")
        return read(path)

    monkeypatch.setattr(digests, "file_digest", meanwhile)
    check_digests(tmp_path)
    assert (tmp_path / "file").read_text() == "new"


def test_weights_that_are_not_finite_are_refused_by_name(saved: Path, tmp_path: Path) -> None:
    model = from_pretrained(saved)
    extract_features(model, IMAGES)
    names = [n for n, t in model.state_dict().items() if t.is_floating_point()]
    assert len(names) > 2
    for name, value in zip(names, (math.nan, math.inf, -math.inf) * len(names), strict=False):
        broken = built()
        broken.state_dict()[name].view(-1)[0] = value
        with pytest.raises(ValueError, match=f"extract_features: {name} of the model holds NaN"):
            extract_features(broken, IMAGES)
        save_pretrained(broken, tmp_path / "broken", CONFIG)
        with pytest.raises(ValueError, match=f"model.safetensors: {name} holds NaN"):
            from_pretrained(tmp_path / "broken")


class Masked(nn.Module):
    """With a mask as attention has it, which is infinite by design."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(3 * 8 * 8, 2)
        self.register_buffer("mask", torch.full((3, 3), -torch.inf).triu(1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.fc(x.flatten(1))
        return out


def test_a_mask_is_no_weight(tmp_path: Path) -> None:
    save_pretrained(Masked(), tmp_path, CONFIG | {"model": None})
    model = from_pretrained(tmp_path, Masked())
    extract_features(model, IMAGES)


def test_the_last_good_state_is_whole_and_finite(tmp_path: Path) -> None:
    """Not merely the newest: one with weights that are not finite, or a flipped bit, is passed over."""
    settings: dict[str, Any] = {"data": IMAGES, "concepts": "classes", "tau": 0.0, "epochs": 2}
    settings |= {"max_steps": 2, "checkpoint_every": 1, "progress": "off", "width": 2}
    settings |= {"validation": IMAGES, "batch_size": 2}
    HRRLTrainer("convnet", out=tmp_path / "run", **settings).fit()
    folder, config = (
        tmp_path / "run/checkpoints",
        json.loads((tmp_path / "run/config.json").read_text()),
    )
    first, second = sorted(folder.iterdir())
    assert last_good(folder, config) == second
    tensors = load_file(second / "model.safetensors")
    name = next(name for name in tensors if name.endswith("weight"))
    tensors[name].view(-1)[0] = math.nan
    save_file(tensors, second / "model.safetensors")
    assert last_good(folder, config) == first
    (second / FILE).unlink()  # by whoever has no digests
    assert last_good(folder, config) == first
    model = load_model(tmp_path / "run", which="best")
    with pytest.warns(UserWarning, match=rf"step-00000002 cannot be read .*not finite: {name}"):
        assert load_checkpoint(folder, model, config)[0] == 1
    (first / "state.pt").write_bytes(b"")
    assert last_good(folder, config) is None
    with pytest.warns(UserWarning, match="cannot be read"), pytest.raises(CheckpointError):
        load_checkpoint(folder, model, config)
