"""hrrl cluster, hrrl variance."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import jsonargparse

from .options import (
    Commands,
    model_and_data_arguments,
    model_and_images,
    tell_left_out,
    writes_folder,
)
from .parser import CommandParser

if TYPE_CHECKING:
    from jsonargparse import Namespace

    from ..data import ImageSet

# --- cluster


def _cluster_arguments(parser: CommandParser) -> None:
    model_and_data_arguments(parser)
    parser.add_argument("--clusters", type=int, required=True, help="K, the number of clusters")
    parser.add_argument("--rounds", type=int, default=10, help="rounds in all")
    parser.add_argument(
        "--layers",
        nargs="+",
        help="layers whose gradients count; all linear and convolutional ones that have them",
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


@writes_folder(lambda args: _clusters(args))
def _cluster(args: Namespace) -> None:
    """Cluster examples by the gradients that they have at a trained model."""
    from ..clustering import GradientClustering
    from ..clustering.folder import ClusterFolder, cluster_rows, cluster_table
    from ..data.resize import size_of
    from ..data.unreadable import left_out
    from ..pretrained import weights_digest
    from ..processes import start_processes

    if args.rounds < 1:
        raise ValueError(f"rounds must be at least 1, got {args.rounds}")
    processes, device = start_processes(args.device)
    folder = ClusterFolder(_clusters(args))
    if not args.resume:
        folder.require_free()
    model, images = model_and_images(args)
    settings = {
        "layers": args.layers,
        "rank": args.rank,
        "center": args.center,
        "weighted": args.weighted,
        "batch_size": args.batch_size,
        "seed": args.seed,
    }
    clustering = GradientClustering(model.to(device), args.clusters, **settings).try_layers(images)
    description = {
        "model": args.model,
        "weights": weights_digest(model),
        "data": images.name,
        "examples": len(images),
        **left_out(data=images),
        "image_size": size_of(images.image_shape),
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
            from ..plots import plot_clusters

            plot_clusters(clustering, folder.path / "plots", images)
        print(cluster_table(cluster_rows(clustering, images.target, images.classes)))
        tell_left_out(images)
        print(f"saved {folder.path}; as concepts: hrrl train --concepts {folder.concepts} ...")


def _clusters(args: Namespace) -> Path:
    return Path(args.out or Path(args.model) / "clusters")


# --- variance


def _variance_arguments(parser: CommandParser) -> None:
    model_and_data_arguments(parser)
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
    from ..clustering import MeanGradient, gradient_variance
    from ..clustering.folder import ClusterFolder
    from ..data.unreadable import left_out
    from ..processes import start_processes
    from ..storage import write_json
    from ..training.run_folder import open_model

    if args.out is not None and Path(args.out).exists():
        raise FileExistsError(f"{args.out} exists; choose another out")
    processes, device = start_processes(args.device)
    model, images = model_and_images(args)
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
        _require_classes_of(args.model, args.snapshot, images)
        earlier = open_model(args.snapshot).to(device)
        of_earlier = MeanGradient(earlier, images, parameters=parameters)
        snapshot = of_earlier.snapshot(processes=processes)
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
        processes=processes,
    )
    if not processes.main:
        return
    print(measured)
    tell_left_out(images)
    if args.out is not None:
        result = {
            "model": args.model,
            "data": images.name,
            **left_out(data=images),
            "clusters": args.clusters,
            "snapshot": args.snapshot,
            "batch_size": batch_size,
            "seed": args.seed,
            "parameters": parameters,
            "estimators": measured.rows(),
        }
        write_json(args.out, result)
        print(f"saved {args.out}")


def _require_classes_of(model: str, snapshot: str, images: ImageSet) -> None:
    """That both have the same classes; --classes may call those of the images otherwise."""
    from ..data.classes import require_same_classes
    from ..pretrained import classes_of, read_config

    known = read_config(Path(snapshot), "classes")["classes"]
    require_same_classes(classes_of(model) or images.classes, known, of=model, data=snapshot)


COMMANDS: Commands = {
    "cluster": (_cluster_arguments, _cluster),
    "variance": (_variance_arguments, _variance),
}
