"""hrrl demo, hrrl train."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .options import Commands, finish_run, image_run_arguments, source
from .parser import CommandParser

if TYPE_CHECKING:
    from jsonargparse import Namespace

# --- demo


def _demo_arguments(parser: CommandParser) -> None:
    parser.add_argument("--out", default="runs/demo", help="folder for the tables and pictures")
    parser.add_argument(
        "--seeds", type=int, default=8, help="runs of each method, which are paired"
    )


def _demo(args: Namespace) -> None:
    """What each level is for, on real digits: rare ones, worse images, groups that nobody labelled."""
    from ..demo import run_demo

    run_demo(args.out, seeds=args.seeds, report=lambda line: print(line, flush=True))


# --- train


def _train_arguments(parser: CommandParser) -> None:
    from ..robust import HRRLConfig
    from ..training import TrainingConfig

    parser.add_config()
    parser.add_argument("--model", default="resnet18", help="name of the model")
    parser.add_argument(
        "--init",
        help="weights that a new run on the same classes begins with: a file or a folder (for another "
        "task: hrrl finetune)",
    )
    parser.add_argument(
        "--levels",
        default="given",
        help="auto sets those of tau and lam that are not given, without a search",
    )
    image_run_arguments(parser)
    parser.add_class_arguments(HRRLConfig)
    parser.add_class_arguments(TrainingConfig)
    parser.leave_out("tau", "tau_multiple", "lam", "adversary")


def _train(args: Namespace) -> None:
    """Learn features with Algorithm 1."""
    from ..robust import HRRLTrainer

    options = args.as_dict()
    options.pop("config")
    data, validation = (source(options.pop(name)) for name in ("data", "validation"))
    finish_run(HRRLTrainer(data=data, validation=validation, **options).fit())


COMMANDS: Commands = {
    "demo": (_demo_arguments, _demo),
    "train": (_train_arguments, _train),
}
