"""AugMix on batches: what is drawn, what becomes of it, and that an image's own draw is all that counts."""

from __future__ import annotations

from dataclasses import fields, replace

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from hrrl_ext import ops
from hrrl_ext.data import ArrayImages, Augmentation, AugMix, Batches
from hrrl_ext.data.augmix import OPERATIONS, AugMixOperations, Chains
from hrrl_ext.processes import Processes

NAMES = [one.name for one in OPERATIONS]
MANY = 20_000


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def images(count: int = 12, height: int = 9, width: int = 13, channels: int = 3) -> Tensor:
    shape = (count, channels, height, width)
    return torch.randint(0, 256, shape, generator=generator(count), dtype=torch.uint8)


def chain(*names: str, level: float = 2.0, mix: float = 1.0) -> Chains:
    """One image, one chain."""
    operation = torch.tensor([[[NAMES.index(name) for name in names]]])
    weight = torch.ones(1, 1)
    return Chains(
        operation, torch.full(operation.shape, level).double(), weight, torch.full((1,), mix)
    )


def same(one: Chains, other: Chains) -> bool:
    return all(torch.equal(getattr(one, f.name), getattr(other, f.name)) for f in fields(Chains))


# --- what is drawn


@pytest.mark.parametrize("alpha", [0.05, 1.0, 30.0])
def test_weights_are_a_distribution(alpha: float) -> None:
    drawn = AugMix(alpha=alpha, width=4).draw(1000, generator())
    assert (drawn.weight >= 0).all() and (drawn.mix >= 0).all() and (drawn.mix <= 1).all()
    # Four float32 numbers up to 1, each rounded by half of 6e-8 at most.
    torch.testing.assert_close(drawn.weight.sum(1), torch.ones(1000), rtol=0, atol=2e-7)


@pytest.mark.montecarlo
def test_the_laws_of_the_draws() -> None:
    """Five standard errors of an average over MANY images, or over all chains of them."""
    drawn = AugMix(severity=3, alpha=2.0, operations="all").draw(MANY, generator())
    # Beta(2, 2) has the mean 1/2 and the variance 1/20; a part of Dirichlet(2, 2, 2) 1/3 and 2/63.
    for value, mean, variance in [
        *((w, 1 / 3, 2 / 63) for w in drawn.weight.double().unbind(1)),
        (drawn.mix.double(), 1 / 2, 1 / 20),
    ]:
        assert abs(value.mean() - mean) < 5 * (variance / MANY) ** 0.5
        assert abs(value.var() - variance) < 0.05 * variance  # fourth moments are small: 1 % or so
    length = (drawn.operation >= 0).sum(2).flatten()
    assert set(length.tolist()) == {1, 2, 3}
    assert abs(length.double().mean() - 2) < 5 * (2 / 3 / len(length)) ** 0.5
    count = drawn.operation[drawn.operation >= 0].bincount().double()
    assert len(count) == 13
    expected = count.sum() / 13
    assert ((count - expected).abs() < 5 * expected.sqrt()).all()
    level = drawn.level.flatten()
    assert abs((level > 0).double().mean() - 0.5) < 5 * 0.5 / len(level) ** 0.5
    assert abs(level.abs().mean() - 1.55) < 5 * 2.9 / (12 * len(level)) ** 0.5
    # Nothing follows from another: the chains of an image, its first operation and its first level.
    pairs = torch.stack([*drawn.level[:, :, 0].T, *drawn.operation[:, :, 0].T.double(), drawn.mix])
    apart = torch.corrcoef(pairs) - torch.eye(len(pairs))
    assert apart.abs().max() < 5 / MANY**0.5


