"""What several commands take, and how it is read."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

if TYPE_CHECKING:
    from jsonargparse import ArgumentParser, Namespace
    from torch import nn

    from ..data import ImageSet

Commands: TypeAlias = (
    "dict[str, tuple[Callable[[ArgumentParser], None], Callable[[Namespace], None]]]"
)
"""By name: what adds its arguments to a parser, and what runs it; its docstring is the help."""


def model_and_data_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("model", metavar="MODEL", help="folder of a run, or of save_pretrained")
    parser.add_argument("--data", nargs="+", required=True, help="images, as for train")
    parser.add_argument("--split", default="train", help="train or test, where the source has both")
    parser.add_argument("--root", help="where sets of torchvision, or the images of a list, lie")
    parser.add_argument(
        "--image_size", type=int, help="side that images are resized to; the model's if not given"
    )


def model_and_images(args: Namespace) -> tuple[nn.Module, ImageSet]:
    """The model, and images that are labelled with its classes."""
    from ..data import load_images
    from ..pretrained import read_config

    model, config = load_any_model(args.model), read_config(Path(args.model))
    image_size = args.image_size or config["image_size"]
    images = load_images(source(args.data), split=args.split, image_size=image_size, root=args.root)
    if images.num_classes != len(config["classes"]):
        raise ValueError(
            f"data has {images.num_classes} classes, {args.model} {len(config['classes'])}; the loss "
            "is that of the model's own classes"
        )
    return model, images


def load_any_model(folder: str) -> nn.Module:
    from ..pretrained import from_pretrained
    from ..training import load_model

    saved_alone = (Path(folder) / "model.safetensors").is_file()
    return from_pretrained(folder) if saved_alone else load_model(folder)


def source(parts: list[str] | None) -> Any:
    return parts if parts is None or len(parts) > 1 else parts[0]


def number(name: str, text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise ValueError(f"{name} must be a number or 'search', got {text!r}") from None
