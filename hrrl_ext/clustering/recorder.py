"""How noisy the gradient is in the course of training, on record and without any trace in it."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import nn

from .._shapes import number, record, text
from .._streams import random_stream
from ..processes import current_processes
from ..storage import read_rows, write_rows
from .clusters import GradientClustering
from .estimators import MeanGradient, Snapshot
from .examples import Data, ExampleLoss, cross_entropy
from .variance import (
    ESTIMATORS,
    Form,
    VarianceTable,
    check_measurement,
    checked_estimators,
    gradient_variance,
)


class VarianceRecorder:
    """Records :func:`gradient_variance` of a model in training: every so many steps, as JSON lines.

    In any loop, called before each step with the number of steps done::

        recorder = VarianceRecorder(model, images, "runs/a/variance.jsonl")
        for step, batch in enumerate(batches):
            recorder(step)  # at θ_step
            train_step(model, batch)

    and with a trainer::

        trainer = HRRLTrainer(data=images, out="runs/a", ...)
        recorder = VarianceRecorder(trainer.model, trainer.images, "runs/a/variance.jsonl")
        trainer.after_step = lambda trainer, step: recorder(step)
        trainer.fit()

    The model is trained by whatever the loop does; all estimators are measured at the same weights.
    At a step that is a multiple of ``refresh_every``, and at the first measurement, the clusters of
    GC are made anew, by ``rounds`` rounds, and SVRG takes its snapshot (the schedule of Faghri et
    al., Table A.2, whose names are given below). Right after a refresh GC and
    SVRG are at their best; just before the next one they show what age costs.

    Training goes on as if nothing had happened: the model's parameters, buffers, gradients and modes
    are as before, no global random state is drawn from, and data comes from ``data`` itself, in
    streams of the recorder's own. A run ends with the same bits, and takes longer: a measurement is
    ``num_batches`` gradients of each estimator, a refresh ``rounds`` passes over the data and one more
    for SVRG.

    Args:
        model: the model that is trained, in place.
        data: what the gradients are of, without augmentation; see :class:`MeanGradient`.
        file: a row per estimator and measurement; see below. Recordings go on in an existing one.
        estimators: of "SG-B", "SG-2B", "SVRG" and "GC"; all of them by default.
        every: steps between two measurements ("Log T"). Multiples of it are measured, 0 included.
        refresh_every: steps between two refreshes ("U"), a multiple of ``every``.
        rounds: of clustering per refresh ("GC T").
        clustering: how to cluster; by default ``GradientClustering(model, batch_size)``, since K = B
            compares at equal cost.
        batch_size, num_batches, loss, form, seed: see :func:`gradient_variance`; num_batches is
            "Estim T". Every measurement draws anew.

    Which parameters count: those that are clustered, where GC is among the estimators, else all that
    require a gradient.

    A row: "step"; "refreshed", the step that clusters or snapshot are of (None for SG-B and SG-2B);
    "estimator", and the fields of :class:`GradientVariance`, None for what is not finite. The file is
    replaced as a whole, so that it is never found half written. In a run that was resumed, rows of the
    steps that are done once more are replaced. Clusters and snapshot are not saved: the first measurement
    after a resumption makes them anew, as "refreshed" shows.

    On several processes (torchrun) all must call it at the same steps, with the same weights and
    buffers; they share the passes, and the first writes. Deterministic where model and clustering are.

    Raises ValueError for what :func:`gradient_variance` and :class:`GradientClustering` refuse, for a
    clustering of another model, and for a file that is no recording.
    """

    def __init__(
        self,
        model: nn.Module,
        data: Data,
        file: str | os.PathLike[str],
        estimators: Sequence[str] = ESTIMATORS,
        *,
        every: int = 500,
        refresh_every: int = 2000,
        rounds: int = 3,
        clustering: GradientClustering | None = None,
        batch_size: int = 128,
        num_batches: int = 50,
        loss: ExampleLoss = cross_entropy,
        form: Form = "corrected",
        seed: int = 0,
    ) -> None:
        if every < 1 or refresh_every < 1 or refresh_every % every:
            raise ValueError(
                "refresh_every must be a multiple of every, and every at least 1, got "
                f"refresh_every={refresh_every} and every={every}"
            )
        if rounds < 1:
            raise ValueError(f"rounds must be at least 1, got {rounds}")
        check_measurement(num_batches, form)
        self.estimators = checked_estimators(estimators)
        if clustering is not None and clustering.model is not model:
            raise ValueError("clustering is of another model than the one that is recorded")
        if "GC" in self.estimators and clustering is None:
            clustering = GradientClustering(model, batch_size, seed=seed)
        self.clustering = clustering if "GC" in self.estimators else None
        names = (
            None if self.clustering is None else self.clustering.try_layers(data, loss).parameters
        )
        self.gradient = MeanGradient(model, data, loss=loss, parameters=names)
        needed = batch_size * (2 if "SG-2B" in self.estimators else 1)
        if not 1 <= needed <= self.gradient.num_examples:
            raise ValueError(
                f"batch_size={batch_size} asks for {needed} different examples of "
                f"{self.gradient.num_examples}; take a smaller one (SG-2B draws twice as many)"
            )
        self.file = Path(file)
        self.rows = read_recording(self.file) if self.file.exists() else []
        """What the file holds."""
        self.every, self.refresh_every, self.rounds = every, refresh_every, rounds
        self.batch_size, self.num_batches, self.form, self.seed = (
            batch_size, num_batches, form, seed,
        )  # fmt: skip
        self._snapshot: Snapshot | None = None
        self._refreshed: int | None = None

    def __call__(self, step: int) -> VarianceTable | None:
        """Measures if ``step``, the number of steps done, is a multiple of ``every``; else None."""
        if step % self.every:
            return None
        if self._refreshed is None or step % self.refresh_every == 0:
            self._refresh(step)
        clusters = self.clustering
        measured = gradient_variance(
            self.gradient.model,
            self.gradient.examples.data,
            self.estimators,
            assignment=None if clusters is None else clusters.assignment,
            snapshot=self._snapshot,
            batch_size=self.batch_size,
            num_batches=self.num_batches,
            loss=self.gradient.loss,
            parameters=self.gradient.parameters,
            form=self.form,
            seed=random_stream(self.seed, "recorder", step).initial_seed(),
            processes=current_processes(),
        )
        self._record(step, measured)
        return measured

    def _refresh(self, step: int) -> None:
        if self.clustering is not None:
            data, loss = self.gradient.examples.data, self.gradient.loss
            self.clustering.restart()  # so that a resumed run finds the same
            self.clustering.fit(data, loss, rounds=self.rounds)
        if "SVRG" in self.estimators:
            self._snapshot = self.gradient.snapshot(self.batch_size, processes=current_processes())
        self._refreshed = step

    def _record(self, step: int, measured: VarianceTable) -> None:
        aged = {"SVRG", "GC"}
        rows = [
            {"step": step, "refreshed": self._refreshed if row["estimator"] in aged else None} | row
            for row in measured.rows()
        ]
        # Later ones are of a run that was stopped, and taken up at an earlier step.
        self.rows = [row for row in self.rows if row["step"] < step] + rows
        if current_processes().main:
            write_rows(self.file, self.rows)


def read_recording(file: str | os.PathLike[str]) -> list[dict[str, Any]]:
    """The rows of a :class:`VarianceRecorder`. ValueError naming a bad line."""
    return read_rows(
        Path(file),
        ("step", "estimator", "average_variance"),
        of="a VarianceRecorder",
        numbers=("step", "average_variance", "normalised_variance", "standard_error"),
        shape=record(step=number, estimator=text),
    )
