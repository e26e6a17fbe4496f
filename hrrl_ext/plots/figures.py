"""What all pictures are made with: panels, lines over epochs, and names that are shown as they are."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from .._tables import one_line

History = Sequence[Mapping[str, Any]]

_COLOURS = 10  # of matplotlib's own cycle, C0 to C9
_DASHES = ("-", "-.", ":", (0, (6, 2)), (0, (6, 1, 1, 1, 1, 1)), (0, (1, 4)))
_ACROSS = 4  # panels beside each other, where nothing else is said
_LETTERS = 48  # of a name


def shown(name: object) -> str:
    r"""A name of a run, a concept or an estimator as matplotlib is to be given it.

    It would take what stands between two $ for a formula, and leave a line whose name begins with _ out
    of a legend. A name that is too long for its place is cut.
    """
    text = one_line(str(name))
    text = text if len(text) <= _LETTERS else f"{text[: _LETTERS - 1]}…"
    return (" " if text.startswith("_") else "") + text.replace("$", r"\$")


def of_run(number: int) -> dict[str, Any]:
    """Colour and dashes of a line: of 60 runs in one picture no two look alike."""
    dashes = _DASHES[number // _COLOURS % len(_DASHES)]
    return {"color": f"C{number % _COLOURS}", "linestyle": dashes}


def panels_of(
    count: int, width: float = 5.0, *, sharey: bool = True, across: int = _ACROSS
) -> tuple[Any, list[Any]]:
    """A figure and its ``count`` axes, at most ``across`` beside each other."""
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError("plots need matplotlib: pip install 'hrrl_ext[plots]'") from error
    columns = min(count, across)
    rows = -(-count // columns)
    figure = Figure(figsize=(width * columns, 3.6 * rows), layout="constrained")
    FigureCanvasAgg(figure)  # no window, no global state
    panels = list(figure.subplots(rows, columns, squeeze=False, sharey=sharey).flat)
    for spare in panels[count:]:
        spare.remove()
    return figure, panels[:count]


def save(figure: Any, path: Path) -> Path:
    try:
        figure.savefig(path, dpi=120)
    except OSError as error:  # Pillow's, of a full disk, does not say which file
        path.unlink(missing_ok=True)
        raise OSError(f"could not draw {path}: {error.strerror or error}") from error
    return path


def column(rows: History, name: str, scale: float = 1.0) -> list[float]:
    """Its values, ``scale`` times; NaN in a row without it."""
    values = (row.get(name) for row in rows)
    return [math.nan if value is None else scale * value for value in values]


def line_over(axes: Any, x: Sequence[float], values: Iterable[float | None], **style: Any) -> Any:
    """A line over whole numbers, with a gap where there is no value.

    A value without one beside it, which no line would reach, is a dot.
    """
    y = [math.nan if value is None else value for value in values]
    known = [False, *map(math.isfinite, y), False]
    alone = [i for i in range(len(y)) if known[i + 1] and not known[i] and not known[i + 2]]
    dots = {"marker": "o", "markevery": alone} if alone else {}
    (line,) = axes.plot(x, y, **dots, **style)
    axes.xaxis.get_major_locator().set_params(integer=True)
    return line


def over_epochs(axes: Any, rows: History, values: Iterable[float | None], **style: Any) -> Any:
    return line_over(axes, [row["epoch"] for row in rows], values, **style)