def parameters(name: str, level: Tensor, height: int, width: int, severity: float = 10) -> Tensor:
    """[n, 6], what an operation makes of levels [n]."""
    number = torch.full(level.shape, NAMES.index(name))
    one = torch.ones(1)
    chains = Chains(number[None, None], level[None, None], one[None], one)
    program = AugMix(severity).program(chains, height, width)
    does = OPERATIONS[NAMES.index(name)].does
    assert (program.operation == ops.IMAGE_OPERATIONS.index(does)).all()
    return program.parameter[0, 0]


@pytest.mark.parametrize("severity", [0.1, 1, 3, 10])
@pytest.mark.parametrize("size", [(32, 32), (224, 96)])
def test_parameters_are_in_their_ranges(severity: float, size: tuple[int, int]) -> None:
    drawn = [AugMix(severity, operations=o).draw(3000, generator()) for o in ("all", "moco")]
    assert all((d.level.abs() >= 0.1).all() and (d.level.abs() <= severity).all() for d in drawn)
    height, width = size
    share = severity / 10
    bounds = {
        "posterize": (4 - int(4 * share), 4),
        "solarize": (256 - int(256 * share), 256 - int(256 * 0.01)),
        **dict.fromkeys(NAMES[9:13], (0.1 + 0.018, 0.1 + 1.8 * share)),
        **dict.fromkeys(NAMES[13:16], (0.6, 1.4)),
        "hue_jitter": (-0.1, 0.1),
        "blur": (0.1, 2),
    }
    for name in NAMES:
        of = drawn[NAMES.index(name) > 12]
        level = of.level[of.operation == NAMES.index(name)]
        got = parameters(name, level, height, width, severity)
        if name in ("autocontrast", "equalize", "grey"):  # grey: color by 0
            assert not got.any()
            continue
        if name in bounds:
            low, high = bounds[name]
            assert (got[:, 0] >= low - 1e-9).all() and (got[:, 0] <= high + 1e-9).all(), name
            assert not got[:, 1:].any()
            continue
        free, most = {
            "shear_x": (1, 0.3 * share), "shear_y": (3, 0.3 * share),
            "translate_x": (2, width / 3 * share), "translate_y": (5, height / 3 * share),
            "rotate": (3, np.sin(np.radians(int(30 * share)))),
        }[name]  # fmt: skip
        assert got[:, free].abs().max() <= most + 1e-9
        if severity >= 1:  # both directions
            assert got[:, free].min() < 0 < got[:, free].max(), name
        if name != "rotate":
            others = torch.tensor([1.0, 0, 0, 0, 1, 0]).double().expand(len(got), 6).clone()
            others[:, free] = got[:, free]
            assert torch.equal(got, others)


def test_parameters_are_torchvisions() -> None:
    """It takes one of ten even steps from nothing to the most, ours any level between: step k is
    L = 10 k/9. Documented: shear 0 to 0.3, translation to a third of the side, 30 degrees, 4 to 0 bits, a
    threshold of 255 to 0, a factor of 1 - 0.9 to 1 + 0.9."""
    k = torch.arange(10, dtype=torch.float64)
    by_name = {name: parameters(name, 10 * k / 9 + 1e-9, 96, 224) for name in NAMES[:13]}
    torch.testing.assert_close(by_name["shear_x"][:, 1], 0.3 * k / 9)
    torch.testing.assert_close(by_name["shear_y"][:, 3], 0.3 * k / 9)
    assert torch.equal(by_name["translate_x"][:, 2], (224 / 3 * k / 9 + 1e-7).trunc())
    assert torch.equal(by_name["translate_y"][:, 5], (96 / 3 * k / 9 + 1e-7).trunc())
    angle = torch.rad2deg(torch.atan2(by_name["rotate"][:, 3], by_name["rotate"][:, 0]))
    torch.testing.assert_close(angle, (30 * k / 9 + 1e-7).trunc(), rtol=0, atol=1e-9)
    # Rounded there, cut off here as by the authors: half a bit, and a level and one more.
    assert ((by_name["posterize"][:, 0] - (4 - 4 * k / 9).round()).abs() <= 1).all()
    assert ((by_name["solarize"][:, 0] - (255 - 255 * k / 9)).abs() <= 2).all()
    for name in NAMES[9:13]:
        torch.testing.assert_close(by_name[name][:, 0], 0.1 + 1.8 * k / 9)


