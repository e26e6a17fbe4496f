"""The program ``hrrl``: the Python functions under the same names.

What a command does is imported when it runs, so that ``hrrl --help`` answers at once. Exit status: 0, 1
for an error (one line, with a way out; --debug shows the trace), 2 for wrong usage.
"""

from __future__ import annotations

import difflib
import importlib.util
import re
import sys
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import jsonargparse

if TYPE_CHECKING:
    from jsonargparse import ArgumentParser, Namespace
    from torch import nn

    from .data import ImageSet


class _Parser(jsonargparse.ArgumentParser):
    """Usage errors in one line, with the nearest known option for one that is not known."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        commands = "|".join(_COMMANDS)
        message = re.sub(rf"\b(?:{commands})\.(\w+)", r"--\1", " ".join(message.split()))
        message += self._nearest(message)
        program = self.prog.replace(" [options]", "")
        print(f"{program}: error: {message}; see {program} --help", file=sys.stderr)
        raise SystemExit(2)

    def _nearest(self, message: str) -> str:
        """A hint at what was meant by an option, a key of a YAML file or a command not known."""
        if key := re.search(r"(?:Option|accept option) '([^']+)'", message):
            keys = [o[2:] for o in _options(self) + _options(*_with_config(self))]
            return _did_you_mean(key[1].partition(".")[0], keys)
        if choice := re.search(r"argument subcommand: invalid choice: '([^']+)'", message):
            return _did_you_mean(choice[1], list(_COMMANDS))
        options = _options(self)
        hints = (_did_you_mean(o, options) for o in re.findall(r"--[\w.-]+", message))
        return next((hint for hint in hints if hint), "")


def _options(*parsers: ArgumentParser) -> list[str]:
    return [
        option
        for parser in parsers
        for action in parser._actions
        for option in action.option_strings
        if option.startswith("--")
    ]


def _with_config(parser: ArgumentParser) -> list[ArgumentParser]:
    """The commands that read a YAML file: an unknown key in one is reported by the program."""
    commands = [a.choices for a in parser._actions if isinstance(a.choices, Mapping)]
    parsers = [p for choices in commands for p in choices.values()]
    return [p for p in parsers if "--config" in _options(p)]


def _did_you_mean(word: str, known: Sequence[str]) -> str:
    near = difflib.get_close_matches(word, known, n=1)
    return f" (did you mean {near[0]}?)" if near and word not in known else ""


def main(argv: Sequence[str] | None = None) -> int:
    parser = _parser()
    args = parser.parse_args(argv)
    command = args.subcommand
    if command is None:
        parser.print_help()
        return 2
    warnings.showwarning = _one_line_warning
    try:
        _COMMANDS[command][1](args[command])
    except KeyboardInterrupt:
        print(f"hrrl {command}: interrupted", file=sys.stderr)
        return 1
    except (
        ArithmeticError,
        ImportError,
        LookupError,
        OSError,
        RuntimeError,
        TypeError,
        ValueError,
    ) as error:
        if args.debug:
            raise
        print(f"hrrl {command}: error: {_one_line(error)}", file=sys.stderr)
        return 1
    return 0


def _parser() -> ArgumentParser:
    jsonargparse.set_parsing_settings(docstring_parse_attribute_docstrings=True)
    parser = _Parser(prog="hrrl", description="Hierarchically robust representation learning.")
    parser.add_argument("--debug", action="store_true", help="show the trace of an error")
    commands = parser.add_subcommands(required=False)
    for name, (add_arguments, run) in _COMMANDS.items():
        summary = (run.__doc__ or "").splitlines()[0]
        sub = _Parser(prog=f"hrrl {name}", description=summary)
        add_arguments(sub)
        commands.add_subcommand(name, sub, help=summary)
    return parser


# --- demo


def _demo_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("--out", default="runs/demo", help="folder for the table and the pictures")
    parser.add_argument("--seeds", type=int, default=3, help="number of runs per variant")


def _demo(args: Namespace) -> None:
    """Train ERM, EL, CL and HRRL on real digits and probe their features under two shifts."""
    from .demo import run_demo

    run_demo(args.out, seeds=args.seeds, report=lambda line: print(line, flush=True))


# --- train


def _train_arguments(parser: ArgumentParser) -> None:
    from .training.config import TrainingConfig

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
    from .processes import stop_processes
    from .training import HRRLTrainer

    options = args.as_dict()
    options.pop("config")
    trainer = HRRLTrainer(
        data=_source(options.pop("data")), validation=_source(options.pop("validation")), **options
    )
    result = trainer.fit()
    if trainer.processes.main:
        if importlib.util.find_spec("matplotlib"):
            from .plots import plot_runs

            plot_runs([args.out], Path(args.out) / "plots")
        print(f"saved {result.out}")
    stop_processes()


# --- extract


def _extract_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("--model", required=True, help="folder of a run")
    parser.add_argument("--data", nargs="+", required=True, help="images, as for train")
    parser.add_argument("--split", default="train", help="train or test, where the source has both")
    parser.add_argument("--root", help="where sets of torchvision, or the images of a list, lie")
    parser.add_argument("--image_size", type=int, help="side that images are resized to")
    parser.add_argument("--batch_size", type=int, default=256)
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    parser.add_argument("--out", required=True, help="file to write, .safetensors")


def _extract(args: Namespace) -> None:
    """Save the features of images: the input of a trained model's last layer."""
    from .data import load_images
    from .processes import choose_device
    from .training import load_model
    from .transfer import extract_features, save_features

    images = load_images(
        _source(args.data), split=args.split, image_size=args.image_size, root=args.root
    )
    model = load_model(args.model).to(choose_device(args.device))
    features = extract_features(model, images, batch_size=args.batch_size)
    save_features(args.out, features)
    print(
        f"saved {args.out}: {len(features.labels)} features of {features.features.shape[1]} numbers"
    )


