"""The site of these pages and of every public docstring: ``make site``; a warning is an error.

Its source is the root of the repository, so that links among pages, code and README lead to the same
things on the site and beside the files.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

from docstrings import to_rst
from sphinx.application import Sphinx

import hrrl_ext

project = "hrrl_ext"
version = release = hrrl_ext.__version__
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.viewcode"]
root_doc = "docs/index"
include_patterns = [
    *("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "docs/**.md"),
    *("bench/README.md", "bench/results/*.md", "hrrl_ext/retrieval/embedded/README.md"),
]
exclude_patterns = [".venv*", "build", "runs", "tests", "csrc"]
html_theme = "furo"
html_title = f"hrrl_ext {version}"
html_show_sourcelink = html_show_copyright = False
myst_heading_anchors = 4
autodoc_default_options = {"members": True, "undoc-members": True, "show-inheritance": True}
autodoc_member_order = "bysource"
autodoc_inherit_docstrings = False
autodoc_typehints = "signature"
autodoc_typehints_format = "short"

FOLDER = re.compile(r"\[([^\]]+)\]\(([^)#:]+)\)")


def without_folders(app: Sphinx, page: str, source: list[str]) -> None:
    """A folder, which the repository shows, is no page of a site: its name stays."""
    beside = Path(app.srcdir, page).parent
    source[0] = FOLDER.sub(lambda m: m[1] if (beside / m[2]).is_dir() else m[0], source[0])


def read(app: Sphinx, what: str, name: str, value: Any, options: Any, lines: list[str]) -> None:
    if what == "attribute":  # napoleon takes what stands before a colon there for its type
        lines[0] = re.sub(r"^(\w+:) ", r"``\1`` ", lines[0])
    lines[:] = to_rst(lines)


def left_out(
    app: Sphinx, what: str, name: str, value: Any, skip: bool, options: Any
) -> bool | None:
    """What a class has of torch's or scikit-learn's is told there."""
    home = getattr(value, "__module__", None) or getattr(value, "__objclass__", None)
    return True if isinstance(home, str) and not home.startswith("hrrl_ext") else None


def setup(app: Sphinx) -> None:
    app.connect("source-read", without_folders)
    app.connect("autodoc-process-docstring", read, priority=400)
    app.connect("autodoc-skip-member", left_out)