def test_the_severity_scales_the_levels_and_nothing_else() -> None:
    weak, strong = (AugMix(severity).draw(50, generator()) for severity in (1, 3))
    assert same(replace(weak, level=strong.level), strong)
    stretched = weak.level.sign() * ((weak.level.abs() - 0.1) / 0.9 * 2.9 + 0.1)
    torch.testing.assert_close(strong.level, stretched)


def test_depth_and_operations_as_asked_for() -> None:
    drawn = AugMix(width=2, depth=(2, 4)).draw(500, generator())
    assert drawn.operation.shape == (500, 2, 4)
    drawn_length = (drawn.operation >= 0).sum(2)
    assert set(drawn_length.flatten().tolist()) == {2, 3, 4}
    ended = (drawn.operation < 0).int()
    assert torch.equal(ended, ended.cummax(2).values)  # nothing after an end
    assert set(drawn.operation.flatten().tolist()) == {-1, *range(9)}
    assert NAMES[:9] == [
        "autocontrast", "equalize", "posterize", "rotate", "solarize", "shear_x", "shear_y",
        "translate_x", "translate_y",
    ]  # fmt: skip


# --- what becomes of an image


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float16, torch.float32, torch.float64])
def test_a_share_of_nothing_is_the_identity(dtype: torch.dtype) -> None:
    x = images().to(dtype) if dtype == torch.uint8 else images().to(dtype) / 255
    chains = replace(AugMix().draw(12, generator()), mix=torch.zeros(12))
    assert torch.equal(AugMix().apply(x, chains), x)


GREY = ("color", "color_jitter", "grey")  # which leave it as it is


@pytest.mark.parametrize("level", [2.9, -2.9])
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("name", NAMES)
def test_one_operation_is_pillows(name: str, channels: int, level: float) -> None:
    """The table of parameters a second time, by the peer of the benchmark; edges: test_operations.py."""
    pytest.importorskip("PIL")
    from augmix_peer import as_pictures, as_tensor, operated

    x = torch.nn.functional.interpolate(
        images(1, 8, 8, channels).float(), (31, 40), mode="bilinear"
    )
    x = x.to(torch.uint8)
    ours = AugMix().apply(x, chain(name, level=level))
    no_hue = name == "hue_jitter" and channels == 1  # of which Pillow has no HSV
    theirs = x if no_hue else as_tensor([operated(as_pictures(x)[0], name, level)])
    assert (ours.int() - theirs.int()).abs().max() <= (name == "rotate")
    assert no_hue or (channels == 1 and name in GREY) or not torch.equal(ours, x)


@pytest.mark.parametrize("operations", ["paper", "all"])
def test_mixtures_are_pillows(operations: AugMixOperations) -> None:
    """A pixel that is off by a level within a chain may pass the threshold of a later operation there, or
    move a histogram: rare, since 1 of 100,000 is off."""
    pytest.importorskip("PIL")
    from augmix_peer import as_pictures, mixed

    coarse = images(60, 8, 8).float()
    x = torch.nn.functional.interpolate(coarse, (32, 32), mode="bilinear").to(torch.uint8)
    recipe = AugMix(operations=operations)
    chains = recipe.draw(60, generator())
    apart = (recipe.apply(x / 255, chains) - mixed(as_pictures(x), chains)).abs()
    assert (apart > 1e-6).float().mean() < 1e-3
    rounded = recipe.apply(x, chains)
    assert (rounded / 255 - recipe.apply(x / 255, chains)).abs().max() <= 0.5 / 255 + 1e-6


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("size", [(1, 1), (2, 5), (32, 32)])
@pytest.mark.parametrize("dtype", [torch.uint8, torch.bfloat16, torch.float32])
def test_shape_type_and_range_are_kept(
    dtype: torch.dtype, size: tuple[int, int], channels: int
) -> None:
    x = images(40, *size, channels)
    x = x if dtype == torch.uint8 else (x / 255).to(dtype)
    before = x.clone()
    out = AugMix(10, operations="all")(x, generator())
    assert out.shape == x.shape and out.dtype == dtype and out.device == x.device
    assert (
        out.isfinite().all()
        and (out >= 0).all()
        and (out <= (255 if dtype == torch.uint8 else 1)).all()
    )
    assert torch.equal(x, before)
    assert AugMix()(x[:0], generator()).shape == x[:0].shape


