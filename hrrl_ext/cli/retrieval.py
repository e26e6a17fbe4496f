"""hrrl evaluate-retrieval."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from .options import Commands
from .parser import CommandParser

if TYPE_CHECKING:
    from jsonargparse import Namespace


def _evaluate_arguments(parser: CommandParser) -> None:
    parser.add_argument(
        "files",
        metavar="FILE",
        nargs="+",
        help=".npz or .safetensors with image [N, D] and caption [M, D], or the names of CLIP, and "
        "caption_group [M], the image of each caption, where that is not the one in its row",
    )
    parser.add_argument("--similarity", default="cosine", help="cosine, dot or order")
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
        found[file] = evaluate(
            *load_embeddings(file),
            similarity=args.similarity,
            folds=folds,
            ties=args.ties,
            bootstrap=args.bootstrap,
            seed=args.seed,
        )
        print(f"{one_line(file)}: {found[file]}")
    if args.out is not None:
        write_json(args.out, {file: one.as_dict() for file, one in found.items()})
        print(f"saved {args.out}")


COMMANDS: Commands = {"evaluate-retrieval": (_evaluate_arguments, _evaluate)}
