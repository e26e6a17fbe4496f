"""What the README shows is what a user sees."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
from test_docs import run, short

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]


@pytest.mark.slow
def test_the_ten_lines_print_what_they_say(tmp_path: Path) -> None:
    """Line by line; numbers may differ in the last digit shown, since processors round differently,
    and neither the speed, nor its lines within slow epochs, nor which digit is worst counts."""
    code = re.search(r"<!-- example -->\n```python\n(.*?)```", README, re.DOTALL)
    output = re.search(r"<!-- output -->\n```\n(.*?)```", README, re.DOTALL)
    assert code and output
    done = subprocess.run(
        [sys.executable, "-c", code[1]], cwd=tmp_path, stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT, text=True, check=True,
    )  # fmt: skip
    shown, printed = (
        re.sub(r"\d+ img/s|\(\d\)|epoch \S+, step .*\n", "", text).strip().splitlines()
        for text in (output[1], done.stdout)
    )
    number = re.compile(r"\d+\.\d+")
    assert [number.sub("#", line) for line in printed] == [number.sub("#", line) for line in shown]
    for ours, theirs in zip(printed[-1:], shown[-1:], strict=True):
        for a, b in zip(number.findall(ours), number.findall(theirs), strict=True):
            assert float(a) == pytest.approx(float(b), abs=0.05)


@pytest.mark.slow
def test_the_commands_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Shortened, as those of the other pages are."""
    monkeypatch.chdir(tmp_path)
    commands = re.findall(r"^```sh\n(.*?)^```$", README, re.DOTALL | re.MULTILINE)
    assert commands
    for text in commands:
        run(short(text))


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.name)
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)\)", page.read_text(encoding="utf-8")):
        if not target.startswith("http"):
            assert (page.parent / target).exists(), target


@pytest.mark.parametrize(
    ("page", "section"), [("README.md", "Summary"), ("docs/kernels.md", "Below the bar")]
)
def test_tables_of_speed_are_those_of_the_results(page: str, section: str) -> None:
    results = (ROOT / "bench/results/amd-epyc-2-cores.md").read_text(encoding="utf-8")
    table = results.split(f"## {section}\n\n")[1].split("\n\n")[0].strip()
    assert table.startswith("| op | ")
    assert table in (ROOT / page).read_text(encoding="utf-8")
