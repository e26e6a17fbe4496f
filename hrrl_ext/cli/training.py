"""hrrl demo, hrrl train."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .options import (
    Commands,
    finish_run,
    image_run_arguments,
    init_arguments,
    source,
    writes_folder,
)
from .parser import CommandParser

if TYPE_CHECKING:
    from jsonargparse import Namespace

# --- demo


def _demo_arguments(parser: CommandParser) -> None:
    parser.add_argument("--system", default="hrrl", help="hrrl: the two levels; or retrieval")
    parser.add_argument(
        "--out", help="folder for the tables and pictures; runs/demo, or runs/demo-retrieval"
    )
    parser.add_argument(
        "--seeds", type=int, help="of hrrl: runs of each method, which are paired; 8 if not given"
    )


@writes_folder(lambda args: _demo_folder(args))
def _demo(args: Namespace) -> None:
    """A first look, in two minutes: what each level is for, on digits; or texts that find pictures."""
    from ..demo import run_demo, run_retrieval_demo
    from ..spec import not_known

    def report(line: str) -> None:
        print(line, flush=True)

    if args.system == "hrrl":
        run_demo(_demo_folder(args), seeds=8 if args.seeds is None else args.seeds, report=report)
    elif args.system != "retrieval":
        raise ValueError(f"demo: system {not_known(args.system, ('hrrl', 'retrieval'))}")
    elif args.seeds is not None:
        raise ValueError(
            "demo: seeds are of system hrrl; leave --seeds out with --system retrieval"
        )
    else:
        run_retrieval_demo(_demo_folder(args), report=report)


def _demo_folder(args: Namespace) -> str:
    return args.out or ("runs/demo-retrieval" if args.system == "retrieval" else "runs/demo")


# --- train


def _train_arguments(parser: CommandParser) -> None:
    from ..robust import HRRLConfig
    from ..training import TrainingConfig

    parser.add_config()
    parser.add_argument("--model", default="resnet18", help="name of the model")
    init_arguments(
        parser,
        "weights that a new run on the same classes begins with: a file or a folder (for another task: "
        "hrrl finetune)",
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


@writes_folder()
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
