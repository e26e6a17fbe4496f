"""hrrl data check."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from .options import Commands
from .parser import CommandParser

if TYPE_CHECKING:
    from jsonargparse import Namespace


def _check_arguments(parser: CommandParser) -> None:
    parser.add_argument(
        "sources",
        nargs="+",
        metavar="SOURCE",
        help="images, as --data of train; several, and the splits of each, are to have none in common",
    )
    parser.add_argument(
        "--splits", nargs="+", help="of train, val and test; those that a source has if not given"
    )
    parser.add_argument("--root", help="where sets of torchvision, or the images of a list, lie")
    parser.add_argument("--num_workers", type=int, default=0, help="threads that decode images")
    parser.add_argument(
        "--min_size", type=int, default=32, help="pixels; pictures with a shorter side are told"
    )
    parser.add_argument(
        "--max_aspect", type=float, default=4.0, help="of the longer side over the shorter"
    )
    parser.add_argument(
        "--min_images", type=int, default=10, help="of a class; one with fewer is told"
    )
    parser.add_argument(
        "--write_list",
        help="file for all that was found, .csv or .jsonl; SOURCE:leave_out=FILE leaves out those of it "
        "that cannot be read, copies, and contradictions",
    )
    parser.add_argument(
        "--contact_sheet", help="picture of some images of each class, and of what was found, .png"
    )
    parser.add_argument("--json", help="file for the numbers")
    parser.add_argument("--progress", default="auto", help="auto, bar, plain or off")


def _check(args: Namespace) -> None:
    """Read every image once, and tell what would stop a training (status 1) or may spoil it (0)."""
    from ..data.checking import examined, open_parts
    from ..data.looking import Limits
    from ..storage import write_json
    from ..training.progress import Progress

    if args.write_list is not None and Path(args.write_list).suffix not in (".csv", ".jsonl"):
        raise ValueError(f"--write_list must be a .csv or a .jsonl, got {args.write_list!r}")
    limits = Limits(args.min_size, args.max_aspect, args.min_images)
    parts = open_parts(args.sources, args.splits, args.root)
    total = sum(len(part.images) for part in parts)
    with Progress(args.progress, total) as progress:
        report = examined(
            parts,
            limits,
            args.num_workers,
            lambda done, of: progress.step(done, f"image {done} of {of}", "reading"),
        )
    print(report)
    if args.write_list is not None:
        report.write_list(args.write_list)
        print(f"saved {args.write_list}")
    if args.json is not None:
        write_json(args.json, report.to_dict())
        print(f"saved {args.json}")
    if args.contact_sheet is not None:
        from ..plots import plot_check

        print(f"saved {plot_check(report, args.contact_sheet)}")
    if not report.clean:
        refused = [part.name for part in parts if part.refused]
        raise OSError(
            f"{report.stopping} of {total} images cannot be read"
            + (f", and training refuses {', '.join(refused)}" if refused else "")
            + "; repair them, or --write_list FILE and train on SOURCE:leave_out=FILE"
        )


COMMANDS: Commands = {"data check": (_check_arguments, _check)}
