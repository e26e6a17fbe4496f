"""ResNet-18 against a functional twin written from the paper's table, and torchvision's names."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.testing import assert_close

from hrrl_ext.models import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    ConvNet,
    Normalise,
    ResNet18,
    build_model,
    resnet18,
)

BATCH_NORM = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")


def torchvision_names() -> list[str]:
    """The keys of torchvision.models.resnet18().state_dict()."""
    names = ["conv1.weight", *(f"bn1.{k}" for k in BATCH_NORM), "fc.weight", "fc.bias"]
    for layer in (1, 2, 3, 4):
        for block in (0, 1):
            at = f"layer{layer}.{block}"
            for i in (1, 2):
                names += [f"{at}.conv{i}.weight", *(f"{at}.bn{i}.{k}" for k in BATCH_NORM)]
            if layer > 1 and block == 0:
                names.append(f"{at}.downsample.0.weight")
                names += [f"{at}.downsample.1.{k}" for k in BATCH_NORM]
    return names


def without_normaliser(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {key: value for key, value in state.items() if "normalise" not in key}


def twin(state: dict[str, torch.Tensor], x: torch.Tensor, stem: str) -> torch.Tensor:
    """Logits of ResNet-18 in eval mode, from its state dict alone."""

    def bn(x, at):
        scale = state[f"{at}.weight"] / (state[f"{at}.running_var"] + 1e-5).sqrt()
        shift = state[f"{at}.bias"] - state[f"{at}.running_mean"] * scale
        return x * scale[:, None, None] + shift[:, None, None]

    def conv(x, at, stride, padding):
        return F.conv2d(x, state[f"{at}.weight"], stride=stride, padding=padding)

    x = (x - state["normalise.mean"]) / state["normalise.std"]
    if stem == "imagenet":
        x = F.max_pool2d(bn(conv(x, "conv1", 2, 3), "bn1").relu(), 3, stride=2, padding=1)
    else:
        x = bn(conv(x, "conv1", 1, 1), "bn1").relu()
    for layer in (1, 2, 3, 4):
        for block in (0, 1):
            at, stride = f"layer{layer}.{block}", 2 if layer > 1 and block == 0 else 1
            out = bn(conv(x, f"{at}.conv1", stride, 1), f"{at}.bn1").relu()
            out = bn(conv(out, f"{at}.conv2", 1, 1), f"{at}.bn2")
            if stride == 2:
                x = bn(conv(x, f"{at}.downsample.0", 2, 0), f"{at}.downsample.1")
            x = (out + x).relu()
    return x.flatten(2).mean(2) @ state["fc.weight"].T + state["fc.bias"]


def off_default(model: nn.Module) -> nn.Module:
    """Batch-norm parameters and statistics away from 0 and 1, so that each of them matters."""
    generator = torch.Generator().manual_seed(0)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            for x in (module.weight, module.bias, module.running_mean, module.running_var):
                x.data.copy_(torch.rand(x.shape, generator=generator) + 0.5)
    return model


# Normalise


def test_normalise_by_hand():
    x = torch.tensor([0.25, 0.75]).view(1, 2, 1, 1)
    assert Normalise((0.5, 0.25), (0.5, 0.125))(x).flatten().tolist() == [-0.5, 4.0]


def test_normalise_has_buffers_and_no_parameters():
    layer = Normalise()
    assert [tuple(x.shape) for x in layer.buffers()] == [(1, 3, 1, 1), (1, 3, 1, 1)]
    assert not list(layer.parameters())
    assert_close(layer.mean.flatten(), torch.tensor(IMAGENET_MEAN))
    assert_close(layer.std.flatten(), torch.tensor(IMAGENET_STD))


@pytest.mark.parametrize("shape", [(2, 1, 4, 4), (2, 4, 4, 4), (3, 4, 4), (3,)], ids=str)
def test_normalise_refuses_what_would_broadcast(shape):
    with pytest.raises(ValueError, match=r"images must be \[B, 3, H, W\], got"):
        Normalise()(torch.zeros(shape))


def test_normalise_refuses_uint8():
    with pytest.raises(TypeError, match="uint8"):
        Normalise()(torch.zeros(1, 3, 2, 2, dtype=torch.uint8))


@pytest.mark.parametrize(
    ("mean", "std", "message"),
    [
        ((0.5, 0.5), (0.5,), "got 2 and 1"),
        ((), (), "got 0 and 0"),
        ((math.nan,), (0.5,), "mean must be finite"),
        ((0.5,), (0.0,), "std must be finite and positive"),
        ((0.5,), (math.inf,), "std must be finite and positive"),
    ],
)
def test_normalise_refuses_bad_statistics(mean, std, message):
    with pytest.raises(ValueError, match=message):
        Normalise(mean, std)


# Names and state dicts


def test_state_dict_has_torchvisions_names_and_shapes():
    model = resnet18(1000)
    state = model.state_dict()
    assert set(without_normaliser(state)) == set(torchvision_names())
    assert set(state) - set(torchvision_names()) == {"normalise.mean", "normalise.std"}
    assert tuple(state["conv1.weight"].shape) == (64, 3, 7, 7)
    assert tuple(state["layer3.0.downsample.0.weight"].shape) == (256, 128, 1, 1)
    assert tuple(state["fc.weight"].shape) == (1000, 512)
    assert sum(p.numel() for p in model.parameters()) == 11_689_512  # as published


def test_torchvision_state_dict_loads_strictly_and_keeps_the_normaliser():
    other = without_normaliser(resnet18(5, width=4).state_dict())
    model = resnet18(5, width=4, mean=(0.1, 0.2, 0.3))
    model.load_state_dict(other, strict=True)
    assert_close(model.normalise.mean.flatten(), torch.tensor([0.1, 0.2, 0.3]))
    assert torch.equal(model.conv1.weight, other["conv1.weight"])


def test_torchvision_state_dict_loads_inside_another_module():
    wrapped = nn.ModuleDict({"net": resnet18(5, width=4)})
    wrapped.load_state_dict(without_normaliser(wrapped.state_dict()), strict=True)


def test_own_state_dict_brings_its_normaliser():
    model = resnet18(5, width=4)
    model.load_state_dict(resnet18(5, width=4, std=(0.1, 0.2, 0.3)).state_dict())
    assert_close(model.normalise.std.flatten(), torch.tensor([0.1, 0.2, 0.3]))


def test_half_a_normaliser_is_an_error():
    model = resnet18(5, width=4)
    state = model.state_dict()
    del state["normalise.std"]
    with pytest.raises(RuntimeError, match=r"normalise\.std"):
        model.load_state_dict(state)


# Values


@pytest.mark.parametrize(("stem", "size"), [("small", 17), ("small", 1), ("imagenet", 65)])
def test_forward_is_the_twin(stem, size):
    model = off_default(resnet18(7, stem=stem, width=3, mean=(0.3, 0.4, 0.5), std=(0.2, 0.3, 0.4)))
    model.double().eval()
    x = torch.rand(2, 3, size, size, dtype=torch.float64)
    # Same formula in double, sums in another order: 20 layers of rounding stay far below 1e-9.
    assert_close(model(x), twin(model.state_dict(), x, stem), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(
    ("stem", "size", "positions"),
    [("small", 8, 1), ("small", 32, 4), ("small", 64, 8), ("imagenet", 65, 3), ("imagenet", 99, 4)],
)
def test_positions_left_to_the_last_stage(stem, size, positions):
    model = resnet18(2, stem=stem, width=1).eval()
    shapes = []
    model.layer4.register_forward_hook(lambda _, __, out: shapes.append(tuple(out.shape)))
    model(torch.zeros(1, 3, size, size))
    assert shapes == [(1, 8, positions, positions)]


def test_pre_logits_are_what_the_last_layer_reads():
    model = off_default(resnet18(7, stem="small", width=2)).eval()
    x = torch.rand(3, 3, 9, 9)
    features = model.pre_logits(x)
    assert features.shape == (3, model.num_features) == (3, 16)
    assert torch.equal(model.fc(features), model(x))
    assert model.num_classes == 7


def test_gradient_reaches_the_pixels():
    model = resnet18(4, stem="small", width=2).train()
    x = torch.rand(2, 3, 8, 8, requires_grad=True)
    model(x).sum().backward()
    assert x.grad is not None
    assert x.grad.abs().sum() > 0


# Initialisation


def test_convolutions_start_as_he_normal_fan_out():
    torch.manual_seed(0)
    model = resnet18(10, width=32)
    for name, module in model.named_modules():
        if isinstance(module, nn.Conv2d):
            fan_out = module.out_channels * module.kernel_size[0] ** 2
            # The sample deviation of n normals is off by 1/sqrt(2n) of itself: allow 5 of those.
            slack = 5 / math.sqrt(2 * module.weight.numel())
            assert module.weight.std().item() == pytest.approx(math.sqrt(2 / fan_out), rel=slack), (
                name
            )


def test_same_seed_same_weights():
    states = []
    for _ in range(2):
        torch.manual_seed(3)
        states.append(resnet18(3, width=2).state_dict())
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])


@pytest.mark.parametrize("zero_init_residual", [False, True])
def test_zero_init_residual_starts_blocks_at_their_shortcut(zero_init_residual):
    model = resnet18(3, width=4, zero_init_residual=zero_init_residual).eval()
    x = torch.rand(2, 4, 5, 5)
    assert torch.equal(model.layer1[0](x), x) is zero_init_residual
    for bn in (model.bn1, model.layer1[0].bn1):  # only the last scale of a block is 0
        assert (bn.weight == 1).all()


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"num_classes": 0}, "num_classes=0"),
        ({"num_classes": 3, "width": 0}, "width=0"),
        ({"num_classes": 3, "stem": "cifar"}, "'imagenet' or 'small', got 'cifar'"),
    ],
)
def test_resnet18_refuses(kwargs, message):
    with pytest.raises(ValueError, match=message):
        resnet18(**kwargs)


# build_model


@pytest.mark.parametrize(("image_size", "kernel"), [(8, 3), (64, 3), (65, 7), (224, 7)])
def test_build_model_chooses_the_stem(image_size, kernel):
    model = build_model("resnet18", num_classes=6, image_size=image_size, width=2)
    assert isinstance(model, ResNet18)
    assert model.conv1.kernel_size == (kernel, kernel)
    assert (model.num_classes, model.num_features) == (6, 16)


def test_build_model_is_64_wide_by_default():
    assert build_model("resnet18", num_classes=2, image_size=32).num_features == 512


def test_build_model_passes_a_module_through():
    model = nn.Linear(3, 2)
    assert build_model(model, num_classes=9, image_size=32) is model


def test_build_model_names_the_nearest():
    with pytest.raises(
        ValueError, match=r"model 'ResNet-18' is not known; did you mean 'resnet18'\?"
    ):
        build_model("ResNet-18", num_classes=2, image_size=32)


def test_build_model_refuses_other_types():
    with pytest.raises(TypeError, match="got int"):
        build_model(18, num_classes=2, image_size=32)


def test_build_model_refuses_an_empty_image():
    with pytest.raises(ValueError, match="image_size must be at least 1 pixel, got 0"):
        build_model("resnet18", num_classes=2, image_size=0)


# ConvNet


@pytest.mark.parametrize("side", [2, 7, 8])
def test_convnet_against_its_twin(side):
    """Written from its docstring; an odd side makes the quarters overlap."""
    torch.manual_seed(0)
    model = off_default(ConvNet(3, width=2)).eval()
    state, x = model.state_dict(), torch.rand(4, 3, side, side)
    mean, std = (torch.tensor(v)[:, None, None] for v in (IMAGENET_MEAN, IMAGENET_STD))
    y = (x - mean) / std
    for stage in (1, 2, 3):
        y = F.conv2d(y, state[f"stage{stage}.0.weight"], padding=1)
        at = f"stage{stage}.1"
        scale = state[f"{at}.weight"] / (state[f"{at}.running_var"] + 1e-5).sqrt()
        shift = state[f"{at}.bias"] - state[f"{at}.running_mean"] * scale
        y = (y * scale[:, None, None] + shift[:, None, None]).relu()
        if stage == 2:
            y = F.max_pool2d(y, 2)
    low, high = slice(0, -(-y.shape[2] // 2)), slice(y.shape[2] // 2, None)
    quarters = [y[:, :, a, b].mean((2, 3)) for a in (low, high) for b in (low, high)]
    features = torch.stack(quarters, 2).flatten(1)
    assert features.shape == (4, 16)
    assert_close(model(x), features @ state["fc.weight"].T + state["fc.bias"])


def test_convnet_by_name():
    model = build_model("convnet", num_classes=5, image_size=8, width=3)
    assert isinstance(model, ConvNet)
    assert model.fc.weight.shape == (5, 24)
    assert ConvNet(5).fc.in_features == 512


@pytest.mark.parametrize("sizes", [{"num_classes": 0}, {"num_classes": 2, "width": 0}])
def test_convnet_refuses_empty_layers(sizes):
    with pytest.raises(ValueError, match="convnet: num_classes and width must be at least 1"):
        ConvNet(**sizes)
