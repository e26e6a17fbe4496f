"""What a model says of every example; the measures of accuracy and calibration are functions of it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from .._modes import borrowed
from .._pixels import PixelCheck
from ..data.labelled import as_input, labelled_batches
from ..layers import logits_of
from ..processes import ALONE, Processes

_CHUNK = 2**22  # logits that are widened to float64 at a time
_ROUNDING = 1e-4  # of the largest logit: what two passes of the same numbers may differ on a GPU


class Predictions(NamedTuple):
    """logits [N, C] float32 and labels [N] int64, both on the CPU, row i of one example."""

    logits: Tensor
    labels: Tensor

    @property
    def correct(self) -> Tensor:
        """[N] bool. Of equal largest logits the first class counts."""
        return self.logits.argmax(1) == self.labels

    @property
    def confidence(self) -> Tensor:
        """max_c softmax(logits)_c, [N] float64; exactly 1 where no other class is representable."""
        rows = max(1, _CHUNK // self.logits.shape[1])
        return torch.cat([z.double().softmax(1).amax(1) for z in self.logits.split(rows)])


def predict(
    model: nn.Module,
    data: Any,
    *,
    batch_size: int = 256,
    device: torch.device | str | None = None,
    processes: Processes = ALONE,
) -> Predictions:
    """The logits of every example, in the order of the data; no gradient.

    data        an image set, a tuple (images [N, 3, H, W], labels [N]) of tensors, or an iterable of
                batches (images, labels, ...), as :func:`hrrl_ext.extract_features` takes them. uint8
                images become float / 255; float images are taken as they are, in [0, 1]
    device      where the model runs; None: where its parameters are
    processes   those that take a batch in turn; each has all predictions, to the bits of one process

    The model is borrowed: eval mode, and as it was afterwards. Nothing random is drawn: the same batch
    size, device and threads give the same bits.

    Raises ValueError for empty data, for a label that the model has no logit of, for logits that are not
    [B, C] or not finite (-inf is a class that is masked, and never predicted), for images outside [0, 1]
    of a model that normalises; TypeError for other data.
    """
    check = PixelCheck(model, "predict")

    def predicted(there: torch.device, dtype: torch.dtype) -> Iterator[Predictions]:
        for row, images, target in labelled_batches(data, batch_size, "predict", processes):
            out = model(as_input(images, there, dtype, check))
            logits = checked_logits(out, target, row, "predict").to("cpu", torch.float32)
            yield Predictions(logits, target.to("cpu", torch.int64, copy=True))

    with borrowed(model, device) as where:
        parts = list(processes.in_order(predicted(*where)))
    return Predictions(*(torch.cat(part) for part in zip(*parts, strict=True)))


def checked_logits(output: Any, target: Tensor, first_row: int, where: str) -> Tensor:
    """The logits in what a model returns, if they are [B, C], finite, and have every label of ``target``
    [B] among their C."""
    logits = logits_of(output)
    if logits.ndim != 2 or len(logits) != len(target):
        raise ValueError(
            f"{where}: the model must return logits [{len(target)}, C], got {list(logits.shape)}"
        )
    low, high = int(target.min()), int(target.max())
    if low < 0 or high >= logits.shape[1]:
        raise ValueError(
            f"{where}: labels must lie in 0..{logits.shape[1] - 1}, the model's classes, got "
            f"{low}..{high}; give data of the classes that the model was trained on"
        )
    usable = usable_logits(logits)
    if not usable.all():
        bad = first_row + int(usable.logical_not().nonzero()[0])
        raise ValueError(
            f"{where}: the logits of example {bad} are not finite (NaN, infinite, or -inf for every "
            "class); check that the weights are finite and the images in [0, 1]"
        )
    return logits


def usable_logits(logits: Tensor) -> Tensor:
    """[N] bool: no NaN and no infinity, but -inf for classes that are masked, though not for all."""
    return logits.amax(1).isfinite()  # NaN passes through it


def difference(first: Tensor, second: Tensor) -> float:
    """The largest of logits [N, C] of two passes over the same images; 0 where it may be rounding."""
    apart = (first - second).abs().masked_fill(first == second, 0.0)  # also of two that are -inf
    largest = first.masked_fill(first == -torch.inf, 0.0).abs().max()
    return 0.0 if apart.max() <= _ROUNDING * largest else apart.max().item()


def are_probabilities(logits: Tensor) -> bool:
    """Whether rows [N, C] are a softmax's output rather than its input: in [0, 1], each of sum 1.

    1e-3 is what half precision leaves of a sum of 1; logits of a single class are never taken for it.
    """
    if logits.shape[1] < 2:
        return False
    near_one = (logits.double().sum(1) - 1).abs() < 1e-3
    return bool(near_one.all()) and bool(((logits >= 0) & (logits <= 1)).all())
