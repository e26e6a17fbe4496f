"""HRRL from data to the network of the features, in one call."""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from ..clustering.discovered import DiscoveredConcepts
from ..data import Batches, Concepts, ImageSet, Source
from ..data.ids import Ids
from ..data.unreadable import OnError
from ..perturbation import FP16_LOSS_SCALE
from ..processes import start_processes
from ..training import Loop, TrainingConfig
from ..training.face import Trainer
from ..training.freezing import freeze
from ..training.loggers import Loggers, asked_for
from ..training.opening import (
    as_begun,
    begin_from,
    build_network,
    check_model,
    open_reading,
    open_run,
    place,
)
from ..training.progress import ProgressStyle
from .config import HRRLConfig, Levels, by_config, with_levels
from .objective import HRRLObjective
from .recipe import HRRL
from .sets import open_sets


class HRRLTrainer(Trainer):
    """Learns features with Hierarchically Robust Representation Learning (Algorithm 1).

    ::

        result = HRRLTrainer(data="digits", concepts="classes", tau=0.1, lam=10.0, epochs=20).fit()
        features = hrrl_ext.extract_features(result.model, other_images)

    Args:
        model: "resnet18" (3×3 stem up to 64 pixels, ImageNet's above), "convnet" (for images of a few
            pixels), or any module that maps images [B, 3, H, W] in [0, 1] to logits [B, C], trained in
            place.
        data: training images; whatever :func:`hrrl_ext.data.load_images` opens.
        concepts: which concept each example belongs to: None (the data set's own), "classes",
            "cifar100", "imagenet", "column:NAME" of a metadata CSV, a JSON or CSV file, a ConceptMap,
            or ids per example. "clusters:K", or :class:`hrrl_ext.clustering.DiscoveredConcepts`, finds
            them by clustering the examples' gradients at the start of the first epoch, or of several.
        validation: images to measure accuracy on after each epoch; a source is opened with
            split="test". Its concepts follow from its classes, or columns, by ``concepts``.
        validation_concepts: of each validation example, where ``concepts`` are of each example, or are
            found: then they are the groups that accuracy is measured of. Ids, or as text what
            ``concepts`` takes, such as a CSV file.
        out: folder of the run; None saves nothing.
        resume: continue the run in ``out`` from its last checkpoint, to the same bits as if it had
            never stopped. Without it a folder that holds a run is refused.
        init: weights that a new run on the same classes begins with, the last layer's among them
            (:func:`hrrl_ext.pretrained.load_weights`): a state dict, the folder of another run, whose
            last state is taken, or ``best`` in it; a warning names what did not match. For another task,
            :func:`hrrl_ext.finetune` draws the last layer anew.
        init_part: which of several networks in the file of ``init``, such as "encoder_k" (``part`` of
            :func:`hrrl_ext.pretrained.load_weights`).
        checkpoint_every: save every so many steps, besides at the end of each epoch.
        max_minutes: stop after so long, saved so that it can be resumed.
        root: where data sets of torchvision lie, or the images of a list, if not beside it.
        device: "auto" is CUDA where there is one.
        num_workers: processes that decode images from files.
        keep_gib: images of up to so many GiB, as uint8, are decoded once and kept: on the device
            where they fit, else in RAM; 0 keeps none. Parts of pictures (crop_of) are not kept.
        on_error: what becomes of images that cannot be read. "raise" stops at the first that is met, with
            the run saved; "skip" tries all before a run begins, leaves those out, warns, and names them
            in config.json. Where the run goes on the same are left out.
        progress: "auto" (a bar on a terminal, else a line per epoch and one every half a minute
            within a long one), "bar", "plain" or "off".
        tensorboard: short for loggers=["tensorboard"].
        loggers: what is told each epoch's numbers too: "tensorboard", "mlflow", "wandb", or any
            :class:`hrrl_ext.training.RunLogger`.
        after_step: called with the trainer and the number of steps done, after each of them and before
            a checkpoint of it, in every process; to look at the model, such as
            :class:`hrrl_ext.clustering.VarianceRecorder` does. It can also be set later, and is not
            saved; its time counts as the step's.
        penalty: called once, with the model as the run begins; makes a module that takes (model, x) and
            returns model(x) and a number [] to add to the loss of these examples, such as
            :class:`hrrl_ext.transfer.L2SP`. The module's tensors are in the checkpoints, and ``str`` of
            what made it is among the settings that a run is continued with. With
            example_level="stored" it must not depend on x, and says so: ``of_weights = True``.
        levels: "auto" sets those of tau and lam that are not given, without a search: tau="theorem2", and
            adversary="chi_square" with lam=1. The run says so in a line, and keeps them as its settings.
        model_name: what :func:`hrrl_ext.models.build_model` calls ``model``, where that is a module; then
            :func:`load_model` can build it again.
        **config: the fields of :class:`HRRLConfig` (tau, lam, s, c, ...) and of
            :class:`hrrl_ext.training.TrainingConfig` (epochs, batch_size, optimizer, lr, schedule, ...).

    Deterministic given the seed and the number of threads (on CUDA as far as cuDNN is; see
    torch.use_deterministic_algorithms). Bad arguments raise before any training; a loss that is not
    finite stops the run and leaves the last checkpoint. SIGTERM saves and exits with status 143.

    Under torchrun the processes share every batch: ``batch_size`` counts the examples of all of them,
    gradients and ĝ are those of the whole batch, and q is the same in each to the bit. Only batch
    normalisation sees its own part; its running statistics are those of the first process, which also
    writes and talks.

    This is a face: what a step computes is :class:`HRRL` (``recipe``), and what goes on around it is
    :class:`hrrl_ext.training.Loop` (``loop``).
    """

    def __init__(
        self,
        model: str | nn.Module = "resnet18",
        *,
        data: Source,
        concepts: Concepts | DiscoveredConcepts = None,
        validation: Source | None = None,
        validation_concepts: Ids | str | os.PathLike[str] | None = None,
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
        after_step: Callable[[HRRLTrainer, int], object] | None = None,
        penalty: Callable[[nn.Module], nn.Module] | None = None,
        levels: Levels = "given",
        model_name: str | None = None,
        **config: Any,
    ) -> None:
        config, levels_line = with_levels(levels, config)
        of_loop, of_method = by_config(config, "HRRLTrainer")
        training, method = TrainingConfig(**of_loop), HRRLConfig(**of_method)
        self.after_step = after_step
        processes, device_ = start_processes(device)
        loggers = asked_for(loggers, tensorboard)
        run = open_run(out, resume, loggers, processes)
        sets = open_sets(
            data,
            concepts,
            validation,
            validation_concepts,
            as_begun=lambda images: as_begun(images, run if resume else None, init),
            root=root,
            training=training,
            method=method,
            device=device_,
            processes=processes,
            num_workers=num_workers,
            keep_gib=keep_gib,
            reading=open_reading(on_error, run if resume else None, num_workers, processes),
        )
        if training.patience is not None and sets.validation is None:
            raise ValueError("patience needs validation: without, no evaluation is better or worse")
        self.model = build_network(model, sets.images, method.width, training.seed)
        begin_from(init, init_part, self.model, resume=resume)
        freeze(self.model, method.freeze)
        place(self.model, device_, processes)
        if training.channels_last:
            self.model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        check_model(self.model, sets.images)
        self.recipe = HRRL(
            self.model,
            sets,
            method,
            processes,
            loss_scale=FP16_LOSS_SCALE if training.precision == "fp16" else 1.0,
            at_once=math.ceil(training.batch_size / (processes.size * training.accumulate)),
            penalty=penalty,
            model_name=model if isinstance(model, str) else model_name,
            first_line=levels_line,
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

    def train_step(
        self,
        x: Tensor,
        target: Tensor,
        concept: Tensor,
        *more: Tensor,
        batch: int | None = None,
    ) -> Tensor:
        """One iteration of Algorithm 1, lines 9 to 11; returns ĝ [K]. Never waits for the device.

        The arguments are this process's part of a mini-batch of ``batch`` examples (all of it, if not
        given), taken in ``accumulate`` parts one after the other: what ``batches`` yields, which with
        example_level="stored" is also the number of each image, and its view, with jsd two mixtures of x,
        and with mixup the share of target and concept, and those of the other image.
        """
        needed, count = "", 2
        if self.recipe.stored is not None:
            needed = "example_level='stored' needs the numbers of the images and their views"
        elif self.recipe.config.jsd > 0:
            needed = "jsd needs two mixtures of the images"
        elif self.recipe.config.mixup > 0:
            needed, count = (
                "mixup needs the share of target and concept, and those of the other image",
                3,
            )
        if needed and len(more) != count:
            raise ValueError(
                f"train_step: {needed}, as batches yields them after concept; got {len(more)} of these "
                f"{count} tensors"
            )
        move = self.loop.move.of(len(x) if batch is None else batch)
        return self.recipe.step((x, target, concept, *more), move)

    @property
    def objective(self) -> HRRLObjective:
        return self.recipe.objective

    @property
    def optimizer(self) -> torch.optim.Optimizer:
        return self.loop.move.optimizer

    @property
    def images(self) -> ImageSet:
        return self.recipe.sets.images

    @property
    def batches(self) -> Batches:
        return self.recipe.sets.batches

    @property
    def validation(self) -> Batches | None:
        return self.recipe.sets.validation

    @property
    def concept_names(self) -> list[str]:
        return self.recipe.sets.concept_names
