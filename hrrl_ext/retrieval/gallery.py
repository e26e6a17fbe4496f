"""Images and captions that a model has embedded, in a file, to be measured and searched."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from .._arrays import to_numpy
from .._modes import borrowed
from .._pixels import PixelCheck
from ..data.folders import DecodedImages
from ..data.image_sets import ImageSet
from ..data.labelled import as_input
from ..data.leaving_out import split_leave_out, without
from ..data.resize import ImageSize
from ..data.unlabelled import images_within
from ..pretrained import weights_digest
from ..processes import ALONE, Processes
from ..storage import replacing
from .embeddings import load_about, load_embeddings
from .formats import has_captioned_files, split_folders
from .index import Found, Index
from .model import JointEmbedding
from .pairs import EMOJI, Pairs, load_pairs


class Hit(NamedTuple):
    """Something that was found: an image with its captions, or a caption with its image."""

    score: float
    image: int | None
    """its row; None where it is not known whose caption it is"""
    name: str
    captions: list[str]


@dataclass(frozen=True)
class Gallery:
    """N images and M captions in one space.

    image, caption   [N, D] and [M, D] embeddings; M may be 0
    similarity       how they are compared, as `Index` names it
    image_group, caption_group   what belongs together, for `evaluate`
    owner            [M] the image of each caption, where it is known
    names, captions  N names of images and M texts, where they are known
    weights          digest of the model's weights; None of a file by others
    source           what `open_gallery_images` opens the images by again
    """

    image: Tensor
    caption: Tensor
    similarity: str
    image_group: Tensor | None = None
    caption_group: Tensor | None = None
    owner: Tensor | None = None
    names: Sequence[str] = ()
    captions: Sequence[str] = ()
    weights: str | None = None
    source: dict[str, Any] = field(default_factory=dict)

    def find_images(self, query: Tensor, k: int = 10) -> list[list[Hit]]:
        """The k images that embeddings of captions [Q, D] are nearest to, the best first."""
        found = Index(self.image, similarity=self.similarity, of="images").search(query, k)
        return self._hits(found, lambda row: (row, self._captions_of(row)))

    def find_captions(self, query: Tensor, k: int = 10) -> list[list[Hit]]:
        """The k captions that embeddings of images [Q, D] are nearest to, each with its image."""
        if not len(self.caption):
            raise ValueError("Gallery: there are no captions in it to be found")
        found = Index(self.caption, similarity=self.similarity).search(query, k)
        return self._hits(found, lambda row: (self._owner_of(row), self._texts([row])))

    def save(self, path: str | os.PathLike[str]) -> None:
        """An .npz that :meth:`load`, `load_embeddings` and `hrrl evaluate-retrieval` read."""
        path = check_npz(path)
        rows = {
            name: to_numpy(value)
            for name in ("image", "caption", "image_group", "caption_group", "owner")
            if (value := getattr(self, name)) is not None
        }
        about = {name: getattr(self, name) for name in ("similarity", "weights", "source")}
        about |= {"names": list(self.names), "captions": list(self.captions)}
        text = np.frombuffer(json.dumps(about).encode(), np.uint8)
        with replacing(path) as partial, partial.open("wb") as file:
            np.savez(file, **rows, about=text)

    @classmethod
    def load(cls, path: str | os.PathLike[str], similarity: str = "cosine") -> Gallery:
        """Of any embeddings that `load_embeddings` reads; those of others have rows in place of names,
        and the ``similarity`` that is given."""
        found = load_embeddings(path)
        image, caption = torch.as_tensor(found.image), torch.as_tensor(found.caption)
        if not (told := load_about(Path(path))):
            return cls(image, caption, similarity)
        for what, rows in (("names", image), ("captions", caption)):
            if len(told.get(what, ())) not in (0, len(rows)):
                raise ValueError(f"{path}: {what} are {len(told[what])}, of {len(rows)} rows")
        with np.load(path, allow_pickle=False) as stored:
            names = ("image_group", "caption_group", "owner")
            ids: dict[str, Any] = {n: torch.from_numpy(stored[n]) for n in names if n in stored}
        return cls(image, caption, **ids, **told)

    def require_model(self, model: JointEmbedding, where: str) -> None:
        """ValueError where these are embeddings of another model, which no search would notice."""
        if self.weights is not None and self.weights != weights_digest(model):
            raise ValueError(
                f"{where} was embedded by another model, or by this one before it was trained further; "
                "make it again with hrrl embed"
            )
        if self.image.shape[1] != model.dim:
            raise ValueError(
                f"{where} has embeddings of {self.image.shape[1]} numbers, the model gives {model.dim}"
            )

    def require_images(self, images: ImageSet, where: str) -> None:
        """ValueError where images are not those that were embedded, by their number and their names."""
        names = _names(images)
        if len(images) == len(self.image) and names == list(self.names):
            return
        pairs = enumerate(zip(self.names, names, strict=False))
        differ = next((f"row {at} was {a}, and is {b}" for at, (a, b) in pairs if a != b), None)
        told = differ or f"there were {len(self.image)}, and are {len(images)}"
        raise ValueError(
            f"{where}: {images.name} has other images than when it was embedded: {told}; make it again "
            "with hrrl embed"
        )

    def _hits(
        self, found: Found, of: Callable[[int], tuple[int | None, list[str]]]
    ) -> list[list[Hit]]:
        hits = []
        for scores, rows in zip(found.score.tolist(), found.row.tolist(), strict=True):
            of_query = []
            for score, row in zip(scores, rows, strict=True):
                image, captions = of(row)
                of_query.append(Hit(score, image, self._name_of(image), captions))
            hits.append(of_query)
        return hits

    def _name_of(self, image: int | None) -> str:
        if image is None:
            return ""
        return self.names[image] if self.names else f"image {image}"

    def _owner_of(self, caption: int) -> int | None:
        return None if self.owner is None else int(self.owner[caption])

    def _captions_of(self, image: int) -> list[str]:
        if self.owner is None:
            return []
        return self._texts((self.owner == image).nonzero().flatten().tolist())

    def _texts(self, rows: Sequence[int]) -> list[str]:
        return [self.captions[row] if self.captions else f"caption {row}" for row in rows]


def check_npz(path: str | os.PathLike[str]) -> Path:
    path = Path(path)
    if path.suffix != ".npz":
        raise ValueError(f"Gallery: the file must end in .npz, got {path}")
    return path


def open_gallery_images(
    data: str | os.PathLike[str],
    *,
    split: str = "all",
    image_size: ImageSize | None = None,
    root: str | os.PathLike[str] | None = None,
) -> Pairs | ImageSet:
    """What `load_pairs` opens; or a folder of image files of which none has a text, so no captions."""
    data, file = split_leave_out(data)
    if file is not None:
        opened = open_gallery_images(data, split=split, image_size=image_size, root=root)
        return (
            opened.without(file, split=split)
            if isinstance(opened, Pairs)
            else without(opened, file, split=split)
        )
    folder = Path(data)
    features = any(folder.glob("*_ims.npy"))
    if data != EMOJI and folder.is_dir() and not features and not has_captioned_files(folder):
        if root is not None:
            raise ValueError(
                f"open_gallery_images: root goes with a file of names, and {folder} is a folder"
            )
        tops = [folder] if split == "all" else split_folders(folder, split)
        if image_size is None:
            raise ValueError(f"{folder} holds images of any size: give image_size=...")
        return images_within(folder, tops, image_size)
    return load_pairs(data, split=split, image_size=image_size, root=root)


def embed(
    model: JointEmbedding,
    data: Pairs | ImageSet,
    *,
    batch_size: int = 256,
    device: torch.device | str | None = None,
    source: dict[str, Any] | None = None,
    progress: Callable[[int, int], None] | None = None,
    processes: Processes = ALONE,
) -> Gallery:
    """The gallery of images, and of their captions where ``data`` has any.

    The model is borrowed: eval mode, no gradients, on ``device``. Captions go through in the order of
    their lengths, so that little is padded. ``progress`` is told how many rows of how many are done.
    ``processes`` take a batch in turn, and each has the whole gallery, to the bits of one process.
    """
    if batch_size < 1:
        raise ValueError(f"embed: batch_size must be at least 1, got {batch_size}")
    images = data.images if isinstance(data, Pairs) else data
    captions = data.captions if isinstance(data, Pairs) else []
    if captions and model.words is None:
        raise ValueError("embed: the model has no words to make tokens of captions with")
    total, done = len(images) + len(captions), 0
    order = sorted(range(len(captions)), key=lambda row: len(captions[row]))
    with borrowed(model, device) as (there, dtype):
        image_batches = (
            _embed_images(model, images, rows, there, dtype).cpu()
            for rows in processes.turns(_parts(range(len(images)), batch_size))
        )
        caption_batches = (
            model.encode_captions([captions[row] for row in rows]).float().cpu()
            for rows in processes.turns(_parts(order, batch_size))
        )
        found: tuple[list[Tensor], list[Tensor]] = [], []
        for batches, embedded in zip((image_batches, caption_batches), found, strict=True):
            for batch in processes.in_order(batches):
                embedded.append(batch)
                done += len(batch)
                if progress is not None:
                    progress(done, total)
    image, sorted_caption = (
        torch.cat(embedded) if embedded else torch.zeros(0, model.dim) for embedded in found
    )
    caption = torch.zeros(len(captions), model.dim)
    caption[order] = sorted_caption
    groups: dict[str, Any] = {}
    if isinstance(data, Pairs):
        groups = {
            "image_group": data.image_group,
            "caption_group": data.caption_group,
            "owner": data.owner,
        }
    return Gallery(
        image,
        caption,
        model.compared,
        names=_names(images),
        captions=captions,
        weights=weights_digest(model),
        source=source or {},
        **groups,
    )


def _names(images: ImageSet | Tensor) -> list[str]:
    """Of image files."""
    return list(map(images.told, images.sources)) if isinstance(images, DecodedImages) else []


def _embed_images(
    model: JointEmbedding,
    images: ImageSet | Tensor,
    rows: Sequence[int],
    device: torch.device,
    dtype: torch.dtype,
) -> Tensor:
    if isinstance(images, ImageSet):
        x = images.__getitems__(rows)[0]
        return model.encode_image(as_input(x, device, dtype, PixelCheck(model, "embed")))
    features = images[rows].to(device, dtype)
    return model.encode_image(features, precomputed=model.precomputed(features))


def _parts(rows: Sequence[int], size: int) -> list[Sequence[int]]:
    return [rows[first : first + size] for first in range(0, len(rows), size)]
