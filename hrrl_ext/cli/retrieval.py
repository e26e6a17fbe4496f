"""hrrl train-retrieval, hrrl evaluate-retrieval."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import TYPE_CHECKING

from .options import (
    Commands,
    finish_run,
    init_arguments,
    on_error_argument,
    run_arguments,
    writes_folder,
)
from .parser import CommandParser

if TYPE_CHECKING:
    from jsonargparse import Namespace


# --- train-retrieval


def _train_arguments(parser: CommandParser) -> None:
    from ..retrieval.config import RetrievalConfig, RetrievalTraining

    parser.add_config()
    parser.add_argument(
        "--data",
        required=True,
        help="pairs: emoji, a .csv or .jsonl of image and caption, Karpathy's .json, a folder "
        "of *_ims.npy and *_caps.txt, or of images with a .txt beside each",
    )
    parser.add_argument("--validation", help="pairs to measure recall on")
    parser.add_argument(
        "--validation_concepts",
        help="classes: also the rsum of each concept, where those are the images' classes, as in emoji",
    )
    parser.add_argument(
        "--concepts",
        help="concepts of the pairs, for lam to weight: classes, where those are the images' classes, or "
        "clusters:K, of the pairs' gradients (see DiscoveredConcepts)",
    )
    parser.add_argument("--model", default="resnet18", help="name of the image encoder")
    parser.add_argument("--text", default="gru", help="gru, or huggingface:FOLDER")
    parser.add_argument(
        "--preset", default="VSE++", help="VSE++, VSE0, Order++ or Order0: sets what is not given"
    )
    init_arguments(parser, "best of another run, which a new one begins with")
    on_error_argument(parser)
    run_arguments(parser)
    parser.add_class_arguments(RetrievalConfig)
    parser.add_class_arguments(RetrievalTraining, skip={"shuffle_buffer"})
    parser.leave_out(
        *("loss", "margin", "similarity", "lr"),
        *("normalise_image", "normalise_caption", "absolute"),
    )


@writes_folder()
def _train(args: Namespace) -> None:
    """Learn a joint embedding of images and captions, by their hardest negatives (VSE++)."""
    from ..retrieval import RetrievalTrainer

    options = args.as_dict()
    options.pop("config")
    finish_run(RetrievalTrainer(**options).fit())


# --- evaluate-retrieval


def _evaluate_arguments(parser: CommandParser) -> None:
    parser.add_argument(
        "files",
        metavar="FILE",
        nargs="+",
        help=".npz or .safetensors with image [N, D] and caption [M, D], or the names of CLIP, and "
        "caption_group [M], the image of each caption, where that is not the one in its row",
    )
    parser.add_argument(
        "--similarity", help="cosine, dot or order; that of the file if not given, or cosine"
    )
    parser.add_argument("--folds", help="coco-1k, or a number of folds to take means over")
    parser.add_argument("--ties", default="half", help="half or worst: what an equal answer counts")
    parser.add_argument(
        "--bootstrap", type=int, default=0, help="samples for 95 %% intervals; 0 for none"
    )
    parser.add_argument("--seed", type=int, default=0, help="of the samples")
    parser.add_argument("--out", help="JSON file for all that was measured")


def _evaluate(args: Namespace) -> None:
    """Recall, median rank and rsum of embeddings of images and captions, in both directions."""
    from .._tables import one_line
    from ..retrieval import evaluate, load_embeddings
    from ..storage import write_json

    folds = int(args.folds) if args.folds is not None and args.folds.isdecimal() else args.folds
    if args.out is not None and Path(args.out).exists():
        raise FileExistsError(f"{args.out} exists; choose another out")
    found = {}
    for file in args.files:
        embeddings = load_embeddings(file)
        own, similarity = embeddings.similarity, args.similarity or embeddings.similarity
        if own is not None and own != similarity:
            warnings.warn(
                f"{file} is of a model whose embeddings are compared by {own}, and is measured by "
                f"{similarity}, as asked for",
                stacklevel=2,
            )
        found[file] = evaluate(
            *embeddings._replace(similarity=similarity),
            folds=folds,
            ties=args.ties,
            bootstrap=args.bootstrap,
            seed=args.seed,
        )
        print(f"{one_line(file)}: {found[file]}")
    if args.out is not None:
        write_json(args.out, {file: one.as_dict() for file, one in found.items()})
        print(f"saved {args.out}")


COMMANDS: Commands = {
    "train-retrieval": (_train_arguments, _train),
    "evaluate-retrieval": (_evaluate_arguments, _evaluate),
}
