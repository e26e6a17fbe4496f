"""What the loop asks of a method."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Protocol

from torch import Tensor, nn

from .move import Move
from .progress import Progress

Row = Mapping[str, Any]


class Epochs(Protocol):
    """Mini-batches that depend on the epoch and their number alone, such as hrrl_ext.data.Batches."""

    @property
    def sizes(self) -> Sequence[int]:
        """Examples of each batch of an epoch, over all processes."""
        ...

    def __len__(self) -> int: ...

    def epoch(self, epoch: int, start: int = 0) -> Iterator[tuple[Tensor, ...]]:
        """The batches of an epoch from ``start`` on: tensors of this process's part of each."""
        ...


class Recipe(Protocol):
    """One method: what a step computes and what an epoch reports.

    The :class:`Loop` owns epochs, files, precision, processes, accumulation, optimiser and schedule; a
    recipe knows none of them. A class of its own derives from this one for the defaults below, and must
    have ``model``, ``batches``, :meth:`step`, :meth:`row` and :meth:`line`; examples/mixup.py is a whole
    one.
    """

    model: nn.Module
    """What is trained, on its device."""
    batches: Epochs
    part: str | None = None
    """The submodule of ``model`` that a run is for, which :meth:`description` names, ``best/`` holds and
    :func:`load_model` opens: a network without what only its training needs. None: all of it."""
    config: Any = None
    """Settings of the method: a dataclass with defaults, whose fields are among those of a run."""
    chosen: str = "accuracy"
    """Which of the measures, as high as possible, makes an evaluation the best."""
    advice: str = "Lower lr."
    """What to try when the numbers are not finite."""
    whole_batch: str | None = None
    """Why the loss cannot be taken in parts of the batch, if it cannot: accumulation is refused so."""

    def before(self, epoch: int, move: Move, progress: Progress) -> bool:
        """As an epoch begins, counted from 0; not where one is taken up within it. The model is in the
        modes that it trains in. Whether something new begins, whose first steps are to be looked at one
        by one."""
        return False

    def step(self, batch: tuple[Tensor, ...], move: Move) -> object:
        """One step of the method on this process's part of a batch, through ``move`` (:class:`Move`).
        It must not wait for the device."""
        ...

    def check(self, where: str) -> None:
        """Looks at the numbers of the last step, every few steps, and may wait for the device.
        FloatingPointError stops the run, before what is wrong is saved; ``where`` is for its message."""
        return None  # an empty body would count as abstract

    def running(self) -> str:
        """The epoch so far, in a few words."""
        return ""

    def row(self, measured: Row) -> dict[str, Any]:
        """What the epoch came to, with ``measured`` among it; the sums begin anew."""
        ...

    def line(self, row: Row) -> str:
        """A row in a few words; one of an evaluation alone has its measures only."""
        ...

    def evaluate(self, model: nn.Module) -> dict[str, Any]:
        """Measures of ``model``, that of the recipe or an average of it; the same in all processes."""
        return {}

    def results(self, last: Row, best: Row | None) -> dict[str, Any]:
        """What a run came to, for results.json."""
        return {"last": scalars(last), "best": None if best is None else scalars(best)}

    def description(self) -> dict[str, Any]:
        """What a run is of; one that is continued must have the same. For ``best/`` to be opened as a
        model there must be ``model``, ``classes``, ``image_size`` and ``width``."""
        return {}

    def state_dict(self) -> dict[str, Any]:
        """What is needed to go on, besides the model: tensors and plain values. Called in all
        processes together."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """``state`` holds what :meth:`state_dict` gave, among other things."""
        return None


def scalars(row: Row) -> dict[str, Any]:
    return {name: value for name, value in row.items() if not isinstance(value, Mapping)}


def named_step(step: int, per_epoch: int) -> str:
    """A step of the run, from 1, as messages name it."""
    epoch, number = divmod(step - 1, per_epoch)
    return f"epoch {epoch + 1}, step {number + 1}"
