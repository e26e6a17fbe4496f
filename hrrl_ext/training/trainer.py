"""Algorithm 1 of HRRL from data to saved features' network."""

from __future__ import annotations

import dataclasses
import difflib
import itertools
import math
import os
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from .._modes import evaluating
from ..clustering.discovered import DiscoveredConcepts, Discovery, read_concepts
from ..data import Augmentation, Batches, Concepts, ImageSet, Source, load_images, resolve_concepts
from ..data.columns import PREFIX, column_concepts
from ..data.ids import Ids, checked_ids
from ..data.image_sets import as_float
from ..data.sources import takes_root
from ..evaluation import accuracy
from ..models import build_model
from ..ops import ConceptLoss
from ..pretrained import load_weights
from ..processes import start_processes
from ..robust import ConceptDistribution, ConceptWeights, CVaR, GroupDRO, HRRLObjective
from ..robust.concepts import effective_number
from .config import TrainingConfig
from .progress import Progress, ProgressStyle
from .report import running, summary
from .run_folder import RunFolder
from .scalars import Scalars, require_tensorboard
from .stopping import Stopping
from .tally import Tally

_CHECK_EVERY = 20  # steps between two looks at the loss, each of which waits for the device
_FIRST_STEPS = 5  # of q, each looked at: it moves most there, and a network thrown off stays so
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
            "cifar100", "imagenet", "column:NAME" of a metadata CSV, a JSON or CSV file, a ConceptMap,
            or ids per example. "clusters:K", or :class:`hrrl_ext.clustering.DiscoveredConcepts`, finds
            them by clustering the examples' gradients at the start of the first epoch, or of several.
        validation: images to measure accuracy on after each epoch; a source is opened with
            split="test". Its concepts follow from its classes, or columns, by ``concepts``.
        validation_concepts: ids per validation example, where ``concepts`` are ids per example, or are
            found: then they are the groups that accuracy is measured of.
        out: folder of the run; None saves nothing.
        resume: continue the run in ``out`` from its last checkpoint, to the same bits as if it had
            never stopped. Without it a folder that holds a run is refused.
        init: weights that a new run begins with (:func:`hrrl_ext.pretrained.load_weights`), such as a
            state dict, or ``best`` of another run; a warning names what did not match.
        checkpoint_every: save every so many steps, besides at the end of each epoch.
        root: where data sets of torchvision lie, or the images of a list, if not beside it.
        device: "auto" is CUDA where there is one.
        num_workers: processes that decode images from files.
        keep_gib: images of up to so many GiB, as uint8, are decoded once and kept: on the device
            where they fit, else in RAM; 0 keeps none.
        progress: "auto" (a bar on a terminal, else a line per epoch and one every half a minute
            within a long one), "bar", "plain" or "off".
        tensorboard: write each epoch's numbers for TensorBoard too, in ``out``/tensorboard.
        after_step: called with the trainer and the number of steps done, after each of them and before
            a checkpoint of it, in every process; to look at the model, such as
            :class:`hrrl_ext.clustering.VarianceRecorder` does. It can also be set later, and is not
            saved; its time counts as the step's.
        penalty: called once, with the model as the run begins; makes a module that takes (model, x) and
            returns model(x) and a number [] to add to the loss of these examples, such as
            :class:`hrrl_ext.transfer.L2SP`. The module's tensors are in the checkpoints, and ``str`` of
            what made it is among the settings that a run is continued with.
        model_name: what :func:`hrrl_ext.models.build_model` calls ``model``, where that is a module; then
            :func:`load_model` can build it again.
        **config: the fields of :class:`TrainingConfig`: tau, lam, s, c, epochs, batch_size, lr, ...

    Deterministic given the seed and the number of threads (on CUDA as far as cuDNN is; see
    torch.use_deterministic_algorithms). Bad arguments raise before any training; a loss that is not
    finite stops the run and leaves the last checkpoint. SIGTERM saves and exits with status 143.

    Under torchrun the processes share every batch: ``batch_size`` counts the examples of all of them,
    gradients and ĝ are those of the whole batch, and q is the same in each to the bit. Only batch
    normalisation sees its own part; its running statistics are those of the first process, which also
    writes and talks.
    """

    def __init__(
        self,
        model: str | nn.Module = "resnet18",
        *,
        data: Source,
        concepts: Concepts | DiscoveredConcepts = None,
        validation: Source | None = None,
        validation_concepts: Ids | None = None,
        out: str | os.PathLike[str] | None = None,
        resume: bool = False,
        init: str | os.PathLike[str] | None = None,
        checkpoint_every: int | None = None,
        root: str | None = None,
        device: str = "auto",
        num_workers: int = 0,
        keep_gib: float = 2.0,
        progress: ProgressStyle = "auto",
        tensorboard: bool = False,
        after_step: Callable[[HRRLTrainer, int], object] | None = None,
        penalty: Callable[[nn.Module], nn.Module] | None = None,
        model_name: str | None = None,
        **config: Any,
    ) -> None:
        self.config = _training_config(config)
        if checkpoint_every is not None and checkpoint_every < 1:
            raise ValueError(f"checkpoint_every must be at least 1 step, got {checkpoint_every}")
        self.checkpoint_every = checkpoint_every
        self.after_step = after_step
        self.processes, self.device = start_processes(device)
        self.progress: ProgressStyle = progress if self.processes.main else "off"
        self.run = None if out is None else RunFolder(out)
        if self.run is None and resume:
            raise ValueError("resume=True needs out, the folder of the run to continue")
        if tensorboard:
            if self.run is None:
                raise ValueError("tensorboard=True needs out, the folder that it writes to")
            require_tensorboard()
        self.tensorboard: Path | None = None
        if tensorboard and self.run is not None and self.processes.main:
            self.tensorboard = self.run.path / "tensorboard"
        if self.run is not None and not resume:
            self.run.require_free()
        self.processes.wait()  # before the first of them creates the folder

        self.images = self._open(data, "train", root)
        concepts = read_concepts(concepts)
        if isinstance(concepts, DiscoveredConcepts):  # until they are found there is one
            concept, self.concept_names = torch.zeros_like(self.images.target), ["cluster 0"]
            self._check_discovered(concepts)
        else:
            concept, self.concept_names = resolve_concepts(concepts, self.images)
            self._check_several()
        if len(self.images) == 0:
            raise ValueError(f"data: {self.images.name} holds no image")
        fetching = {"num_workers": num_workers, "keep_gib": keep_gib}
        self.batches = self._batches(self.images, concept, shuffle=True, **fetching)
        self.validation: Batches | None = None
        self.group_names: list[str] | None = None
        """Of validation_concepts, where the concepts are found."""
        if validation is not None:
            images = self._open(validation, "test", root)
            ids = self._validation_concept(images, concepts, validation_concepts)
            if isinstance(concepts, DiscoveredConcepts) and validation_concepts is not None:
                self.group_names = [f"group {k}" for k in range(int(ids.max()) + 1)]
            self.validation = self._batches(images, ids, shuffle=False, **fetching)

        self.model_name = model if isinstance(model, str) else model_name
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.config.seed)
            self.model = build_model(
                model,
                num_classes=self.images.num_classes,
                image_size=self.images.image_shape[-1],
                width=self.config.width,
            )
        if init is not None:
            if resume:
                raise ValueError(
                    "init begins a new run and resume continues one; give one of the two"
                )
            if not (report := load_weights(self.model, init)).complete:
                warnings.warn(f"init {os.fspath(init)}: {report}", stacklevel=2)
        self.model.to(self.device)
        if self.config.channels_last:
            self.model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self._check_model()
        self.penalty = None if penalty is None else penalty(self.model)
        self.penalty_name = None if penalty is None else str(penalty)
        self.discovery: Discovery | None = None
        if isinstance(concepts, DiscoveredConcepts):
            self.discovery = Discovery(
                concepts,
                self.model,
                batch_size=self._at_once,
                loss=self._example_loss,
            )
        self.objective = HRRLObjective(
            tau=self.config.tau,
            lam=None,
            distribution=_adversary(
                self.config, torch.bincount(concept, minlength=len(self.concept_names))
            ),
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
        # The gradient of the input is no business of the other processes: that pass takes self.model.
        self.parallel: nn.Module = self.model
        if self.processes.size > 1:
            torch.manual_seed(self.config.seed + self.processes.rank)  # dropout draws its own masks
            self.parallel = DistributedDataParallel(self.model, broadcast_buffers=False)
        self.history: list[dict[str, Any]] = []
        self.tally = self._empty_tally()
        self._warned = False
        if self.run is not None and resume:
            self.run.require_run(self._description())
            self._resume(self.run)

    # --- Algorithm 1

    def train_step(
        self, x: Tensor, target: Tensor, concept: Tensor, *, batch: int | None = None
    ) -> Tensor:
        """One iteration of Algorithm 1, lines 9 to 11; returns ĝ [K]. Never waits for the device.

        The arguments are this process's part of a mini-batch of ``batch`` examples (all of it, if not
        given), taken in ``accumulate`` parts one after the other.
        """
        batch = len(x) if batch is None else batch
        self.processes.agree(self.model.buffers())
        concept_loss = torch.zeros_like(self.objective.distribution.q)
        self.optimizer.zero_grad(set_to_none=True)
        for part, last in _parts(self.config.accumulate, x, target, concept):
            share = len(part[0]) / batch
            with nullcontext() if last else self._keep_gradients():
                out = self._losses(*part)  # at θ_t, weighted by q_t
                self.scaler.scale(out.loss * (share * self.processes.size)).backward()
            concept_loss += out.concept_loss * share
        self.processes.sum(concept_loss)  # ĝ, of the whole batch
        self.scaler.step(self.optimizer)  # θ_{t+1}, line 10, Eq. 5
        self.scaler.update()
        self.objective.update(concept_loss)  # q_{t+1}, line 11, Eq. 6: still the losses at θ_t
        return concept_loss

    def _losses(self, x: Tensor, target: Tensor, concept: Tensor) -> ConceptLoss:
        if self.config.channels_last:
            x = x.contiguous(memory_format=torch.channels_last)
        with self._autocast():
            x = self.objective.perturb(self.model, x, target)  # x̃ = x + τ ∇ℓ/‖∇ℓ‖, line 9
            if self.penalty is None:
                logits, penalty = self.parallel(x), None  # [B, C]
            else:
                logits, penalty = self.penalty(self.parallel, x)
        out: ConceptLoss = self.objective(logits, target, concept)
        self.tally.add(logits.detach(), target, out, penalty)
        return out if penalty is None else out._replace(loss=out.loss + penalty)

    def _keep_gradients(self) -> Any:
        """Within, backward adds to the gradients of this process and sends none."""
        parallel = self.parallel
        return (
            parallel.no_sync() if isinstance(parallel, DistributedDataParallel) else nullcontext()
        )

    def fit(self) -> TrainingResult:
        """Trains what is left of ``epochs`` and returns the model of the last iterate."""
        if self.run is not None and self.processes.main:
            self.run.begin(self._description(), str(self.device), self.processes.size)
        steps, done = len(self.batches), self._steps_done
        with (
            Progress(self.progress, self.config.epochs * steps, done=done) as progress,
            Stopping(self.processes) as stopping,
            Scalars(self.tensorboard, len(self.history) * steps + 1) as scalars,
        ):
            if not done and self.discovery is None:
                self._calibrate()
            for epoch in range(len(self.history), self.config.epochs):
                self.history.append(self._train_epoch(epoch, progress, stopping))
                self.tally = self._empty_tally()
                self._check_weights()  # before best/ is replaced
                self._write_epoch()
                scalars.add(self.history[-1])
                self._save()
                progress.line(summary(self.history[-1], self.config.epochs))
        if self.run is not None and self.processes.main:
            self.run.write_results(self.history, self.config.chosen)
        self.processes.settle()
        return TrainingResult(self.model, self.history, None if self.run is None else self.run.path)

    # --- one epoch

    def _train_epoch(self, epoch: int, progress: Progress, stopping: Stopping) -> dict[str, Any]:
        begun = time.perf_counter()
        new_q = epoch == 0
        if self.discovery is not None and self.discovery.due(epoch):
            new_q = True
            if self.tally.steps == 0:  # else resumed within the epoch
                self._discover(self.discovery, epoch, progress)
        lr = self.config.learning_rate(epoch)
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        self.model.train()
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
        start, first = time.perf_counter(), self.tally.steps
        for x, target, concept in self.batches.epoch(epoch, start=first):
            concept_loss = self.train_step(
                x, target, concept, batch=self.batches.sizes[self.tally.steps]
            )
            self.tally.add_step(concept_loss)
            step, last = self.tally.steps, self.tally.steps == len(self.batches)
            every = self.checkpoint_every
            due = every is not None and self._steps_done % every == 0
            look = step % _CHECK_EVERY == 0 or last or (new_q and step <= _FIRST_STEPS)
            if look:
                self._check_loss(concept_loss, epoch, step)
                self._check_distribution(self.tally.concept_loss / step, epoch, step)
                seen = sum(self.batches.sizes[first:step])
                speed = seen / (time.perf_counter() - start)
                where = f"epoch {epoch + 1}/{self.config.epochs}, step {step}/{len(self.batches)}"
                progress.step(epoch * len(self.batches) + step, where, self._running(speed))
            if self.after_step is not None:
                self.processes.agree(self.model.buffers())  # as the next step begins
                self.after_step(self, self._steps_done)
            stop = stopping.asked(look)
            if not last and (stop or due):
                self._check_loss(concept_loss, epoch, step)
                self._check_weights()
                self._save()
            if stop and not last:
                stopping.leave(self.run)
        self.processes.agree(self.model.buffers())
        speed = sum(self.batches.sizes[first:]) / (time.perf_counter() - start)
        row = self._row(epoch, lr) | {"images_per_second": speed}
        if self.device.type == "cuda":
            row["peak_memory_mib"] = torch.cuda.max_memory_allocated(self.device) / 2**20
        return row | {"seconds": time.perf_counter() - begun}

    def _running(self, images_per_second: float) -> str:
        """Waits for the device, and for the other processes: only for where the loop looks."""
        loss, correct, _ = self.tally.total(self.processes)
        steps = self.tally.steps
        seen = sum(self.batches.sizes[:steps])
        distribution = self.objective.distribution
        return running(
            loss / seen,
            correct / seen,
            _by_name(self.concept_names, self.tally.concept_loss / steps),
            _by_name(self.concept_names, distribution.q),
            distribution.effective_concepts.item(),
            images_per_second,
        )

    def _row(self, epoch: int, lr: float) -> dict[str, Any]:
        distribution, n = self.objective.distribution, len(self.images)
        loss, correct, penalty = self.tally.total(self.processes)
        row: dict[str, Any] = {
            "epoch": epoch + 1,
            "step": (epoch + 1) * len(self.batches),
            "lr": lr,
            "loss": loss / n,
            "train_accuracy": correct / n,
        }
        if self.penalty is not None:
            row["penalty"] = penalty / n
        if self.validation is not None:
            names = self.group_names or self.concept_names
            with self._autocast():
                measured = accuracy(self.model, self.validation, len(names))
            row["accuracy"] = measured.average
            row["worst_concept_accuracy"] = measured.worst_concept
            row["concept_accuracy"] = _by_name(names, measured.concept)
        if self.discovery is not None:
            row["concept_count"] = _by_name(self.concept_names, distribution.concept_count.long())
        row |= {
            "concept_loss": _by_name(
                self.concept_names, self.tally.concept_loss / len(self.batches)
            ),
            "q": _by_name(self.concept_names, distribution.q),
            "effective_concepts": distribution.effective_concepts.item(),
            "largest_weight": distribution.weight.max().item(),
            "mu": math.sqrt(self.tally.concept_square.item() / len(self.batches)),
        }
        if isinstance(distribution, ConceptDistribution) and distribution.lam is not None:
            row |= {"lam": distribution.lam, "s": distribution.s, "c": distribution.c.item()}
        return row

    def _empty_tally(self) -> Tally:
        return Tally.empty(len(self.concept_names), self.device)

    def _check_loss(self, concept_loss: Tensor, epoch: int, step: int) -> None:
        wrong = (~torch.isfinite(concept_loss)).nonzero().flatten().tolist()
        if not wrong:
            return
        names = ", ".join(self.concept_names[k] for k in wrong[:3])
        names += f" and {len(wrong) - 3} more" if len(wrong) > 3 else ""
        raise self._diverged(
            f"the loss is not finite in epoch {epoch + 1}, step {step} (concepts: {names})"
        )

    def _check_weights(self) -> None:
        """What is saved can be taken up: a finite loss may have had a gradient that was not."""
        parameters = [p.detach().isfinite().all() for p in self.model.parameters()]
        if parameters and not torch.stack(parameters).all():
            raise self._diverged(f"the weights are not finite after step {self._steps_done}")

    def _diverged(self, what: str) -> FloatingPointError:
        kept = self.run.checkpoints if self.run is not None else []
        return FloatingPointError(
            f"{what}. Lower lr or tau, or raise lam. "
            + (f"The last good state is {kept[-1]}." if kept else "Nothing has been saved yet.")
        )

    def _check_distribution(self, concept_loss: Tensor, epoch: int, step: int) -> None:
        """Warns once when q runs into a corner of the simplex, and says what lam would avoid it."""
        distribution = self.objective.distribution
        if (
            self._warned
            or not isinstance(distribution, ConceptDistribution)
            or not distribution.lam
        ):
            return
        here, there = (effective_number(q).item() for q in (distribution.q, distribution.q0))
        if here > there / 2:
            return
        self._warned = True
        k = int(distribution.q.argmax())
        advised = len(distribution.q) * concept_loss.std(correction=0).item()
        if distribution.t <= min(_FIRST_STEPS, distribution.s):
            advised /= distribution.c.item()  # these steps are c times shorter
        warnings.warn(
            f"in epoch {epoch + 1}, step {step} q has concentrated on {here:.1f} of {there:.1f} "
            f"concepts: {self.concept_names[k]!r} has q = {distribution.q[k].item():.2f}, each of its "
            f"examples counts {distribution.weight[k].item():.0f}-fold. Training can collapse. Raise "
            f"lam (now {distribution.lam:g}); the spread of the concepts' losses asks for {advised:.2g}",
            stacklevel=3,
        )

    def _calibrate(self) -> None:
        """For c="auto": c from the concept losses of a few mini-batches, at θ_t and without a step."""
        distribution = self.objective.distribution
        if self.config.c != "auto" or not isinstance(distribution, ConceptDistribution):
            return
        if distribution.lam is None:
            return
        losses = []
        with evaluating(self.model):  # leaves no trace in the running statistics
            batches = zip(self.batches.epoch(0), self.batches.sizes, strict=True)
            for (x, target, concept), size in itertools.islice(batches, _CALIBRATION_BATCHES):
                with self._autocast():
                    logits = self.model(x)
                part = self.objective(logits, target, concept).concept_loss * (len(x) / size)
                losses.append(self.processes.sum(part))
        distribution.calibrate(losses)

    # --- concepts that are found

    def _discover(self, discovery: Discovery, epoch: int, progress: Progress) -> None:
        where = f"epoch {epoch + 1}/{self.config.epochs}, clustering"
        done = epoch * len(self.batches)
        discovery.find(self.images, lambda text: progress.step(done, where, text))
        self._take_clusters(discovery)
        if self.validation is not None and self.group_names is None:
            self.validation.concept = discovery.assign(self.validation.images)
        self._calibrate()
        progress.line(discovery.summary())

    def _take_clusters(self, discovery: Discovery) -> None:
        """They are the concepts from here on, of an adversary that begins anew."""
        self.concept_names, self.batches.concept = discovery.names, discovery.concept
        count = torch.bincount(self.batches.concept)
        self.objective.distribution = _adversary(self.config, count).to(self.device)
        self.tally = self._empty_tally()

    def _example_loss(self, logits: Tensor, target: Tensor) -> Tensor:
        smoothing = self.config.label_smoothing
        return F.cross_entropy(logits, target, reduction="none", label_smoothing=smoothing)

    # --- set-up

    def _open(self, source: Source, split: str, root: str | None) -> ImageSet:
        return load_images(
            source,
            split=split,
            image_size=self.config.image_size,
            root=root if takes_root(source) else None,
        )

    def _batches(
        self, images: ImageSet, concept: Tensor, *, shuffle: bool, **fetching: Any
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
            processes=self.processes,
            **fetching,
        )

    def _validation_concept(
        self, images: ImageSet, concepts: Concepts | DiscoveredConcepts, ids: Ids | None
    ) -> Tensor:
        if images.num_classes != self.images.num_classes:
            raise ValueError(
                f"validation has {images.num_classes} classes, data has {self.images.num_classes}"
            )
        if ids is not None:
            # Groups of the validation set alone may be of any number.
            known = None if isinstance(concepts, DiscoveredConcepts) else len(self.concept_names)
            return checked_ids(ids, "validation_concepts", size=len(images), bound=known)
        if isinstance(concepts, DiscoveredConcepts):
            return torch.zeros_like(images.target)  # until they are found
        if isinstance(concepts, str) and concepts.startswith(PREFIX):
            return column_concepts(concepts, images, self.concept_names)[0]
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

    @property
    def _at_once(self) -> int:
        """Examples that a process has in one pass through the model, at most."""
        return math.ceil(self.config.batch_size / (self.processes.size * self.config.accumulate))

    def _check_several(self) -> None:
        if len(self.concept_names) == 1 and self.config.lam is not None:
            raise ValueError(
                "concepts: there is one concept only, so the concept level has nothing to weigh; "
                f"give several concepts, or lam=None (got lam={self.config.lam:g})"
            )

    def _check_discovered(self, found: DiscoveredConcepts) -> None:
        if self.config.q0 is not None:
            raise ValueError(
                "q0 has an entry per concept, and clusters have no order to give it in; leave q0 out, "
                "or give concepts that are known"
            )
        if len(self.images) < found.num_clusters:
            raise ValueError(
                f"concepts: {found} are more clusters than {self.images.name} has images, "
                f"{len(self.images)}; ask for fewer"
            )

    # --- the run's folder

    def _description(self) -> dict[str, Any]:
        return {
            "model": self.model_name,
            "image_size": self.images.image_shape[-1],
            "width": self.config.width,
            "data": self.images.name,
            "examples": len(self.images),
            "classes": list(self.images.classes),
            "concepts": (
                list(self.concept_names) if self.discovery is None else str(self.discovery.settings)
            ),
            "penalty": self.penalty_name,
            "training": asdict(self.config),
        }

    @property
    def _steps_done(self) -> int:
        return len(self.history) * len(self.batches) + self.tally.steps

    def _write_epoch(self) -> None:
        """Before the checkpoint: a run killed in between does the epoch, and this, once more."""
        if self.run is None or not self.processes.main:
            return
        chosen = self.config.chosen
        row, *before = self.history[::-1]
        if chosen in row and all(row[chosen] > old[chosen] for old in before):
            self.run.save_best(self.model, row)
        lines = [summary(row, self.config.epochs) for row in self.history]
        self.run.write_metrics(self.history, lines)

    def _save(self) -> None:
        if self.run is None:
            return
        cuda = self.device.type == "cuda"
        state = {
            "optimizer": self.optimizer.state_dict(),
            "objective": self.objective.state_dict(),
            "scaler": self.scaler.state_dict(),
            "rng": self.processes.gather(torch.get_rng_state()),
            "rng_cuda": self.processes.gather(
                torch.cuda.get_rng_state(self.device) if cuda else None
            ),
            "tally": self.processes.gather(self.tally.state_dict()),
            "history": self.history,
        }
        if self.penalty is not None:
            state["penalty"] = self.penalty.state_dict()
        if self.discovery is not None:
            state["clustering"] = self.discovery.clustering.state_dict()
            if self.validation is not None:
                state["validation_concept"] = self.validation.concept
        if self.processes.main:
            self.run.save(self._steps_done, self.model, state)
        self.processes.wait()

    def _resume(self, run: RunFolder) -> None:
        if not run.checkpoints:
            return  # stopped before its first: nothing to take up
        state, rank = run.load(self.model), self.processes.rank
        if len(state["rng"]) != self.processes.size:
            raise ValueError(
                f"resume: {run.path} is a run of {len(state['rng'])} processes, got "
                f"{self.processes.size}; a run is continued as it was begun"
            )
        self.optimizer.load_state_dict(state["optimizer"])
        if self.penalty is not None:
            self.penalty.load_state_dict(state["penalty"])
        if self.discovery is not None:
            self.discovery.clustering.load_state_dict(state["clustering"])
            self._take_clusters(self.discovery)
            if self.validation is not None:
                self.validation.concept = state["validation_concept"]
        self.objective.load_state_dict(state["objective"])
        self.scaler.load_state_dict(state["scaler"])
        torch.set_rng_state(state["rng"][rank])
        if state["rng_cuda"][rank] is not None:
            torch.cuda.set_rng_state(state["rng_cuda"][rank], self.device)
        self.tally.load_state_dict(state["tally"][rank])
        self.history = state["history"]


def _by_name(names: Sequence[str], values: Tensor) -> dict[str, float | None]:
    """NaN (a concept without a validation example) is None, which JSON knows."""
    numbers = (None if math.isnan(value) else value for value in values.tolist())
    return dict(zip(names, numbers, strict=True))


def _parts(count: int, *batch: Tensor) -> Iterator[tuple[tuple[Tensor, ...], bool]]:
    """A batch in so many parts (fewer, if it has fewer examples), and whether each is the last."""
    count = min(count, len(batch[0]))
    for number, part in enumerate(zip(*(t.tensor_split(count) for t in batch), strict=True), 1):
        yield part, number == count


def _adversary(config: TrainingConfig, count: Tensor) -> ConceptWeights:
    match config.adversary:
        case "group_dro":
            return GroupDRO(count, eta_q=config.eta_q, q0=config.q0)
        case "cvar":
            return CVaR(count, alpha=config.alpha)
    return ConceptDistribution(count, lam=config.lam, s=config.s, c=config.c, q0=config.q0)


def _training_config(config: dict[str, Any]) -> TrainingConfig:
    known = [field.name for field in dataclasses.fields(TrainingConfig)]
    for name in config:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            hint = f"; did you mean {near[0]}?" if near else f"; known are {', '.join(known)}"
            raise TypeError(f"HRRLTrainer has no argument {name!r}{hint}")
    return TrainingConfig(**config)
