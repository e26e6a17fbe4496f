"""hrrl extract, hrrl probe, hrrl finetune."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

import jsonargparse

from .options import (
    Commands,
    finish_run,
    image_run_arguments,
    images_for,
    is_folder,
    number,
    on_error_argument,
    source,
    tell_left_out,
    weights_arguments,
    weights_model,
    writes_folder,
)
from .parser import CommandParser, IfGiven

if TYPE_CHECKING:
    from jsonargparse import Namespace

    from ..transfer import Features

# --- extract


def _extract_arguments(parser: CommandParser) -> None:
    parser.add_argument("--model", help="folder of a run, or of save_pretrained")
    weights_arguments(parser)
    parser.add_argument(
        "--layer", help="whose output it is; the input of the last layer if not given"
    )
    parser.add_argument(
        "--classifier", help="whose input it is, where it is not what the logits come from"
    )
    parser.add_argument(
        "--pool",
        action=jsonargparse.ActionYesNo,
        default=True,
        help="mean over the positions of a layer's output; else they are flattened",
    )
    parser.add_argument("--data", nargs="+", required=True, help="images, as for train")
    parser.add_argument("--split", default="train", help="train or test, where the source has both")
    parser.add_argument("--root", help="where sets of torchvision, or the images of a list, lie")
    parser.add_image_size("the model's, or of --weights their own, if not given")
    on_error_argument(parser)
    parser.add_argument("--batch_size", type=int, default=256)
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    parser.add_argument("--out", required=True, help="file to write, .safetensors or .npz")


def _extract(args: Namespace) -> None:
    """Save the features of images: the input of a trained model's last layer, or any layer's output."""
    from ..data.resize import size_of
    from ..processes import start_processes
    from ..training.run_folder import open_model
    from ..transfer import stream_features

    processes, device = start_processes(args.device)
    of_folder = is_folder(args.model, args)
    images = images_for(args.model if of_folder else None, args)
    size = size_of(images.image_shape)
    model = open_model(args.model) if of_folder else weights_model(args, size)
    rows, columns = stream_features(
        args.out,
        model.to(device),
        images,
        classifier=args.classifier,
        layer=args.layer,
        pool=args.pool,
        batch_size=args.batch_size,
        processes=processes,
    )
    if not processes.main:
        return
    print(f"saved {args.out}: {rows} features of {columns} numbers")
    tell_left_out(images)


# --- probe


def _probe_arguments(parser: CommandParser) -> None:
    parser.add_argument("--train", required=True, help="features to train on")
    parser.add_argument("--test", required=True, help="features to measure it on")
    parser.add_argument(
        "--method",
        default="svm",
        help="svm, linear; sgd, linear too, as contrastive papers have it; or knn, nearest neighbours",
    )
    parser.add_argument(
        "--C", help="of svm: a number, or search (the default): on a part of --train"
    )
    parser.add_argument("--normalise", help="of svm and sgd: l2 (the default), standard or none")
    parser.add_argument(
        "--solver",
        help="of svm: liblinear; streamed, in memory that does not grow with the examples; auto if not "
        "given",
    )
    parser.add_argument(
        "--device", help="where svm is streamed: cpu, cuda or cuda:N; auto if not given"
    )
    parser.add_argument("--max_iter", type=int, help="of svm; 2000 if not given")
    parser.add_argument("--lr", type=float, help="of sgd; 30 if not given")
    parser.add_argument("--weight_decay", type=float, help="of sgd; 0 if not given")
    parser.add_argument("--momentum", type=float, help="of sgd; 0.9 if not given")
    parser.add_argument("--batch_size", type=int, help="of sgd; 256 if not given")
    parser.add_argument("--epochs", type=int, help="of sgd; 100 if not given")
    parser.add_argument(
        "--milestones",
        nargs="+",
        type=int,
        help="of sgd: epochs after which lr is a tenth; 60 and 80 %% of them if not given",
    )
    parser.add_argument("--k", type=int, help="of knn: neighbours; 200 if not given")
    parser.add_argument("--temperature", type=float, help="of knn's votes; 0.1 if not given")
    parser.add_argument(
        "--concepts", help="cifar100, imagenet or a file of class indices: accuracy by concept too"
    )
    parser.add_argument("--out", help="JSON file for the result")


_OF_METHODS = (
    "C", "normalise", "solver", "device", "max_iter", "lr", "weight_decay", "momentum", "batch_size",
    "epochs", "milestones", "k", "temperature",
)  # fmt: skip
"""Settings of one method or another; which of them go with the one that is chosen, `probe` says."""


def _probe(args: Namespace) -> None:
    """Train a linear classifier, or nearest neighbours, on saved features, and measure the transfer."""
    from ..processes import choose_device
    from ..storage import write_json
    from ..training.run_folder import flat
    from ..transfer import load_features
    from ..transfer.probe import probe

    given: dict[str, Any] = {name: getattr(args, name) for name in _OF_METHODS}
    given = {name: value for name, value in given.items() if value is not None}
    if given.get("C", "search") != "search":
        given["C"] = number("C", args.C)
    if given.get("normalise") == "none":
        given["normalise"] = None
    if args.method == "svm":
        given["device"] = choose_device(args.device or "auto")
        given["progress"] = lambda line: print(line, file=sys.stderr, flush=True)
    concepts = None if args.concepts is None else _concept_map(args.concepts)
    train, test = load_features(args.train), _labelled_as(args.train, args.test)
    result = probe(train, test, method=args.method, concepts=concepts, **given).to_dict()
    for name, value in flat(result).items():
        print(f"{name:22} {value:.4f}" if isinstance(value, float) else f"{name:22} {value}")
    if args.out is not None:
        write_json(args.out, result)


def _labelled_as(train: str, test: str) -> Features:
    """Those of ``test``, with the numbers that the classes have in ``train``, where both have names."""
    import torch

    from ..data.classes import numbers_among
    from ..transfer import load_classes, load_features

    features, known, found = load_features(test), load_classes(train), load_classes(test)
    if known is None or found is None:
        return features
    met = features.labels.unique().tolist()
    numbers = numbers_among(known, found, met, of=train, data=test)
    if numbers is None:
        return features
    return features._replace(labels=torch.tensor(numbers)[features.labels])


def _concept_map(concepts: str) -> Any:
    from ..data import ConceptMap

    match concepts:
        case "cifar100":
            return ConceptMap.cifar100()
        case "imagenet":
            return ConceptMap.imagenet()
    return ConceptMap.from_file(concepts)


# --- finetune


def _finetune_arguments(parser: CommandParser) -> None:
    from ..robust import HRRLConfig
    from ..training import TrainingConfig

    parser.add_argument(
        "model",
        metavar="MODEL",
        nargs="?",
        action=IfGiven,
        help="folder of a run, or of save_pretrained",
    )
    weights_arguments(parser)
    parser.add_config()
    parser.add_argument(
        "--method",
        default="plain",
        help="plain, l2sp or similarity; with settings l2sp:alpha=0.1,beta=0.01 or "
        "similarity:w_sim=3,squared=true (also mean, normalise, gather, classifier)",
    )
    parser.add_argument(
        "--classifier", help="name of the last layer, where it is not the last linear"
    )
    image_run_arguments(parser)
    parser.add_image_size("MODEL's if not given")
    parser.add_argument("--weight_decay", type=float, help="1e-4, and 0 for l2sp, if not given")
    parser.add_class_arguments(HRRLConfig, skip={"width", "image_size"})
    parser.add_class_arguments(TrainingConfig, skip={"weight_decay"})
    parser.set_defaults(epochs=100, lr=0.01, tau=0.0, lam=None)


@writes_folder()
def _finetune(args: Namespace) -> None:
    """Train all weights of a trained model, and a new last layer, on another task."""
    from ..data import load_images
    from ..data.resize import size_of
    from ..transfer import finetune

    options = args.as_dict()
    model, arch, width = (options.pop(name) for name in ("model", "arch", "width"))
    del options["weights"], options["part"], options["config"]
    data, validation = (source(options.pop(name)) for name in ("data", "validation"))
    if not is_folder(model, args):
        data = load_images(data, image_size=args.image_size, root=args.root)
        model = weights_model(args, size_of(data.image_shape))
        options |= {"model_name": arch, "width": width}
    finish_run(finetune(model, data, validation=validation, **options))


COMMANDS: Commands = {
    "extract": (_extract_arguments, _extract),
    "probe": (_probe_arguments, _probe),
    "finetune": (_finetune_arguments, _finetune),
}
