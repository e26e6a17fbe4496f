"""What several commands take, and how it is read."""

from __future__ import annotations

import functools
import importlib.util
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from .parser import CommandParser

if TYPE_CHECKING:
    from jsonargparse import Namespace
    from torch import nn

    from ..data import ImageSet
    from ..data.resize import ImageSize
    from ..training import TrainingResult

Commands: TypeAlias = (
    "dict[str, tuple[Callable[[CommandParser], None], Callable[[Namespace], None]]]"
)
"""By name: what adds its arguments to a parser, and what runs it; its docstring is the help."""


GOES_ON: set[Callable[[Namespace], None]] = set()
"""Commands whose work is in a folder, whether or not anybody reads what they print."""


def writes_folder(
    folder: Callable[[Namespace], str | Path | None] = lambda args: args.out,
) -> Callable[[Callable[[Namespace], None]], Callable[[Namespace], None]]:
    """Of a command whose results are a folder: no other process writes to it meanwhile, and it goes on
    where what it prints is not read.

    Of the processes of torchrun the first holds the folder for all; one that processes share has None.
    """

    def decorate(command: Callable[[Namespace], None]) -> Callable[[Namespace], None]:
        @functools.wraps(command)
        def run(args: Namespace) -> None:
            out = folder(args)
            if out is None or int(os.environ.get("RANK", "0")):
                command(args)
                return
            from ..locks import writing_to

            with writing_to(out):
                command(args)

        GOES_ON.add(run)
        return run

    return decorate


def model_and_data_arguments(parser: CommandParser) -> None:
    parser.add_argument("model", metavar="MODEL", help="folder of a run, or of save_pretrained")
    parser.add_argument("--data", nargs="+", required=True, help="images, as for train")
    parser.add_argument("--split", default="train", help="train or test, where the source has both")
    parser.add_argument("--root", help="where sets of torchvision, or the images of a list, lie")
    parser.add_image_size("the model's if not given")
    on_error_argument(parser)
    classes_argument(parser)


def classes_argument(parser: CommandParser) -> None:
    parser.add_argument(
        "--classes",
        help="text file of the names that the data have for the model's classes, one a line, in the "
        "order of its logits; those it was trained with if not given",
    )


def model_and_images(args: Namespace) -> tuple[nn.Module, ImageSet]:
    """The model, and images that are labelled with the numbers of its classes."""
    from ..data import with_classes
    from ..training.run_folder import open_model

    images = images_for(args.model, args)
    known = known_classes(args.model, args)
    if known is not None:
        images = with_classes(images, known, of=args.model)
    return open_model(args.model), images


def images_for(folder: str | Path | None, args: Namespace) -> ImageSet:
    """Those of --data in the size that is asked for, else in that of the model in ``folder``; without
    what --on_error leaves out, for which processes share the trials."""
    from ..data import load_images
    from ..data.sources import load_images_for
    from ..data.unreadable import Reading
    from ..pretrained import read_config
    from ..processes import current_processes

    of, reading = source(args.data), Reading(args.on_error, processes=current_processes())
    size = None if folder is None else read_config(Path(folder)).get("image_size")
    if args.image_size is None and size is not None:
        images = load_images_for(of, size, str(folder), split=args.split, root=args.root)
    else:
        images = load_images(of, split=args.split, image_size=args.image_size, root=args.root)
    return reading.take(images)[0]


def tell_left_out(images: ImageSet) -> None:
    """At the end of a command: every image that it has not seen."""
    if images.left_out:
        print(f"left out: {len(images.left_out)} images")
        print("\n".join(images.left_out))


def known_classes(folder: str | Path, args: Namespace) -> list[str] | None:
    """The names of a model's classes: those of --classes, else those that lie with it."""
    from ..data.classes import read_classes
    from ..pretrained import classes_of

    return classes_of(folder) if args.classes is None else read_classes(args.classes)


def on_error_argument(parser: CommandParser) -> None:
    parser.add_argument(
        "--on_error",
        default="raise",
        help="images that cannot be read: raise at the first that is met, or skip: all are tried before, "
        "and those left out, counted and named",
    )


