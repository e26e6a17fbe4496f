"""Directions that the last epoch left behind: how they are kept, and the trainer against plain code."""

from __future__ import annotations

import copy
import math
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchrun import tensors_of

import hrrl_ext
from hrrl_ext import HRRLTrainer
from hrrl_ext.data import ArrayImages, Augmentation, load_images
from hrrl_ext.ops import reference
from hrrl_ext.robust import StoredDirections, recipe
from hrrl_ext.transfer import L2SP, Similarity

CPU = torch.device("cpu")
SHAPE = (3, 5, 7)  # 105 values: no multiple of 8


def directions(count: int = 6, bits: int = 8, shape: tuple[int, ...] = SHAPE) -> StoredDirections:
    return StoredDirections(count, shape, bits, CPU)


def gradients(count: int = 4, seed: int = 0) -> Tensor:
    return torch.randn(count, *SHAPE, generator=torch.Generator().manual_seed(seed))


def put(
    kept: StoredDirections, rows: Sequence[int] | Tensor, grad: Tensor, view: Tensor | None = None
) -> None:
    """Whole images as they are, or what views of a padding of 4 show of them."""
    rows = torch.as_tensor(rows)
    view = torch.tensor([[4, 4, 0]]).expand(len(rows), 3) if view is None else view
    kept.put(rows, Augmentation(4).apply(grad, view), view, 4)


def read(kept: StoredDirections, rows: Sequence[int] | Tensor) -> Tensor:
    """Directions [B, C, h, w] in units of their norm, signs as ±1; zeros where nothing is known."""
    rows = torch.as_tensor(rows)
    values = kept.values[rows]
    if values.dtype == torch.uint8:
        bits = ((values[:, :, None] >> torch.arange(8)) & 1).flatten(1)
        values = (2 * bits.int() - 1)[:, : math.prod(kept.shape)]
    return (values * kept.scale[rows, None]).view(len(rows), *kept.shape)


def unit(grad: Tensor) -> Tensor:
    return grad / grad.flatten(1).norm(dim=1).view(-1, 1, 1, 1)


# --- how directions are kept


@pytest.mark.parametrize("bits", [8, 1])
def test_nothing_is_known_at_first(bits: int) -> None:
    kept = directions(bits=bits)
    x, view = torch.rand(2, *SHAPE, dtype=torch.float64), torch.tensor([[1, 0, 1], [2, 2, 0]])
    assert torch.equal(kept.perturb(x, torch.tensor([5, 0]), view, 0.3, 1), x)


def test_eight_bits_are_off_by_half_a_unit() -> None:
    kept, grad, rows = directions(), gradients(), torch.tensor([4, 0, 5, 2])
    put(kept, rows, grad)
    z = unit(grad)
    half = z.abs().flatten(1).amax(1).view(-1, 1, 1, 1) / 254
    assert ((read(kept, rows) - z).abs() <= half * (1 + 1e-4)).all()  # and rounding of float32
    assert not read(kept, torch.tensor([1, 3])).any()


def test_one_bit_is_the_sign() -> None:
    kept, grad, rows = directions(bits=1), gradients(), torch.tensor([4, 0, 5, 2])
    put(kept, rows, grad)
    assert torch.equal(read(kept, rows), grad.sign())
    assert not read(kept, torch.tensor([1, 3])).any()


@pytest.mark.parametrize(("bits", "row"), [(8, 105), (1, 14)])
def test_what_it_takes(bits: int, row: int) -> None:
    kept = directions(1000, bits)
    assert kept.values.nbytes == 1000 * row
    assert sum(t.nbytes for t in (kept.values, kept.scale, kept._mine)) == 1000 * (row + 5)


