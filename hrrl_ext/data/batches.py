"""Mini-batches that depend on seed and epoch alone, whatever the number of workers."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from .._streams import Draws, random_stream
from ..processes import ALONE, Processes
from ..spec import not_known
from .augmix import AugMix
from .fetching import Fetcher, pictures_of
from .ids import checked_ids
from .image_sets import ImageSet, as_float
from .mixup import Mixup
from .sampling import GroupSampling, Sampling, Shuffling, check_order
from .views.crops import CropOf, RandomResizedCrop
from .views.erasing import RandomErasing


@dataclass(frozen=True)
class Augmentation:
    """Random crop after zero padding (crop_padding pixels a side), then a random horizontal flip.

    Every image has its own draw: a uniform crop position, and a flip with probability 1/2.
    crop_padding = 0 with flip = False is the identity.
    """

    crop_padding: int = 4
    flip: bool = True

    def __post_init__(self) -> None:
        if isinstance(self.crop_padding, bool) or not isinstance(self.crop_padding, int):
            raise TypeError(
                f"Augmentation: crop_padding must be an int (pixels), got {self.crop_padding!r}"
            )
        if self.crop_padding < 0:
            raise ValueError(
                f"Augmentation: crop_padding must be at least 0, got {self.crop_padding}"
            )

    def __call__(
        self,
        images: Tensor,
        generator: torch.Generator,
        part: range | None = None,
        of: int | None = None,
    ) -> Tensor:
        """images [B, C, H, W], any dtype and device → a new tensor of the same kind.

        generator lives on the CPU, so one seed gives the same images on every device. ``part`` says
        which images of a batch of size ``of`` these are: they look as they would in the whole of it.
        """
        return self.apply(images, self.draw(len(images), generator, part, of))

    def draw(
        self,
        count: int,
        generator: torch.Generator,
        part: range | None = None,
        of: int | None = None,
    ) -> Tensor:
        """The views [B, 3] of so many images: top and left of the crop in the padded image, and whether
        it is flipped then, 0 or 1. Arguments as above."""
        here = slice(part.start, part.stop) if part is not None else slice(None)
        drawn = count if of is None else of
        # All is drawn whatever the settings: switching the flip off leaves the crops in place.
        top, left = torch.randint(2 * self.crop_padding + 1, (2, drawn), generator=generator)
        flip = torch.randint(2, (drawn,), generator=generator) * self.flip
        return torch.stack([top, left, flip], 1)[here]

    def apply(self, images: Tensor, view: Tensor) -> Tensor:
        """images [B, C, H, W] as views [B, 3] show them; outside of an image there are zeros."""
        pad, (b, channels, height, width) = self.crop_padding, images.shape
        rows, columns = _looked_at(view.to(images.device), height, width)
        # One gather over flattened pixels: several times faster than cropping image by image.
        pixel = rows[:, :, None] * (width + 2 * pad) + columns[:, None, :]  # [B, H, W]
        pixel = pixel.view(b, 1, height * width).expand(b, channels, -1)
        return F.pad(images, (pad,) * 4).flatten(2).gather(2, pixel).view_as(images)

    def undo(self, images: Tensor, view: Tensor) -> Tensor:
        """What ``apply`` has moved [B, C, H, W], back where it was; zeros where the view did not look."""
        return self.apply(images, self._inverse(view))

    def _inverse(self, view: Tensor) -> Tensor:
        """Undoing is a view, too: its crop lies at the other side, unless the image is flipped."""
        top, left, flip = view.unbind(1)
        other = 2 * self.crop_padding
        return torch.stack([other - top, torch.where(flip > 0, left, other - left), flip], 1)


def _looked_at(view: Tensor, height: int, width: int) -> tuple[Tensor, Tensor]:
    """Rows [B, H] and columns [B, W] of the padded image that views [B, 3] show."""
    top, left, flip = view[:, :, None].unbind(1)  # [B, 1] each
    row, column = (torch.arange(n, device=view.device) for n in (height, width))
    return top + row, left + torch.where(flip > 0, width - 1 - column, column)


class Batches:
    """Epochs of mini-batches on one device.

    A batch is x [B, 3, H, W] float32 in [0, 1], target [B] int64, concept [B] int64; with ``views`` also
    the numbers of its images, row [B] int64, and how each is augmented, view [B, 3] int64
    (:meth:`Augmentation.draw`). With ``augmix`` x is a mixture; or, with ``mixtures``, x is not, and so
    many mixtures of it come last, each like x. With ``mixup`` x is a mixture with another image, and the
    share a [B] float32 of its own labels comes behind them, then target and concept of the other.
    The order of the examples is a function of (seed, epoch), Augmentation of (seed, epoch, batch number):
    starting at any epoch gives the same bits as getting there, with any num_workers. Random resized
    crops, AugMix, what is erased and the shares of mixup are functions of (seed, epoch, index, how
    often the image came before in the epoch), whatever the batch size; pairs are neighbours in the
    epoch's order, the same for every even batch size.
    No global random state is read or changed. Every example comes exactly once per epoch, but see
    sampling. The last batch may be smaller; when shuffled (for training), a last one of a single
    example joins the batch before it, since batch normalisation cannot train on one value.
    Augmentation and the conversion of uint8 to float run on the device.

    crop_of: "picture" has RandomResizedCrop take its part of the whole picture in a file, at its own
    size, by the same draws; workers do so, and every epoch decodes all pictures anew: none is kept.
    sampling: "class" or "concept" draws the N examples of an epoch with replacement, and class or
    concept k with a probability ∝ N_k^(1 - balance) (:class:`GroupSampling`); for training, that is
    with shuffle. ``concept`` counts as it is when the epoch begins.
    shuffle_buffer: shards are read one after the other, and mixed through a buffer of so many images
    (:func:`hrrl_ext.data.sampling.through_buffer`); with shuffle, and without sampling.

    concept: [N] integer ids, one per example; num_workers: processes that fetch images, worthwhile
    for images decoded from files; keep_gib: up to so many GiB of images are kept as they were
    fetched, on the device or else in RAM, and not fetched again (0 keeps none). Neither changes a
    bit.

    On several processes batch_size counts the examples of all of them, and each yields its part of
    every batch, augmented as in the whole: what is trained does not depend on their number. For
    training a last batch with fewer than two examples for each joins the batch before it.
    """

    def __init__(
        self,
        images: ImageSet,
        concept: Tensor,
        batch_size: int,
        *,
        shuffle: bool,
        seed: int = 0,
        augment: Augmentation | RandomResizedCrop | None = None,
        crop_of: CropOf = "image",
        device: str | torch.device = "cpu",
        num_workers: int = 0,
        keep_gib: float = 0.0,
        processes: Processes = ALONE,
        views: bool = False,
        sampling: Sampling = "uniform",
        balance: float = 1.0,
        augmix: AugMix | None = None,
        mixtures: int = 0,
        erasing: RandomErasing | None = None,
        mixup: Mixup | None = None,
        shuffle_buffer: int | None = None,
    ) -> None:
        check_order(sampling, balance, shuffle_buffer, shuffle=shuffle)
        if batch_size < 1:
            raise ValueError(f"Batches: batch_size must be at least 1, got {batch_size}")
        self.images = images
        self._fetcher = Fetcher(
            images,
            device=torch.device(device),
            num_workers=num_workers,
            keep_gib=keep_gib,
            processes=processes,
        )
        self.concept = checked_ids(concept, "Batches: concept", size=len(images))
        self.batch_size = batch_size
        self.shuffle = shuffle
        self.seed = seed
        self.augment = augment
        self._picture_crop = _picture_crop(images, augment, crop_of)
        self.device = torch.device(device)
        self.processes = processes
        self.views = views
        self.sampling = sampling
        self.balance = balance
        self._shuffling = Shuffling(images, shuffle_buffer)
        self.augmix, self.mixtures = augmix, mixtures
        self.erasing, self.mixup = erasing, mixup
        if mixtures < 0 or (mixtures and augmix is None):
            raise ValueError(
                f"Batches: mixtures must be a number of them, and needs augmix, which makes them; got "
                f"mixtures={mixtures} and augmix={augmix}"
            )
        if views and isinstance(augment, RandomResizedCrop):
            raise ValueError(
                "Batches: views are those of Augmentation, which can be undone; RandomResizedCrop "
                "cannot; leave one of the two out"
            )
        if mixup is not None and (views or mixtures):
            raise ValueError(
                "Batches: views and mixtures are of one image, and mixup makes x of two; give one or "
                "the other"
            )
        least = 2 * processes.size
        if shuffle and processes.size > 1 and min(batch_size, len(images)) < least:
            raise ValueError(
                f"Batches: {processes.size} processes need at least two examples each in every batch; "
                f"got a batch_size of {batch_size} and {len(images)} images"
            )
        self.sizes = batch_sizes(len(images), batch_size, least if shuffle else 1)
        """Examples per batch, over all processes."""

    def __len__(self) -> int:
        """Batches per epoch."""
        return len(self.sizes)

    def epoch(self, epoch: int, start: int = 0) -> Iterator[tuple[Tensor, ...]]:
        """The batches of one epoch, epoch >= 0, from number ``start`` on."""
        if epoch < 0:
            raise ValueError(f"Batches: epoch must be at least 0, got {epoch}")
        return self._generate(epoch, start)

    def _generate(self, epoch: int, start: int) -> Iterator[tuple[Tensor, ...]]:
        order = self._order(epoch)
        if len(order) == 0:
            return
        key = order + len(self.images) * _times_before(order)
        rows, keys_of = (t.split(self.sizes)[start:] for t in (order, key))
        parts = [self.processes.part(self.sizes[n]) for n in range(start, len(self.sizes))]
        fetched = [self._fetched(part, len(batch)) for part, batch in zip(parts, rows, strict=True)]
        mine = [batch[here] for batch, here in zip(rows, fetched, strict=True)]
        keys = [batch[here] for batch, here in zip(keys_of, fetched, strict=True)]
        images = self._images(mine, keys, epoch)
        for number, (indices, part) in enumerate(zip(mine, parts, strict=True), start):
            if len(indices) == 0:  # a last batch of evaluation with fewer examples than processes
                continue
            here, key = fetched[number - start], keys[number - start]
            x, view, mixtures = self._augmented(next(images), key, here, epoch, number)
            others = [self.images.target[indices], self.concept[indices]]
            others += [indices, view] if self.views else []
            if self.mixup is not None:
                x, others = self._mixed(x, others, key, part, here.start, epoch, number)
            yield x, *(t.to(self.device, non_blocking=True) for t in others), *mixtures

    def _images(self, rows: list[Tensor], keys: list[Tensor], epoch: int) -> Iterator[Tensor]:
        """[B, 3, H, W] of each of the rows [B], but of those without any; parts of pictures, where these
        are cropped."""
        rows, keys = ([t for t in of_batches if len(t)] for of_batches in (rows, keys))
        if self._picture_crop is None:
            return self._fetcher.batches(rows)
        draws = [[self._draws(key, "crop", epoch)] for key in keys]
        return (parts[0] for parts in self._fetcher.parts(rows, draws, self._picture_crop))

    def _fetched(self, part: range, count: int) -> slice:
        """Of a batch of so many, the images that a part needs: with mixup its partners, which may be in
        the part of another process, next to it."""
        if self.mixup is None or len(part) == 0:
            return slice(part.start, part.stop)
        partners = self.mixup.partners(count)[part.start : part.stop]
        return slice(min(part.start, int(partners.min())), max(part.stop, int(partners.max()) + 1))

    def _augmented(
        self, x: Tensor, key: Tensor, here: slice, epoch: int, number: int
    ) -> tuple[Tensor, Tensor, list[Tensor]]:
        """Images [B, 3, H, W] → what is trained on, float; their views [B, 3]; their mixtures."""
        view = torch.zeros(len(x), 3, dtype=torch.int64)
        if isinstance(self.augment, RandomResizedCrop):
            if self._picture_crop is None:
                x = self.augment(x, self._draws(key, "crop", epoch))
        elif self.augment is not None:
            generator, of = random_stream(self.seed, epoch, number), self.sizes[number]
            view = self.augment.draw(len(x), generator, range(here.start, here.stop), of)
            x = self.augment.apply(x, view)
        copies = [as_float(x)]
        if self.augmix is not None:
            draws = self._draws(key, "augmix", epoch)
            chains = [self.augmix.chains(draws.named(str(n))) for n in range(self.mixtures or 1)]
            mixed = [self.augmix.apply(copies[0], of_copy) for of_copy in chains]
            copies = copies + mixed if self.mixtures else mixed
        if self.erasing is not None:  # the same of an image and of its mixtures
            copies = [self.erasing(x, self._draws(key, "erasing", epoch)) for x in copies]
        return copies[0], view, copies[1:]

    def _mixed(
        self, x: Tensor, labels: list[Tensor], key: Tensor, part: range, first: int, epoch: int,
        number: int,
    ) -> tuple[Tensor, list[Tensor]]:  # fmt: skip
        """Mixtures of a part, whose fetched images begin at ``first``: with target and concept, the share
        of these, and those of the partner."""
        assert self.mixup is not None
        own = slice(part.start - first, part.stop - first)
        partner = self.mixup.partners(self.sizes[number])[part.start : part.stop] - first
        share = self.mixup.shares(self._draws(key, "mixup", epoch))[own]
        there, its_share = (t.to(self.device, non_blocking=True) for t in (partner, share))
        x = self.mixup.mixed(x[own], x[there], its_share)
        return x, [*(t[own] for t in labels), its_share, *(t[partner] for t in labels)]

    def _draws(self, key: Tensor, purpose: str, epoch: int) -> Draws:
        return Draws.of_images(key, self.seed, purpose, epoch)

    @property
    def draws(self) -> Tensor:
        """[N] float64: how often each example comes in an epoch, in the mean; 1 where all come once."""
        by_group = self._by_group
        return torch.ones(len(self.images)).double() if by_group is None else by_group.draws

    @property
    def _by_group(self) -> GroupSampling | None:
        if self.sampling == "uniform":
            return None
        group = self.images.target if self.sampling == "class" else self.concept
        return GroupSampling(group, self.balance)

    def _order(self, epoch: int) -> Tensor:
        if not self.shuffle:
            return torch.arange(len(self.images))
        generator, by_group = random_stream(self.seed, epoch, "order"), self._by_group
        if by_group is not None:
            return by_group.order(generator)
        return self._shuffling.order(generator)


def _picture_crop(
    images: ImageSet, augment: Augmentation | RandomResizedCrop | None, crop_of: CropOf
) -> RandomResizedCrop | None:
    """What takes its parts of whole pictures; none, where images are cropped as they were opened."""
    if crop_of not in get_args(CropOf):
        raise ValueError(f"Batches: crop_of {not_known(crop_of, get_args(CropOf))}")
    if crop_of == "image":
        return None
    if not isinstance(augment, RandomResizedCrop):
        raise ValueError(
            f"Batches: crop_of='picture' is of RandomResizedCrop, and augment is {augment}; give that, "
            "or leave crop_of out"
        )
    pictures_of(images)  # for its error, before any work
    return augment


def _times_before(order: Tensor) -> Tensor:
    """[N] how often the image of each place of an order came before it."""
    rows, place = order.sort(stable=True)
    times = torch.arange(len(rows)) - torch.searchsorted(rows, rows)
    return torch.empty_like(order).scatter_(0, place, times)


def batch_sizes(examples: int, batch_size: int, least: int) -> list[int]:
    """Of the batches of an epoch; a last one of fewer than ``least`` joins the one before it."""
    whole, rest = divmod(examples, batch_size)
    if 0 < rest < least and whole:
        return [batch_size] * (whole - 1) + [batch_size + rest]
    return [batch_size] * whole + ([rest] if rest else [])
