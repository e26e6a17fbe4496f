"""The site of ``make site``: all that is public is in its reference, and what its first page says exists."""

from __future__ import annotations

import importlib
import inspect
import re
import sys
from pathlib import Path

import pytest
from test_docs import MODULES

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
sys.path.insert(0, str(DOCS))

from docstrings import to_rst  # noqa: E402

PAGES = {page.stem: page.read_text(encoding="utf-8") for page in (DOCS / "api").glob("*.md")}


def test_every_room_has_a_page_of_the_reference() -> None:
    rooms = {
        ".".join(path.parent.relative_to(ROOT / "hrrl_ext").parts)
        for path in (ROOT / "hrrl_ext").rglob("__init__.py")
        if "__all__" in path.read_text(encoding="utf-8")
    }
    assert rooms - {"", "demo", "data.views"} <= set(PAGES)  # the package's names lead to its rooms
    assert {module.strip(".") for module in MODULES} - {""} <= set(PAGES) | {"processes", "spec"}


@pytest.mark.parametrize("room", sorted(PAGES))
def test_every_name_of_a_page_is_explained(room: str) -> None:
    """Sphinx would show the signature alone, and say nothing."""
    module = importlib.import_module(f"hrrl_ext.{room}")
    assert f"automodule:: {module.__name__}\n" in PAGES[room]
    listed = getattr(module, "__all__", None)
    assert (listed is not None) == ("imported-members" in PAGES[room])
    names = listed or [name for name, value in vars(module).items() if _own(name, value, module)]
    for name in names:
        value = getattr(module, name)
        if inspect.isclass(value) or inspect.isroutine(value):
            text = value.__dict__.get("__doc__") if inspect.isclass(value) else value.__doc__
            assert text and not text.startswith(f"{name}("), f"{room}.{name} has no docstring"


def _own(name: str, value: object, module: object) -> bool:
    home = getattr(value, "__module__", None)
    return not name.startswith("_") and home == getattr(module, "__name__", "")


def test_the_commands_of_the_first_page_exist(capsys: pytest.CaptureFixture[str]) -> None:
    from hrrl_ext.cli import main

    commands = re.findall(r"`hrrl (\S+)([^`]*)`", (DOCS / "index.md").read_text(encoding="utf-8"))
    assert len(commands) > 9
    for command, rest in commands:
        with pytest.raises(SystemExit):
            main([command, "--help"])
        printed = capsys.readouterr().out
        for flag in re.findall(r"--\w+", rest):
            assert re.search(rf"{flag}\b", printed), f"hrrl {command} has no {flag}"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("A sum.\n\n    Σ_i x_i", "A sum.\n\n::\n\n        Σ_i x_i\n"),
        ("As::\n\n    f(x)\n\nEnd.", "As::\n\n    f(x)\n\nEnd.\n"),
        ("|x| of coef_, *args, ``a|b_``", r"\|x\| of coef\_, \*args, ``a|b_``" + "\n"),
        ("`X` and :func:`f`", "``X`` and :func:`f`\n"),
        ("a    one\nbcd  two\n     more", "**a**\n    one\n**bcd**\n    two\n    more\n"),
        ("max_q  Σ_k q_k\nover q.", "max_q  Σ_k q_k\nover q.\n"),
        ("Any of\n- a\n- b\n  c", "Any of\n\n- a\n- b\n  c\n"),
        ("x: [N]\n    rows.\ny: [N].", "- x: [N]\n    rows.\n- y: [N].\n"),
        ("Args:\n    x: |x|\n\n    y: two", "Args:\n    x: \\|x\\|\n\n    y: two\n"),
        ("=== ===\na_  b\n=== ===", "=== ===\na_  b\n=== ===\n"),
    ],
)
def test_docstrings_become_restructured_text(text: str, expected: str) -> None:
    assert "\n".join(to_rst(text.split("\n"))) == expected