# --- probe


def _probe_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("--train", required=True, help="features to train the SVM on")
    parser.add_argument("--test", required=True, help="features to measure it on")
    parser.add_argument("--C", default="search", help="a number, or search: on a part of --train")
    parser.add_argument("--normalise", default="l2", help="l2, standard or none")
    parser.add_argument("--out", help="JSON file for the result")


def _probe(args: Namespace) -> None:
    """Train a linear SVM on saved features and measure how well they transfer."""
    import json

    from ._files import replacing
    from .transfer import load_features
    from .transfer.probe import probe

    c: Any = args.C if args.C == "search" else _number("C", args.C)
    normalise = None if args.normalise == "none" else args.normalise
    result = probe(load_features(args.train), load_features(args.test), C=c, normalise=normalise)
    for name, value in result.to_dict().items():
        print(f"{name:22} {value:.4f}" if isinstance(value, float) else f"{name:22} {value}")
    if args.out is not None:
        with replacing(args.out) as path:
            path.write_text(json.dumps(result.to_dict(), indent=1) + "\n")


# --- cluster


def _cluster_arguments(parser: ArgumentParser) -> None:
    _model_and_data_arguments(parser)
    parser.add_argument("--clusters", type=int, required=True, help="K, the number of clusters")
    parser.add_argument("--rounds", type=int, default=10, help="rounds in all")
    parser.add_argument(
        "--layers",
        nargs="+",
        help="layers whose gradients count; all linear and convolutional ones",
    )
    parser.add_argument("--rank", type=int, default=1, help="of a centre in each layer")
    parser.add_argument("--center", default="svd", help="svd, or mean: Eq. 4.6 of the thesis")
    parser.add_argument(
        "--weighted",
        action=jsonargparse.ActionYesNo,
        default=True,
        help="clusters count by their size, as in Eq. 4.2; else ordinary k-means",
    )
    parser.add_argument("--batch_size", type=int, default=128, help="examples in a pass at once")
    parser.add_argument("--seed", type=int, default=0, help="of the first centres")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    parser.add_argument("--out", help="folder to write; MODEL/clusters if not given")
    parser.add_argument("--resume", action="store_true", help="go on with the clustering in --out")


