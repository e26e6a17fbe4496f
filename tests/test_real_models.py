"""Networks as torchvision, timm and transformers make them, from random weights: everything runs on each.

    make test-models

makes a virtual environment with the three libraries and a torch that they fit (several GB, so this is no
part of `make test`), says so by HRRL_REAL_MODELS, and runs this file in it.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from hrrl_ext import HRRLTrainer, URRLTrainer, evaluate, extract_features, finetune, load_model
from hrrl_ext.clustering import GradientClustering
from hrrl_ext.data import ArrayImages
from hrrl_ext.evaluation import predict
from hrrl_ext.evaluation.attacks import pgd
from hrrl_ext.layers import find_classifiers
from hrrl_ext.models import Normalise, build_model

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif("HRRL_REAL_MODELS" not in os.environ, reason="see make test-models"),
]

CLASSES, NEW_CLASSES, COUNT = 5, 3, 6


def images(size: int, classes: int) -> ArrayImages:
    generator = torch.Generator().manual_seed(size)
    pixels = torch.randint(256, (COUNT, 3, size, size), dtype=torch.uint8, generator=generator)
    return ArrayImages(pixels, torch.arange(COUNT) % classes, name="noise")


def of_torchvision(kind: str, **settings: Any) -> Callable[[], nn.Module]:
    def make() -> nn.Module:
        import torchvision

        return nn.Sequential(
            Normalise(), getattr(torchvision.models, kind)(num_classes=CLASSES, **settings)
        )

    return make


def hugging_face(kind: str, config: str, **settings: Any) -> Callable[[], nn.Module]:
    def make() -> nn.Module:
        import transformers

        made = getattr(transformers, config)(num_labels=CLASSES, **settings)
        return nn.Sequential(Normalise(), getattr(transformers, kind)(made))

    return make


_TRANSFORMER: dict[str, Any] = {
    "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64,
    "image_size": 32, "patch_size": 8,
}  # fmt: skip

# The network, by a name that build_model knows or made; its images' size; how many layers its logits come
# from in train mode, and how many classifiers are beside.
NETWORKS: dict[str, tuple[str | Callable[[], nn.Module], int, tuple[int, int]]] = {
    **{
        f"torchvision:{name}": (f"torchvision:{name}", size, heads)
        for name, size, heads in (
            ("resnet18", 64, (1, 0)),
            ("googlenet", 96, (1, 2)),
            ("inception_v3", 299, (1, 1)),
            ("densenet121", 64, (1, 0)),
            ("mobilenet_v3_small", 64, (1, 0)),
            ("efficientnet_b0", 64, (1, 0)),
            ("convnext_tiny", 64, (1, 0)),
            ("squeezenet1_1", 64, (1, 0)),
        )
    },
    **{
        f"timm:{name}": (f"timm:{name}", size, heads)
        for name, size, heads in (
            ("resnet10t", 64, (1, 0)),
            ("convnext_atto", 64, (1, 0)),
            ("vit_tiny_patch16_224", 224, (1, 0)),
            ("deit_tiny_distilled_patch16_224", 224, (2, 0)),
            ("mixer_s32_224", 224, (1, 0)),
        )
    },
    "torchvision:VisionTransformer": (
        of_torchvision(
            "VisionTransformer", image_size=32, patch_size=8, num_layers=2, num_heads=2,
            hidden_dim=32, mlp_dim=64,
        ),
        32, (1, 0),
    ),
    "torchvision:SwinTransformer": (
        of_torchvision(
            "SwinTransformer", patch_size=[2, 2], embed_dim=16, depths=[2, 2], num_heads=[2, 4],
            window_size=[4, 4],
        ),
        32, (1, 0),
    ),
    "transformers:ViT": (
        hugging_face("ViTForImageClassification", "ViTConfig", **_TRANSFORMER), 32, (1, 0),
    ),
    "transformers:DeiT with teacher": (
        hugging_face("DeiTForImageClassificationWithTeacher", "DeiTConfig", **_TRANSFORMER), 32, (2, 0),
    ),
    "transformers:ConvNeXt": (
        hugging_face("ConvNextForImageClassification", "ConvNextConfig", depths=[1, 1, 1, 1], hidden_sizes=[8, 16, 32, 64]),
        64,
        (1, 0),
    ),
    "transformers:Swin": (
        hugging_face("SwinForImageClassification", "SwinConfig", image_size=32, patch_size=2, embed_dim=16, depths=[1, 1], num_heads=[2, 4], window_size=4),
        32,
        (1, 0),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", NETWORKS)
def test_everything_runs(name: str, tmp_path: Path) -> None:
    made, size, heads = NETWORKS[name]
    data, new = images(size, CLASSES), images(size, NEW_CLASSES)
    torch.manual_seed(0)
    model = (
        build_model(made, num_classes=CLASSES, image_size=size) if isinstance(made, str) else made()
    )
    for layer in model.modules():
        if isinstance(layer, nn.modules.batchnorm._BatchNorm):
            layer.momentum = (
                0.9  # else eval mode has the statistics of no data, and no gradient is left
            )
    seconds: dict[str, float] = {}

    @contextmanager
    def timed(what: str) -> Iterator[None]:
        begun = time.perf_counter()
        yield
        seconds[what] = time.perf_counter() - begun

    quick: dict[str, Any] = {
        "epochs": 1, "batch_size": 3, "lr": 1e-3, "crop_padding": 0, "flip": False, "device": "cpu",
        "progress": "off", "tau": 0.1, "lam": 1.0, "concepts": "classes",
    }  # fmt: skip
    with timed("train"):  # two steps
        trained = HRRLTrainer(
            model,
            model_name=made if isinstance(made, str) else None,
            data=data,
            validation=data,
            out=tmp_path / "run",
            **quick,
        ).fit()
        assert 0 <= trained.last["accuracy"] <= 1
    found = find_classifiers(model.train(), torch.rand(2, 3, size, size))
    assert tuple(map(len, found)) == heads
    model.eval()
    several = len(found.of_logits) > 1
    first = found.of_logits[0]
    head = model.get_submodule(first)
    with timed("extract"):
        if several:
            with pytest.raises(ValueError, match=f"come from 2 layers, '{first}'"):
                extract_features(model, data)
        if isinstance(head, nn.Linear):
            chosen, width = {"classifier": first if several else None}, head.in_features
        else:  # SqueezeNet's convolution, whose input has positions
            assert isinstance(head, nn.Conv2d)
            with pytest.raises(ValueError, match=f"come from the convolution '{first}'"):
                extract_features(model, data)
            chosen, width = {"layer": first}, head.out_channels
        features = extract_features(model, data, batch_size=3, **chosen)
        assert features.features.shape == (COUNT, width)
    with timed("fine-tune"):
        begun = tmp_path / "run" if isinstance(made, str) else model
        tuned = finetune(
            begun,
            new,
            method=f"similarity:classifier={first}" if several else "similarity",
            out=tmp_path / "tuned",
            freeze=f"{next(n for n, m in model.named_modules() if isinstance(m, nn.Conv2d))}",
            **quick,
        ).model.eval()
        for classifier in (*found.of_logits, *found.beside):
            assert len(tuned.get_submodule(classifier).weight) == NEW_CLASSES
        if isinstance(made, str):
            again = load_model(tmp_path / "tuned")
            x = torch.rand(2, 3, size, size)
            assert torch.equal(again(x), tuned(x))
    with timed("evaluate"):
        report = evaluate(tuned, new, attacks=[], corruptions=["contrast"], steps=[0.0, 1.0])
        assert report.accuracy["count"] == COUNT
    with timed("attack"):
        x = new.images.float() / 255
        right = predict(tuned, new).logits.argmax(
            1
        )  # what is wrong from the start is left as it is
        adversarial = pgd(tuned, x, right, 8 / 255, norm="linf", steps=2)
        assert 0 < (adversarial - x).abs().max() <= 8 / 255 + 1e-6
    with timed("cluster"):
        # Of Swin's attention, within windows, a warning says that it is left out.
        clusters = GradientClustering(tuned, 2, batch_size=3).fit(new, rounds=1)
        assert clusters.assignment.shape == (COUNT,)
    size_text = f"{sum(p.numel() for p in model.parameters()) / 1e6:.1f} M weights, {size} px"
    print(f"{name:42} {size_text:24} " + "  ".join(f"{k} {v:.1f} s" for k, v in seconds.items()))


@pytest.mark.parametrize("library", ["torchvision", "timm"])
def test_what_pretraining_leaves_is_the_librarys(library: str, tmp_path: Path) -> None:
    """A module as it is made there; its weights go into another one by load_state_dict alone."""

    def make() -> nn.Module:
        if library == "timm":
            import timm

            network: nn.Module = timm.create_model("resnet10t", num_classes=CLASSES)
            return network
        import torchvision

        return torchvision.models.resnet18(num_classes=CLASSES)

    data, other = images(64, CLASSES), make()
    made = URRLTrainer(
        make(), data=data, validation=data, views="moco", epochs=1, batch_size=6, queue=12, dim=4,
        norm_groups=2, lr=1e-3, out=tmp_path, device="cpu", progress="off",
    )  # fmt: skip
    made.fit()
    other.load_state_dict(load_file(tmp_path / "best/model.safetensors"))
    x = torch.rand(2, 3, 64, 64)
    assert torch.equal(other.eval()(x), made.encoder.backbone.eval()(x))
    assert torch.equal(load_model(tmp_path, make()).eval()(x), other(x))
