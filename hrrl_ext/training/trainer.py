"""Algorithm 1 of HRRL from data to saved features' network."""

from __future__ import annotations

import dataclasses
import difflib
import itertools
import json
import math
import os
import time
import warnings
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from .._modes import evaluating
from ..data import Augmentation, Batches, Concepts, ImageSet, Source, load_images, resolve_concepts
from ..data.image_sets import as_float
from ..evaluation import accuracy
from ..models import build_model
from ..ops import ConceptLoss
from ..robust import HRRLObjective
from ..robust.concepts import effective_number
from . import checkpoint
from .config import TrainingConfig
from .progress import Progress, ProgressStyle

_CHECK_EVERY = 20  # steps between two looks at the loss, each of which waits for the device
_FIRST_STEPS = 5  # of a run, each looked at: q moves most there, and a network thrown off stays so
_CALIBRATION_BATCHES = 8
_FP16_LOSS_SCALE = 1024.0  # of the input-gradient pass: keeps float16 gradients normal
_DTYPE = {"bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class TrainingResult:
    """What :meth:`HRRLTrainer.fit` returns."""

    model: nn.Module
    history: list[dict[str, Any]]
    """one row per epoch, as in metrics.jsonl"""
    out: Path | None

    @property
    def last(self) -> dict[str, Any]:
        return self.history[-1]


class HRRLTrainer:
    """Learns features with Hierarchically Robust Representation Learning (Algorithm 1).

    ::

        result = HRRLTrainer(data="digits", concepts="classes", tau=0.1, lam=10.0, epochs=20).fit()
        features = hrrl_ext.extract_features(result.model, other_images)

    Args:
        model: "resnet18" (3×3 stem up to 64 pixels, ImageNet's above), or any module that maps
            images [B, 3, H, W] in [0, 1] to logits [B, C], trained in place.
        data: training images; whatever :func:`hrrl_ext.data.load_images` opens.
        concepts: which concept each example belongs to: None (the data set's own), "classes",
            "cifar100", "imagenet", a JSON or CSV file, a ConceptMap, or ids per example.
        validation: images to measure accuracy on after each epoch; a source is opened with
            split="test". Its concepts follow from its classes by ``concepts``.
        validation_concepts: ids per validation example, where ``concepts`` are ids per example.
        out: folder of the run; None saves nothing.
        resume: continue the run in ``out`` from its last epoch, to the same bits as if it had never
            stopped. Without it a folder that holds a run is refused.
        root: where data sets of torchvision lie.
        device: "auto" is CUDA where there is one.
        num_workers: processes that decode images from files.
        progress: "auto" (a bar on a terminal, else a line per epoch), "bar", "plain" or "off".
        **config: the fields of :class:`TrainingConfig`: tau, lam, s, c, epochs, batch_size, lr, ...

    Deterministic given the seed and the number of threads (on CUDA as far as cuDNN is; see
    torch.use_deterministic_algorithms). Bad arguments raise before any training; a loss that is not
    finite stops the run and leaves the last checkpoint.
    """

    def __init__(
        self,
        model: str | nn.Module = "resnet18",
        *,
        data: Source,
        concepts: Concepts = None,
        validation: Source | None = None,
        validation_concepts: Tensor | Sequence[int] | None = None,
        out: str | os.PathLike[str] | None = None,
        resume: bool = False,
        root: str | None = None,
        device: str = "auto",
        num_workers: int = 0,
        progress: ProgressStyle = "auto",
        **config: Any,
    ) -> None:
        self.config = _training_config(config)
        self.out = None if out is None else Path(out)
        self.device = choose_device(device)
        self.progress = progress
        self._require_free(resume)

        self.images = self._open(data, "train", root)
        concept, self.concept_names = resolve_concepts(concepts, self.images)
        if len(self.images) == 0:
            raise ValueError(f"data: {self.images.name} holds no image")
        if len(self.concept_names) == 1 and self.config.lam is not None:
            raise ValueError(
                "concepts: there is one concept only, so the concept level has nothing to weigh; "
                f"give several concepts, or lam=None (got lam={self.config.lam:g})"
            )
        self.batches = self._batches(self.images, concept, shuffle=True, num_workers=num_workers)
        self.validation: Batches | None = None
        if validation is not None:
            images = self._open(validation, "test", root)
            ids = self._validation_concept(images, concepts, validation_concepts)
            self.validation = self._batches(images, ids, shuffle=False, num_workers=num_workers)

        self.model_name = model if isinstance(model, str) else None
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.config.seed)
            self.model = build_model(
                model,
                num_classes=self.images.num_classes,
                image_size=self.images.image_shape[-1],
                width=self.config.width,
            )
        self.model.to(self.device)
        if self.config.channels_last:
            self.model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self._check_model()
        self.objective = HRRLObjective(
            torch.bincount(concept, minlength=len(self.concept_names)),
            tau=self.config.tau,
            lam=self.config.lam,
            s=self.config.s,
            c=self.config.c,
            q0=self.config.q0,
            batch_norm=self.config.batch_norm,
            label_smoothing=self.config.label_smoothing,
            loss_scale=_FP16_LOSS_SCALE if self.config.precision == "fp16" else 1.0,
        ).to(self.device)
        self.optimizer = torch.optim.SGD(
            self.model.parameters(),
            lr=self.config.lr,
            momentum=self.config.momentum,
            weight_decay=self.config.weight_decay,
        )
        self.scaler = torch.amp.GradScaler(
            self.device.type, enabled=self.config.precision == "fp16"
        )
        self.history: list[dict[str, Any]] = []
        self._warned = False
        if resume:
            self._resume()

    # --- Algorithm 1

    def train_step(self, x: Tensor, target: Tensor, concept: Tensor) -> tuple[Tensor, ConceptLoss]:
        """One iteration of Algorithm 1, lines 9 to 11. Never waits for the device."""
        with self._autocast():
            x = self.objective.perturb(self.model, x, target)  # x̃ = x + τ ∇ℓ/‖∇ℓ‖, line 9
            logits = self.model(x)  # [B, C]
        out = self.objective(logits, target, concept)  # the losses at θ_t, weighted by q_t
        self.optimizer.zero_grad(set_to_none=True)
        self.scaler.scale(out.loss).backward()
        self.scaler.step(self.optimizer)  # θ_{t+1}, line 10, Eq. 5
        self.scaler.update()
        self.objective.update(out.concept_loss)  # q_{t+1}, line 11, Eq. 6: still the losses at θ_t
        return logits.detach(), out

    def fit(self) -> TrainingResult:
        """Trains what is left of ``epochs`` and returns the model of the last iterate."""
        if self.out is not None and not self.history:
            checkpoint.write_config(self.out, self._description())
        total = self.config.epochs * len(self.batches)
        with Progress(self.progress, total) as progress:
            if self.config.c == "auto" and self.config.lam is not None and not self.history:
                self._calibrate()
            for epoch in range(len(self.history), self.config.epochs):
                self.history.append(self._train_epoch(epoch, progress))
                line = _summary(self.history[-1], self.config.epochs)
                if self.out is not None:
                    checkpoint.save_checkpoint(self.out, epoch + 1, self.model, self._state())
                    checkpoint.write_metrics(self.out, self.history)
                    with (self.out / "train.log").open("a", encoding="utf-8") as log:
                        print(line, file=log)
                progress.line(line)
        return TrainingResult(self.model, self.history, self.out)

    # --- one epoch

    def _train_epoch(self, epoch: int, progress: Progress) -> dict[str, Any]:
        lr = self.config.learning_rate(epoch)
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        self.model.train()
        start = time.perf_counter()
        loss_sum = torch.zeros((), dtype=torch.float64, device=self.device)
        correct = torch.zeros((), dtype=torch.int64, device=self.device)
        concept_loss_sum = torch.zeros_like(self.objective.distribution.q)
        for step, (x, target, concept) in enumerate(self.batches.epoch(epoch), start=1):
            if self.config.channels_last:
                x = x.contiguous(memory_format=torch.channels_last)
            logits, out = self.train_step(x, target, concept)
            loss_sum += out.example_loss.double().sum()
            correct += (logits.argmax(1) == target).sum()
            concept_loss_sum += out.concept_loss
            first = epoch == 0 and step <= _FIRST_STEPS
            if first or step % _CHECK_EVERY == 0 or step == len(self.batches):
                loss = loss_sum.item() / (step * self.config.batch_size)
                self._check_loss(out, epoch, step)
                self._check_distribution(concept_loss_sum / step, epoch, step)
                text = f"epoch {epoch + 1}/{self.config.epochs}  loss {loss:.3f}"
                progress.step(epoch * len(self.batches) + step, text)
        seconds = time.perf_counter() - start
        distribution, n = self.objective.distribution, len(self.images)
        row: dict[str, Any] = {
            "epoch": epoch + 1,
            "step": (epoch + 1) * len(self.batches),
            "lr": lr,
            "loss": loss_sum.item() / n,
            "train_accuracy": correct.item() / n,
        }
        if self.validation is not None:
            with self._autocast():
                measured = accuracy(self.model, self.validation, len(self.concept_names))
            row["accuracy"] = measured.average
            row["worst_concept_accuracy"] = measured.worst_concept
            row["concept_accuracy"] = self._by_concept(measured.concept)
        row |= {
            "concept_loss": self._by_concept(concept_loss_sum / len(self.batches)),
            "q": self._by_concept(distribution.q),
            "effective_concepts": distribution.effective_concepts.item(),
            "largest_weight": distribution.weight.max().item(),
            "images_per_second": n / seconds,
            "seconds": seconds,
        }
        return row

    def _check_loss(self, out: ConceptLoss, epoch: int, step: int) -> None:
        if torch.isfinite(out.loss):
            return
        wrong = (~torch.isfinite(out.concept_loss)).nonzero().flatten().tolist()
        names = ", ".join(self.concept_names[k] for k in wrong[:3]) or "all"
        kept = checkpoint.checkpoints(self.out) if self.out else []
        raise FloatingPointError(
            f"the loss is {out.loss.item()} in epoch {epoch + 1}, step {step} (concepts: {names}). "
            "Lower lr or tau, or raise lam. "
            + (f"The last good state is {kept[-1]}." if kept else "Nothing has been saved yet.")
        )

    def _check_distribution(self, concept_loss: Tensor, epoch: int, step: int) -> None:
        """Warns once when q runs into a corner of the simplex, and says what lam would avoid it."""
        distribution = self.objective.distribution
        if self._warned or distribution.lam is None:
            return
        here, there = (effective_number(q).item() for q in (distribution.q, distribution.q0))
        if here > there / 2:
            return
        self._warned = True
        k = int(distribution.q.argmax())
        advised = len(distribution.q) * concept_loss.std(correction=0).item()
        if epoch == 0 and step <= min(_FIRST_STEPS, distribution.s):
            advised /= distribution.c.item()  # these steps are c times shorter
        warnings.warn(
            f"in epoch {epoch + 1}, step {step} q has concentrated on {here:.1f} of {there:.1f} "
            f"concepts: {self.concept_names[k]!r} has q = {distribution.q[k].item():.2f}, each of its "
            f"examples counts {distribution.weight[k].item():.0f}-fold. Training can collapse. Raise "
            f"lam (now {distribution.lam:g}); the spread of the concepts' losses asks for {advised:.2g}",
            stacklevel=3,
        )

    def _calibrate(self) -> None:
        """c from the concept losses of the first mini-batches, at θ_0 and without a step."""
        losses = []
        with evaluating(self.model):  # leaves no trace in the running statistics
            for x, target, concept in itertools.islice(self.batches.epoch(0), _CALIBRATION_BATCHES):
                with self._autocast():
                    logits = self.model(x)
                losses.append(self.objective(logits, target, concept).concept_loss)
        self.objective.distribution.calibrate(losses)

    # --- set-up

    def _open(self, source: Source, split: str, root: str | None) -> ImageSet:
        of_torchvision = isinstance(source, str) and source.startswith("torchvision:")
        return load_images(
            source,
            split=split,
            image_size=self.config.image_size,
            root=root if of_torchvision else None,
        )

    def _batches(
        self, images: ImageSet, concept: Tensor, *, shuffle: bool, num_workers: int
    ) -> Batches:
        augment = Augmentation(self.config.crop_padding, self.config.flip) if shuffle else None
        return Batches(
            images,
            concept,
            self.config.batch_size,
            shuffle=shuffle,
            seed=self.config.seed,
            augment=augment,
            device=self.device,
            num_workers=num_workers,
        )

    def _validation_concept(
        self, images: ImageSet, concepts: Concepts, ids: Tensor | Sequence[int] | None
    ) -> Tensor:
        if images.num_classes != self.images.num_classes:
            raise ValueError(
                f"validation has {images.num_classes} classes, data has {self.images.num_classes}"
            )
        if ids is not None:
            return torch.as_tensor(ids)
        class_to_concept = torch.full((self.images.num_classes,), -1)
        class_to_concept[self.images.target] = self.batches.concept
        if not torch.equal(class_to_concept[self.images.target], self.batches.concept):
            raise ValueError(
                "concepts are given per example, so those of the validation set do not follow from "
                "its classes; pass them as validation_concepts"
            )
        concept = class_to_concept[images.target]
        if (concept < 0).any():
            unknown = self.images.classes[int(images.target[concept < 0][0])]
            raise ValueError(
                f"validation has images of class {unknown!r}, of which data has none: its concept is "
                "not known; leave them out or pass validation_concepts"
            )
        return concept

    def _check_model(self) -> None:
        """One forward pass of one image, so that a misfit shows before any work."""
        x = self.images[0][0][None].to(self.device)
        with evaluating(self.model):
            logits = self.model(as_float(x))
        if logits.dim() != 2 or logits.shape[1] != self.images.num_classes:
            raise ValueError(
                f"model must give logits [B, {self.images.num_classes}], one per class of the data, "
                f"got {list(logits.shape)} for one image"
            )

    def _autocast(self) -> torch.autocast:
        half = _DTYPE.get(self.config.precision)
        return torch.autocast(self.device.type, dtype=half, enabled=half is not None)

    def _by_concept(self, values: Tensor) -> dict[str, float | None]:
        """NaN (a concept without a validation example) is None, which JSON knows."""
        numbers = (None if math.isnan(value) else value for value in values.tolist())
        return dict(zip(self.concept_names, numbers, strict=True))

    # --- the run's folder

    def _require_free(self, resume: bool) -> None:
        if self.out is None:
            if resume:
                raise ValueError("resume=True needs out, the folder of the run to continue")
        elif self.out.exists() and not self.out.is_dir():
            raise NotADirectoryError(f"out must be a folder, got the file {self.out}")
        elif checkpoint.holds_run(self.out) and not resume:
            raise FileExistsError(
                f"{self.out} already holds a run; continue it with resume=True, or choose another out"
            )
        elif resume and not checkpoint.holds_run(self.out):
            raise FileNotFoundError(f"resume: {self.out} holds no run")

    def _description(self) -> dict[str, Any]:
        return {
            "model": self.model_name,
            "image_size": self.images.image_shape[-1],
            "data": self.images.name,
            "examples": len(self.images),
            "classes": list(self.images.classes),
            "concepts": list(self.concept_names),
            "training": asdict(self.config),
        }

    def _state(self) -> dict[str, Any]:
        return {
            "optimizer": self.optimizer.state_dict(),
            "objective": self.objective.state_dict(),
            "scaler": self.scaler.state_dict(),
            "rng": torch.get_rng_state(),
            "rng_cuda": torch.cuda.get_rng_state_all() if self.device.type == "cuda" else [],
            "history": self.history,
        }

    def _resume(self) -> None:
        assert self.out is not None
        here, there = _plain(self._description()), checkpoint.read_config(self.out)
        changed = [
            *(k for k in here if k != "training" and here[k] != there.get(k)),
            *(k for k, v in here["training"].items() if v != there.get("training", {}).get(k)),
        ]
        if changed:
            raise ValueError(
                f"resume: {self.out} is a run with other settings ({', '.join(changed)} differ); "
                "a run is continued as it was begun"
            )
        if not checkpoint.checkpoints(self.out):
            return  # stopped within its first epoch: nothing to take up
        state = checkpoint.load_checkpoint(self.out, self.model)
        self.optimizer.load_state_dict(state["optimizer"])
        self.objective.load_state_dict(state["objective"])
        self.scaler.load_state_dict(state["scaler"])
        torch.set_rng_state(state["rng"])
        if state["rng_cuda"]:
            torch.cuda.set_rng_state_all(state["rng_cuda"])
        self.history = state["history"]


