"""The similarity loss against its formula in float64, its identities, and its edges."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from hrrl_ext import HRRLTrainer
from hrrl_ext.models import resnet18
from hrrl_ext.transfer import Similarity, similarity_loss

OPTIONS = [
    {"squared": squared, "mean": mean, "normalise": normalise}
    for squared in (False, True)
    for mean in (False, True)
    for normalise in (False, True)
]


def features(b: int, d: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.randn(b, d, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def by_pairs(z, z_start, *, squared=False, mean=False, normalise=True) -> float:
    """Eq. 4 pair by pair, in Python's floats."""

    def dot(a, b):
        inner = sum(x * y for x, y in zip(a, b, strict=True))
        norms = sum(x * x for x in a) * sum(y * y for y in b)
        return inner / norms**0.5 if normalise and norms else inner

    z, s = z.tolist(), z_start.tolist()
    pairs = [(i, j) for i in range(len(z)) for j in range(len(z))]
    total = sum(((dot(z[i], z[j]) - dot(s[i], s[j])) ** 2 for i, j in pairs), start=0.0)
    if mean:
        total /= max(1, len(pairs))
    return total if squared else total**0.5


# Values


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize(
    ("b", "d", "d_start"), [(0, 3, 3), (1, 1, 1), (2, 3, 5), (7, 5, 2), (5, 1, 8)]
)
def test_value_is_eq_4(b, d, d_start, options):
    z, z_start = features(b, d), features(b, d_start, 1)
    # float64 both ways: a few roundings per entry.
    assert_close(
        similarity_loss(z, z_start, **options).item(),
        by_pairs(z, z_start, **options),
        rtol=1e-12,
        atol=1e-13,
    )


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_gradcheck(options):
    z = features(4, 3).requires_grad_()
    z_start = features(4, 3, 1)
    assert torch.autograd.gradcheck(lambda z: similarity_loss(z, z_start, **options), z)


def test_gradient_formula():
    """∂‖S - S*‖_F/∂Z = 2 (S - S*) Z / ‖S - S*‖_F for S = ZZᵀ."""
    z, z_start = features(5, 3).requires_grad_(), features(5, 3, 1)
    similarity_loss(z, z_start, normalise=False).backward()
    with torch.no_grad():
        r = z @ z.T - z_start @ z_start.T
        assert_close(z.grad, 2 * r @ z / r.norm())


def test_no_gradient_reaches_the_start():
    z, z_start = features(3, 2).requires_grad_(), features(3, 2, 1).requires_grad_()
    similarity_loss(z, z_start).backward()
    assert z_start.grad is None
    assert z.grad.abs().sum() > 0


# Identities


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_at_the_start_loss_and_gradient_are_exactly_0(dtype, options):
    z = features(6, 4, dtype=dtype).requires_grad_()
    loss = similarity_loss(z, z.detach().clone(), **options)
    loss.backward()
    assert loss.item() == 0
    assert torch.equal(z.grad, torch.zeros_like(z))


def test_a_rotation_changes_nothing():
    q, _ = torch.linalg.qr(features(4, 4, 1))
    z = features(6, 4)
    # S of both differ by rounding alone: 36 entries of some 1e-16, times up to ‖f‖² of about 10.
    assert similarity_loss(z @ q, z) < 1e-14
    assert similarity_loss(z @ q.T, z, normalise=False) < 1e-13
    assert similarity_loss(torch.cat([z, 0 * z], 1), z) < 1e-14  # nor does another D


def test_the_order_of_the_images_does_not_matter():
    z, z_start = features(7, 3), features(7, 3, 1)
    order = torch.tensor([3, 1, 6, 0, 5, 2, 4])
    assert_close(similarity_loss(z[order], z_start[order]), similarity_loss(z, z_start))
    assert not torch.isclose(similarity_loss(z[order], z_start), similarity_loss(z, z_start))


def test_the_diagonal_counts_only_without_norms():
    z, z_start = features(1, 4), features(1, 4, 1)
    assert similarity_loss(z, z_start) < 1e-15
    assert similarity_loss(z, z_start, normalise=False) > 0.1


@pytest.mark.parametrize("scale", [1e-30, 1e-10, 1e10, 1e30])
def test_normalised_features_have_no_scale(scale):
    """In float32, where the squares of 1e±30 are out of range; per row, too."""
    z, z_start = features(5, 4, dtype=torch.float32), features(5, 4, 1, dtype=torch.float32)
    scaled = (z * scale).requires_grad_()
    loss = similarity_loss(scaled, z_start)
    assert_close(loss, similarity_loss(z, z_start), rtol=1e-6, atol=0)  # a few roundings
    loss.backward()
    plain = z.clone().requires_grad_()
    similarity_loss(plain, z_start).backward()
    # The gradient has the inverse scale; 1e30 and its inverse are normal numbers in float32.
    assert_close(scaled.grad * scale, plain.grad, rtol=1e-4, atol=1e-6)


def test_the_mean_does_not_grow_with_the_batch():
    """Doubling every image: B → 2B, the same similarities."""
    z, z_start = features(4, 3), features(4, 3, 1)
    twice, twice_start = z.repeat(2, 1), z_start.repeat(2, 1)
    for squared in (False, True):
        options = {"squared": squared}
        once = similarity_loss(z, z_start, **options)
        assert_close(similarity_loss(twice, twice_start, **options), (4 if squared else 2) * once)
        assert_close(
            similarity_loss(twice, twice_start, mean=True, **options),
            similarity_loss(z, z_start, mean=True, **options),
        )


# Edges