def test_white_stays_within_range() -> None:
    """Shares sum to 1 up to rounding, which may be above it."""
    x = torch.ones(3000, 3, 1, 1)
    out = AugMix()(x, generator())
    assert out.max() == 1


# --- whose image it is


def test_images_have_chains_of_their_own() -> None:
    x = images(1, 32, 32).expand(64, -1, -1, -1)
    assert len(AugMix()(x, generator()).unique(dim=0)) == 64


def test_the_batch_does_not_count() -> None:
    x, recipe = images(20) / 255, AugMix(operations="all")
    chains = recipe.draw(20, generator())
    whole = recipe.apply(x, chains)
    for start, stop in ((0, 1), (7, 12), (19, 20)):
        assert torch.equal(recipe.apply(x[start:stop], chains[start:stop]), whole[start:stop])


def test_a_part_looks_as_in_the_whole() -> None:
    x, whole = images(10), AugMix()(images(10), generator(4))
    for part in (range(0, 3), range(3, 10), range(5, 5)):
        got = AugMix()(x[part.start : part.stop], generator(4), part, 10)
        assert torch.equal(got, whole[part.start : part.stop])


def test_draws_come_from_the_generator_alone() -> None:
    state, numpy_state = torch.get_rng_state(), np.random.get_state()[1].copy()
    first, second = (AugMix().draw(8, generator(7)) for _ in range(2))
    assert same(first, second) and not same(first, AugMix().draw(8, generator(8)))
    one = generator(7)
    assert same(first, AugMix().draw(8, one)) and not same(first, AugMix().draw(8, one))
    assert torch.equal(torch.get_rng_state(), state)
    assert np.array_equal(np.random.get_state()[1], numpy_state)


def test_without_a_generator_the_global_seed_counts() -> None:
    with torch.random.fork_rng():
        out = []
        for seed in (3, 3, 4):
            torch.manual_seed(seed)
            out.append(AugMix()(images()))
    assert torch.equal(out[0], out[1]) and not torch.equal(out[0], out[2])


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_the_same_bits_on_a_gpu() -> None:
    for x in (images(40, 32, 32), images(40, 32, 32) / 255):
        recipe = AugMix(operations="all")
        assert torch.equal(recipe(x.cuda(), generator()).cpu(), recipe(x, generator()))


# --- in batches


def batches(count: int = 20, **changes) -> Batches:
    settings = {"batch_size": 8, "shuffle": True, "seed": 3, "augment": Augmentation(2)} | changes
    target = torch.arange(count) % 3
    return Batches(ArrayImages(images(count), target), target, **settings)


def equal(left, right) -> bool:
    return all(
        len(one) == len(other) and all(map(torch.equal, one, other))
        for one, other in zip(left, right, strict=True)
    )


def test_a_batch_is_mixed_after_crop_and_flip() -> None:
    plain = list(batches().epoch(1))
    mixed = list(batches(augmix=AugMix()).epoch(1))
    beside = list(batches(augmix=AugMix(), mixtures=2).epoch(1))
    for (x, *labels), (one, *its), (same_x, *rest) in zip(plain, mixed, beside, strict=True):
        assert torch.equal(same_x, x)
        *theirs, first, second = rest
        assert equal([labels, labels], [its, theirs])
        assert torch.equal(one, first)
        for mixture in (first, second):
            assert mixture.shape == x.shape and not torch.equal(mixture, x)
        assert not torch.equal(first, second)


