"""Views: whose draw an image has, what the families are made of, and crops by other routes."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from hrrl_ext import ops
from hrrl_ext._streams import Draws
from hrrl_ext.data import AugMix, RandomResizedCrop, Views, view_family
from hrrl_ext.data.views import (
    FAMILIES,
    AugMixViews,
    MoCoViews,
    URRLViews,
    ViewFamily,
    resized_crop,
)

MANY = 20_000
NAMES = ops.IMAGE_OPERATIONS


def images(count: int = 12, height: int = 16, width: int = 16, channels: int = 3) -> Tensor:
    g = torch.Generator().manual_seed(count)
    return torch.randint(0, 256, (count, channels, height, width), generator=g, dtype=torch.uint8)


def draws(count: int = MANY, seed: int = 0) -> Draws:
    return Draws.of_images(torch.arange(count), seed)


# --- whose draw it is


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("family", FAMILIES)
def test_an_image_has_its_own_draw(family: str, dtype: torch.dtype) -> None:
    """Of seed, epoch, index and view, whatever the batch is and whatever else was drawn."""
    x, index = images(), torch.randperm(1000)[:12]
    x = x if dtype == torch.uint8 else (x / 255).to(dtype)
    views, before = Views(view_family(family), seed=3), x.clone()
    state = torch.get_rng_state()
    first, second = views.two(x, index, epoch=2)
    assert torch.equal(torch.get_rng_state(), state) and torch.equal(x, before)
    assert first.shape == x.shape and first.dtype == dtype
    assert (first >= 0).all() and (first <= (255 if dtype == torch.uint8 else 1)).all()
    order = torch.randperm(12)
    assert torch.equal(views(x[order], index[order], 2), first[order])
    for part in (slice(0, 1), slice(5, 9), slice(0, 0)):
        assert torch.equal(views(x[part], index[part], 2, 1), second[part])
    others = [
        second, views(x, index, 3), views(x, index + 1, 2),
        Views(view_family(family), seed=4)(x, index, 2),
    ]  # fmt: skip
    for other in others:
        assert ((other != first).flatten(1).any(1)).double().mean() > 0.5


def test_images_have_draws_of_their_own() -> None:
    x = images(1).expand(64, -1, -1, -1)
    for family in FAMILIES.values():
        assert len(Views(family)(x, torch.arange(64)).unique(dim=0)) == 64


def test_families_share_their_crops() -> None:
    x, index = images(), torch.arange(12)
    still: list[ViewFamily] = [
        MoCoViews((0, 0, 0, 0), 0, 0, 0),
        URRLViews(0, rep=MoCoViews((0, 0, 0, 0), 0, 0, 0)),
    ]
    plain = [Views(family)(x, index) for family in still]
    assert torch.equal(*plain)
    shared, crop = Draws.of_images(index, 0, "views", 0), RandomResizedCrop()
    assert torch.equal(crop(x, shared.named("view 0").named("crop")), plain[0])


# --- draws


def test_draws_are_uniform_and_apart() -> None:
    """Five standard errors; neighbours are images, numbers and names."""
    d = draws()
    u = torch.cat(
        [
            d.uniform(shape=(3,)),
            d.named("a").uniform(shape=(1,)),
            draws(seed=1).uniform(shape=(1,)),
        ],
        1,
    )
    assert (u >= 0).all() and (u < 1).all()
    assert ((u.mean(0) - 0.5).abs() < 5 * (1 / 12 / MANY) ** 0.5).all()
    assert ((u.var(0) - 1 / 12).abs() < 5 * (1 / 180 / MANY) ** 0.5).all()
    shifted = torch.cat([u[:-1], u[1:, :1]], 1)
    apart = torch.corrcoef(shifted.T) - torch.eye(6)
    assert apart.abs().max() < 5 / MANY**0.5
    whole = draws().whole(7)
    assert set(whole.tolist()) == set(range(7))
    assert ((whole.bincount() - MANY / 7).abs() < 5 * (MANY * 6 / 49) ** 0.5).all()
    assert torch.equal(draws().uniform(), draws().uniform())  # a stream of its own each
    assert not draws().chance(0).any() and draws().chance(1).all()


@pytest.mark.parametrize("alpha", [0.05, 0.5, 1.0, 2.5, 40.0])
def test_gamma(alpha: float) -> None:
    """Mean and variance are alpha; by SciPy's distribution function it is uniform, to five standard errors
    of a share."""
    from scipy.stats import gamma

    value = draws().gamma(alpha)
    assert (value > 0).all() and abs(value.mean() - alpha) < 5 * (alpha / MANY) ** 0.5
    share = torch.from_numpy(gamma(alpha).cdf(value.numpy()))
    counts = (share * 20).long().clamp(max=19).bincount(minlength=20)
    assert ((counts - MANY / 20).abs() < 5 * (MANY * 19 / 400) ** 0.5).all()
    # Rejection in one image asks nothing of another, nor of what is drawn afterwards.
    d, part = draws(50), draws(50)[7:9]
    assert torch.equal(d.gamma(alpha, (2,))[7:9], part.gamma(alpha, (2,)))
    assert torch.equal(d.uniform()[7:9], part.uniform())


# --- crops


@pytest.mark.parametrize("size", [(16, 16), (24, 40), (7, 5)])
@pytest.mark.parametrize("part", [(3, 2, 40, 50), (0, 0, 60, 64), (10, 20, 9, 7), (59, 63, 1, 1)])
def test_resized_crops_are_torchs_with_antialiasing(
    part: tuple[int, ...], size: tuple[int, int]
) -> None:
    x = images(4, 60, 64).float() / 255
    top, left, h, w = part
    box = torch.tensor([*part, 0]).double().expand(4, -1).clone()
    box[2:, 4] = 1
    got = resized_crop(x, box, size)
    cut = x[:, :, top : top + h, left : left + w]
    want = F.interpolate(cut, size, mode="bilinear", antialias=True)
    torch.testing.assert_close(got[:2], want[:2], rtol=0, atol=2e-6)
    torch.testing.assert_close(got[2:], want[2:].flip(3), rtol=0, atol=2e-6)
    levels = resized_crop((x * 255).to(torch.uint8), box, size)
    assert levels.dtype == torch.uint8
    assert (levels.double() - want_levels(want)).abs()[:2].max() <= 1


def want_levels(want: Tensor) -> Tensor:
    return (want * 255).round().double()


def test_a_crop_of_the_same_size_is_the_operators() -> None:
    """Images of unchanged size go through mix_chains: within a level, since each rounds once."""
    x, crop = images(40, 32, 32), RandomResizedCrop((0.1, 1))
    box = crop.boxes(draws(40), 32, 32)
    apart = resized_crop(x, box, (32, 32)).int() - crop(x, draws(40)).int()
    assert apart.abs().max() <= 1 and (apart != 0).double().mean() < 1e-3
    floats = crop(x / 255, draws(40)) * 255  # a product with 1/255 instead of a quotient
    torch.testing.assert_close(floats, crop(x, draws(40)).float(), rtol=1e-6, atol=0)


@pytest.mark.montecarlo
@pytest.mark.parametrize(("height", "width"), [(64, 64), (40, 90)])
def test_the_law_of_crops(height: int, width: int) -> None:
    """In a square nearly all first attempts of (0.2, 0.5) fit: the area is uniform, the ratio log-uniform,
    both to the rounding of a side."""
    box = RandomResizedCrop((0.2, 0.5)).boxes(draws(), height, width)
    top, left, h, w, flip = box.unbind(1)
    assert (top >= 0).all() and (left >= 0).all() and (h >= 1).all() and (w >= 1).all()
    assert (top + h <= height).all() and (left + w <= width).all() and torch.equal(box, box.floor())
    ratio = w / h
    assert (ratio > 3 / 4 - 0.05).all() and (ratio < 4 / 3 + 0.05).all()
    if height == width:
        area = h * w / height / width
        assert abs(area.mean() - 0.35) < 5 * (0.3 / 12**0.5) / MANY**0.5 + 1e-3
        assert abs(ratio.log().mean()) < 5 * math.log(16 / 9) / 12**0.5 / MANY**0.5 + 1e-3
    assert abs(flip.mean() - 0.5) < 5 * 0.5 / MANY**0.5
    # Where there is room, both ends are reached.
    room = height - h
    assert (top[room > 5] == 0).any() and (top == room)[room > 5].any()


def test_nothing_fits_a_line() -> None:
    """The largest part in the middle whose ratio is allowed."""
    for height, width, part in ((3, 60, (0, 28, 3, 4)), (60, 3, (28, 0, 4, 3))):
        box = RandomResizedCrop((0.9, 1.0)).boxes(draws(5), height, width)
        assert torch.equal(box[:, :4], torch.tensor(part).double().expand(5, 4))


def test_the_size_of_crops() -> None:
    x = images(6, 20, 30)
    assert RandomResizedCrop(size=8)(x, draws(6)).shape == (6, 3, 8, 8)
    assert Views(crop=RandomResizedCrop(size=8))(x, torch.arange(6)).shape == (6, 3, 8, 8)
    whole = RandomResizedCrop((1, 1), (1, 1), flip=0)
    assert torch.equal(whole(images(), draws(12)), images())
    assert torch.equal(
        Views(MoCoViews(jitter_p=0, grey_p=0, blur_p=0), None)(x, torch.arange(6)), x
    )


# --- families


@pytest.mark.montecarlo
def test_the_laws_of_moco() -> None:
    """Each operation at its rate, in any order, with its parameter in its range."""
    operation, parameter, weight, mix = MoCoViews(solarize_p=0.1).program(draws(), draws(), 9, 9)
    assert operation.shape == (MANY, 1, 7) and (weight == 1).all() and (mix == 1).all()
    steps, number = operation[:, 0], parameter[:, 0, :, 0]
    rates = {"brightness": 0.8, "contrast": 0.8, "hue": 0.8, "blur": 0.5, "solarize": 0.1}
    for name, p in rates.items():
        had = (steps == NAMES.index(name)).any(1).double().mean()
        assert abs(had - p) <= 5 * (p * (1 - p) / MANY) ** 0.5, name
    grey = steps[:, 4] == NAMES.index("color")
    assert abs(grey.double().mean() - 0.2) < 5 * (0.16 / MANY) ** 0.5 and not number[grey, 4].any()
    jittered = steps[:, 0] >= 0
    assert torch.equal(
        steps[jittered, :4].sort(1).values.unique(dim=0)[0],
        torch.tensor(sorted(map(NAMES.index, ("brightness", "contrast", "color", "hue")))),
    )
    orders, counts = steps[jittered, :4].unique(dim=0, return_counts=True)
    share = jittered.sum() / 24
    assert len(orders) == 24 and ((counts - share).abs() < 5 * share**0.5).all()
    for name, low, high in (("brightness", 0.6, 1.4), ("color", 0.6, 1.4), ("hue", -0.1, 0.1)):
        value = number[:, :4][steps[:, :4] == NAMES.index(name)]
        assert low <= value.min() < low + 0.01 and high - 0.01 < value.max() <= high
        assert abs(value.mean() - (low + high) / 2) < 5 * (high - low) / (12 * len(value)) ** 0.5
    sigma = number[:, 5]
    assert 0.1 <= sigma.min() < 0.11 and 1.99 < sigma.max() <= 2


def test_augmix_views_are_augmix() -> None:
    x, index = images(8, 32, 32), torch.arange(8)
    shared = Draws.of_images(index, 0, "views", 0)
    for operations in ("paper", "all", "moco"):
        views = Views(AugMixViews(operations), None)
        augmix = AugMix(3, operations=operations)
        chains = augmix.chains(shared.named("view 0").named("augmix"))
        assert torch.equal(views(x, index), augmix.apply(x, chains))
    for side, severity in ((127, 3.0), (128, 1.0)):
        level = AugMixViews(severity=None)._augmix(side).severity
        assert level == severity
    assert AugMixViews(severity=7.5)._augmix(32).severity == 7.5


@pytest.mark.montecarlo
def test_urrl_draws_the_family_of_each_view() -> None:
    x, index = torch.zeros(MANY, 1, 1, 1, dtype=torch.uint8), torch.arange(MANY)

    def robust(family: URRLViews, view: int) -> Tensor:
        shared = Draws.of_images(index, 0, "views", 0)
        program = family.program(shared.named(f"view {view}"), shared, 1, 1)
        return program.weight[:, 1] > 0  # MoCo's is one chain

    for p in (0.2, 0.5):
        first, second = (robust(URRLViews(p), view).double() for view in (0, 1))
        for view in (first, second):
            assert abs(view.mean() - p) < 5 * (p * (1 - p) / MANY) ** 0.5
        both = (first * second).mean()
        assert abs(both - p * p) < 5 * (p * p * (1 - p * p) / MANY) ** 0.5
    shared = [robust(URRLViews(0.5, share_family=True), view) for view in (0, 1)]
    assert torch.equal(*shared) and 0.4 < shared[0].double().mean() < 0.6
    assert len(x) == MANY


def test_urrl_at_its_ends_is_one_family() -> None:
    x, index = images(), torch.arange(12)
    for p, alone in ((0.0, MoCoViews()), (1.0, AugMixViews("all"))):
        assert torch.equal(Views(URRLViews(p))(x, index), Views(alone)(x, index))
        assert torch.equal(Views(view_family("urrl", p))(x, index), Views(alone)(x, index))
    mixed = Views(URRLViews(0.5))(x, index)
    either = [Views(f)(x, index) for f in (MoCoViews(), AugMixViews("all"))]
    same = torch.stack([(mixed == e).flatten(1).all(1) for e in either])
    assert same.any(0).all() and same.any(1).all()


# --- what is refused


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: RandomResizedCrop((0.0, 1)), r"scale must be the least and the most, above 0 and at most 1, got \(0.0, 1\)"),
        (lambda: RandomResizedCrop((0.5, 1.5)), "scale must be"),
        (lambda: RandomResizedCrop(ratio=(2, 1)), "ratio must be the least and the most, above 0, got"),
        (lambda: RandomResizedCrop(size=0), "RandomResizedCrop: size must be at least 1, got 0"),
        (lambda: RandomResizedCrop(224), "scale must be .*, got 224; the size of the result is size=224"),
        (lambda: RandomResizedCrop((0.2, "1")), "scale must be"),
        (lambda: MoCoViews((0.4, 0.4, 0.4)), r"jitter must be four strengths .* got \(0.4, 0.4, 0.4\)"),
        (lambda: MoCoViews(sigma=2.0), "sigma must be the least and the most, above 0 and at most 64 pixels, got 2.0"),
        (lambda: RandomResizedCrop(flip=1.5), "flip must be a probability, got 1.5"),
        (lambda: MoCoViews(blur_p=-1), "blur_p must be a probability, got -1"),
        (lambda: MoCoViews((0.4, 0.4, 0.4, 0.6)), "that of the hue at most 0.5"),
        (lambda: MoCoViews(sigma=(0.0, 1)), "sigma must be the least and the most, above 0"),
        (lambda: MoCoViews(sigma=(1, 65)), r"at most 64 pixels, got \(1, 65\)"),
        (lambda: AugMixViews("al"), "operations 'al' is not known; did you mean 'all'"),
        (lambda: AugMixViews(severity=11), "severity must lie between 0.1 and 10, got 11"),
        (lambda: URRLViews(2), "p must be a probability, got 2"),
        (lambda: view_family("mocov2"), "'mocov2' is not known"),
        (lambda: view_family("moco", 0.5), "'moco' has one kind alone, leave p out"),
        (lambda: Views()(images(2), torch.arange(3)), r"index must be integers \[2\], .* got torch.int64 \[3\]"),
        (lambda: Views()(images(2), torch.rand(2)), r"index must be integers \[2\], .* got torch.float32 \[2\]"),
        (lambda: Views()(images(2)[0], torch.arange(3)), r"images must be \[B, C, H, W\]"),
    ],
)  # fmt: skip
def test_bad_input(make: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()
