import os
from collections import Counter

import durations
import pytest
import torch

# Tests run many small operators. Beside other workers of pytest-xdist each has a core to itself, and
# what it starts: threads that wait for each other on taken cores take many times as long.
BESIDE_OTHERS = "PYTEST_XDIST_WORKER" in os.environ
torch.set_num_threads(1 if BESIDE_OTHERS else min(2, torch.get_num_threads()))
if BESIDE_OTHERS:
    os.environ["OMP_NUM_THREADS"] = "1"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files with the most slow tests first: of those that come last, processes wait for one another."""
    slow = Counter(item.path for item in items if item.get_closest_marker("slow"))
    items.sort(key=lambda item: -slow[item.path])


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Beside other workers too: their reports come to the process that talks."""
    reports = [report for found in terminalreporter.stats.values() for report in found]
    spent = [(r.nodeid, r.duration) for r in reports if isinstance(r, pytest.TestReport)]
    for line in durations.lines(spent):
        terminalreporter.write_line(line)
