"""hrrl extract, hrrl probe."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .options import Commands, number, source

if TYPE_CHECKING:
    from jsonargparse import ArgumentParser, Namespace

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
    from ..data import load_images
    from ..processes import choose_device
    from ..training import load_model
    from ..transfer import extract_features, save_features

    images = load_images(
        source(args.data), split=args.split, image_size=args.image_size, root=args.root
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

    from .._files import replacing
    from ..transfer import load_features
    from ..transfer.probe import probe

    c: Any = args.C if args.C == "search" else number("C", args.C)
    normalise = None if args.normalise == "none" else args.normalise
    result = probe(load_features(args.train), load_features(args.test), C=c, normalise=normalise)
    for name, value in result.to_dict().items():
        print(f"{name:22} {value:.4f}" if isinstance(value, float) else f"{name:22} {value}")
    if args.out is not None:
        with replacing(args.out) as path:
            path.write_text(json.dumps(result.to_dict(), indent=1) + "\n")


COMMANDS: Commands = {
    "extract": (_extract_arguments, _extract),
    "probe": (_probe_arguments, _probe),
}
