"""configs/: every recipe is what it says, and that of ImageNet trains on a tree of ImageNet's layout."""

from __future__ import annotations

import itertools
import json
import re
import shlex
from pathlib import Path

import numpy as np
import pytest

from hrrl_ext.data.concept_tables import IMAGENET_CONCEPTS, imagenet_table
from hrrl_ext.training.schedule import Schedule

pytest.importorskip("jsonargparse")
from hrrl_ext.cli import command_parser, main

CONFIGS = Path(__file__).parent.parent / "configs"
RECIPES = sorted(CONFIGS.glob("*.yaml"))
COMMANDS = {"finetune": "finetune", "emoji": "train-retrieval"}
OBJECTIVES = sorted((CONFIGS / "objective").glob("*.yaml"))
# What each objective leaves of a recipe's tau and lam (or the lam that it has), and who moves q.
LEVELS = {
    "erm": (False, False, "hrrl"),
    "el": (True, False, "hrrl"),
    "cl": (False, True, "hrrl"),
    "hrrl": (True, True, "hrrl"),
    "group_dro": (False, True, "group_dro"),
    "cvar": (False, True, "cvar"),
    "chi_square": (False, 1.0, "chi_square"),
}
SMALL = "--epochs 1 --milestones null --image_size 32 --crop_padding 4 --width 4 --batch_size 16 --num_workers 2 --device cpu --progress off"


def parsed(*options: str, command: str = "train"):
    given = ["--data", "images", "--out", "run"]
    return command_parser(command).parse([*options, *given])


def with_configs(*files: Path) -> list[str]:
    return list(itertools.chain.from_iterable(("--config", str(file)) for file in files))


def test_every_objective_is_known():
    assert [file.stem for file in OBJECTIVES] == sorted(LEVELS)


@pytest.mark.parametrize("objective", OBJECTIVES, ids=lambda file: file.stem)
@pytest.mark.parametrize("recipe", ["imagenet", "cifar100"])
def test_an_objective_changes_its_levels_alone(recipe, objective):
    plain = parsed(*with_configs(CONFIGS / f"{recipe}.yaml"))
    args = parsed(*with_configs(CONFIGS / f"{recipe}.yaml", objective))
    example, concept, adversary = LEVELS[objective.stem]
    assert args.tau == (plain.tau if example else 0)
    assert args.lam == (plain.lam if concept is True else concept or None)
    assert args.adversary == adversary
    ours = ("tau", "lam", "adversary", "eta_q", "alpha", "config")
    assert {k: v for k, v in args.items() if k not in ours} == {
        k: v for k, v in plain.items() if k not in ours
    }


def test_the_ball_and_the_cap_are_options():
    args = parsed("--adversary", "chi_square", "--lam", "0", "--rho", "0.5", "--max_weight", "null")
    assert (args.adversary, args.lam, args.rho, args.max_weight) == ("chi_square", 0.0, 0.5, None)


def test_imagenet_is_the_paper_s():
    args = parsed(*with_configs(CONFIGS / "imagenet.yaml"))
    assert (args.epochs, args.batch_size, args.milestones) == (90, 256, [30, 60])
    assert (args.lr, args.momentum, args.weight_decay) == (0.1, 0.9, 1e-4)
    assert (args.model, args.concepts, args.s) == ("resnet18", "imagenet", 1000)
    rates = learning_rates(args, [0, 29, 30, 59, 60, 89])
    assert rates == pytest.approx([0.1, 0.1, 0.01, 0.01, 0.001, 0.001])


def test_fine_tuning_is_the_paper_s():
    args = parsed("runs/imagenet", *with_configs(CONFIGS / "finetune.yaml"), command="finetune")
    assert (args.epochs, args.tau, args.lam) == (100, 0, None)
    rates = learning_rates(args, [0, 49, 50, 99])
    assert rates == pytest.approx([0.01, 0.01, 0.001, 0.001])


def learning_rates(args, epochs: list[int]) -> list[float]:
    """Of these epochs, of one step each."""
    schedule = Schedule(args.schedule, args.lr, args.milestones, 0, args.epochs, per_epoch=1)
    return [schedule(epoch) for epoch in epochs]


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda file: file.stem)
def test_the_command_in_a_recipe_is_one(recipe, monkeypatch):
    monkeypatch.chdir(CONFIGS.parent)
    text = re.sub(r"^# ?", "", recipe.read_text(encoding="utf-8"), flags=re.MULTILINE)
    found = re.search(
        r"^  hrrl (train|train-retrieval|finetune) ((?:.*\\\n)*.*)$", text, re.MULTILINE
    )
    assert found
    assert found[1] == COMMANDS.get(recipe.stem, "train")
    args = command_parser(found[1]).parse(shlex.split(found[2].replace("\\\n", " ")))
    assert args.out.startswith("runs/")
    for word in ("Needs", "Takes", "Should reach"):
        assert word in text


@pytest.fixture(scope="module")
def imagenet(tmp_path_factory):
    """ImageNet's layout: train/ and val/, a folder per WordNet id; two classes of each concept."""
    image = pytest.importorskip("PIL.Image")
    root, table = tmp_path_factory.mktemp("imagenet"), imagenet_table()
    random = np.random.default_rng(0)
    for concept in IMAGENET_CONCEPTS:
        for wnid in [w for w, c in table.items() if c == concept][:2]:
            for name in ("train", "train", "val"):
                folder = root / name / wnid
                folder.mkdir(parents=True, exist_ok=True)
                pixels = random.integers(0, 256, (37, 50, 3), dtype=np.uint8)
                number = len(list(folder.iterdir()))
                image.fromarray(pixels).save(folder / f"{wnid}_{number}.JPEG")
    return root


@pytest.mark.parametrize("objective", ["erm", "el", "cl", "hrrl"])
def test_the_imagenet_recipe_trains(imagenet, tmp_path, objective):
    configs = with_configs(CONFIGS / "imagenet.yaml", CONFIGS / "objective" / f"{objective}.yaml")
    places = ["--data", imagenet, "--validation", imagenet, "--out", tmp_path / "run"]
    assert main(["train", *configs, *map(str, places), *SMALL.split()]) == 0
    row = json.loads((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()[-1])
    assert list(row["q"]) == list(IMAGENET_CONCEPTS)
    assert row["step"] == 3  # 44 images in batches of 16
    assert None not in row["concept_accuracy"].values()
    moved = max(row["q"].values()) - min(row["q"].values())  # q0 is uniform here
    assert (moved > 1e-4) == (objective in ("cl", "hrrl"))