def test_batches_of_float_images_and_of_none_augmented() -> None:
    target = torch.zeros(5).long()
    sets = [ArrayImages(x, target) for x in (images(5), images(5) / 255)]
    of_bytes, of_floats = (
        list(Batches(s, target, 5, shuffle=True, augmix=AugMix()).epoch(0)) for s in sets
    )
    assert equal(of_bytes, of_floats)


@pytest.mark.parametrize("mixtures", [0, 2])
def test_workers_processes_and_starts_do_not_count(mixtures: int) -> None:
    settings = {"augmix": AugMix(), "mixtures": mixtures}
    whole = list(batches(**settings).epoch(2))
    assert equal(batches(num_workers=2, **settings).epoch(2), whole)
    assert equal(batches(**settings).epoch(2, start=1), whole[1:])
    parts = [batches(processes=Processes(rank, 2), **settings).epoch(2) for rank in range(2)]
    for of_all, *of_each in zip(whole, *parts, strict=True):
        assert equal([[torch.cat(both) for both in zip(*of_each, strict=True)]], [of_all])
    assert not equal(batches(**settings).epoch(1), whole)


class Mixed(Dataset[Tensor]):
    """One image at a time, with draws by its number, as docs/data.md has it."""

    def __len__(self) -> int:
        return 12

    def __getitem__(self, index: int) -> Tensor:
        return AugMix()(images()[index], generator(index))


def test_one_image_in_a_data_set_that_workers_read() -> None:
    """Its bits are those of the image in a batch of one, with any number of workers."""
    alone, shared = (list(DataLoader(Mixed(), 5, num_workers=workers)) for workers in (0, 2))
    for one, other in zip(alone, shared, strict=True):
        assert torch.equal(one, other)
    mixed = torch.cat(alone)
    assert torch.equal(mixed[7:8], AugMix()(images()[7:8], generator(7)))
    assert not torch.equal(mixed, images())
    assert AugMix()(images(channels=1)[0]).shape == (1, 9, 13)


# --- what is refused


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"severity": 0}, "severity must lie between 0.1 and 10, got 0"),
        ({"severity": 10.5}, "severity must lie between 0.1 and 10, got 10.5"),
        ({"severity": float("nan")}, "severity must lie between 0.1 and 10, got nan"),
        ({"width": 0}, "width must be at least 1, got 0"),
        ({"depth": (0, 3)}, r"depth must be the fewest and the most .* got \(0, 3\)"),
        ({"depth": (3, 2)}, r"depth must be the fewest and the most .* got \(3, 2\)"),
        ({"alpha": 0.0}, "alpha must be positive, got 0.0"),
        ({"alpha": float("inf")}, "alpha must be positive, got inf"),
    ],
)
def test_settings(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=f"AugMix: {message}"):
        AugMix(**settings)


@pytest.mark.parametrize(
    ("x", "error"),
    [
        (torch.zeros(2, 4, 8, 8), r"one channel or three, got \[2, 4, 8, 8\]"),
        (torch.zeros(2, 8, 8), r"one channel or three, got \[2, 8, 8\]"),
        (torch.zeros(2, 3, 8, 8).long(), "uint8, or float in .* got torch.int64"),
        (torch.zeros(2, 3, 8, 8).bool(), "uint8, or float in .* got torch.bool"),
    ],
)
def test_images(x: Tensor, error: str) -> None:
    with pytest.raises((ValueError, TypeError), match=f"AugMix: images must be .*{error}"):
        AugMix()(x)


def test_mixtures_need_what_makes_them() -> None:
    with pytest.raises(
        ValueError, match="needs augmix, which makes them; got mixtures=2 and augmix=None"
    ):
        batches(mixtures=2)
