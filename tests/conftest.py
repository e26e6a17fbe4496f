import contextlib
import os
from collections import Counter
from pathlib import Path

import durations
import pytest
import torch

# Tests run many small operators. Beside other workers of pytest-xdist each has a core to itself, and
# what it starts: threads that wait for each other on taken cores take many times as long.
BESIDE_OTHERS = "PYTEST_XDIST_WORKER" in os.environ
torch.set_num_threads(1 if BESIDE_OTHERS else min(2, torch.get_num_threads()))
if BESIDE_OTHERS:
    os.environ["OMP_NUM_THREADS"] = "1"
# No example of hypothesis has a deadline: the disk or a core may be another's for seconds.
with contextlib.suppress(ImportError):
    from hypothesis import settings

    settings.register_profile("no deadline", deadline=None)
    settings.load_profile("no deadline")


# Files that train, compile or start programs in most of their tests: the first test of each, a look at its
# system, is among those of make test-fast, and the others are slow. The seconds that make test ends with
# say what else belongs here.
TRAINS = {
    *("clustering/test_clusters.py", "clustering/test_recorder.py"),
    *(
        "contrastive/test_instance.py",
        "contrastive/test_moco.py",
        "contrastive/test_urrl_trainer.py",
    ),
    *("cuda/test_emulated_simplex.py", "data/test_unreadable.py"),
    *("evaluation/test_commands.py", "evaluation/test_hostile_reports.py"),
    *("evaluation/test_html.py", "evaluation/test_neighbours.py"),
    *("linear/test_linear_networks.py", "linear/test_margins.py", "linear/test_max_margin.py"),
    *("linear/test_steepest.py", "ops/test_properties.py"),
    *("retrieval/test_exported.py", "retrieval/test_pair_queue.py", "retrieval/test_players.py"),
    *("retrieval/test_retrieval_training.py", "retrieval/test_train_command.py"),
    *("robust/test_chi_square.py", "robust/test_consistency.py", "robust/test_levels.py"),
    *("robust/test_mixup.py", "robust/test_stored.py", "robust/test_trained_baselines.py"),
    *("test_channels.py", "test_cli.py", "test_cli_loop.py", "test_cli_transfer.py"),
    *("test_device_check.py", "test_hidden_groups.py", "test_image_sizes.py"),
    *("test_known_classes.py", "test_outputs.py", "test_plots.py", "test_target_packages.py"),
    *("training/test_discovered.py", "training/test_freezing.py", "training/test_trackers.py"),
    *("training/test_no_waiting.py", "training/test_resume.py"),
    *("training/test_trainer.py", "transfer/test_finetuning.py", "transfer/test_study.py"),
    *("transfer/test_sgd_probe.py", "transfer/test_tuning.py"),
}
# Of which not even that is: every kernel is compiled, and a demo is a training of its own.
SLOW = {
    *("cuda", "hostile", "test_contrastive_evidence.py", "test_full_disk.py", "test_locks.py"),
    *("test_retrieval_demo.py", "test_retrieval_evidence.py", "training/test_scalars.py"),
}


@pytest.hookimpl(tryfirst=True)  # before tests are chosen by their marks
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files with the most slow tests first: of those that come last, processes wait for one another."""
    seen = set()
    for item in items:
        name = item.path.relative_to(Path(__file__).parent).as_posix()
        looked_at = name in TRAINS and name not in seen
        if not looked_at and not SLOW.union(TRAINS).isdisjoint({name, name.partition("/")[0]}):
            item.add_marker(pytest.mark.slow)
        seen.add(name)
    slow = Counter(item.path for item in items if item.get_closest_marker("slow"))
    items.sort(key=lambda item: -slow[item.path])


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Beside other workers too: their reports come to the process that talks."""
    reports = [report for found in terminalreporter.stats.values() for report in found]
    spent = [(r.nodeid, r.duration) for r in reports if isinstance(r, pytest.TestReport)]
    for line in durations.lines(spent):
        terminalreporter.write_line(line)
