"""The tables of seconds that a run of the tests ends with."""

from __future__ import annotations

from pathlib import Path

import durations
import pytest


def test_phases_add_up_to_files_and_files_to_folders() -> None:
    spent = [
        ("tests/robust/test_a.py::test_x[1::2]", 1.0),
        ("tests/robust/test_a.py::test_x[1::2]", 0.5),
        ("tests/robust/test_b.py::test_y", 2.0),
        ("tests/evaluation/attacks/test_c.py::test_z", 4.0),
        ("tests/test_d.py::test_w", 0.5),
    ]
    assert list(durations.lines(spent)) == [
        "seconds by folder, over all processes",
        "      4.0   50%  tests/evaluation",
        "      3.5   44%  tests/robust",
        "      0.5    6%  tests",
        "      8.0        together",
        "the 4 slowest files",
        "      4.0   50%  tests/evaluation/attacks/test_c.py",
        "      2.0   25%  tests/robust/test_b.py",
        "      1.5   19%  tests/robust/test_a.py",
        "      0.5    6%  tests/test_d.py",
    ]


def test_no_table_of_nothing_or_of_one_folder() -> None:
    assert list(durations.lines([])) == []
    assert list(durations.lines([("tests/ops/test_a.py::test_x", 1.0)])) == []
    instant = [("tests/ops/test_a.py::test_x", 0.0), ("tests/test_b.py::test_y", 0.0)]
    assert "      0.0    0%  tests/ops" in durations.lines(instant)


def test_only_the_slowest_files_are_listed() -> None:
    spent = [(f"tests/{'ops/' * (n % 2)}test_{n}.py::test_x", float(n)) for n in range(40)]
    listed = list(durations.lines(spent))
    after = listed[listed.index("the 15 slowest files") + 1 :]
    assert [line.split("/")[-1] for line in after] == [f"test_{n}.py" for n in range(39, 24, -1)]


def test_what_is_slow_as_a_whole_is_there(request: pytest.FixtureRequest) -> None:
    """A file of another name would be fast again, and nothing would say so."""
    tests = Path(__file__).parent
    conftest = request.config.pluginmanager.get_plugin(str(tests / "conftest.py"))
    listed = conftest.TRAINS | conftest.SLOW
    assert {name for name in listed if not (tests / name).exists()} == set()
