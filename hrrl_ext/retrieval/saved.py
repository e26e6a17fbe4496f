"""Joint embeddings by name, and those of a folder.

A folder that :func:`save_joint_embedding` wrote, or ``best/`` of a run, holds

    config.json          what to build
    model.safetensors    weights and buffers
    tokenizer.json       the words
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from ..models import build_model
from ..pretrained import from_pretrained, read_config, save_pretrained
from ..spec import not_known
from ..training.run_folder import load_model
from .losses import Preset
from .model import JointEmbedding, without_classifier
from .text_encoders import GRUEncoder
from .words import Words

FEATURES = "features"
"""In place of a network's name: images come as features that were computed before."""


def build_joint_embedding(
    image: str | nn.Module,
    words: Words,
    *,
    text: str | nn.Module = "gru",
    image_size: int | None = None,
    width: int = 64,
    features: int | None = None,
    word_dim: int = 300,
    text_width: int = 1024,
    dim: int = 1024,
    preset: str | Preset = "VSE++",
    normalise_features: bool = True,
    freeze: bool = False,
    learned: Mapping[str, float] | None = None,
) -> JointEmbedding:
    """A fresh model that its folder alone brings back.

    Args:
        image: a network that :func:`hrrl_ext.models.build_model` knows, for images of ``image_size`` and
            of ``width``; "features", where images come as features of width ``features``; or a module
            of your own, which a folder does not bring back: it is to be given again.
        words: of the training captions.
        text: "gru", of ``word_dim`` and ``text_width``; or a module of your own.
        dim, preset, normalise_features, freeze, learned: as for `JointEmbedding`.
    """
    encoder, name = _image_encoder(image, image_size, width)
    text_encoder: nn.Module
    if isinstance(text, nn.Module):
        text_encoder, of_text = text, None
    elif text == "gru":
        text_encoder = GRUEncoder(len(words), word_dim=word_dim, width=text_width)
        of_text = {"name": text, "word_dim": word_dim, "text_width": text_width}
    else:
        raise ValueError(f"build_joint_embedding: text {not_known(text, ['gru'])}")
    model = JointEmbedding.of_preset(
        preset,
        encoder,
        text_encoder,
        dim,
        normalise_features=normalise_features,
        freeze=freeze,
        learned=learned,
        image_features=features,
        words=words,
    )
    model.description = {
        "model": name,
        "classes": [],
        "image_size": image_size,
        "width": width,
        "joint": model.settings() | {"features": model.project_image.in_features, "text": of_text},
    }
    return model


def save_joint_embedding(model: JointEmbedding, folder: str | os.PathLike[str]) -> None:
    """Writes what :func:`load_joint_embedding` opens; each file is there whole or not at all."""
    save_pretrained(model, folder, described(model))


def described(model: JointEmbedding) -> dict[str, Any]:
    """What a run's ``description`` must have for its folder to be opened again."""
    nothing: dict[str, Any] = {"model": None, "classes": [], "image_size": None, "width": None}
    return nothing | {"joint": model.settings()} | model.description


def load_joint_embedding(
    folder: str | os.PathLike[str], model: JointEmbedding | None = None, *, which: str = "best"
) -> JointEmbedding:
    """The model of a folder, or of a run ("best", "last" or "ema"), in eval mode on the CPU.

    Every tensor must be there and fit. One that has a module of your own is not built by name: pass a
    fresh ``model``, which is filled.
    """
    folder = Path(folder)
    config = read_config(folder)
    if "joint" not in config:
        raise ValueError(
            f"{folder} is of another model than a joint embedding; hrrl train made it?"
        )
    alone = (folder / "model.safetensors").is_file()
    if model is None:
        model = _rebuilt(config, folder)  # a run has its words beside its config too
    if alone:
        from_pretrained(folder, model)
    else:
        load_model(folder, model, which=which)
    return model


def _rebuilt(config: Mapping[str, Any], folder: Path) -> JointEmbedding:
    joint = dict(config["joint"])
    features, text = joint.pop("features", None), joint.pop("text", None)
    if config["model"] is None or text is None:
        raise ValueError(f"{folder} has a module of your own; pass a fresh model=")
    words = Words.load(folder / "tokenizer.json")
    encoder, _ = _image_encoder(config["model"], config["image_size"], config["width"])
    text_encoder = GRUEncoder(len(words), word_dim=text["word_dim"], width=text["text_width"])
    return JointEmbedding(
        encoder,
        text_encoder,
        **joint,
        image_features=features,
        words=words,
        description=config,
    )


def _image_encoder(
    image: str | nn.Module, image_size: int | None, width: int
) -> tuple[nn.Module, str | None]:
    """And its name, None of a module of one's own."""
    if isinstance(image, nn.Module):
        return image, None
    if image == FEATURES:
        return nn.Identity(), image
    if image_size is None:
        raise ValueError(f"build_joint_embedding: image={image!r} needs image_size=...")
    network = build_model(image, num_classes=1, image_size=image_size, width=width)
    return without_classifier(network), image
