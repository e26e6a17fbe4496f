"""Images that stay in memory as they are fetched, so that an epoch after the first opens no file."""

from __future__ import annotations

import torch
from torch import Tensor

from .image_sets import ArrayImages, ImageSet


class KeptImages:
    """The images of a set, in the memory of one device, from their first fetch on.

    `take` gives images [B, 3, H, W] of the dtype that the set has (uint8 from files) by row [B];
    all of them must be known, see `unknown`. The bits are those that were put. An image set that is
    in memory already is moved as a whole. Memory is reserved at the first put.
    """

    def __init__(self, images: ImageSet, device: torch.device) -> None:
        self.device = device
        self._shape = (len(images), *images.image_shape)
        self._known = torch.zeros(len(images), dtype=torch.bool)
        self._pixels: Tensor | None = None
        if isinstance(images, ArrayImages):
            self._pixels = images.images.to(device)
            self._known.fill_(True)

    def unknown(self, batches: list[Tensor]) -> list[Tensor]:
        """Those of the rows [B] of each batch that have to be fetched and put: neither known nor in a
        batch before it, and each once."""
        met, unknown = self._known.clone(), []
        for rows in batches:
            new = rows[~met[rows]].unique()
            met[new] = True
            unknown.append(new)
        return unknown

    def put(self, rows: Tensor, images: Tensor) -> None:
        if self._pixels is None:
            self._pixels = torch.empty(self._shape, dtype=images.dtype, device=self.device)
        self._pixels[rows.to(self.device)] = images.to(self.device)
        self._known[rows] = True

    def take(self, rows: Tensor) -> Tensor:
        assert self._pixels is not None
        return self._pixels[rows.to(self.device, non_blocking=True)]


def keep(images: ImageSet, device: torch.device, limit: float) -> KeptImages | None:
    """Where to keep the images, of at most ``limit`` bytes: on the device, else in RAM, else nowhere.

    On the device they may take half of its free memory. None too for images that are in memory
    where they are wanted.
    """
    size = _bytes(images)
    here = isinstance(images, ArrayImages)
    if size == 0 or (here and device.type == "cpu"):
        return None
    if device.type == "cuda" and size <= min(limit, torch.cuda.mem_get_info(device)[0] / 2):
        return KeptImages(images, device)
    return None if here or size > limit else KeptImages(images, torch.device("cpu"))


def _bytes(images: ImageSet) -> int:
    if isinstance(images, ArrayImages):
        return images.images.nbytes
    channels, height, width = images.image_shape
    if len(images) == 0:
        return 0
    return len(images) * channels * height * width * images[0][0].element_size()
