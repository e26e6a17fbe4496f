"""A plugin for pytest: a line for every test as it ends, so that a crash costs only those after it."""

from __future__ import annotations

from typing import Any

import pytest

from .records import emit


def pytest_runtest_logstart(nodeid: str) -> None:
    emit("test", test=nodeid, outcome="begun")


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    if report.when == "call" or report.outcome != "passed":
        facts: dict[str, Any] = {"seconds": round(report.duration, 3)}
        if report.failed:
            facts["message"] = _last_line(report.longreprtext)
        emit("test", test=report.nodeid, outcome=report.outcome, **facts)


def pytest_collectreport(report: pytest.CollectReport) -> None:
    if report.failed:
        emit("test", test=report.nodeid, outcome="failed", message=_last_line(report.longreprtext))


def _last_line(text: str) -> str:
    """Of the assertion or the error, as pytest marks it."""
    marked = [line[1:].strip() for line in text.splitlines() if line.startswith("E")]
    return (marked[0] if marked else text.strip().rpartition("\n")[2])[:300]
