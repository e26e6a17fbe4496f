"""Contrastive pretraining from images to the network of the features, in one call."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import nn

from .._modes import evaluating
from ..data import Batches, ImageSet, Source, load_images
from ..data.image_sets import as_float
from ..data.sources import takes_root
from ..data.unreadable import OnError
from ..layers import find_classifiers, the_classifier
from ..processes import start_processes
from ..training import Loop
from ..training.config import parted
from ..training.face import Trainer
from ..training.loggers import Loggers, asked_for
from ..training.opening import (
    as_begun,
    as_measured,
    begin_from,
    build_network,
    check_model,
    open_reading,
    open_run,
    place,
    trial,
)
from ..training.progress import ProgressStyle
from .config import ContrastiveConfig, ContrastiveTraining, Method
from .encoder import Encoder, JigsawEncoder
from .instance import PIRL, InstDis
from .jigsaw import Jigsaw
from .moco import MoCo
from .recipe import Contrastive, Measured
from .views import TwoViews, ViewBatches, drawn_once

_RECIPES: dict[Method, type[Contrastive]] = {"moco": MoCo, "instdis": InstDis, "pirl": PIRL}


class URRLTrainer(Trainer):
    """Learns features without labels: momentum contrast (MoCo v2), InstDis or PIRL (``method``), on the
    views of URRL, or others.

    ::

        result = URRLTrainer(data="photos/", out="runs/urrl").fit()
        hrrl_ext.finetune("runs/urrl", "flowers/", method="similarity", out="runs/flowers")

    Args:
        model: "resnet18" (3×3 stem up to 64 pixels, ImageNet's above), "convnet", "torchvision:NAME",
            "timm:NAME", or any module that maps images [B, 3, H, W] in [0, 1] to logits [B, C] by a last
            linear layer, trained in place.
        data: images; whatever :func:`hrrl_ext.data.load_images` opens. Their labels train the last layer
            alone, on features that carry no gradient, and are measured by. No feature depends on them,
            but by what is of all gradients together: the norm of clip_norm, and in fp16 the steps that
            are left out as one overflows. Without labels, "files:photos/", all images are of one class,
            and loss, spread and RankMe are what is measured.
        validation: images to measure on after each epoch; a source is opened with split="test".
        views: one of :class:`ContrastiveConfig`'s by name, or an object in its place with a method
            ``two(images, index, epoch)``, such as :class:`hrrl_ext.data.Views`, whose ``str`` is then
            among the settings that a run is continued with.
        out: folder of the run; None saves nothing.
        resume: continue the run in ``out`` from its last checkpoint, to the same bits as if it had never
            stopped. Without it a folder that holds a run is refused.
        init: weights that a new run begins with (:func:`hrrl_ext.pretrained.load_weights`), MoCo's and
            others' among them, or the folder of another run, for its last state; a warning names what
            did not match.
        init_part: which of several networks in the file of ``init``, such as "encoder_k" (``part`` of
            :func:`hrrl_ext.pretrained.load_weights`).
        checkpoint_every: save every so many steps, besides at the end of each epoch.
        max_minutes: stop after so long, saved so that it can be resumed.
        root: where data sets of torchvision lie, or the images of a list, if not beside it.
        device: "auto" is CUDA where there is one.
        num_workers: processes that decode images from files.
        keep_gib: images of up to so many GiB, as uint8, are decoded once and kept, of data, of the bank
            among them and of validation each; 0 keeps none. Parts of pictures (crop_of) are not kept.
        on_error: "raise" or "skip": images that cannot be read, as for :class:`hrrl_ext.HRRLTrainer`.
        progress: "auto", "bar", "plain" or "off".
        tensorboard: short for loggers=["tensorboard"].
        loggers: what is told each epoch's numbers too: "tensorboard", "mlflow", "wandb", or any
            :class:`hrrl_ext.training.RunLogger`.
        after_step: called with the trainer and the number of steps done, after each of them and before a
            checkpoint of it, in every process.
        model_name: what :func:`hrrl_ext.models.build_model` calls ``model``, where that is a module.
        **config: the fields of :class:`ContrastiveConfig` (p, queue, temperature, ...) and of
            :class:`ContrastiveTraining` (epochs, batch_size, lr, ...).

    ``result.model``, what ``hrrl_ext.load_model(out)`` opens and ``best/`` hold the network alone, as it
    was given or built: without the heads, and the key encoder and the queue or the memory, which are in
    the checkpoints.

    Deterministic given the seed and the number of threads. A loss that is not finite stops the run and
    leaves the last checkpoint; a collapse, a loss that stands at log(K + 1), and one that falls while the
    accuracy of nearest neighbours does, are warned of. SIGTERM saves and exits with status 143.

    Under torchrun the processes share every batch: ``batch_size`` and ``norm_groups`` count those of all
    of them, keys are shuffled over all, and every process has the same queue or memory.

    This is a face: what a step computes is :class:`MoCo`, :class:`InstDis` or :class:`PIRL` (``recipe``),
    and what goes on around it is :class:`hrrl_ext.training.Loop` (``loop``).
    """

    def __init__(
        self,
        model: str | nn.Module = "resnet18",
        *,
        data: Source,
        validation: Source | None = None,
        views: str | TwoViews = ContrastiveConfig.views,
        out: str | os.PathLike[str] | None = None,
        resume: bool = False,
        init: str | os.PathLike[str] | None = None,
        init_part: str | None = None,
        checkpoint_every: int | None = None,
        max_minutes: float | None = None,
        root: str | None = None,
        device: str = "auto",
        num_workers: int = 0,
        keep_gib: float = 2.0,
        on_error: OnError = "raise",
        progress: ProgressStyle = "auto",
        tensorboard: bool = False,
        loggers: Loggers = (),
        after_step: Callable[[URRLTrainer, int], object] | None = None,
        model_name: str | None = None,
        **config: Any,
    ) -> None:
        of_loop, of_method = parted(config, ContrastiveTraining, ContrastiveConfig, "URRLTrainer")
        training = ContrastiveTraining(**of_loop)
        method, make = _with_views(views, of_method, training, saved=out is not None)
        self.after_step = after_step
        processes, device_ = start_processes(device)
        loggers = asked_for(loggers, tensorboard)
        run = open_run(out, resume, loggers, processes)
        reading = open_reading(on_error, run if resume else None, num_workers, processes)

        def open_images(source: Source, split: str, of: str) -> ImageSet:
            its_root = root if takes_root(source) else None
            images = load_images(source, split=split, image_size=method.image_size, root=its_root)
            return reading.take(images, of)[0]

        options: dict[str, Any] = {
            "seed": training.seed, "device": device_, "processes": processes,
            "num_workers": num_workers, "keep_gib": keep_gib,
        }  # fmt: skip
        images = as_begun(open_images(data, "train", "data"), run if resume else None)
        buffer, crop = training.shuffle_buffer, method.picture_crop
        batches = ViewBatches(
            images, make, training.batch_size, shuffle_buffer=buffer, crop=crop, **options
        )
        shown = None if validation is None else open_images(validation, "test", "validation")
        measured = _measured(images, shown, method, training, **options)
        network = build_network(model, images, method.width, training.seed)
        begin_from(init, init_part, network, resume=resume)
        place(network, device_, processes)
        if isinstance(make, Jigsaw):
            _check_parts(network, images, make)
        self.encoder = _encoder(network, images, method, training.seed)
        if training.channels_last:
            self.encoder.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.recipe = _RECIPES[method.method](
            self.encoder,
            batches,
            measured,
            method,
            processes,
            seed=training.seed,
            model_name=model if isinstance(model, str) else model_name,
        )
        self.loop = Loop(
            self.recipe,
            training,
            processes=processes,
            device=device_,
            run=run,
            resume=resume,
            checkpoint_every=checkpoint_every,
            max_minutes=max_minutes,
            progress=progress,
            loggers=loggers,
            after_step=self._after_step,
            freeze=method.freeze,
            keep_start=init is not None or isinstance(model, nn.Module),
        )


def _with_views(
    views: str | TwoViews, of_method: dict[str, Any], training: ContrastiveTraining, *, saved: bool
) -> tuple[ContrastiveConfig, TwoViews]:
    """The settings, and what makes the views: by its name, or the user's own."""
    if views == "own":
        raise ValueError("views='own' is an object that makes views; give it as views")
    if saved and re.search(" at 0x[0-9a-fA-F]+>", text := str(views)):
        raise ValueError(
            f"views: {text} is its text, by which a run in out knows it again, and another in every "
            "process; give it a __repr__ of its settings, as a dataclass has"
        )
    name: Any = views if isinstance(views, str) else "own"
    method, seed = ContrastiveConfig(views=name, **of_method), training.seed
    if 2 * method.norm_groups > training.batch_size:
        raise ValueError(
            f"norm_groups={method.norm_groups} leave fewer than two images of a batch of "
            f"{training.batch_size} to each, and batch normalisation needs two; lower norm_groups"
        )
    make = method.make_views(seed) if isinstance(views, str) else views
    return method, Jigsaw(make, method.jigsaw_side, seed) if method.method == "pirl" else make


def _encoder(network: nn.Module, images: ImageSet, method: ContrastiveConfig, seed: int) -> Encoder:
    """Where the network is. Of several classifiers only one could be cut off the features."""
    check_model(network, images)
    with trial(network, images, "eval") as x:
        found = find_classifiers(network, x)
    way_out = (
        "pass a module that returns those of one alone, for the other would train the features"
    )
    otherwise = "pass a module that pools before it, and ends in nn.Linear"
    classifier = the_classifier(network, found, "URRLTrainer", way_out, otherwise)
    if method.method == "pirl":
        parts = method.jigsaw_side**2
        return JigsawEncoder(network, method.dim, seed, classifier, parts=parts).to(x.device)
    layers: Literal[1, 2] = 2 if method.method == "moco" else 1
    return Encoder(network, method.dim, seed, classifier, layers=layers).to(x.device)


def _check_parts(network: nn.Module, images: ImageSet, jigsaw: Jigsaw) -> None:
    """That the network takes parts of the images as images."""
    x = as_float(images[0][0])[None]
    sides = [jigsaw.part(length) for length in x.shape[2:]]
    of = f"jigsaw_side={jigsaw.side} cuts images {list(x.shape[1:])} into parts of {sides} pixels"
    if min(sides) < 1:
        raise ValueError(f"{of}; lower jigsaw_side")
    weight = next(network.parameters())
    part = x[:, :, : sides[0], : sides[1]].to(weight.device)
    try:
        with evaluating(network):
            network(part)
    except (RuntimeError, ValueError) as error:
        raise ValueError(
            f"{of}, and {type(network).__name__} fails on these: {error}; lower jigsaw_side, raise "
            "image_size, or give a network for images of any size"
        ) from error


def _measured(
    images: ImageSet,
    validation: ImageSet | None,
    method: ContrastiveConfig,
    training: ContrastiveTraining,
    **options: Any,
) -> Measured:
    if validation is None and training.patience is not None:
        raise ValueError("patience needs validation: without, no evaluation is better or worse")

    def in_order(those: ImageSet) -> Batches:
        concept = torch.zeros_like(those.target)
        return Batches(those, concept, training.batch_size, shuffle=False, **options)

    bank = in_order(images.subset(drawn_once(len(images), method.bank, training.seed)))
    if validation is None:
        return Measured(bank, None)
    if images.num_classes < 2:
        raise ValueError(
            f"validation: it is measured by the labels of data, and {images.name} has one class alone; "
            "leave it out, and measure the features of the run by hrrl extract and hrrl probe"
        )
    return Measured(bank, in_order(as_measured(validation, images)))
