"""What the pages show runs: every block of Python and of commands, or the page says why not.

A page is run section by section (##), each in a folder of its own; the blocks of a section share
their names, as they do for a reader. Comments in the page, which are not rendered, say the rest:

    <!-- not run: why -->         the next block is not run
    <!-- file: name -->           the next block, of whatever kind, is a file that a later one reads
    <!-- setup                    Python that makes what a reader has, such as a folder of images
    ... -->

Runs are kept short: epochs become 1, widths 4.
"""

from __future__ import annotations

import importlib
import inspect
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import served
import torch

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
BLOCK = re.compile(
    r"<!-- setup\n(?P<setup>.*?)-->"
    r"|(?:<!-- (?P<mark>not run|file|example): ?(?P<note>.*?) -->\n)?"
    r"^```(?P<kind>[\w{}-]*)\n(?P<text>.*?)^```$",
    re.DOTALL | re.MULTILINE,
)


class Block(NamedTuple):
    kind: str  # setup, file, python or sh
    text: str
    name: str = ""


def sections(page: Path) -> dict[str, list[Block]]:
    """What is to be run, by section; sections that have nothing are left out."""
    found: dict[str, list[Block]] = {}
    parts = re.split(r"^## (.*)$", page.read_text(encoding="utf-8"), flags=re.MULTILINE)
    for title, text in zip(["", *parts[1::2]], parts[::2], strict=True):
        blocks = []
        for match in BLOCK.finditer(text):
            if match["setup"]:
                blocks.append(Block("setup", match["setup"]))
            elif match["mark"] == "not run":
                assert len(match["note"]) > 10, f"{page.name}: 'not run' needs a reason"
            elif match["mark"] == "file":
                blocks.append(Block("file", match["text"], match["note"]))
            elif match["kind"] in ("python", "sh"):
                blocks.append(Block(match["kind"], match["text"]))
        if any(block.kind in ("python", "sh") for block in blocks):
            found[title] = blocks
    return found


SECTIONS = [
    pytest.param(blocks, id=f"{page.name}: {title}")
    for page in PAGES
    if page.name != "README.md"  # tests/test_readme.py compares what its example prints
    for title, blocks in sections(page).items()
]


def short(text: str) -> str:
    text = re.sub(r"(\bepochs[ =:]+)\d+", r"\g<1>1", text)
    return re.sub(r"(\bwidth[ =:]+)\d+", r"\g<1>4", text)


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    with served.program(tmp_path_factory.mktemp("program")) as folder:
        yield folder


@pytest.mark.slow
@pytest.mark.parametrize("blocks", SECTIONS)
def test_a_section_runs(
    blocks: list[Block], program: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {"__name__": "__main__"}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        for block in blocks:
            if block.kind == "file":
                Path(block.name).write_text(short(block.text), encoding="utf-8")
            elif block.kind == "sh":
                run(short(block.text), program)
            else:
                exec(compile(short(block.text), "<page>", "exec"), names)


def run(commands: str, *first: Path) -> None:
    """In a shell that stops at the first failure, with the programs of this Python, or ``first``, first."""
    environment = os.environ | {
        "PATH": os.pathsep.join(
            [*map(str, first), str(Path(sys.executable).parent), os.environ["PATH"]]
        ),
        "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]),
        "OMP_NUM_THREADS": "1",
    }
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", commands], env=environment, capture_output=True,
        text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, f"{commands}\n{done.stdout[-2000:]}{done.stderr[-3000:]}"


def test_blocks_are_marked_in_a_way_that_counts() -> None:
    """A misspelt mark would be text: the comment, and the block under it run or not as it may be."""
    for page in PAGES:
        for comment in re.findall(r"<!-- ?(\w+(?: \w+)?)", page.read_text(encoding="utf-8")):
            assert comment in {
                *("not run", "file", "setup", "example"),
                *("output", "table", "end"),  # of tests/test_readme.py, of examples/
            }, page.name


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.name)
def test_links_to_headings_lead_somewhere(page: Path) -> None:
    """As GitHub names headings. That the files exist is tests/test_readme.py's."""
    for target, anchor in re.findall(r"\]\(([^)#:]*)#([^)]+)\)", page.read_text(encoding="utf-8")):
        text = (page.parent / target if target else page).read_text(encoding="utf-8")
        headings = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
        slugs = {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}
        assert anchor in slugs, f"{target}#{anchor}"


# --- the tables that lead from the paper to the code

MODULES = (
    "",
    ".data",
    ".ops",
    ".robust",
    ".retrieval",
    ".training",
    ".transfer",
    ".models",
    ".processes",
)
ROWS = [
    pytest.param(page, row, id=f"{page.name}: {row.split('|')[1].strip()}")
    for page, heading in (
        (ROOT / "README.md", "## Where Algorithm 1 lives"),
        (ROOT / "docs/algorithm.md", "## From the paper to the code"),
    )
    for row in re.findall(
        r"^\|.*`.*\|$",
        page.read_text(encoding="utf-8").split(heading)[1].split("\n## ")[0],
        re.MULTILINE,
    )
]


@pytest.mark.parametrize(("page", "row"), ROWS)
def test_what_a_table_names_exists_where_it_says(page: Path, row: str) -> None:
    """Every name imports; a file that is named defines one of them, and a name has its file."""
    named = [found(name) for name in re.findall(r"`([\w.]+)`", row)]
    files = {(page.parent / link).resolve() for link in re.findall(r"\]\(([^)]+)\)", row)}
    defined = [source(thing) for thing in named]
    assert files <= set(defined), f"{files - set(defined)} defines none of what the row names"
    if page.name != "README.md":
        assert set(defined) <= files


def found(name: str) -> Any:
    """What a name of the package stands for, such as ops.perturb or Batches.epoch."""
    for module in MODULES:
        thing: Any = importlib.import_module(f"hrrl_ext{module}")
        try:
            for part in name.split("."):
                thing = getattr(thing, part)
        except AttributeError:
            continue
        return thing
    raise AssertionError(f"nothing in hrrl_ext is named {name}")


def source(thing: Any) -> Path:
    thing = inspect.unwrap(thing.fget if isinstance(thing, property) else thing)  # of no_grad
    path = inspect.getsourcefile(thing)
    assert path is not None
    return Path(path).resolve()