def _cluster(args: Namespace) -> None:
    """Cluster examples by the gradients that they have at a trained model."""
    from .clustering import GradientClustering
    from .clustering.folder import ClusterFolder, cluster_rows, cluster_table, weights_digest
    from .processes import start_processes, stop_processes

    if args.rounds < 1:
        raise ValueError(f"rounds must be at least 1, got {args.rounds}")
    processes, device = start_processes(args.device)
    folder = ClusterFolder(args.out or Path(args.model) / "clusters")
    if not args.resume:
        folder.require_free()
    model, images = _model_and_images(args)
    settings = {
        "layers": args.layers,
        "rank": args.rank,
        "center": args.center,
        "weighted": args.weighted,
        "batch_size": args.batch_size,
        "seed": args.seed,
    }
    clustering = GradientClustering(model.to(device), args.clusters, **settings)
    description = {
        "model": args.model,
        "weights": weights_digest(model),
        "data": images.name,
        "examples": len(images),
        "image_size": images.image_shape[-1],
        "clusters": args.clusters,
        **settings,
        "parameters": clustering.parameters,
    }
    if args.resume:
        folder.require_same(description)
        folder.resume(clustering)
    processes.wait()  # before the first of them writes

    def report(line: str) -> None:
        if processes.main:
            folder.save(clustering)
            print(line, file=sys.stderr, flush=True)

    if processes.main and not args.resume:
        folder.begin(description)
    clustering.fit(images, rounds=max(0, args.rounds - len(clustering.history)), report=report)
    if processes.main:
        folder.write_found(clustering, images)
        if importlib.util.find_spec("matplotlib"):
            from .plots import plot_clusters

            plot_clusters(clustering, folder.path / "plots", images)
        print(cluster_table(cluster_rows(clustering, images.target, images.classes)))
        print(f"saved {folder.path}; as concepts: hrrl train --concepts {folder.concepts} ...")
    stop_processes()


# --- variance


def _variance_arguments(parser: ArgumentParser) -> None:
    _model_and_data_arguments(parser)
    parser.add_argument("--clusters", help="folder of hrrl cluster, for the estimator GC")
    parser.add_argument(
        "--snapshot", help="folder of an earlier state of the model, for the estimator SVRG"
    )
    parser.add_argument(
        "--estimators", nargs="+", help="of SG-B, SG-2B, SVRG and GC; those that can be measured"
    )
    parser.add_argument(
        "--batch_size", type=int, help="B; 128, or the number of clusters, if not given"
    )
    parser.add_argument("--num_batches", type=int, default=50, help="estimates of each estimator")
    parser.add_argument("--form", default="corrected", help="corrected, or paper: as published")
    parser.add_argument("--seed", type=int, default=0, help="of the mini-batches")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    parser.add_argument("--out", help="JSON file for the result")


def _variance(args: Namespace) -> None:
    """Measure how noisy mini-batch gradients are, uniform and stratified, at a trained model."""
    import json

    from ._files import replacing
    from .clustering import MeanGradient, gradient_variance
    from .clustering.folder import ClusterFolder
    from .processes import choose_device

    if args.out is not None and Path(args.out).exists():
        raise FileExistsError(f"{args.out} exists; choose another out")
    device = choose_device(args.device)
    model, images = _model_and_images(args)
    model.to(device)
    assignment, parameters, batch_size = None, None, 128
    if args.clusters is not None:
        folder = ClusterFolder(args.clusters)
        assignment, parameters = folder.assignment(), folder.description()["parameters"]
        folder.require_data(images)
        batch_size = len(assignment.unique())
    if args.batch_size is not None:
        batch_size = args.batch_size
    snapshot = None
    if args.snapshot is not None:
        earlier = _load_model(args.snapshot).to(device)
        snapshot = MeanGradient(earlier, images, parameters=parameters).snapshot()
    measured = gradient_variance(
        model,
        images,
        args.estimators,
        assignment=assignment,
        snapshot=snapshot,
        batch_size=batch_size,
        num_batches=args.num_batches,
        parameters=parameters,
        form=args.form,
        seed=args.seed,
    )
    print(measured)
    if args.out is not None:
        result = {
            "model": args.model,
            "data": images.name,
            "clusters": args.clusters,
            "snapshot": args.snapshot,
            "batch_size": batch_size,
            "seed": args.seed,
            "parameters": parameters,
            "estimators": measured.rows(),
        }
        with replacing(args.out) as path:
            path.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
        print(f"saved {args.out}")


