"""The training loop: epochs, files, exact resumption, signals and progress, whatever is trained."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor, nn

from .._modes import to_train
from .._state_dicts import not_finite
from ..processes import Processes, naming_the_lost
from .config import TrainingConfig
from .draws import Draws
from .freezing import freeze as freeze_layers
from .loggers import Loggers, Told, check_loggers
from .move import Move, require_pairs
from .progress import Clock, Progress, ProgressStyle
from .recipe import Recipe, Row, named_step
from .result import TrainingResult
from .run_folder import RunFolder
from .schedule import Schedule, default_milestones, in_steps, is_in_steps
from .stopping import Stopping, read_together

_LOOK_EVERY = 20  # steps between two looks at the numbers, each of which waits for the device
FIRST_STEPS = 5  # of something new, each looked at: what is thrown off there stays so


class Loop:
    """Trains ``recipe.model`` by the steps of a :class:`Recipe`.

    Args:
        config: how long, and by which optimiser.
        processes, device: of :func:`hrrl_ext.processes.start_processes`.
        run: the folder to write to; None saves nothing.
        resume: take up the run in that folder, to the same bits as if it had never stopped.
        checkpoint_every: save every so many steps, besides at the end of each epoch.
        max_minutes: stop after so long, saved so that it can be resumed.
        progress: "auto", "bar", "plain" or "off".
        loggers: what is told of each epoch: "tensorboard", "mlflow", "wandb", or a :class:`RunLogger`.
        after_step: called with the number of steps done, after each and before a checkpoint of it.
        freeze: what of the network is not trained, by names and patterns (training/freezing.py).
        keep_start: save before the first step too: for weights that a process which goes on has not.
    """

    def __init__(
        self,
        recipe: Recipe,
        config: TrainingConfig,
        *,
        processes: Processes,
        device: torch.device,
        run: RunFolder | None = None,
        resume: bool = False,
        checkpoint_every: int | None = None,
        max_minutes: float | None = None,
        progress: ProgressStyle = "auto",
        loggers: Loggers = (),
        after_step: Callable[[int], object] | None = None,
        freeze: Sequence[str] | None = None,
        keep_start: bool = False,
    ) -> None:
        for name, limit in (("checkpoint_every", checkpoint_every), ("max_minutes", max_minutes)):
            if limit is not None and not limit > 0:
                raise ValueError(f"{name} must be positive, got {limit}")
        if config.accumulate > 1 and recipe.whole_batch is not None:
            raise ValueError(f"accumulate must be 1, got {config.accumulate}: {recipe.whole_batch}")
        require_pairs(recipe.model, recipe.batches.sizes, config, processes)
        self.recipe, self.config = recipe, config
        self.processes, self.device = processes, device
        self.run, self.checkpoint_every, self.max_minutes = run, checkpoint_every, max_minutes
        self.progress: ProgressStyle = progress if processes.main else "off"
        check_loggers(loggers, None if run is None else run.path)
        self.loggers = loggers if processes.main else ()
        self.after_step = after_step
        self._held = freeze_layers(self._network(recipe.model), freeze)
        self.move = Move(recipe.model, config, processes, device)
        self.draws = Draws(config.seed + processes.rank, device)
        self.step = 0
        """Steps done, of all epochs."""
        self.history: list[dict[str, Any]] = []
        self.evaluations: list[dict[str, Any]] = []
        """Those within epochs, where evaluate_every is in steps."""
        self._begun, self._keep_start = resume, keep_start
        if run is not None:
            run.take_for(processes)
            self._resume(run) if resume else run.require_free()

    # --- from the first step to the last

    def fit(self, until: int | None = None) -> TrainingResult:
        """Trains what is left of the run, or of its first ``until`` epochs: its schedule is the same."""
        held = nullcontext() if self.run is None else self.run.held_for(self.processes)
        with naming_the_lost(self._to_go_on), held, self.draws.taken():
            return self._fit(until)

    def _fit(self, until: int | None) -> TrainingResult:
        out = None if self.run is None else self.run.path
        shown = Progress(self.progress, self.steps, done=self.step)  # which may refuse to
        if self.run is not None and self.processes.main:
            if not self._begun:
                self.run.require_free()  # of another loop, too, that was made meanwhile
            self._begun = True
            network = self._network(self.recipe.model)
            self.run.begin(self.description(), str(self.device), self.processes.size, network)
            if self.history:
                self.run.mend(self.history, list(map(self._line, self.history)))
        first = len(self.history) * self.per_epoch + 1
        with (
            shown as progress,
            Stopping(self.processes, self.max_minutes) as stopping,
            Told(self.loggers, out, first, self.description()) as told,
        ):
            if self._keep_start and self.step == 0:
                self._save()
            while not self.over and (until is None or len(self.history) < until):
                if stopping.asked(everywhere=True) or not self._epoch(progress, stopping):
                    stopping.leave(self._saved)
                    break
                self._write_epoch()
                told.log(self.history[-1])
                self._save()
                progress.line(self._line(self.history[-1]))
                if progress.failed is not None and self.run is not None:
                    self.run.note(f"standard error failed ({progress.failed}); the run goes on")
        if self.run is not None and self.processes.main and self.over:
            self.run.write_results(self._results())
        self.processes.settle()
        average = None if self.move.average is None else self._network(self.move.average.module)
        return TrainingResult(self._network(self.recipe.model), self.history, out, average)

    def _network(self, model: nn.Module) -> nn.Module:
        """What the run is for, of the recipe's model or an average of it."""
        return model if self.recipe.part is None else model.get_submodule(self.recipe.part)

    def _epoch(self, progress: Progress, stopping: Stopping) -> bool:
        """What is left of an epoch, and its row; False where it was stopped within, and saved."""
        begun, epoch = time.perf_counter(), len(self.history)
        first = self.step - epoch * self.per_epoch
        progress.epoch(f"epoch {epoch + 1}/{self.config.epochs}", self.step)
        new = epoch == 0
        to_train(self.recipe.model, self._held)
        if first == 0:
            new |= self.recipe.before(epoch, self.move, progress)
            to_train(self.recipe.model, self._held)  # where that left other modes
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
        clock = Clock(self.sizes, first)
        batches = self._saved_where_unreadable(self.recipe.batches.epoch(epoch, start=first), epoch)
        for number, batch in enumerate(batches, first + 1):
            self.move.set_lr(self.schedule(self.step))
            self.recipe.step(batch, self.move.of(self.sizes[number - 1]))
            self.step += 1
            last = number == self.per_epoch or self.step == self.steps
            look = number % _LOOK_EVERY == 0 or last or (new and number <= FIRST_STEPS)
            if look:
                self._look()
                text = f"{self.recipe.running()}  {clock.speed(number):.0f} img/s"
                where = f"epoch {epoch + 1}/{self.config.epochs}, step {number}/{self.per_epoch}"
                progress.step(self.step, where, text)
            if self.after_step is not None:
                self.after_step(self.step)
            if self._evaluated_within(epoch):
                progress.line(f"step {self.step}  {self.recipe.line(self.evaluations[-1])}")
                last |= self.over
            stop = stopping.asked(look)
            if last:
                break
            if stop or self._due:
                self._look()
                self._check_weights()
                self._save()
            if stop:
                return False
        speed = clock.speed(number)
        self.history.append(self._row(epoch) | {"images_per_second": speed})
        if self.device.type == "cuda":
            memory = torch.cuda.max_memory_allocated(self.device) / 2**20
            self.history[-1]["peak_memory_mib"] = memory
        self.history[-1]["seconds"] = time.perf_counter() - begun
        self._check_weights()  # before best/ is replaced
        return True

    def _saved_where_unreadable(
        self, batches: Iterator[tuple[Tensor, ...]], epoch: int
    ) -> Iterator[tuple[Tensor, ...]]:
        """The batches. Where one cannot be read, what was trained before it is saved."""
        try:
            yield from read_together(batches, self.processes)
        except OSError as error:
            if self.step > epoch * self.per_epoch:  # else there is a checkpoint of it, if any
                self._check_weights()
                self._save()
            if not self.processes.main:
                raise
            raise OSError(f"{error}. Repair or replace it. {self._to_go_on()}".rstrip()) from error

    @property
    def over(self) -> bool:
        """Whether the run has come to its end: its last step, or that of its patience."""
        patience = self.config.patience
        return self.step >= self.steps or (patience is not None and self._since_best >= patience)

    @property
    def steps(self) -> int:
        """Of the whole run."""
        steps = self.config.epochs * self.per_epoch
        return steps if self.config.max_steps is None else min(steps, self.config.max_steps)

    @property
    def per_epoch(self) -> int:
        return len(self.recipe.batches)

    @property
    def sizes(self) -> Sequence[int]:
        return self.recipe.batches.sizes

    @property
    def schedule(self) -> Schedule:
        config = self.config
        return Schedule(
            config.schedule,
            config.lr,
            default_milestones(config.epochs) if config.milestones is None else config.milestones,
            in_steps(config.warmup, self.per_epoch),
            self.steps,
            self.per_epoch,
        )

    # --- looks

    def _look(self) -> None:
        with self._the_last_good_state():
            self.recipe.check(named_step(self.step, self.per_epoch))

    def _check_weights(self) -> None:
        """What is saved can be taken up: a finite loss may have had a gradient that was not."""
        if (name := not_finite(self.recipe.model.state_dict())) is not None:
            where = f"after step {self.step}: {name}"
            with self._the_last_good_state():
                raise FloatingPointError(f"the weights are not finite {where}")

    @contextmanager
    def _the_last_good_state(self) -> Iterator[None]:
        """Adds to an error what to do about it."""
        try:
            yield
        except FloatingPointError as error:
            kept = None if self.run is None else self.run.last_good
            raise FloatingPointError(
                f"{error}. {self.recipe.advice} "
                + (f"The last good state is {kept}." if kept else "Nothing has been saved yet.")
            ) from None

    # --- evaluation

    def _evaluate(self) -> dict[str, Any]:
        with self.move.autocast():
            return self.recipe.evaluate(self.move.evaluated)

    def _evaluated_within(self, epoch: int) -> bool:
        """Whether an evaluation was due at this step, which is not the last."""
        every = self.config.evaluate_every
        if not is_in_steps(every) or self.step % in_steps(every, 1) or self.step == self.steps:
            return False
        if not (measured := self._evaluate()):
            return False
        self.evaluations.append({"epoch": epoch + 1, "step": self.step} | measured)
        self._check_weights()  # before best/ is replaced
        if self.run is not None and self.processes.main:
            if self._since_best == 0:
                self.run.save_best(self._network(self.move.evaluated), self.evaluations[-1])
            self.run.write_evaluations(self.evaluations)
        return True

    def _row(self, epoch: int) -> dict[str, Any]:
        every = self.config.evaluate_every
        due = self.over or not (is_in_steps(every) or (epoch + 1) % in_steps(every, 1))
        measured = self._evaluate() if due else {}
        where = {"epoch": epoch + 1, "step": self.step}
        return where | {"lr": self.schedule(self.step - 1)} | self.recipe.row(measured)

    @property
    def _measured(self) -> list[dict[str, Any]]:
        """Every evaluation so far, in order; one that ended the run stands in its row as well."""
        rows = {row["step"]: row for row in (*self.evaluations, *self.history)}
        return [row for _, row in sorted(rows.items()) if self.recipe.chosen in row]

    @property
    def _since_best(self) -> int:
        """Evaluations after the best one, the first of equal ones."""
        values = [row[self.recipe.chosen] for row in self._measured]
        return len(values) - 1 - values.index(max(values)) if values else 0

    # --- the run's folder

    def description(self) -> dict[str, Any]:
        """What the run is of, and all settings in one namespace."""
        method = {} if self.recipe.config is None else asdict(self.recipe.config)
        part = {} if self.recipe.part is None else {"part": self.recipe.part}
        return self.recipe.description() | part | {"training": method | asdict(self.config)}

    def _defaults(self) -> dict[str, Any]:
        """Of the same settings: what a run had of those that were not there when it began."""
        method = {} if self.recipe.config is None else asdict(type(self.recipe.config)())
        return asdict(type(self.config)()) | method

    def _line(self, row: Row) -> str:
        where, speed = f"epoch {row['epoch']}/{self.config.epochs}", row["images_per_second"]
        return f"{where}  {self.recipe.line(row)}  {speed:.0f} img/s"

    def _write_epoch(self) -> None:
        """Before the checkpoint: a run killed in between does the epoch, and this, once more."""
        if self.run is None or not self.processes.main:
            return
        row = self.history[-1]
        if self.recipe.chosen in row and self._since_best == 0:
            self.run.save_best(self._network(self.move.evaluated), row)
        self.run.write_metrics(self.history, list(map(self._line, self.history)))

    def _results(self) -> dict[str, Any]:
        last, measured = self.history[-1], self._measured
        best = max(measured, key=lambda row: row[self.recipe.chosen]) if measured else None
        return {
            "selected_by": None if best is None else self.recipe.chosen,
            "seconds": sum(row["seconds"] for row in self.history),
        } | self.recipe.results(last, best)

    @property
    def _due(self) -> bool:
        return self.checkpoint_every is not None and self.step % self.checkpoint_every == 0

    @property
    def _saved(self) -> str:
        if self.run is None:
            return "nothing was saved"
        return f"saved in {self.run.path}; continue it with resume"

    def _to_go_on(self) -> str:
        return f"The run is {self._saved}." if self.run and self.run.checkpoints else ""

    def _save(self) -> None:
        if self.run is None:
            return
        host, cuda = self.draws.state
        state = {
            "optimizer": self.move.optimizer.state_dict(),
            "scaler": self.move.scaler.state_dict(),
            "rng": self.processes.gather(host),
            "rng_cuda": self.processes.gather(cuda),
            "history": self.history,
        } | self.recipe.state_dict()
        if self.move.average is not None:
            state["ema"] = self.move.average.state_dict()
        if self.evaluations:
            state["evaluations"] = self.evaluations
        if self.processes.main:
            self.run.save(self.step, self.recipe.model, state)
        self.processes.wait()

    def _resume(self, run: RunFolder) -> None:
        run.require_run(self.description(), self._defaults())
        if not run.checkpoints:
            run.require_nothing_lost()
            return  # stopped before its first: nothing to take up
        self.step, state = run.load(self.recipe.model)
        self._keep_start = False
        rank = self.processes.rank
        if len(state["rng"]) != self.processes.size:
            raise ValueError(
                f"resume: {run.path} is a run of {len(state['rng'])} processes, got "
                f"{self.processes.size}; a run is continued as it was begun"
            )
        self.move.optimizer.load_state_dict(state["optimizer"])
        self.move.scaler.load_state_dict(state["scaler"])
        if self.move.average is not None:
            self.move.average.load_state_dict(state["ema"])
        self.recipe.load_state_dict(state)
        self.draws.state = state["rng"][rank], state["rng_cuda"][rank]
        self.history, self.evaluations = state["history"], state.get("evaluations", [])