def _training_config(config: dict[str, Any]) -> TrainingConfig:
    known = [field.name for field in dataclasses.fields(TrainingConfig)]
    for name in config:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            hint = f"; did you mean {near[0]}?" if near else f"; known are {', '.join(known)}"
            raise TypeError(f"HRRLTrainer has no argument {name!r}{hint}")
    return TrainingConfig(**config)


def choose_device(name: str) -> torch.device:
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    device = torch.device(name)
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ValueError(f"device {name!r} was asked for, but torch sees no CUDA device; use 'cpu'")
    return device


def _plain(value: Any) -> Any:
    """As JSON would give it back."""
    return json.loads(json.dumps(value))


def _summary(row: dict[str, Any], epochs: int) -> str:
    parts = [
        f"epoch {row['epoch']}/{epochs}",
        f"loss {row['loss']:.3f}",
        f"train {100 * row['train_accuracy']:.1f} %",
    ]
    if "accuracy" in row:
        parts.append(f"accuracy {100 * row['accuracy']:.1f} %")
        parts.append(f"worst concept {100 * row['worst_concept_accuracy']:.1f} %")
    parts.append(f"effective concepts {row['effective_concepts']:.1f}")
    parts.append(f"largest weight {row['largest_weight']:.1f}")
    parts.append(f"{row['images_per_second']:.0f} img/s")
    return "  ".join(parts)