def _model_and_data_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("model", metavar="MODEL", help="folder of a run, or of save_pretrained")
    parser.add_argument("--data", nargs="+", required=True, help="images, as for train")
    parser.add_argument("--split", default="train", help="train or test, where the source has both")
    parser.add_argument("--root", help="where sets of torchvision, or the images of a list, lie")
    parser.add_argument(
        "--image_size", type=int, help="side that images are resized to; the model's if not given"
    )


def _model_and_images(args: Namespace) -> tuple[nn.Module, ImageSet]:
    """The model, and images that are labelled with its classes."""
    from .data import load_images
    from .pretrained import read_config

    model, config = _load_model(args.model), read_config(Path(args.model))
    image_size = args.image_size or config["image_size"]
    images = load_images(
        _source(args.data), split=args.split, image_size=image_size, root=args.root
    )
    if images.num_classes != len(config["classes"]):
        raise ValueError(
            f"data has {images.num_classes} classes, {args.model} {len(config['classes'])}; the loss "
            "is that of the model's own classes"
        )
    return model, images


def _load_model(folder: str) -> nn.Module:
    from .pretrained import from_pretrained
    from .training import load_model

    saved_alone = (Path(folder) / "model.safetensors").is_file()
    return from_pretrained(folder) if saved_alone else load_model(folder)


# --- plot


def _plot_arguments(parser: ArgumentParser) -> None:
    parser.add_argument(
        "runs", nargs="+", metavar="RUN", help="folder of a run, or a metrics.jsonl"
    )
    parser.add_argument("--out", required=True, help="folder for the pictures")


def _plot(args: Namespace) -> None:
    """Draw loss, q, accuracies, h(s) and recorded variances of one or several runs."""
    from .plots import plot_runs

    for picture in plot_runs(args.runs, args.out):
        print(f"saved {picture}")


# --- info


def _info_arguments(parser: ArgumentParser) -> None:
    del parser  # takes none


def _info(args: Namespace) -> None:
    """Show what was built and what of it is in use."""
    del args
    from . import __version__, build_info

    for name, value in {"hrrl_ext": __version__, **build_info()}.items():
        print(f"{name:20} {'none' if value in (None, '') else value}")


_COMMANDS: dict[str, Any] = {
    "demo": (_demo_arguments, _demo),
    "train": (_train_arguments, _train),
    "extract": (_extract_arguments, _extract),
    "probe": (_probe_arguments, _probe),
    "cluster": (_cluster_arguments, _cluster),
    "variance": (_variance_arguments, _variance),
    "plot": (_plot_arguments, _plot),
    "info": (_info_arguments, _info),
}


def _source(parts: list[str] | None) -> Any:
    return parts if parts is None or len(parts) > 1 else parts[0]


def _number(name: str, text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise ValueError(f"{name} must be a number or 'search', got {text!r}") from None


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__


def _one_line_warning(message: Warning | str, *_: Any, **__: Any) -> None:
    print(f"hrrl: warning: {' '.join(str(message).split())}", file=sys.stderr)


if __name__ == "__main__":
    raise SystemExit(main())
