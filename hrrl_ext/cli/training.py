"""hrrl demo, hrrl train."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import TYPE_CHECKING

from .options import Commands, source

if TYPE_CHECKING:
    from jsonargparse import ArgumentParser, Namespace

# --- demo


def _demo_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("--out", default="runs/demo", help="folder for the table and the pictures")
    parser.add_argument("--seeds", type=int, default=3, help="number of runs per variant")


def _demo(args: Namespace) -> None:
    """Train ERM, EL, CL and HRRL on real digits and probe their features under two shifts."""
    from ..demo import run_demo

    run_demo(args.out, seeds=args.seeds, report=lambda line: print(line, flush=True))


# --- train


def _train_arguments(parser: ArgumentParser) -> None:
    from ..training.config import TrainingConfig

    parser.add_argument("--config", action="config", help="YAML file with any of these options")
    parser.add_argument(
        "--data",
        nargs="+",
        required=True,
        help="training images: digits, .npz parts, a folder, a metadata .csv, torchvision:NAME",
    )
    parser.add_argument("--out", required=True, help="folder of the run")
    parser.add_argument("--model", default="resnet18", help="name of the model")
    parser.add_argument(
        "--concepts",
        help="classes, cifar100, imagenet, column:NAME, clusters:K (of the gradients; see "
        "DiscoveredConcepts), a JSON or CSV file; the data's own if not given",
    )
    parser.add_argument("--validation", nargs="+", help="images to measure accuracy on")
    parser.add_argument("--root", help="where sets of torchvision, or the images of a list, lie")
    parser.add_argument("--resume", action="store_true", help="continue the run in --out")
    parser.add_argument("--init", help="weights that a new run begins with: a file or a folder")
    parser.add_argument(
        "--checkpoint_every", type=int, help="save every so many steps, besides after each epoch"
    )
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    parser.add_argument("--num_workers", type=int, default=0, help="processes that decode images")
    parser.add_argument(
        "--keep_gib", type=float, default=2.0, help="images of up to so many GiB stay in memory"
    )
    parser.add_argument("--progress", default="auto", help="auto, bar, plain or off")
    parser.add_argument(
        "--tensorboard", action="store_true", help="write to --out/tensorboard as well"
    )
    parser.add_class_arguments(TrainingConfig)


def _train(args: Namespace) -> None:
    """Learn features with Algorithm 1."""
    from ..processes import stop_processes
    from ..training import HRRLTrainer

    options = args.as_dict()
    options.pop("config")
    trainer = HRRLTrainer(
        data=source(options.pop("data")), validation=source(options.pop("validation")), **options
    )
    result = trainer.fit()
    if trainer.processes.main:
        if importlib.util.find_spec("matplotlib"):
            from ..plots import plot_runs

            plot_runs([args.out], Path(args.out) / "plots")
        print(f"saved {result.out}")
    stop_processes()


COMMANDS: Commands = {
    "demo": (_demo_arguments, _demo),
    "train": (_train_arguments, _train),
}
