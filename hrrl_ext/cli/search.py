"""hrrl embed, hrrl search, hrrl export-retrieval."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from .options import Commands, writes_folder
from .parser import CommandParser

if TYPE_CHECKING:
    from collections.abc import Sequence

    from jsonargparse import Namespace

    from ..retrieval import Gallery, JointEmbedding
    from ..retrieval.gallery import Hit

_OF_IMAGES = {"split": "all", "root": None, "batch_size": 256}
"""Options of images that are embedded, and what they are if not given."""


# --- embed


def _model_arguments(parser: CommandParser) -> None:
    parser.add_argument(
        "model", metavar="MODEL", help="folder of train-retrieval, or of save_joint_embedding"
    )
    parser.add_argument("--which", help="of a run: best, last or ema; best if not given")


def _images_arguments(parser: CommandParser) -> None:
    parser.add_argument("--split", help="of the data, where it has splits")
    parser.add_argument("--root", help="folder that the names in a .csv, .jsonl or .json are of")
    parser.add_image_size("the model's if not given")
    parser.add_argument("--batch_size", type=int)
    parser.set_defaults(**_OF_IMAGES)
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    parser.add_argument("--progress", default="auto", help="auto, bar, plain or off")


def _embed_arguments(parser: CommandParser) -> None:
    _model_arguments(parser)
    parser.add_argument(
        "--data",
        required=True,
        help="emoji, a .csv or .jsonl of image and caption, Karpathy's .json, a folder of *_ims.npy, "
        "a folder of images, with a .txt beside each or beside none",
    )
    _images_arguments(parser)
    parser.add_argument("--out", required=True, help="file to write, .npz")


def _embed(args: Namespace) -> None:
    """Embed images, and their captions, by a trained model, to be searched or measured."""
    from ..processes import start_processes
    from ..retrieval.gallery import check_npz

    if check_npz(args.out).exists():  # before the work
        raise FileExistsError(f"{args.out} exists; choose another out")
    processes, _ = start_processes(args.device)
    gallery = _embedded(_opened(args), args.data, args)
    if not processes.main:
        return
    gallery.save(args.out)
    print(
        f"saved {args.out}: {len(gallery.image)} images and {len(gallery.caption)} captions, "
        f"compared by {gallery.similarity}"
    )


# --- search


def _search_arguments(parser: CommandParser) -> None:
    _model_arguments(parser)
    parser.add_argument(
        "index", metavar="INDEX", help="an .npz of hrrl embed, or of CLIP; or images, as for embed"
    )
    parser.add_argument("text", metavar="TEXT", nargs="*", help="captions: images are found")
    parser.add_argument("--image", nargs="+", default=[], help="image files: captions are found")
    parser.add_argument("--k", type=int, default=10, help="how many are found")
    parser.add_argument("--picture", help="a contact sheet of the images, .png or .pdf")
    parser.add_argument("--out", help="JSON file for what was found")
    _images_arguments(parser)


def _search(args: Namespace) -> None:
    """Find images by a caption, or captions by an image."""
    from ..storage import write_json

    if not args.text and not args.image:
        raise ValueError("nothing is sought: give a TEXT, or --image FILE")
    for path in filter(None, (args.out, args.picture)):
        if Path(path).exists():
            raise FileExistsError(f"{path} exists; choose another")
    if _is_embedded(args.index):
        _require_no_images(args)
    model = _opened(args)
    gallery = _gallery(model, args)
    found = _found(model, gallery, args)
    for query, hits in found:
        _print(query, hits)
    if args.out is not None:
        write_json(args.out, {query: [hit._asdict() for hit in hits] for query, hits in found})
        print(f"saved {args.out}")
    if args.picture is not None:
        _draw(gallery, found, args)
        print(f"saved {args.picture}")


def _gallery(model: JointEmbedding, args: Namespace) -> Gallery:
    from ..retrieval import Gallery

    if not _is_embedded(args.index):
        return _embedded(model, args.index, args)
    gallery = Gallery.load(args.index, model.compared)
    gallery.require_model(model, args.index)
    return gallery


def _is_embedded(index: str) -> bool:
    return Path(index).suffix in (".npz", ".safetensors")


def _require_no_images(args: Namespace) -> None:
    given = [name for name, default in _OF_IMAGES.items() if getattr(args, name) != default]
    if args.image_size is not None and not args.image:
        given.append("image_size")
    if given:
        raise ValueError(
            f"--{given[0]} is of images that are to be embedded, and {args.index} is embedded; leave it "
            "out, or give the images in its place"
        )


def _found(model: JointEmbedding, gallery: Gallery, args: Namespace) -> list[tuple[str, list[Hit]]]:
    from .._modes import evaluating
    from ..data.unlabelled import without_classes
    from ..retrieval.gallery import embed

    found: list[tuple[str, list[Hit]]] = []
    with evaluating(model):
        if args.text:
            query = model.encode_captions(args.text)
            found += zip(args.text, gallery.find_images(query.cpu(), args.k), strict=True)
        if args.image:
            size = _image_size(model, args)
            if size is None:
                raise ValueError(
                    "--image: the model takes features, or images of no known size; give --image_size "
                    "of the latter"
                )
            query = embed(model, without_classes(args.image, size, "--image")).image
            found += zip(args.image, gallery.find_captions(query, args.k), strict=True)
    return found


def _print(query: str, hits: Sequence[Hit]) -> None:
    from .._tables import one_line

    print(one_line(query))
    for place, hit in enumerate(hits, 1):
        what = "; ".join(filter(None, [hit.name, *hit.captions]))
        print(f"{place:4} {hit.score:7.3f}  {one_line(what)}")


def _draw(gallery: Gallery, found: list[tuple[str, list[Hit]]], args: Namespace) -> None:
    from ..data import ImageSet
    from ..plots import plot_found
    from ..retrieval import Pairs, open_gallery_images

    if not gallery.source:
        raise ValueError(
            f"--picture: where the images of {args.index} are is not known; hrrl embed notes it"
        )
    data = open_gallery_images(**gallery.source)
    images = data.images if isinstance(data, Pairs) else data
    if not isinstance(images, ImageSet):
        raise ValueError(f"--picture: {gallery.source['data']} holds features, no images")
    gallery.require_images(images, args.index)
    plot_found(images, found, args.picture)


# --- export-retrieval


def _export_arguments(parser: CommandParser) -> None:
    _model_arguments(parser)
    parser.add_argument("--formats", nargs="+", default=["torch", "onnx"], help="torch, onnx")
    parser.add_argument("--out", required=True, help="folder to write to")


@writes_folder()
def _export(args: Namespace) -> None:
    """Write both encoders for torch.export and ONNX, to be run without this library."""
    from ..retrieval import export, load_joint_embedding

    model = load_joint_embedding(args.model, which=args.which)
    for path in export(model, args.out, formats=args.formats):
        print(f"saved {path}")


# --- of several


def _opened(args: Namespace) -> JointEmbedding:
    from ..processes import start_processes
    from ..retrieval import load_joint_embedding

    return load_joint_embedding(args.model, which=args.which).to(start_processes(args.device)[1])


def _image_size(model: JointEmbedding, args: Namespace) -> Any:
    return args.image_size or model.built_as.get("image_size")


def _embedded(model: JointEmbedding, data: str, args: Namespace) -> Gallery:
    from ..data.leaving_out import split_leave_out
    from ..processes import current_processes
    from ..retrieval import Pairs, embed, open_gallery_images
    from ..retrieval.pairs import EMOJI
    from ..training.progress import Progress

    name, left_out = split_leave_out(data)  # each as it is found from any folder
    name = name if name == EMOJI else str(Path(name).resolve())
    source = {
        "data": name if left_out is None else f"{name}:leave_out={Path(left_out).resolve()}",
        "split": args.split,
        "image_size": _image_size(model, args),
        "root": None if args.root is None else str(Path(args.root).resolve()),
    }
    data_set = open_gallery_images(**source)
    rows = len(data_set) + (len(data_set.images) if isinstance(data_set, Pairs) else 0)
    processes = current_processes()
    with Progress(args.progress if processes.main else "off", rows) as progress:
        return embed(
            model,
            data_set,
            batch_size=args.batch_size,
            source=source,
            processes=processes,
            progress=lambda done, of: progress.step(done, f"row {done} of {of}", "embedding"),
        )


COMMANDS: Commands = {
    "embed": (_embed_arguments, _embed),
    "search": (_search_arguments, _search),
    "export-retrieval": (_export_arguments, _export),
}
