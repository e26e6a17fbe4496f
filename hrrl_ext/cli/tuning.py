"""hrrl tune."""

from __future__ import annotations

import shlex
from dataclasses import fields
from typing import TYPE_CHECKING

from .options import Commands, source, writes_folder
from .parser import CommandParser

if TYPE_CHECKING:
    from jsonargparse import Namespace


def _tune_arguments(parser: CommandParser) -> None:
    from ..robust import HRRLConfig
    from ..training import TrainingConfig
    from ..transfer.tuning import OF_TUNE

    parser.add_config()
    parser.add_argument("--model", default="resnet18", help="name of the model")
    parser.add_argument("--data", nargs="+", required=True, help="training images, as for train")
    parser.add_argument("--out", required=True, help="folder of the search; what is in it goes on")
    parser.add_argument("--concepts", help="as for train, but for clusters:K")
    parser.add_argument(
        "--grid",
        nargs="+",
        help="settings with the values to try, the weakest first: tau=0.01,0.03 lam=30,10; if not given "
        "four lengths, and as many strengths of the adversary",
    )
    parser.add_argument(
        "--held_out", type=float, default=0.2, help="share of each concept that is measured on"
    )
    parser.add_argument("--images", type=int, help="of --data, drawn; all if not given")
    parser.add_argument("--root", help="where sets of torchvision, or the images of a list, lie")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    parser.add_argument("--num_workers", type=int, default=0, help="processes that decode images")
    parser.add_argument(
        "--keep_gib", type=float, default=2.0, help="images of up to so many GiB stay in memory"
    )
    for kind in (HRRLConfig, TrainingConfig):
        parser.add_class_arguments(kind, skip=OF_TUNE)
        parser.leave_out(*(field.name for field in fields(kind) if field.name not in OF_TUNE))


@writes_folder()
def _tune(args: Namespace) -> None:
    """Choose tau and lam on held-out images of the source: one table, and what to train with."""
    from pathlib import Path

    from ..transfer import tune

    options = args.as_dict()
    options.pop("config")
    data = options.pop("data")
    found = tune(data=source(data), report=lambda line: print(line, flush=True), **options)
    print(f"\n{found.table}")
    out = Path(args.out)
    words = ["hrrl", "train", "--config", str(out / "chosen.yaml"), "--data", *data]
    for name in ("model", "concepts", "root"):
        if options[name] is not None and options[name] != "resnet18":
            words += [f"--{name}", options[name]]
    print(f"{shlex.join([*words, '--out', str(out / 'run')])}")


COMMANDS: Commands = {"tune": (_tune_arguments, _tune)}
