"""hrrl evaluate, hrrl report."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from ..spec import listed
from .options import (
    Commands,
    classes_argument,
    images_for,
    known_classes,
    on_error_argument,
    part_argument,
    source,
    tell_left_out,
    writes_folder,
)
from .parser import CommandParser

if TYPE_CHECKING:
    from jsonargparse import Namespace
    from torch import nn

    from ..data import ImageSet

_SETTINGS = (
    *("attacks", "quick_attacks", "max_epsilon", "corruptions", "steps"),
    *("points", "attack_points", "corruption_points"),
)

# --- evaluate


def _evaluate_arguments(parser: CommandParser) -> None:
    parser.add_argument(
        "models", nargs="*", metavar="MODEL", help="folders of runs, or of save_pretrained"
    )
    parser.add_argument(
        "--weights", nargs="+", default=[], help="files of weights alone, of --arch"
    )
    parser.add_argument(
        "--arch", help="what --weights are of: resnet18, convnet, torchvision:NAME, timm:NAME"
    )
    part_argument(parser)
    parser.add_argument("--width", type=int, default=64, help="channels of its first stage")
    parser.add_argument("--data", nargs="+", required=True, help="images, as for train")
    parser.add_argument("--split", default="test", help="train or test, where the source has both")
    parser.add_argument("--root", help="where sets of torchvision, or the images of a list, lie")
    parser.add_image_size("the model's if not given")
    on_error_argument(parser)
    classes_argument(parser)
    parser.add_argument("--concepts", help="as for train; the data's own, or the classes")
    parser.add_argument(
        "--train_data", nargs="+", help="training images, whose concept counts weigh an average"
    )
    parser.add_argument("--preset", default="quick", help="quick or full")
    parser.add_argument("--attacks", nargs="+", help="such as linf:8/255 l2:0.5, or none")
    parser.add_argument("--quick_attacks", type=bool, help="their short form, true or false")
    parser.add_argument(
        "--max_epsilon", nargs="+", help="norms to find the largest harmless radius in, or none"
    )
    parser.add_argument("--corruptions", nargs="+", help="all, none, or kinds by name")
    parser.add_argument(
        "--corruption_folder", help="corrupted images to read: a folder of ImageNet-C or CIFAR-10-C"
    )
    parser.add_argument("--steps", nargs="+", type=float, help="of the perturbation curve")
    parser.add_argument("--points", type=int, help="images that are evaluated at all")
    parser.add_argument("--attack_points", type=int, help="images of these that are attacked")
    parser.add_argument("--corruption_points", type=int, help="images of these that are corrupted")
    parser.add_argument("--seed", type=int, default=0, help="of the draws, corruptions and attacks")
    parser.add_argument("--batch_size", type=int, default=256)
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    parser.add_argument("--out", required=True, help="folder for the parts, tables and the page")
    parser.add_argument("--resume", action="store_true", help="go on with the evaluation in --out")


@writes_folder()
def _evaluate(args: Namespace) -> None:
    """Measure models by concept, perturbed, corrupted and attacked; compare them on a page."""
    from ..data import load_images
    from ..data.resize import size_of
    from ..evaluation import evaluate, write_html
    from ..processes import start_processes

    models = _models(args)
    (processes, device), out = start_processes(args.device), Path(args.out)
    settings = {name: getattr(args, name) for name in _SETTINGS if getattr(args, name) is not None}
    for name in ("attacks", "max_epsilon"):
        if settings.get(name) == ["none"]:
            settings[name] = ()
    reports = []
    for name, entry in models.items():
        model, images, classes = _opened(entry, args)
        train = None
        if args.train_data is not None:
            size = size_of(images.image_shape)
            train = load_images(source(args.train_data), image_size=size, root=args.root)

        def progress(line: str, name: str = name) -> None:
            print(f"{name}  {line}", file=sys.stderr, flush=True)

        report = evaluate(
            model.to(device),
            images,
            name=name,
            classes=classes,
            concepts=args.concepts,
            train=train,
            preset=args.preset,
            corruption_folder=args.corruption_folder,
            out=out / name,
            resume=args.resume,
            progress=progress,
            processes=processes,
            seed=args.seed,
            batch_size=args.batch_size,
            **settings,
        )
        reports.append(report)
        if processes.main:
            print(f"{report}\n", flush=True)
    if not processes.main:
        return
    write_html(reports, out / "report.html")
    print(f"saved {out / 'report.html'}, and a report.json of each model")
    tell_left_out(images)


class _Entry(NamedTuple):
    path: Path
    is_weights: bool


def _models(args: Namespace) -> dict[str, _Entry]:
    """By name, in the order given."""
    if bool(args.weights) != (args.arch is not None):
        raise ValueError(
            "weights and arch go together: files of weights alone, and what they are of"
        )
    if args.part is not None and not args.weights:
        raise ValueError(f"part {args.part!r} is one of a file of --weights; leave it out")
    paths = [Path(path) for path in (*args.models, *args.weights)]
    if not paths:
        raise ValueError("give at least one MODEL, or --arch and --weights")
    entries = [_Entry(path, number >= len(args.models)) for number, path in enumerate(paths)]
    return dict(zip(_names(paths), entries, strict=True))


def _names(paths: Sequence[Path]) -> list[str]:
    """Of files and folders: the last part of each path, or as much of it as tells them apart."""
    parts = [path.resolve().parts for path in paths]
    if len(set(parts)) < len(parts):
        raise ValueError(f"the same is given twice: {', '.join(map(str, paths))}")
    depth = 1
    while len({part[-depth:] for part in parts}) < len(parts):
        depth += 1
    return ["-".join(part[-depth:]) for part in parts]


def _opened(entry: _Entry, args: Namespace) -> tuple[nn.Module, ImageSet, list[str]]:
    """The model, the images in its size, and the names of its classes in the order of its logits."""
    from ..data.resize import size_of
    from ..pretrained import from_weights
    from ..processes import current_processes
    from ..training.run_folder import open_model

    images = images_for(None if entry.is_weights else entry.path, args)
    known = known_classes(entry.path, args)
    if not entry.is_weights:
        return open_model(entry.path), images, images.classes if known is None else known
    classes = images.classes if known is None else known
    model = from_weights(
        args.arch,
        entry.path,
        image_size=size_of(images.image_shape),
        width=args.width,
        num_classes=len(classes),
        part=args.part,
    )
    if known is None and current_processes().main:
        print(
            f"{entry.path}: weights alone name no classes; they are taken in the order of the data, "
            f"{listed(classes)}; --classes FILE gives another",
            file=sys.stderr,
        )
    return model, images, classes


# --- report


def _report_arguments(parser: CommandParser) -> None:
    parser.add_argument(
        "folders",
        nargs="+",
        metavar="DIR",
        help="what hrrl evaluate wrote, of one or several models",
    )
    parser.add_argument("--out", required=True, help="the page to write, .html")


def _report(args: Namespace) -> None:
    """Compare models that were evaluated before on one page."""
    from dataclasses import replace

    from ..evaluation import Report, write_html

    files = [file for folder in args.folders for file in _report_files(Path(folder))]
    names = _names([file.parent for file in files])
    reports = [replace(Report.from_json(f), name=n) for f, n in zip(files, names, strict=True)]
    write_html(reports, args.out)
    print("\n\n".join(map(str, reports)))
    print(f"saved {args.out}")


def _report_files(folder: Path) -> list[Path]:
    """Of the folder itself, or of each model in it."""
    if (folder / "report.json").is_file():
        return [folder / "report.json"]
    if not (found := sorted(folder.glob("*/report.json"))):
        raise FileNotFoundError(
            f"{folder} holds no report.json, nor has a folder in it one: no evaluation, or one that was "
            "interrupted; hrrl evaluate --resume goes on with it"
        )
    return found


COMMANDS: Commands = {
    "evaluate": (_evaluate_arguments, _evaluate),
    "report": (_report_arguments, _report),
}
