"""Views of a batch, each image by its own draw."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor

from ..._streams import Draws
from ..augmix import check_images
from .crops import RandomResizedCrop
from .families import URRLViews, ViewFamily


@dataclass(frozen=True)
class Views:
    """A crop, and then what a family of views makes of it.

    ::

        views = Views(view_family("urrl"), seed=0)
        first, second = views.two(images, index, epoch)   # index [B]: the numbers of the images

    What an image looks like is a function of (seed, epoch, index, view): the same bits in any batch, for
    any number of workers or processes, and whatever else is drawn anywhere. Families share their crops.

    Where the parts are of pictures that were decoded (:meth:`hrrl_ext.data.folders.DecodedImages.parts`),
    crop is None and :func:`crop_draws` says by which draws.

    Args:
        family: what :func:`view_family` gives, or one's own.
        crop: None is without.
        seed: of all draws.
    """

    family: ViewFamily = field(default_factory=URRLViews)
    crop: RandomResizedCrop | None = field(default_factory=RandomResizedCrop)
    seed: int = 0

    def __call__(self, images: Tensor, index: Tensor, epoch: int = 0, view: int = 0) -> Tensor:
        """images [B, C, H, W] of one channel or three, uint8 or float in [0, 1], of any device, with
        their numbers [B] → new ones of the same kind. They are worked on as 8-bit levels, but the mixture
        of AugMix is not rounded where they are float. Draws are made on the CPU, and an index from
        another device is waited for."""
        check_images(images, "Views")
        if index.shape != (len(images),) or index.dtype.is_floating_point:
            raise ValueError(
                f"Views: index must be integers [{len(images)}], the number of each image, got "
                f"{index.dtype} {list(index.shape)}"
            )
        shared = _shared_draws(index, self.seed, epoch)
        draws = shared.named(f"view {view}")
        if self.crop is not None:
            images = self.crop(images, draws.named("crop"))
        return self.family.program(draws, shared, *images.shape[2:])(images)

    def two(self, images: Tensor, index: Tensor, epoch: int = 0) -> tuple[Tensor, Tensor]:
        """Both views of a pair. Images [2, B, C, H, W] are another one for each view, such as parts that
        were taken of pictures."""
        first, second = images.unbind() if images.ndim == 5 else (images, images)
        return self(first, index, epoch, 0), self(second, index, epoch, 1)


def crop_draws(index: Tensor, seed: int, epoch: int, view: int) -> Draws:
    """By which `Views` crop the images of these numbers [B]."""
    return _shared_draws(index, seed, epoch).named(f"view {view}").named("crop")


def _shared_draws(index: Tensor, seed: int, epoch: int) -> Draws:
    return Draws.of_images(index, seed, "views", epoch)
