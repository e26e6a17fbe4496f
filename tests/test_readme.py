"""What the README shows is what a user sees."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image
from test_docs import run, short

from hrrl_ext.data import load_images

pytest.importorskip("jsonargparse")
from hrrl_ext.cli import main

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


def test_pretraining_fine_tuning_and_evaluation_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On folders of a few digits, with less of everything; the options that are shown are as shown, but
    for the size of the images."""
    monkeypatch.chdir(tmp_path)
    for split in ("train", "test"):
        images = load_images("digits", split=split).subset(range(12))
        for i, (x, digit) in enumerate(zip(images.images, images.target.tolist(), strict=True)):
            for at in (f"photos/{split}/{digit % 3}", f"flowers/{split}/{digit % 2}"):
                Path(at).mkdir(parents=True, exist_ok=True)
                Image.fromarray(x.permute(1, 2, 0).numpy()).save(f"{at}/{i}.png")
    short = ["--epochs=1", "--device=cpu", "--progress=off"]
    less = {
        "pretrain": [*short, "--width=2", "--queue=8"],
        "finetune": short,
        "evaluate": ["--device=cpu", "--attacks=linf:8/255", "--attack_points=2", "--corruptions=fog"],
    }  # fmt: skip
    block = re.search(r"^```\n(hrrl pretrain .*?)^```$", README, re.DOTALL | re.MULTILINE)
    assert block
    lines = [shlex.split(line)[1:] for line in block[1].replace("size 64", "size 8").splitlines()]
    assert [words[0] for words in lines] == list(less)
    for words in lines:
        assert main([*words, *less[words[0]]]) == 0
    assert Path("runs/report/report.html").exists()


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