def test_blocks_share_a_value() -> None:
    """As if the gradient were the sum over each block everywhere in it, and the last ones cut off."""
    rows, grad = torch.arange(4), gradients()
    coarse = StoredDirections(6, SHAPE, 8, CPU, resolution=3)
    assert coarse.shape == (3, 2, 3) and coarse.values.shape == (6, 18)
    put(coarse, rows, grad)
    sums = torch.zeros(4, 3, 2, 3)
    for i in range(5):
        for j in range(7):
            sums[:, :, i // 3, j // 3] += grad[:, :, i, j]
    half = unit(sums).abs().flatten(1).amax(1).view(-1, 1, 1, 1) / 254
    assert ((read(coarse, rows) - unit(sums)).abs() <= half * (1 + 1e-4)).all()
    view = torch.tensor([[0, 0, 0]]).expand(4, 3)
    step = coarse.perturb(torch.zeros_like(grad), rows, view, 1.0, 0)
    whole = read(coarse, rows).repeat_interleave(3, 2).repeat_interleave(3, 3)[:, :, :5, :7]
    torch.testing.assert_close(step, unit(whole), rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("bits", [8, 1])
@pytest.mark.parametrize("factor", [2.0**-120, 2.0**100])
def test_a_positive_factor_does_not_count(bits: int, factor: float) -> None:
    """Powers of two, so that no bit may differ; the squares of these leave float32's range."""
    plain, scaled, grad, rows = directions(bits=bits), directions(bits=bits), gradients(), range(4)
    for kept, g in ((plain, grad), (scaled, grad * factor)):
        put(kept, rows, g)
    assert torch.equal(plain.values, scaled.values) and torch.equal(plain.scale, scaled.scale)


@pytest.mark.parametrize("bits", [8, 1])
@pytest.mark.parametrize("bad", [0.0, math.nan, math.inf, -math.inf])
def test_a_row_without_a_gradient_keeps_what_it_has(bits: int, bad: float) -> None:
    kept, grad, rows = directions(bits=bits), gradients(), torch.arange(4)
    put(kept, rows, grad)
    before, new = read(kept, rows), gradients(seed=1)
    if bad == 0:
        new[2] = 0
    else:
        new[2, 1, 3, 4] = bad
    put(kept, rows, new)
    assert torch.equal(read(kept, rows)[2], before[2])
    alone = directions(bits=bits)
    put(alone, rows[[0, 1, 3]], new[[0, 1, 3]])  # it touches no other
    assert torch.equal(read(kept, rows)[[0, 1, 3]], read(alone, rows)[[0, 1, 3]])
    put(kept, [5], new[2:3])
    assert not read(kept, torch.tensor([5])).any()


def test_pixels_out_of_view_keep_what_they_have() -> None:
    kept, row, old, new = directions(), torch.tensor([3]), gradients(1), gradients(1, seed=1)
    put(kept, row, old)
    shown = torch.zeros(1, 1, *SHAPE[1:], dtype=torch.bool)
    shown[..., 1:, 2:] = True
    new = torch.where(shown, new, 0.0)
    before = read(kept, row)
    put(kept, row, new, torch.tensor([[5, 6, 0]]))
    want = torch.where(shown, unit(new), before)
    got = read(kept, row)
    assert (got - want).abs().max() <= want.abs().max() / 254 * (1 + 1e-4)
    assert (got - before)[..., 0, :].abs().max() <= want.abs().max() / 254 * (1 + 1e-4)


def test_signs_that_are_not_known_alternate_until_they_are() -> None:
    kept, row, grad = directions(bits=1), torch.tensor([3]), gradients(1)
    grad[..., :2, :] = 0.0
    grad[0, 1, 4] = 0.0  # in view, and no direction
    put(kept, row, grad, torch.tensor([[6, 4, 1]]))
    found = read(kept, row)
    assert torch.equal(found[:, [0, 2], 2:], grad[:, [0, 2], 2:].sign())
    for unknown in (found[0, :, :2].flatten(1), found[0, 1, 4:]):
        assert (unknown[:, 1:] == -unknown[:, :-1]).all()
    put(kept, row, gradients(1, seed=1))
    assert torch.equal(read(kept, row), gradients(1, seed=1).sign())


def test_state_and_what_is_not_one() -> None:
    kept, grad = directions(), gradients()
    put(kept, range(4), grad)
    other = directions()
    other.load_state_dict(copy.deepcopy(kept.state_dict()))
    assert torch.equal(read(other, torch.arange(6)), read(kept, torch.arange(6)))
    for wrong in (directions(5), directions(bits=1)):
        with pytest.raises(ValueError, match=r"stored directions: values must be \[6, 105\]"):
            other.load_state_dict(wrong.state_dict())


def test_no_room_for_them(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any, **__: Any) -> Tensor:
        raise torch.OutOfMemoryError("out of memory")

    monkeypatch.setattr(torch, "zeros", full)
    with pytest.raises(MemoryError, match=r"1281167 images of \[3, 224, 224\], 179\.6 GiB with"):
        StoredDirections(1281167, (3, 224, 224), 8, CPU)


# --- the trainer against plain code


class Exact(StoredDirections):
    """Keeps float64 as it is."""

    def __init__(self, count: int, shape: Sequence[int], *settings: Any) -> None:
        super().__init__(count, shape, *settings)
        self.z = torch.zeros(count, *shape, dtype=torch.float64)

    def perturb(self, x: Tensor, row: Tensor, view: Tensor, tau: float, padding: int) -> Tensor:
        seen = Augmentation(padding).apply(self.z[row], view)
        return hrrl_ext.ops.perturb(x, seen, tau)[0]

    def put(self, row: Tensor, grad: Tensor, view: Tensor, padding: int) -> None:
        augment = Augmentation(padding)
        g, shown = augment.undo(grad, view), augment.undo(torch.ones_like(grad), view)
        norm = g.flatten(1).norm(dim=1).view(-1, 1, 1, 1)
        self.z[row] = torch.where((norm > 0) & (shown > 0), g / norm, self.z[row])


class Plain:
    """The same training in float64: a dictionary of directions, and augmentation pixel by pixel."""

    def __init__(self, trainer: HRRLTrainer) -> None:
        config = trainer.recipe.config
        self.tau, self.pad = config.tau, config.crop_padding
        self.model, self.distribution = trainer.model, trainer.objective.distribution
        self.optimizer = trainer.optimizer
        self.direction: dict[int, Tensor] = {}

    def places(self, view: Tensor, height: int, width: int) -> Iterator[tuple[int, int, int, int]]:
        """Where in the view (row, column) which pixel of the image is shown."""
        top, left, flip = view.tolist()
        for i in range(height):
            for j in range(width):
                r = top + i - self.pad
                c = left + (width - 1 - j if flip else j) - self.pad
                if 0 <= r < height and 0 <= c < width:
                    yield i, j, r, c

    def step(self, x: Tensor, target: Tensor, concept: Tensor, row: Tensor, view: Tensor) -> None:
        moved = x.clone()
        for n, (i, v) in enumerate(zip(row.tolist(), view, strict=True)):
            z = torch.zeros_like(x[n])
            for a, b, r, c in self.places(v, *x.shape[2:]):
                z[:, a, b] = self.direction.get(i, z)[:, r, c]
            if z.any():
                moved[n] += self.tau * z / z.norm()
        moved.requires_grad_()
        d = self.distribution
        out = reference.concept_cross_entropy(
            self.model(moved), target, concept, d.q, d.concept_count
        )
        self.optimizer.zero_grad()
        out.loss.backward()
        self.optimizer.step()
        d.update(out.concept_loss)
        assert moved.grad is not None
        for i, v, grad in zip(row.tolist(), view, moved.grad, strict=True):
            places = list(self.places(v, *x.shape[2:]))
            norm = math.sqrt(sum(grad[:, a, b].square().sum().item() for a, b, _, _ in places))
            if norm > 0:
                kept = self.direction.setdefault(i, torch.zeros_like(grad))
                for a, b, r, c in places:
                    kept[:, r, c] = grad[:, a, b] / norm


def image_set(count: int, height: int, width: int) -> ArrayImages:
    g = torch.Generator().manual_seed(1)
    images = torch.randint(0, 256, (count, 3, height, width), dtype=torch.uint8, generator=g)
    return ArrayImages(images, torch.arange(count) % 4, classes=list("abcd"))


def trainer(images: ArrayImages, **settings: Any) -> HRRLTrainer:
    torch.manual_seed(3)
    values = math.prod(images.image_shape)
    model = nn.Sequential(nn.Flatten(), nn.Linear(values, 12), nn.Tanh(), nn.Linear(12, 4))
    defaults = {
        "concepts": "classes" if len(images) > 3 else torch.zeros(len(images), dtype=torch.int64),
        "tau": 0.5, "lam": 5.0 if len(images) > 3 else None, "epochs": 4, "batch_size": 8, "lr": 0.1,
        "crop_padding": 1, "example_level": "stored", "device": "cpu", "progress": "off",
    }  # fmt: skip
    made = HRRLTrainer(model, data=images, **(defaults | settings))
    made.model.double()
    return made


def weights(model: nn.Module) -> Tensor:
    return torch.cat([p.detach().double().flatten() for p in model.parameters()])


def both(images: ArrayImages, **settings: Any) -> tuple[HRRLTrainer, Plain]:
    """After four epochs of the trainer's steps, and of the plain ones on the same batches."""
    ours, its = trainer(images, **settings), trainer(images, **settings)
    plain = Plain(its)
    for epoch in range(4):
        for x, target, concept, row, view in ours.batches.epoch(epoch):
            assert torch.equal(target, images.target[row])
            ours.train_step(x.double(), target, concept, row, view)
            plain.step(x.double(), target, concept, row, view)
    return ours, plain


EDGES = {
    "as usual": (image_set(21, 5, 7), {}),  # a last batch of 5
    "neither crop nor flip": (image_set(21, 5, 7), {"crop_padding": 0, "flip": False}),
    "flip alone": (image_set(21, 5, 6), {"crop_padding": 0}),
    "crop alone": (image_set(21, 5, 6), {"flip": False}),
    "crops that miss the image": (image_set(21, 2, 4), {"crop_padding": 5}),
    "one pixel": (image_set(21, 1, 1), {}),
    "one example": (image_set(1, 5, 7), {}),
    "in parts": (image_set(21, 5, 7), {"accumulate": 3}),
    "weights of 0": (image_set(21, 5, 7), {"adversary": "cvar", "alpha": 0.4, "lam": None}),
    "tau by far too large": (image_set(21, 5, 7), {"tau": 50.0}),
}


@pytest.mark.parametrize("case", EDGES.values(), ids=EDGES.keys())
def test_a_run_is_that_of_plain_code(
    case: tuple[ArrayImages, dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing quantised, so to the rounding of float64 and what 12 steps make of it."""
    monkeypatch.setattr(recipe, "StoredDirections", Exact)
    ours, plain = both(case[0], **case[1])
    torch.testing.assert_close(weights(ours.model), weights(plain.model), rtol=1e-9, atol=1e-10)
    assert ours.recipe.stored is not None
    for i, want in plain.direction.items():
        got = ours.recipe.stored.directions
        assert isinstance(got, Exact)
        torch.testing.assert_close(got.z[i], want, rtol=1e-7, atol=1e-9)


def test_eight_bits_follow_plain_code() -> None:
    """A value in the store is off by half a unit of 1/127 of the largest, a third of one (1/√12) in the
    root mean square; a direction of P = 105 values whose largest is m by √P m / (127 √12), a hundredth
    for the m of 0.3 here, half as much again where a crop kept a value for another epoch. What the
    directions have done to the weights is off by the same order; twice a hundredth is asked for."""
    images = image_set(21, 5, 7)
    ours, plain = both(images)
    never = trainer(images, tau=0.0)
    for epoch in range(4):
        for batch in never.batches.epoch(epoch):
            never.train_step(batch[0].double(), *batch[1:])
    effect = (weights(plain.model) - weights(never.model)).norm()
    assert (weights(ours.model) - weights(plain.model)).norm() < 0.02 * effect
    assert effect > 0.01 * weights(plain.model).norm()


def test_signs_move_an_image_by_tau() -> None:
    ours = trainer(image_set(21, 5, 7), stored_bits=1, crop_padding=0)
    assert ours.recipe.stored is not None
    for batch in ours.batches.epoch(0):
        ours.train_step(batch[0].double(), *batch[1:])
    x, _, _, row, view = next(ours.batches.epoch(1))
    step = ours.recipe.stored.perturb(x.double(), row, view).detach() - x.double()
    torch.testing.assert_close(step.abs(), torch.full_like(step, 0.5 / math.sqrt(105)))


# --- in a whole run

SMALL: dict[str, Any] = {
    "data": load_images("digits", split="train").subset(range(100)), "concepts": "classes",
    "lam": 20.0, "batch_size": 32, "lr": 0.05, "width": 4, "crop_padding": 1, "device": "cpu",
    "progress": "off",
}  # fmt: skip


@pytest.mark.parametrize(
    "settings",
    [
        *({}, {"stored_bits": 1}, {"stored_resolution": 2}),
        *({"precision": "bf16", "channels_last": True}, {"accumulate": 2}),
    ],
    ids=str,
)
def test_the_first_epoch_is_plain(settings: dict[str, Any]) -> None:
    """To the bit; the second is not."""
    for epochs in (1, 2):
        run = SMALL | settings | {"epochs": epochs, "milestones": []}
        plain, ours = (
            weights(HRRLTrainer(**run, tau=tau, example_level="stored").fit().model)
            for tau in (0.0, 0.3)
        )
        assert torch.equal(plain, ours) is (epochs == 1)


def test_without_tau_nothing_is_stored() -> None:
    made = HRRLTrainer(**SMALL, epochs=2, tau=0.0, example_level="stored")
    assert made.recipe.stored is None and not made.batches.views
    exact = HRRLTrainer(**SMALL, epochs=2, tau=0.0)
    assert torch.equal(weights(made.fit().model), weights(exact.fit().model))


@pytest.mark.parametrize("settings", [{}, {"stored_bits": 1}, {"precision": "fp16"}], ids=str)
def test_images_go_where_the_loss_rises(settings: dict[str, Any]) -> None:
    """The direction of the last epoch is one of the loss in this one, where the network moves slowly: most
    images are harder at x̃ than at x. Of directions by chance half of them would be: 50 ± 5."""
    torch.manual_seed(5)
    model = nn.Sequential(nn.Flatten(), nn.Linear(192, 16), nn.Tanh(), nn.Linear(16, 10))
    made = HRRLTrainer(model, **SMALL, epochs=6, tau=0.1, example_level="stored", **settings)
    made.fit()
    assert made.recipe.stored is not None
    harder = 0
    for x, target, _, row, view in made.batches.epoch(6):
        moved = made.recipe.stored.perturb(x, row, view).detach()
        with torch.no_grad():
            at_x, there = (F.cross_entropy(model(v), target, reduction="none") for v in (x, moved))
        harder += int((there > at_x).sum())
    assert harder > 70


SCRIPT = """
import sys
import torch
from safetensors.torch import save_file
from torch import nn
from hrrl_ext import HRRLTrainer
from hrrl_ext.data import load_images
from hrrl_ext.processes import stop_processes

torch.manual_seed(5)
model = nn.Sequential(nn.Flatten(), nn.Linear(192, 16), nn.Tanh(), nn.Linear(16, 10))
trainer = HRRLTrainer(model, data=load_images("digits", split="train").subset(range(203)), concepts="classes",
                      tau=0.3, lam=20.0, epochs=4, batch_size=26, lr=0.1, crop_padding=1, device="cpu",
                      example_level="stored", progress="off")
trainer.fit()
trainer.recipe.stored.exchange()
kept = trainer.recipe.stored.directions
save_file({"values": kept.values, "scale": kept.scale, **model.state_dict()},
          f"{sys.argv[1]}/rank-{trainer.processes.rank}.safetensors")
stop_processes()
"""


@pytest.mark.slow
def test_two_processes_have_the_directions_of_one(tmp_path: Path) -> None:
    """The same bits in both. Beside one process sums have another order, which can tip a value to the next
    unit: of float32's 1e-7 or so against units of 1e-3 few do, and none by two."""
    (one,), (first, second) = (tensors_of(size, SCRIPT, tmp_path) for size in (1, 2))
    for name in first:
        assert torch.equal(first[name], second[name]), name
    assert (one["scale"] > 0).all()
    apart = (first["values"].int() - one["values"].int()).abs()
    assert apart.max() <= 1 and (apart > 0).double().mean() < 0.01
    for name in ("1.weight", "3.weight"):
        torch.testing.assert_close(first[name], one[name], rtol=1e-3, atol=1e-4)


# --- what is refused


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"example_level": "store"}, "example_level must be one of exact, stored, got 'store'"),
        ({"stored_resolution": 0}, "stored_resolution must be positive, got 0"),
        ({"stored_bits": 4}, "stored_bits must be one of 8, 1, got 4"),
        ({"batch_norm": "running"}, "batch_norm='running' is of the input-gradient pass, and"),
        ({"penalty": Similarity()}, "the penalty Similarity(w_sim=1.0"),
    ],
)
def test_settings(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        HRRLTrainer(**SMALL, **({"tau": 0.1, "example_level": "stored"} | settings))


def test_a_penalty_of_the_weights_alone() -> None:
    made = HRRLTrainer(**SMALL, epochs=2, tau=0.1, example_level="stored", penalty=L2SP())
    assert made.fit().last["penalty"] > 0
    assert made.recipe.stored is not None
    assert (made.recipe.stored.directions.scale > 0).all()


def test_a_step_without_the_views() -> None:
    made = HRRLTrainer(**SMALL, tau=0.1, example_level="stored")
    x, target, concept, *_ = next(made.batches.epoch(0))
    with pytest.raises(ValueError, match="needs the numbers of the images and their views"):
        made.train_step(x, target, concept)
