"""hrrl plot, hrrl info."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .options import Commands, writes_folder
from .parser import CommandParser

if TYPE_CHECKING:
    from jsonargparse import Namespace

# --- plot


def _plot_arguments(parser: CommandParser) -> None:
    parser.add_argument(
        "runs", nargs="+", metavar="RUN", help="folder of a run, or a metrics.jsonl"
    )
    parser.add_argument("--out", required=True, help="folder for the pictures")


@writes_folder()
def _plot(args: Namespace) -> None:
    """Draw loss, q, accuracies, h(s) and recorded variances of one or several runs."""
    from ..plots import plot_runs

    for picture in plot_runs(args.runs, args.out, report=print):
        print(f"saved {picture}")


# --- info


def _info_arguments(parser: CommandParser) -> None:
    del parser  # takes none


def _info(args: Namespace) -> None:
    """Show what was built and what of it is in use."""
    del args
    from .. import __version__, build_info

    for name, value in {"hrrl_ext": __version__, **build_info()}.items():
        print(f"{name:20} {'none' if value in (None, '') else value}")


COMMANDS: Commands = {
    "plot": (_plot_arguments, _plot),
    "info": (_info_arguments, _info),
}
