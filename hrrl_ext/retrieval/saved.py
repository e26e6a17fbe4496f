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

from ..data.resize import ImageSize
from ..digests import check_digests
from ..models import build_model
from ..pretrained import from_pretrained, read_config, save_pretrained
from ..spec import not_known
from ..training.run_folder import load_model
from .hugging_face import HuggingFaceEncoder, TokenizerWords
from .model import JointEmbedding, without_classifier
from .presets import Preset
from .text_encoders import GRUEncoder
from .words import Vocabulary, Words

FEATURES = "features"
"""In place of a network's name: images come as features that were computed before."""
HF = "huggingface"


def build_joint_embedding(
    image: str | nn.Module,
    words: Vocabulary | None = None,
    *,
    text: str | nn.Module = "gru",
    image_size: ImageSize | None = None,
    width: int = 64,
    channels: int = 3,
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
            ``channels``, of ``width``; "features", where images come as features of width ``features``;
            or a module of your own, which a folder does not bring back: it is to be given again.
        words: of the training captions.
        text: "gru", of ``word_dim`` and ``text_width``; "huggingface:FOLDER", a trained model with a
            tokenizer.json, which takes the place of ``words``; or a module of your own.
        dim, preset, normalise_features, freeze, learned: as for `JointEmbedding`.
    """
    if isinstance(text, str):
        text, words = _text_encoder(text, words, word_dim, text_width)
    built_as: dict[str, Any] = {"model": image, "image_size": image_size, "width": width}
    built_as |= {} if channels == 3 else {"channels": channels}
    return JointEmbedding.of_preset(
        preset,
        _image_encoder(**built_as),
        text,
        dim,
        normalise_features=normalise_features,
        freeze=freeze,
        learned=learned,
        image_features=features,
        words=words,
        built_as=None if isinstance(image, nn.Module) else built_as,
    )


def save_joint_embedding(model: JointEmbedding, folder: str | os.PathLike[str]) -> None:
    """Writes what :func:`load_joint_embedding` opens; each file is there whole or not at all."""
    save_pretrained(model, folder, described(model))


def described(model: JointEmbedding) -> dict[str, Any]:
    """What the configuration of a folder must hold for :func:`load_joint_embedding` to open it."""
    image: dict[str, Any] = {"model": None, "image_size": None, "width": None}
    describe = getattr(model.text_encoder, "description", None)
    joint = model.settings() | {
        "image_features": model.project_image.in_features,
        "text": None if describe is None else describe(),
    }
    return image | model.built_as | {"classes": [], "joint": joint}


def load_joint_embedding(
    folder: str | os.PathLike[str],
    model: JointEmbedding | None = None,
    *,
    which: str | None = None,
) -> JointEmbedding:
    """The model of a folder, or of a run, in eval mode on the CPU.

    ``which`` of a run is "best", "last" or "ema"; if not given, the best, or the last of a run that was
    not evaluated; there is nothing to choose in a folder of one model. Every tensor must be there and
    fit. One that has a module of your own is not built by name: pass a fresh ``model``, which is filled.
    """
    folder = Path(folder)
    check_digests(folder)
    config = read_config(folder)
    if "joint" not in config:
        raise ValueError(
            f"{folder} holds no joint embedding; hrrl_ext.load_model opens what hrrl train made"
        )
    if model is None:
        try:
            model = _rebuilt(config, folder)
        except (
            KeyError,
            TypeError,
            AttributeError,
        ) as error:  # of settings that nobody has written
            where = folder / "config.json"
            raise ValueError(f"{where} is not as it was written: joint: {error!r}") from error
    if (folder / "model.safetensors").is_file():
        if which is not None:
            raise ValueError(
                f"which={which!r} chooses among the models of a run, and {folder} holds one model; leave "
                "it out"
            )
        from_pretrained(folder, model)
    else:
        which = which or ("best" if (folder / "best").is_dir() else "last")
        load_model(folder, model, which=which)
    return model


def load_words(path: str | os.PathLike[str]) -> Vocabulary:
    """Those of a tokenizer.json: `Words`, or what the package tokenizers makes of another one."""
    if Path(path).is_file() and not Words.wrote(path):
        return TokenizerWords(path)
    return Words.load(path)


def _rebuilt(config: Mapping[str, Any], folder: Path) -> JointEmbedding:
    joint = dict(config["joint"])
    text = joint.pop("text")
    if config["model"] is None or text is None:
        raise ValueError(f"{folder} has a module of your own; pass a fresh one as model=")
    words = load_words(folder / "tokenizer.json")
    if text.pop("name") == HF:
        encoder: nn.Module = HuggingFaceEncoder.of_config(**text)
    elif len(words) == text["words"]:
        encoder = GRUEncoder(**text)
    else:
        raise ValueError(
            f"{folder / 'tokenizer.json'} has {len(words)} words, expected {text['words']}: it is of "
            "another model"
        )
    built_as = {name: config[name] for name in ("model", "image_size", "width")}
    built_as |= {"channels": config["channels"]} if "channels" in config else {}
    image = _image_encoder(**built_as)
    return JointEmbedding(image, encoder, **joint, words=words, built_as=built_as)


def _image_encoder(
    model: str | nn.Module, image_size: ImageSize | None, width: int, channels: int = 3
) -> nn.Module:
    if isinstance(model, nn.Module):
        return model
    if model == FEATURES:
        return nn.Identity()
    if image_size is None:
        raise ValueError(f"build_joint_embedding: image={model!r} needs image_size=...")
    return without_classifier(
        build_model(model, num_classes=1, image_size=image_size, width=width, channels=channels)
    )


def _text_encoder(
    text: str, words: Vocabulary | None, word_dim: int, text_width: int
) -> tuple[nn.Module, Vocabulary]:
    kind, colon, folder = text.partition(":")
    if text == "gru":
        if words is None:
            raise ValueError('build_joint_embedding: text="gru" needs the words of the captions')
        return GRUEncoder(len(words), word_dim=word_dim, width=text_width), words
    if kind != HF or not colon:
        known = ["gru", f"{HF}:FOLDER"]
        raise ValueError(f"build_joint_embedding: text {not_known(text, known)}")
    if words is not None:
        raise ValueError(f"build_joint_embedding: {text} has words of its own; leave words out")
    encoder = HuggingFaceEncoder.from_folder(folder)
    return encoder, TokenizerWords(Path(folder) / "tokenizer.json", max_length=encoder.max_length)