def image_run_arguments(parser: CommandParser, *, concepts: bool = True) -> None:
    """What a trainer of images with classes takes, besides the model and its configuration."""
    parser.add_argument(
        "--data",
        nargs="+",
        required=True,
        help="training images: digits, .npz parts, a folder, a metadata .csv, torchvision:NAME, "
        "hf:FOLDER, wds:SHARDS, files:FOLDER of images without classes",
    )
    if concepts:
        parser.add_argument(
            "--concepts",
            help="classes, cifar100, imagenet, column:NAME, clusters:K (of the gradients; see "
            "DiscoveredConcepts), a JSON or CSV file; the data's own if not given",
        )
    parser.add_argument("--validation", nargs="+", help="images to measure accuracy on")
    if concepts:
        parser.add_argument(
            "--validation_concepts",
            help="of validation, where --concepts are of each example, or found: a CSV file, column:NAME",
        )
    on_error_argument(parser)
    run_arguments(parser)


def run_arguments(parser: CommandParser) -> None:
    """What every trainer takes, besides data, model and configuration."""
    parser.add_argument("--out", required=True, help="folder of the run")
    parser.add_argument("--root", help="where sets of torchvision, or the images of a list, lie")
    parser.add_argument("--resume", action="store_true", help="continue the run in --out")
    parser.add_argument(
        "--checkpoint_every", type=int, help="save every so many steps, besides after each epoch"
    )
    parser.add_argument(
        "--max_minutes", type=float, help="stop after so long, saved; continue with --resume"
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
    parser.add_argument(
        "--loggers", nargs="+", default=[], help="tensorboard, mlflow and wandb are told as well"
    )


def finish_run(result: TrainingResult) -> None:
    """Its pictures, where there is something to draw and to draw with, and where it is."""
    from ..processes import current_processes
    from ..training.run_folder import RunFolder

    if current_processes().main and result.out is not None:
        if result.history and importlib.util.find_spec("matplotlib"):
            from ..plots import plot_runs

            plot_runs([result.out], result.out / "plots")
        print(f"saved {result.out}", flush=True)
        if (why := getattr(sys.stdout, "failed", None)) is not None:
            RunFolder(result.out).note(f"standard output failed ({why})")


def weights_arguments(parser: CommandParser) -> None:
    parser.add_argument(
        "--arch",
        help="in place of a folder: resnet18, convnet, torchvision:NAME or timm:NAME, with --weights",
    )
    parser.add_argument("--weights", help="state dict for --arch: .safetensors, or of torch.save")
    part_argument(parser)
    parser.add_argument(
        "--width", type=int, default=64, help="of --arch resnet18 or convnet: its first stage's"
    )


def part_argument(parser: CommandParser) -> None:
    parser.add_argument(
        "--part",
        help="which of several networks in the file of --weights: the key of its state dict, or what its "
        "names begin with, such as state_dict_ema or encoder_k",
    )


def init_arguments(parser: CommandParser, what: str) -> None:
    """The weights that a trainer begins with."""
    parser.add_argument("--init", help=what)
    parser.add_argument(
        "--init_part", help="which of several networks in the file of --init, such as encoder_k"
    )


def is_folder(model: str | None, args: Namespace) -> bool:
    """Whether the model is that of a folder, and not of --arch and --weights; one is given."""
    if (model is None) == (args.arch is None) or (args.arch is None) != (args.weights is None):
        raise ValueError("give the folder of a run or a model, or --arch and --weights")
    if args.part is not None and args.weights is None:
        raise ValueError(f"part {args.part!r} is one of a file of --weights; leave it out")
    return model is not None


def weights_model(args: Namespace, image_size: ImageSize) -> nn.Module:
    from ..pretrained import from_weights

    return from_weights(
        args.arch, args.weights, image_size=image_size, width=args.width, part=args.part
    )


def source(parts: list[str] | None) -> Any:
    return parts if parts is None or len(parts) > 1 else parts[0]


def number(name: str, text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise ValueError(f"{name} must be a number or 'search', got {text!r}") from None