def test_a_row_of_zeros_has_a_finite_gradient():
    z = features(3, 2)
    z[1] = 0
    z.requires_grad_()
    loss = similarity_loss(z, features(3, 2, 1))
    loss.backward()
    assert loss.isfinite()
    assert z.grad.isfinite().all()
    assert z.grad.abs().max() < 100  # not 1/eps


def test_nan_is_not_hidden():
    z = features(3, 2)
    z[0, 0] = float("nan")
    assert similarity_loss(z, features(3, 2, 1)).isnan()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_halves_are_computed_in_float32_also_under_autocast(dtype):
    z, z_start = features(9, 300, dtype=dtype), features(9, 300, 1, dtype=dtype)
    expected = similarity_loss(z.float(), z_start.float(), normalise=False)
    with torch.autocast("cpu", torch.bfloat16):
        loss = similarity_loss(z, z_start, normalise=False)
    assert loss.dtype == torch.float32
    assert torch.equal(loss, expected)


def test_strides_do_not_matter():
    z, z_start = features(4, 6), features(4, 6, 1)
    strided = torch.stack([z, z], 2)[..., 0]
    assert not strided.is_contiguous()
    assert torch.equal(similarity_loss(strided, z_start), similarity_loss(z, z_start))


@pytest.mark.parametrize(
    ("shape", "other"), [((3,), (3,)), ((3, 2), (4, 2)), ((3, 2, 2), (3, 2, 2))]
)
def test_refused_shapes(shape, other):
    with pytest.raises(ValueError, match=r"must be \[B, D\] and \[B, D\*\].*flatten"):
        similarity_loss(torch.zeros(shape), torch.zeros(other))


# The penalty


class Net(nn.Module):
    """Neither batch normalisation nor dropout: train and eval mode agree."""

    def __init__(self) -> None:
        super().__init__()
        self.hidden = nn.Linear(12, 5)
        self.last = nn.Linear(5, 2)

    def features(self, x):
        return torch.tanh(self.hidden(x.flatten(1)))

    def forward(self, x):
        return self.last(self.features(x))


def test_the_first_step_has_penalty_0_and_no_gradient():
    model, x = Net(), torch.rand(4, 3, 2, 2)
    logits, penalty = Similarity(w_sim=1e6)(model)(model, x)
    assert torch.equal(logits, model(x))
    penalty.backward()
    assert penalty.item() == 0
    assert all(p.grad is None or not p.grad.any() for p in model.parameters())


@pytest.mark.parametrize("mean", [True, False])
def test_the_penalty_is_of_the_features_now_and_then(mean):
    model, x = Net(), torch.rand(4, 3, 2, 2)
    z_start = model.features(x).detach()
    module = Similarity(w_sim=3, mean=mean)(model)
    with torch.no_grad():
        model.hidden.weight += torch.randn(5, 12)
    _, penalty = module(model, x)
    assert_close(penalty, 3 * similarity_loss(model.features(x), z_start, mean=mean))
    penalty.backward()
    assert model.hidden.weight.grad.abs().sum() > 0
    assert model.last.weight.grad is None  # the classifier is free
    assert not any(p.requires_grad for p in module.parameters())


def test_the_start_is_frozen_and_in_eval_mode_and_the_model_keeps_no_hook():
    model, x = resnet18(3, stem="small", width=1).train(), torch.rand(4, 3, 8, 8)
    module = Similarity()(model)
    mean = module.start.bn1.running_mean.clone()
    _, penalty = module(model, x)
    penalty.backward()
    assert torch.equal(module.start.bn1.running_mean, mean)
    assert not torch.equal(model.bn1.running_mean, mean)  # one training pass
    assert all(p.grad is None for p in module.start.parameters())
    assert not any(m._forward_pre_hooks or m._forward_hooks for m in module.start.modules())
    assert not any(m._forward_pre_hooks or m._forward_hooks for m in model.modules())
    with torch.no_grad():
        expected = similarity_loss(model.pre_logits(x), module.start.pre_logits(x), mean=True)
    # Batch statistics do not depend on the running ones: the pass can be made again.
    assert_close(penalty.detach(), expected)


def test_the_start_goes_through_a_state_dict():
    """What resuming needs: a penalty of another model, filled, is that of the first."""
    first, x = Net(), torch.rand(4, 3, 2, 2)
    second = Net()
    module = Similarity()(second)
    module.load_state_dict(Similarity()(first).state_dict())
    second.load_state_dict(first.state_dict())
    _, penalty = module(second, x)
    assert penalty.item() == 0


def test_a_classifier_by_name():
    model, x = Net(), torch.rand(4, 3, 2, 2)
    module = Similarity(classifier="hidden", normalise=False)(model)
    with torch.no_grad():
        model.hidden.weight += 1  # does not change the input of `hidden`
    assert module(model, x)[1].item() == 0


def test_refusals():
    with pytest.raises(ValueError, match="layer 'fc' is not known; "):
        Similarity(classifier="fc")(Net())
    for w_sim in (-1, float("nan"), float("inf")):
        with pytest.raises(ValueError, match="w_sim must be at least 0"):
            Similarity(w_sim=w_sim)
    with pytest.raises(
        ValueError, match=r"accumulate must be 1, got 2: the penalty gathers the images"
    ):
        HRRLTrainer(
            Net(), data=(torch.rand(6, 3, 2, 2), torch.arange(6) % 2), concepts="classes", penalty=Similarity(gather=True),
            accumulate=2, device="cpu", progress="off", tau=0, lam=None, crop_padding=0, flip=False,
        )  # fmt: skip
    model = Net()
    model.spare = nn.Linear(5, 2)
    with pytest.raises(ValueError, match="did not call its classifier"):
        Similarity()(model)(model, torch.rand(2, 3, 2, 2))
