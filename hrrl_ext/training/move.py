"""From a loss to new weights."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from inspect import signature
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.parallel import DistributedDataParallel
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from ..processes import Processes
from .config import TrainingConfig
from .optimizers import build_optimizer

Losses: TypeAlias = Callable[..., tuple[Tensor, Tensor]]
"""losses(model, *part) → loss [], a mean over the part's examples that is differentiated, and any other
mean over them, which is not"""

_DTYPE = {"bf16": torch.bfloat16, "fp16": torch.float16}


class Move:
    """Moves the weights of a model down a loss; the same step for any number of parts and processes.

    ::

        mean = move(losses, *batch)

    calls ``losses(model, *part)`` for the parts that the batch is taken in (``accumulate``), with the
    model that averages gradients over the processes, under autocast; then takes one step of the
    optimiser on the loss of the whole batch. Returns the other mean, of the whole batch, the same in all
    processes. Never waits for the device.
    """

    def __init__(
        self, model: nn.Module, config: TrainingConfig, processes: Processes, device: torch.device
    ) -> None:
        self.model, self.config = model, config
        self.processes, self.device = processes, device
        self.optimizer = build_optimizer(model, config)
        self.least = 2 if learns_of_batches(model) else 1
        """Examples that a part of a batch has at least, where the batch has as many."""
        self.scaler = torch.amp.GradScaler(device.type, enabled=config.precision == "fp16")
        self.examples: int | None = None
        """Of the whole batch, over all processes; None: this process has all of it."""
        self.average: AveragedModel | None = None
        if config.ema is not None:  # of running statistics as well
            decay = get_ema_multi_avg_fn(config.ema)
            self.average = AveragedModel(model, multi_avg_fn=decay, use_buffers=True)
        self._averaging = _Averaging(model, processes)
        if processes.size > 1:
            # Dropout draws its own masks, in a loop of one's own as well (Loop has a state for it).
            torch.manual_seed(config.seed + processes.rank)

    @property
    def evaluated(self) -> nn.Module:
        """The model that is measured: the average, where there is one."""
        return self.model if self.average is None else self.average.module

    def set_lr(self, lr: float) -> None:
        for group in self.optimizer.param_groups:
            group["lr"] = lr

    def of(self, examples: int) -> Move:
        """This for a batch of so many examples, of which this process has a part."""
        move = copy.copy(self)
        move.examples = examples
        return move

    def __call__(self, losses: Losses, *batch: Tensor) -> Tensor:
        examples = len(batch[0]) if self.examples is None else self.examples
        self.optimizer.zero_grad(set_to_none=True)
        means = []
        model = self._averaging.model
        for part, last in self._parts(batch):
            weight = len(part[0]) / examples
            with nullcontext() if last else _kept_gradients(model):
                with self.autocast():
                    loss, mean = losses(model, *map(self._laid_out, part))
                self.scaler.scale(loss * (weight * self.processes.size)).backward()
            means.append(mean * weight)
        self._averaging.after_backward()
        self.processes.agree(self.model.buffers())  # of its own part of the batch until here
        self._step()
        return self.processes.sum(sum(means[1:], means[0]))

    def _parts(self, batch: tuple[Tensor, ...]) -> Iterator[tuple[tuple[Tensor, ...], bool]]:
        """The batch in ``accumulate`` parts (fewer, if they had fewer than ``least`` examples), and
        whether each is the last.

        As many in every process, whose shares differ by one: layers that ask the others (SyncBatchNorm)
        wait for each of them.
        """
        share = len(batch[0]) if self.examples is None else self.examples // self.processes.size
        count = max(1, min(self.config.accumulate, share // self.least))
        for number, part in enumerate(zip(*(t.tensor_split(count) for t in batch), strict=True), 1):
            yield part, number == count

    def _step(self) -> None:
        if self.config.clip_norm is not None:
            self.scaler.unscale_(self.optimizer)
            nn.utils.clip_grad_norm_(self.model.parameters(), self.config.clip_norm)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        if self.average is not None:
            self.average.update_parameters(self.model)

    def autocast(self) -> AbstractContextManager[None]:
        """The precision of forward passes."""
        half = _DTYPE.get(self.config.precision)
        return torch.autocast(self.device.type, dtype=half, enabled=half is not None)

    def _laid_out(self, t: Tensor) -> Tensor:
        if self.config.channels_last and t.ndim == 4:
            return t.contiguous(memory_format=torch.channels_last)
        return t


_OF_DDP = signature(DistributedDataParallel).parameters
_NO_BUFFERS: dict[str, Any] = {
    "forward_sync_buffers" if "forward_sync_buffers" in _OF_DDP else "broadcast_buffers": False
}
"""Passes of DistributedDataParallel send none, as Move does, once a step; torch 2.13 has another name."""


class _Averaging:
    """The mean of gradients over the processes, by DistributedDataParallel from the second step on.

    That one stops at parameters without a part in the loss, such as those of auxiliary classifiers, whose
    logits a network returns in train mode. Which these are the first step shows, the only one that waits
    for the device; they have no gradient on one process either, and are kept from it.
    """

    def __init__(self, model: nn.Module, processes: Processes) -> None:
        self._bare, self._processes = model, processes
        self.model = model
        """what a step calls"""
        self._unused: dict[str, nn.Parameter] = {}
        processes.agree(t.detach() for t in (*model.parameters(), *model.buffers()))

    def after_backward(self) -> None:
        if self._processes.size == 1:
            return
        if self.model is not self._bare:
            self._require_unused()
            return
        trained = {name: p for name, p in self._bare.named_parameters() if p.requires_grad}
        device = next(iter(trained.values())).device
        used = torch.tensor([p.grad is not None for p in trained.values()], device=device)
        used = self._processes.sum(used.float()) > 0
        for (name, p), is_used in zip(trained.items(), used.tolist(), strict=True):
            if not is_used:
                self._unused[name] = p
                continue
            p.grad = torch.zeros_like(p) if p.grad is None else p.grad
            share = (p.grad / self._processes.size).contiguous()  # which a sum takes alone
            p.grad.copy_(self._processes.sum(share))
        for p in self._unused.values():
            p.requires_grad_(False)
        self.model = DistributedDataParallel(self._bare, **_NO_BUFFERS)
        for p in self._unused.values():
            p.requires_grad_()

    def _require_unused(self) -> None:
        """Each process would move them by its own gradient."""
        for name, p in self._unused.items():
            if p.grad is not None:
                raise ValueError(
                    f"model: {name} had no part in the first step's loss and has one now, and several "
                    "processes average the gradients of what had; give every parameter that is to train "
                    "a part from the first step on, times 0 if need be, or train on one process"
                )


def _kept_gradients(model: nn.Module) -> AbstractContextManager[None]:
    """Within, backward adds to the gradients of this process and sends none."""
    if isinstance(model, DistributedDataParallel):
        return model.no_sync()
    return nullcontext()


def learns_of_batches(model: nn.Module) -> list[str]:
    """Names of the layers that normalise by the examples that they are given together, so in training
    need two of them: batch normalisation that is not frozen, and does not ask other processes."""

    def learns(layer: nn.Module) -> bool:
        parameters = list(layer.parameters())
        return any(p.requires_grad for p in parameters) if parameters else layer.training

    return [
        name
        for name, layer in model.named_modules()
        if isinstance(layer, _BatchNorm)
        and not isinstance(layer, nn.SyncBatchNorm)
        and learns(layer)
    ]


def require_pairs(
    model: nn.Module, sizes: Sequence[int], config: TrainingConfig, processes: Processes
) -> None:
    """ValueError where batch normalisation would see a single example: before the first step."""
    layers, smallest = learns_of_batches(model), min(sizes, default=0) // processes.size
    asked = config.batch_size // (processes.size * config.accumulate)
    if not layers or (smallest > 1 and asked > 1):
        return
    parts = config.accumulate * processes.size
    of = f"a batch of {min(min(sizes), config.batch_size)}"
    raise ValueError(
        f"batch_size: {of if parts == 1 else f'{of} in {parts} parts (accumulate, processes)'} leaves "
        f"batch normalisation ({layers[0]!r}, {len(layers)} in all) a single example, of which there is "
        "no statistic; give two or more to every part, or a model whose batch normalisation is frozen"
    )
