"""Groups of batch normalisation, the probe that changes nothing, and the encoder that follows."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hrrl_ext.contrastive import Encoder, KeyEncoder
from hrrl_ext.models import build_model


def encoder(seed: int = 0, model: str = "convnet") -> Encoder:
    torch.manual_seed(seed)
    return Encoder(build_model(model, num_classes=3, image_size=8, width=4), 6, seed).train()


def images(count: int) -> Tensor:
    return torch.rand(count, 3, 8, 8, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("model", ["convnet", "resnet18"])
def test_z_and_logits_are_the_network_and_its_head(model: str) -> None:
    """By another route: the network with the head in the place of its last layer."""
    one, x = encoder(model=model), images(5)
    one.eval()
    z, logits = one(x)
    assert torch.equal(logits, one.backbone(x))
    classifier = one.backbone.fc
    one.backbone.fc = one.head
    torch.testing.assert_close(z, F.normalize(one.backbone(x)))
    one.backbone.fc = classifier
    assert len(one.head) == 3 and one.head[0].weight.shape == (32, 32)  # two layers, as wide as f


@pytest.mark.parametrize(("count", "groups"), [(8, 1), (8, 2), (7, 3), (8, 4)])
def test_a_group_does_not_see_the_others(count: int, groups: int) -> None:
    one, x = encoder(), images(count)
    z, _ = one(x, groups)
    for part, rows in zip(x.tensor_split(groups), z.tensor_split(groups), strict=True):
        torch.testing.assert_close(rows, one(part)[0])
    changed = x.clone()
    changed[-1] = 1 - changed[-1]
    first = len(x.tensor_split(groups)[0])
    same = torch.equal(one(changed, groups)[0][:first], z[:first])
    assert same == (groups > 1)


def test_the_probe_is_not_felt_by_the_features() -> None:
    one, x = encoder(), images(6)
    _, logits = one(x)
    F.cross_entropy(logits, torch.arange(6) % 3).backward()
    having = {name for name, p in one.named_parameters() if p.grad is not None}
    assert having == {"backbone.fc.weight", "backbone.fc.bias"}
    one.zero_grad()
    one(x)[0][:, 0].sum().backward()
    without = {name for name, p in one.named_parameters() if p.grad is None}
    assert without == {"backbone.fc.weight", "backbone.fc.bias"}


def test_nothing_is_left_on_the_network() -> None:
    one = encoder()
    one(images(4), 2)
    assert not any(m._forward_pre_hooks for m in one.modules())
    with pytest.raises(RuntimeError):
        one(torch.rand(4, 3, 1, 1))  # too small to be pooled
    assert not any(m._forward_pre_hooks for m in one.modules())


def test_a_last_layer_that_is_called_twice_is_refused() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(3, 3)

        def forward(self, x: Tensor) -> Tensor:
            x = x.mean((2, 3))
            return self.fc(self.fc(x))

    with pytest.raises(ValueError, match=r"linear layer 'fc' 2 times in a pass, expected once"):
        Encoder(Twice(), 4, 0)(images(2))


def test_the_key_encoder_is_a_copy_head_and_all_that_follows() -> None:
    one = encoder()
    keys = KeyEncoder(one, momentum=0.75).train()
    x = images(6)
    assert torch.equal(keys(x, 2), one(x, 2)[0])
    start = [p.clone() for p in keys.parameters()]
    with torch.no_grad():
        for p in one.parameters():
            p.add_(torch.randn(p.shape))
    for step in (1, 2):
        keys.follow(one)
        for now, then, target in zip(keys.parameters(), start, one.parameters(), strict=True):
            # m^t of what it was; the products round to 24 bits.
            expected = 0.75**step * then + (1 - 0.75**step) * target
            torch.testing.assert_close(now, expected, rtol=1e-6, atol=1e-6)
    assert not any(p.requires_grad for p in keys.parameters())
    assert not keys(x).requires_grad


def test_buffers_are_those_of_the_keys_passes() -> None:
    """They are not averaged: the statistics of one encoder stay with it."""
    one = encoder()
    keys = KeyEncoder(one, momentum=0.5).train()
    for _ in range(3):
        one(images(8))
    keys.follow(one)
    mine, theirs = (m.backbone.stage1[1] for m in (keys.encoder, one))
    assert (mine.running_mean == 0).all() and (theirs.running_mean != 0).any()
    keys(images(8))
    assert mine.num_batches_tracked == 1 and (mine.running_mean != 0).any()


def test_a_head_by_its_seed_alone() -> None:
    state = torch.get_rng_state()
    heads = [encoder(seed).head for seed in (0, 0, 1)]
    assert torch.equal(heads[0][0].weight, heads[1][0].weight)
    assert not torch.equal(heads[0][0].weight, heads[2][0].weight)
    torch.set_rng_state(state)
    Encoder(nn.Sequential(nn.Flatten(), nn.Linear(3, 2)), 4, 0)
