"""hrrl pretrain."""

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


def _pretrain_arguments(parser: CommandParser) -> None:
    from ..contrastive import ContrastiveConfig, ContrastiveTraining

    parser.add_config()
    parser.add_argument("--model", default="resnet18", help="name of the model")
    init_arguments(
        parser, "weights that a new run begins with: a file or a folder, MoCo's among them"
    )
    image_run_arguments(parser, concepts=False)
    parser.add_class_arguments(ContrastiveConfig)
    parser.add_class_arguments(ContrastiveTraining)


@writes_folder()
def _pretrain(args: Namespace) -> None:
    """Learn features without labels: MoCo v2, InstDis or PIRL on robust views (URRL)."""
    from ..contrastive import URRLTrainer

    options = args.as_dict()
    options.pop("config")
    data, validation = (source(options.pop(name)) for name in ("data", "validation"))
    finish_run(URRLTrainer(data=data, validation=validation, **options).fit())


COMMANDS: Commands = {"pretrain": (_pretrain_arguments, _pretrain)}
