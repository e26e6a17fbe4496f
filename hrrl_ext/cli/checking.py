"""hrrl check."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .options import Commands, source
from .parser import CommandParser

if TYPE_CHECKING:
    from jsonargparse import Namespace

_SIDE = 64  # pixels; whether a file can be decoded does not depend on it


def _check_arguments(parser: CommandParser) -> None:
    parser.add_argument("--data", nargs="+", required=True, help="images, as for train")
    parser.add_argument(
        "--split", default="train", help="train, val or test, as the source has them"
    )
    parser.add_argument("--root", help="where sets of torchvision, or the images of a list, lie")
    parser.add_argument("--num_workers", type=int, default=0, help="threads that decode images")


def _check(args: Namespace) -> None:
    """Open images as train does, say how they are read, and try every one of them."""
    from ..data import load_images, unreadable

    images = load_images(source(args.data), split=args.split, image_size=_SIDE, root=args.root)
    print(f"{images.name}: {len(images)} images of {images.num_classes} classes")
    found = unreadable(images, num_workers=args.num_workers)
    for image in found:
        print(f"{image.name}: {image.error}")
    if found:
        raise OSError(
            f"{len(found)} of {len(images)} images cannot be read; repair them, or train with "
            "--on_error skip"
        )
    print("all can be read")


COMMANDS: Commands = {"check": (_check_arguments, _check)}
