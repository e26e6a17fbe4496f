"""hrrl study."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path
from typing import TYPE_CHECKING

from .options import Commands, writes_folder
from .parser import CommandParser

if TYPE_CHECKING:
    from jsonargparse import Namespace

    from ..transfer.study import Study


def _study_arguments(parser: CommandParser) -> None:
    parser.add_argument("study", metavar="CONFIG", help="YAML file of the study (docs/study.md)")
    parser.add_argument("--out", required=True, help="folder of the study; what is in it goes on")
    parser.add_argument(
        "--data",
        help="folder that the files in CONFIG are relative to; that of CONFIG if not given",
    )
    parser.add_argument(
        "--only",
        default="all",
        help="levels: the search; cheap: then training, SVM and k-NN; all; page: write --page and "
        "--weights alone",
    )
    parser.add_argument(
        "--profiles", nargs="+", help="those of CONFIG to work on; all if not given"
    )
    parser.add_argument("--widths", nargs="+", type=int, help="the same of its widths")
    parser.add_argument("--seeds", nargs="+", type=int, help="the same of its seeds")
    parser.add_argument("--methods", nargs="+", help="the same of its methods; the base is in it")
    parser.add_argument("--threads", type=int, default=1, help="of this process")
    parser.add_argument(
        "--page",
        help="Markdown file to write at the end, pictures in a folder beside; of one that is there only "
        "what stands between the marks of its tables",
    )
    parser.add_argument(
        "--weights", help="folder to write the networks to at the end, each with a card"
    )


@writes_folder(lambda _: None)  # each trial is taken
def _study(args: Namespace) -> None:
    """Train with each method on each source, and say when a level pays and what it costs."""
    import torch

    from .._tables import require_places
    from ..spec import not_known
    from ..transfer.study import STAGES, Study, StudyConfig, page_tables, write_weights
    from .yaml_files import read_yaml

    if args.only not in (*STAGES, "page"):
        raise ValueError(f"only: {not_known(args.only, (*STAGES, 'page'))}")
    if args.only == "page" and args.page is None and args.weights is None:
        raise ValueError("only: page writes the page alone; say where with --page FILE")
    torch.set_num_threads(args.threads)
    file = Path(args.study)
    config = StudyConfig.read(read_yaml(file), args.data or file.parent)
    part = config.only(
        profiles=args.profiles, widths=args.widths, seeds=args.seeds, methods=args.methods
    )
    study, page = Study(part, args.out), None if args.page is None else Path(args.page)
    if page is not None and page.exists():  # before hours of work
        require_places(page, page_tables(part))
    if args.only != "page":
        study.work(args.only, report=lambda line: print(line, flush=True))
    if page is not None:
        _write_page(study, page)
        print(f"saved {args.page}")
    if args.weights is not None:
        for network in write_weights(study, Path(args.weights), file.name):
            print(f"saved {network}")


def _write_page(study: Study, page: Path) -> None:
    from ..storage import write_csv, write_text
    from ..transfer.study import study_page, study_rows
    from ..transfer.study.analysis import KEYS

    beside = page.with_suffix("")
    pictures = {}
    if importlib.util.find_spec("matplotlib"):
        from ..plots.paper import plot_paper
        from ..plots.study import plot_study

        drawn = plot_study(study, beside) | plot_paper(study, beside)
        pictures = {os.path.relpath(path, page.parent): text for path, text in drawn.items()}
    write_csv(beside / "rows.csv", (*KEYS, "value"), study_rows(study), line_end="\n")
    write_text(page, study_page(study, pictures, page))


COMMANDS: Commands = {"study": (_study_arguments, _study)}
