"""Augmentation against a loop over images; batches that depend on seed and epoch alone."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from hrrl_ext.data import ArrayImages, Augmentation, Batches
from hrrl_ext.processes import Processes

N = 10


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def image_set(n: int = N, dtype=torch.uint8) -> ArrayImages:
    images = torch.randint(0, 256, (n, 3, 6, 8), generator=generator(), dtype=torch.uint8)
    images = images if dtype == torch.uint8 else images / 255
    return ArrayImages(images, list(range(n)))


def batches(images: ArrayImages | None = None, **changes) -> Batches:
    images = image_set() if images is None else images
    settings = {"batch_size": 4, "shuffle": True, "seed": 3, "augment": Augmentation(2)} | changes
    return Batches(images, torch.arange(len(images)) % 3, **settings)


def same(left, right) -> bool:
    return all(
        torch.equal(a, b)
        for one, other in zip(left, right, strict=True)
        for a, b in zip(one, other, strict=True)
    )


def all_crops(image, pad, flip):
    """Every image that may come out: all crop positions, with and without flip."""
    height, width = image.shape[1:]
    padded = F.pad(image, (pad,) * 4)
    crops = [
        padded[:, top : top + height, left : left + width]
        for top in range(2 * pad + 1)
        for left in range(2 * pad + 1)
    ]
    return crops + [crop.flip(2) for crop in crops] if flip else crops


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
@pytest.mark.parametrize(("pad", "flip"), [(0, False), (0, True), (1, False), (2, True), (9, True)])
def test_each_image_is_one_of_its_crops(dtype, pad, flip):
    images = image_set(6, dtype).images
    before = images.clone()
    out = Augmentation(pad, flip)(images, generator())
    assert out.shape == images.shape
    assert out.dtype == dtype
    assert torch.equal(images, before)
    for image, augmented in zip(images, out, strict=True):
        assert any(torch.equal(augmented, crop) for crop in all_crops(image, pad, flip))


def test_identity():
    images = image_set().images
    assert torch.equal(Augmentation(0, flip=False)(images, generator()), images)


def test_every_crop_comes_up_equally_often():
    pad, draws = 1, 3600
    image = torch.arange(1, 10, dtype=torch.uint8).view(1, 1, 3, 3)
    out = Augmentation(pad)(image.expand(draws, 1, 3, 3), generator())
    crops = all_crops(image[0], pad, flip=True)  # 18, all different
    count = np.array([(out == crop).flatten(1).all(1).sum() for crop in crops])
    assert count.sum() == draws
    # Binomial(3600, 1/18): mean 200, standard deviation 13.7; five of them cover 18 bins safely.
    assert abs(count - 200).max() < 5 * 13.8


def test_images_have_draws_of_their_own():
    images = image_set(1).images.expand(32, -1, -1, -1)
    assert len(Augmentation()(images, generator()).unique(dim=0)) > 16


def test_draws_come_from_the_generator_alone():
    images = image_set().images
    state = torch.get_rng_state()
    first, second = (Augmentation()(images, generator(7)) for _ in range(2))
    assert torch.equal(first, second)
    assert not torch.equal(first, Augmentation()(images, generator(8)))
    assert torch.equal(torch.get_rng_state(), state)


def test_switching_the_flip_off_leaves_the_crops():
    images = image_set().images
    flipped = Augmentation(2, flip=True)(images, generator())
    plain = Augmentation(2, flip=False)(images, generator())
    both = torch.stack([plain, plain.flip(3)])
    assert (both == flipped).flatten(2).all(2).any(0).all()


def test_no_images_to_augment():
    assert Augmentation()(image_set().images[:0], generator()).shape == (0, 3, 6, 8)


@pytest.mark.parametrize(("pad", "error"), [(-1, ValueError), (1.0, TypeError), (True, TypeError)])
def test_crop_padding(pad, error):
    with pytest.raises(error, match="crop_padding must be"):
        Augmentation(pad)


@pytest.mark.parametrize(("height", "width"), [(6, 8), (1, 1), (1, 5), (4, 1)])
@pytest.mark.parametrize(("pad", "flip"), [(0, False), (0, True), (1, False), (2, True), (9, True)])
def test_a_view_can_be_undone(pad, flip, height, width):
    """Pixel by pixel: what a view shows of an image is back in its place, and the rest is 0."""
    augment = Augmentation(pad, flip)
    images = torch.arange(1, 40 * 2 * height * width + 1).view(40, 2, height, width)
    view = augment.draw(40, generator())
    seen = augment.apply(images, view)
    want = torch.zeros_like(images)
    for n, (top, left, flipped) in enumerate(view.tolist()):
        for i in range(height):
            for j in range(width):
                row = top + i - pad
                column = left + (width - 1 - j if flipped else j) - pad
                if 0 <= row < height and 0 <= column < width:
                    assert torch.equal(seen[n, :, i, j], images[n, :, row, column])
                    want[n, :, row, column] = images[n, :, row, column]
                else:
                    assert not seen[n, :, i, j].any()
    assert torch.equal(augment.undo(seen, view), want)


def test_batches_tell_which_images_they_have_and_how_they_show_them():
    images, augment = image_set(), Augmentation(2)
    plain, told = batches(images), batches(images, views=True)
    rows = []
    for got, (x, target, concept, row, view) in zip(plain.epoch(1), told.epoch(1), strict=True):
        assert same([got], [(x, target, concept)])
        assert torch.equal(target, images.target[row])
        assert torch.equal(x, augment.apply(images.images[row], view).float() / 255)
        rows += row.tolist()
    assert sorted(rows) == list(range(N))
    for x, _, _, row, view in batches(images, augment=None, views=True).epoch(0):
        assert torch.equal(x, Augmentation(0).apply(images.images[row], view).float() / 255)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_the_same_bits_on_a_gpu():
    on_gpu = list(batches(device="cuda").epoch(1))
    assert all(part.device.type == "cuda" for batch in on_gpu for part in batch)
    assert same([[part.cpu() for part in batch] for batch in on_gpu], batches().epoch(1))


def test_shapes_and_types():
    epoch = batches()
    out = list(epoch.epoch(0))
    assert len(epoch) == len(out) == 3
    assert [len(x) for x, _, _ in out] == [4, 4, 2]  # the rest is not dropped
    for x, target, concept in out:
        assert x.shape[1:] == (3, 6, 8)
        assert (x.dtype, target.dtype, concept.dtype) == (torch.float32, torch.int64, torch.int64)
        assert torch.equal(concept, target % 3)  # still the concept of this example


@pytest.mark.parametrize("shuffle", [True, False])
@pytest.mark.parametrize("batch_size", [1, 3, N, N + 1])
def test_every_example_once(shuffle, batch_size):
    epoch = batches(shuffle=shuffle, batch_size=batch_size)
    target = torch.cat([target for _, target, _ in epoch.epoch(0)])
    assert sorted(target.tolist()) == list(range(N))
    assert (target.tolist() == list(range(N))) is not shuffle


def test_a_last_example_alone_joins_the_batch_before_it():
    sizes: dict[bool, list[int]] = {shuffle: [] for shuffle in (True, False)}
    for shuffle, found in sizes.items():
        epoch = batches(image_set(9), shuffle=shuffle)
        found += [len(x) for x, _, _ in epoch.epoch(0)]
        assert len(found) == len(epoch)
    assert sizes == {True: [4, 5], False: [4, 4, 1]}
    assert [len(x) for x, _, _ in batches(image_set(1), shuffle=True).epoch(0)] == [1]


def test_no_examples():
    empty = batches(image_set(0))
    assert len(empty) == 0
    assert list(empty.epoch(0)) == []


def test_pixels_are_divided_by_255():
    images = image_set()
    (x, _, _) = next(batches(images, shuffle=False, augment=None).epoch(0))
    assert torch.equal(x, images.images[:4].float() / 255)


def test_floats_are_left_alone():
    images = image_set(dtype=torch.float32)
    (x, _, _) = next(batches(images, shuffle=False, augment=None).epoch(0))
    assert torch.equal(x, images.images[:4])
    x.zero_()  # a copy
    assert images.images[:4].abs().sum() > 0


def test_an_epoch_can_be_had_directly():
    through = batches()
    epochs = [list(through.epoch(e)) for e in range(3)]
    assert same(batches().epoch(2), epochs[2])
    assert same(through.epoch(0), epochs[0])


def test_epochs_and_seeds_differ():
    def order(seed, epoch):
        return tuple(torch.cat([t for _, t, _ in batches(seed=seed).epoch(epoch)]).tolist())

    # Also (0, 1) and (1, 0), which a seed of seed + epoch would make equal.
    assert len({order(seed, epoch) for seed in range(4) for epoch in range(4)}) == 16


def test_augmentation_differs_between_epochs_and_batches():
    images = ArrayImages(torch.arange(48, dtype=torch.uint8).expand(8, 3, 6, 48)[..., :8], [0] * 8)
    fixed = batches(images, shuffle=False)
    seen = [x for epoch in range(2) for x, _, _ in fixed.epoch(epoch)]
    assert len({x.numpy().tobytes() for x in seen}) == 4


def test_shuffling_does_not_change_the_augmentation():
    # The draw belongs to the place in the batch, not to the order.
    images = ArrayImages(torch.full((8, 6, 8), 255, dtype=torch.uint8), [0] * 8)
    shuffled = [x for x, _, _ in batches(images).epoch(0)]
    plain = [x for x, _, _ in batches(images, shuffle=False).epoch(0)]
    assert torch.equal(torch.cat(shuffled), torch.cat(plain))


def test_workers_give_the_same_bits():
    state = torch.get_rng_state()
    assert same(batches(num_workers=2).epoch(1), batches().epoch(1))
    assert torch.equal(torch.get_rng_state(), state)


def test_global_generators_are_untouched():
    state, numpy_state = torch.get_rng_state(), np.random.get_state()[1].copy()
    first = list(batches().epoch(0))
    assert torch.equal(torch.get_rng_state(), state)
    assert np.array_equal(np.random.get_state()[1], numpy_state)
    torch.rand(5)
    assert same(batches().epoch(0), first)


def test_two_epochs_may_run_side_by_side():
    together = batches()
    pairs = list(zip(together.epoch(0), together.epoch(1), strict=True))
    assert same([a for a, _ in pairs], batches().epoch(0))
    assert same([b for _, b in pairs], batches().epoch(1))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"batch_size": 0}, "batch_size must be at least 1, got 0"),
        ({"num_workers": -1}, "num_workers must be at least 0, got -1"),
    ],
)
def test_settings(changes, message):
    with pytest.raises(ValueError, match=message):
        batches(**changes)


def test_epoch_is_checked_at_once():
    with pytest.raises(ValueError, match="epoch must be at least 0, got -1"):
        batches().epoch(-1)


@pytest.mark.parametrize(
    ("concept", "error"),
    [(torch.zeros(N - 1, dtype=torch.int64), ValueError), (torch.zeros(N), TypeError)],
)
def test_concept(concept, error):
    with pytest.raises(error, match="Batches: concept must"):
        Batches(image_set(), concept, 4, shuffle=False)


@pytest.mark.parametrize(("size", "batch_size"), [(23, 8), (20, 8), (16, 8)])
def test_processes_share_every_batch(size: int, batch_size: int) -> None:
    """Put together, the parts are the batches of one process, to the bit."""
    images = ArrayImages(
        torch.randint(0, 256, (size, 3, 6, 6), dtype=torch.uint8), torch.arange(size) % 3
    )

    def batches(processes: Processes) -> Batches:
        return Batches(
            images, torch.arange(size) % 2, batch_size, shuffle=True, augment=Augmentation(2),
            processes=processes, views=True,
        )  # fmt: skip

    parts = [batches(Processes(rank, 3)) for rank in range(3)]
    whole = batches(Processes())
    whole.sizes = parts[0].sizes  # three processes join a last batch of fewer than six
    assert sum(whole.sizes) == size and min(whole.sizes) >= 6
    for of_all, *of_each in zip(whole.epoch(1), *(part.epoch(1) for part in parts), strict=True):
        for got, want in zip(zip(*of_each, strict=True), of_all, strict=True):
            assert torch.equal(torch.cat(got), want)


def test_evaluation_counts_every_example_once_on_more_processes_than_examples() -> None:
    images = ArrayImages(torch.zeros(2, 3, 4, 4, dtype=torch.uint8), torch.tensor([0, 1]))
    seen = [
        target
        for rank in range(4)
        for _, target, _ in Batches(
            images, torch.zeros(2).long(), 8, shuffle=False, processes=Processes(rank, 4)
        ).epoch(0)
    ]
    assert torch.equal(torch.cat(seen), images.target)


def test_starting_within_an_epoch_gives_the_rest_of_it() -> None:
    images = ArrayImages(
        torch.randint(0, 256, (10, 3, 6, 6), dtype=torch.uint8), torch.zeros(10).long()
    )
    batches = Batches(images, torch.zeros(10).long(), 3, shuffle=True, augment=Augmentation(1))
    for got, want in zip(batches.epoch(2, start=2), list(batches.epoch(2))[2:], strict=True):
        assert torch.equal(got[0], want[0])


def test_too_small_a_batch_for_the_processes() -> None:
    images = ArrayImages(torch.zeros(9, 3, 4, 4, dtype=torch.uint8), torch.zeros(9).long())
    with pytest.raises(ValueError, match="4 processes need at least two examples each"):
        Batches(images, torch.zeros(9).long(), 7, shuffle=True, processes=Processes(0, 4))
