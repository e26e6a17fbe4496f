"""A study: its queue, killed and shared; levels from the source alone; differences; the page."""

from __future__ import annotations

import json
import math
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import records
import torch
import torchrun

from hrrl_ext.data import ArrayImages, load_images
from hrrl_ext.pretrained import from_pretrained, weights_digest
from hrrl_ext.robust.recipe import HRRL
from hrrl_ext.transfer.study import (
    Study,
    StudyConfig,
    difference,
    missing_trials,
    paired,
    study_page,
    study_rows,
    write_weights,
)
from hrrl_ext.transfer.study import levels as levels_module
from hrrl_ext.transfer.study import measures as measures_module
from hrrl_ext.transfer.study import page as page_module
from hrrl_ext.transfer.study import queue as queue_module
from hrrl_ext.transfer.study.analysis import SECONDS, matching, over_targets
from hrrl_ext.transfer.study.levels import score, worst_quarter
from hrrl_ext.transfer.study.queue import claimed
from hrrl_ext.transfer.study.trials import Trial, all_trials, trained_model

TINY: dict[str, Any] = {
    "source": {"train": "digits", "test": "digits", "concepts": "classes"},
    "targets": {"half": {"train": "digits", "test": "digits", "lower": 2}},
    "methods": {"ERM": {}, "EL": {"tau": 0.1}},
    "profiles": ["tail:10"],
    "widths": [4],
    "seeds": [0, 1],
    "counts": [5, 130, 135],
    "training": {"epochs": 2, "batch_size": 32, "lr": 0.05, "crop_padding": 1, "flip": False},
    "search": {"images": 200, "epochs": 1},
}  # fmt: skip
SEARCHED = {"methods": {"ERM": {}, "CL": {"search": {"lam": [30.0, 10.0, 3.0]}}}}
GAIN = {"gain": 1.0, "method": "EL", "target": "half", "count": 5}


def study(out: Path, **changes: Any) -> Study:
    return Study(StudyConfig.read(TINY | changes), out)


def numbers(of: Study) -> list[dict[str, Any]]:
    return [row for row in study_rows(of) if row["measure"] != SECONDS]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Study:
    """Never interrupted."""
    done = study(tmp_path_factory.mktemp("study"))
    done.work()
    return done


# --- what is measured


def test_every_number_is_there(whole: Study) -> None:
    rows = study_rows(whole)
    assert missing_trials(whole) == []
    places = {(r["target"], r["count"], r["measure"]) for r in rows}
    assert {("source", None, "accuracy"), ("source", None, "concept 3")} <= places
    assert {("half", count, m) for count in (5, 130) for m in ("svm", "knn")} <= places
    assert not any(r["count"] == 135 for r in rows)  # skipped, with a note
    assert "class '0' of digits-train has 134 images, fewer than 135" in study_page(whole)
    for row in rows:
        assert row["value"] > 0 or row["measure"].startswith(("concept", "worst"))


def test_methods_of_a_seed_are_paired(whole: Study) -> None:
    """The same source, sizes and target examples; another seed has others."""
    counts = {
        trial: whole.training(Trial("tail:10", 4, *trial))["concept_count"]
        for trial in (("ERM", 0), ("EL", 0), ("ERM", 1))
    }
    assert counts["ERM", 0] == counts["EL", 0] != counts["ERM", 1]
    assert sorted(counts["ERM", 0].values())[-1] / sorted(counts["ERM", 0].values())[0] > 8
    images = whole.images
    assert torch.equal(images.source("tail:10", 0).target, images.source("tail:10", 0).target)
    few, more = (set(images.few("half", n, 0).tolist()) for n in (5, 130))
    assert few < more
    assert few != set(images.few("half", 5, 1).tolist())


def test_a_trained_network_stays_and_its_checkpoints_go(whole: Study) -> None:
    run = whole.folder(Trial("tail:10", 4, "EL", 1)) / "run"
    assert not (run / "checkpoints").exists()
    last = json.loads((run / "metrics.jsonl").read_text().splitlines()[-1])
    config = json.loads((run / "best/config.json").read_text())
    assert config["best"]["epoch"] == last["epoch"] == 2  # of the last epoch: nothing was selected
    assert config["training"]["tau"] == 0.1


def test_measures_are_added_without_training_again(whole: Study, tmp_path: Path) -> None:
    """Corruptions, attacks and fine-tuning, of the networks that are there; and a further count."""
    out = tmp_path / "copy"
    shutil.copytree(whole.out, out)
    robustness = {"corruptions": ["contrast"], "corruption_points": 20, "steps": [0.0, 0.5],
                  "attacks": ["linf:1/255"], "attack_points": 10, "points": 50}  # fmt: skip
    settings = {"epochs": 2, "batch_size": 16, "crop_padding": 0, "evaluate_every": 1}
    more = study(
        out, robustness=robustness, counts=[5, "all"], seeds=[0],
        finetuning={"counts": [5, 135], "targets": ["half"], "settings": settings},
    )  # fmt: skip
    lines: list[str] = []
    before = {p: p.stat().st_mtime_ns for p in out.rglob("training.json")}
    more.work(report=lines.append)
    assert {p: p.stat().st_mtime_ns for p in before} == before
    assert any("finetuning half 135: skipped" in line for line in lines)
    of = {(r["target"], r["measure"]): r["value"] for r in study_rows(more)}
    for target in ("source", "half"):
        for measure in ("clean", "corrupted", "step 0.5", "attack linf:1/255"):
            assert 0 <= of[target, measure] <= 1
    assert of["half", "fine-tuning"] == of["half", "fine-tuning epoch 2"]
    assert ("half", "fine-tuning epoch 1") in of
    page = study_page(more)
    assert "## Corrupted, perturbed, attacked" in page
    lines.clear()
    more.work(report=lines.append)
    assert lines == []
    check_pictures_of_the_paper(more, of, tmp_path / "pictures")


def check_pictures_of_the_paper(of: Study, values: Mapping[Any, float], out: Path) -> None:
    """The lines that are drawn are those of the rows, by another route."""
    pytest.importorskip("matplotlib")
    from hrrl_ext.plots import paper

    names = ["slow-steps.png", "fine-tuning.png", "perturbed.png", "by-concept.png"]
    drawn = paper.plot_paper(of, out)
    assert [path.name for path in drawn] == names
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in drawn)
    rows = [row for row in study_rows(of) if row["method"] == "EL"]
    (steps, accuracy), *_ = paper._perturbed(rows)
    assert steps == [0.0, 0.5]
    assert accuracy == [100 * values["source", m] for m in ("clean", "step 0.5")]
    (_, by_concept), *_ = paper._by_concept(rows)
    assert by_concept == sorted(by_concept)
    assert by_concept[0] == 100 * values["source", "worst concept"]
    (epochs, error), *_ = paper._fine_tuned(rows)
    assert (epochs, error[1]) == ([1, 2], 100 - 100 * values["half", "fine-tuning"])
    (s, h), *_ = paper._slow_steps(rows)
    assert h[0] == pytest.approx(-1) and s[0] == 1  # h(1) = -√λ


# --- killed, and shared


def test_killed_between_parts(
    whole: Study, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[int] = []
    probe = measures_module.probe

    def killed_at(number: int) -> Callable[..., Any]:
        def one(*arguments: Any, **options: Any) -> Any:
            made.append(1)
            if len(made) == number:
                raise KeyboardInterrupt
            return probe(*arguments, **options)

        return one

    cut = study(tmp_path)
    monkeypatch.setattr(measures_module, "probe", killed_at(4))  # k-NN of the second count
    with pytest.raises(KeyboardInterrupt):
        cut.work()
    assert len(list(tmp_path.rglob("features*.json"))) == 1
    (training,) = tmp_path.rglob("training.json")
    written = training.stat().st_mtime_ns
    monkeypatch.setattr(measures_module, "probe", killed_at(-1))
    study(tmp_path).work()
    assert training.stat().st_mtime_ns == written
    # Of the 16 of the whole study 2 had been kept, and 2 are made again.
    assert len(made) == 4 + 14
    assert numbers(cut) == numbers(whole)


def test_killed_within_training(
    whole: Study, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the first epoch, where it begins anew, and in the second: the same bits in the end."""
    trial = Trial("tail:10", 4, "ERM", 0)
    step = HRRL.step
    cut = study(tmp_path, seeds=[0])
    steps = math.ceil(len(cut.images.source("tail:10", 0)) / 32)
    for killed_after in (2, steps + 2):
        done = [0]

        def killed(self: HRRL, *arguments: Any, done: Any = done, at: int = killed_after) -> Any:
            done[0] += 1
            if done[0] > at:
                raise KeyboardInterrupt
            return step(self, *arguments)

        with monkeypatch.context() as patch:
            patch.setattr(HRRL, "step", killed)
            with pytest.raises(KeyboardInterrupt):
                cut.work()
        assert cut.training(trial) is None
    assert (cut.folder(trial) / "run/checkpoints").is_dir()
    cut.work()
    digests = [weights_digest(trained_model(s.folder(trial) / "run")) for s in (cut, whole)]
    assert digests[0] == digests[1]
    assert numbers(cut) == [row for row in numbers(whole) if row["seed"] == 0]


def test_a_claim_is_one_s_and_ends_with_its_holder(tmp_path: Path) -> None:
    with claimed(tmp_path / "a") as ours, claimed(tmp_path / "a") as theirs:
        assert (ours, theirs) == (True, False)
    text = "from hrrl_ext.transfer.study.queue import claimed\nfrom pathlib import Path\nimport sys, time\n"
    text += "with claimed(Path(sys.argv[1])) as mine:\n    print(mine, flush=True)\n    time.sleep(60)\n"
    command = [sys.executable, "-c", text, str(tmp_path / "a")]
    holder = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert holder.stdout is not None
    assert holder.stdout.readline() == "True\n"
    assert str(holder.pid) in (tmp_path / "a/claim").read_text()
    with claimed(tmp_path / "a") as mine:
        assert not mine
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    holder.stdout.close()
    with claimed(tmp_path / "a") as mine:
        assert mine
        assert (tmp_path / "a/claim").read_text().split()[1] == str(os.getpid())


@pytest.mark.slow
def test_two_workers_share_a_queue(tmp_path: Path) -> None:
    """Each piece of work is done once, by either; both end when all of it is done."""
    pytest.importorskip("jsonargparse")
    config = TINY | SEARCHED | {"counts": [5]}
    (tmp_path / "study.yaml").write_text(json.dumps(config))  # which is YAML
    command = ["-m", "hrrl_ext", "study", str(tmp_path / "study.yaml")]
    command += ["--out", str(tmp_path / "out"), "--only", "cheap"]
    with ThreadPoolExecutor(2) as workers:
        output = list(workers.map(lambda _: torchrun.run(1, *command), range(2)))
    lines = [line for lines in output for line in lines.splitlines()]
    assert len(set(lines)) == len(lines)
    assert len([line for line in lines if ": training: " in line]) == 2 * 2
    assert len([line for line in lines if "search seed" in line]) == 3
    assert missing_trials(Study(StudyConfig.read(config), tmp_path / "out")) == []


def test_who_finds_work_taken_waits_for_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    waited: list[float] = []
    mine = study(tmp_path, seeds=[0], methods={"ERM": {}})
    holder = claimed(mine.folder(Trial("tail:10", 4, "ERM", 0)))
    holder.__enter__()

    def sleep(seconds: float) -> None:
        waited.append(seconds)
        holder.__exit__(None, None, None)  # as if its process had been killed

    monkeypatch.setattr(queue_module, "time", SimpleNamespace(sleep=sleep))
    mine.work(poll_seconds=0.5)
    assert waited == [0.5]
    assert missing_trials(mine) == []


# --- levels


def fake_training(scores: dict[float, Any], seen: list[Any]) -> Callable[..., Any]:
    def train(
        folder: Path, images: Any, held_out: Any, config: Any, settings: Any, **_: Any
    ) -> Any:
        seen.append((images, held_out))
        found = scores[settings["lam"]]
        if found is None:
            return {"failed": "the loss is not finite"}
        return {"accuracy": found[0], "concept_accuracy": {"a": found[1], "b": 1.0}}

    return train


@pytest.mark.parametrize(
    ("scores", "chosen"),
    [
        (
            {30.0: (0.6, 0.1), 10.0: (0.5, 0.3), 3.0: (0.2, 0.2)},
            10.0,
        ),  # neither best on average alone
        ({30.0: (0.5, 0.25), 10.0: (0.25, 0.5), 3.0: (0.1, 0.1)}, 30.0),  # of equal ones the weaker
        ({30.0: (0.1, 0.0), 10.0: None, 3.0: None}, 30.0),
    ],
)
def test_the_rule_for_levels(
    scores: Any, chosen: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Any] = []
    monkeypatch.setattr(levels_module, "train", fake_training(scores, seen))
    mine = study(tmp_path, **SEARCHED)
    assert mine.levels.settings("tail:10", "CL") is None
    mine.work("levels")
    assert mine.levels.settings("tail:10", "CL") == {"tau": 0.0, "lam": chosen}
    kept = json.loads((tmp_path / "levels/tail-10-CL.json").read_text())
    assert "mean of the average accuracy and that of the worst quarter" in kept["rule"]
    # On images of the source alone, some to train on and others to measure on.
    source = mine.images.source("tail:10", 1000)
    assert isinstance(source, ArrayImages)
    for images, held_out in seen:
        assert len(images) + len(held_out) == 200
        assert held_out.target.unique().tolist() == list(range(10))
        ours, theirs = ({x.numpy().tobytes() for x in s.images} for s in (images, held_out))
        assert not ours & theirs
        assert ours | theirs <= {x.numpy().tobytes() for x in source.images}


def test_a_level_serves_those_that_take_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scores = {30.0: (0.1, 0.1), 10.0: (0.3, 0.3), 3.0: (0.2, 0.2)}
    monkeypatch.setattr(levels_module, "train", fake_training(scores, []))
    methods = {**SEARCHED["methods"], "HRRL": {"tau": 0.3, "levels_of": ["CL"]}}
    mine = study(tmp_path, methods=methods)
    assert mine.levels.settings("tail:10", "HRRL") is None
    mine.work("levels")
    assert mine.levels.settings("tail:10", "HRRL") == {"tau": 0.3, "lam": 10.0}
    assert mine.levels.settings("tail:10", "ERM") == {"tau": 0.0, "lam": None}
    monkeypatch.setattr(levels_module, "train", fake_training(dict.fromkeys(scores), []))
    with pytest.raises(ValueError, match="every level of CL failed on tail:10; give weaker ones"):
        study(tmp_path / "other", methods=methods).work("levels")


def test_scores_are_means_over_search_seeds() -> None:
    concepts = {"a": 0.1, "b": 0.9, "c": None, "d": 0.3, "e": 0.8, "f": 0.5}  # 5 known: the worst 2
    assert worst_quarter(concepts) == pytest.approx(0.2)
    parts = [{"accuracy": a, "concept_accuracy": concepts} for a in (0.5, 0.7)]
    assert score(parts) == pytest.approx(0.4)
    assert score([parts[0], {"failed": "why"}]) is None


# --- differences


def test_differences_by_hand() -> None:
    ours = {0: 0.50, 1: 0.61, 2: 0.72, 3: 0.55, 4: 0.58, 9: 0.0}
    base = {0: 0.48, 1: 0.60, 2: 0.66, 3: 0.56, 4: 0.53, 7: 1.0}
    found = paired(ours, base)
    assert found is not None
    d = np.array([0.02, 0.01, 0.06, -0.01, 0.05])
    half = 2.7764451 * d.std(ddof=1) / math.sqrt(5)  # t of 4 degrees of freedom at 97.5 %, by table
    assert [found.mean, found.low, found.high] == pytest.approx(
        [d.mean(), d.mean() - half, d.mean() + half], abs=1e-8
    )
    assert found.seeds == 5
    assert found.verdict == "open"
    assert str(found) == "+2.6 (-1.0 to +6.2; 5)"
    assert difference([0.02, 0.021, 0.019]).verdict == "gain"
    assert difference([-0.02, -0.021, -0.019]).verdict == "loss"
    one = difference([0.1])
    assert (one.mean, one.verdict, str(one)) == (0.1, "open", "+10.0 (1 seed)")
    assert math.isnan(one.low)
    assert paired({0: 1.0}, {1: 1.0}) is None
    with pytest.raises(ValueError, match="no seed in common"):
        difference([])


def test_an_interval_holds_the_mean_as_often_as_it_says() -> None:
    draws = np.random.default_rng(0).normal(0.3, 2.0, (2000, 5))
    inside = [d.low <= 0.3 <= d.high for d in map(difference, draws.tolist())]
    assert np.mean(inside) == pytest.approx(0.95, abs=4 * math.sqrt(0.95 * 0.05 / 2000))


def test_a_mean_over_targets_has_all_of_them() -> None:
    rows = [
        {"target": t, "seed": s, "value": v}
        for t, s, v in (("a", 0, 0.2), ("b", 0, 0.4), ("a", 1, 0.9))
    ]
    assert over_targets(rows, ["a", "b"]) == pytest.approx({0: 0.3})  # seed 1 lacks b


# --- the page, and what is refused


def test_a_page_of_what_is_there(whole: Study, tmp_path: Path) -> None:
    empty = study_page(study(tmp_path))
    assert "0 of 4 trials are through." in empty
    assert "EL, seed 1: not there yet" in empty
    some = study(whole.out, seeds=[0, 1, 2])
    page = study_page(some, {"gain.png": "the gain"})
    assert "4 of 6 trials are through." in page
    assert "seed 2: not there yet" in page
    assert "![the gain](gain.png)" in page
    values = {
        (r["method"], r["seed"]): r["value"]
        for r in study_rows(whole)
        if (r["target"], r["count"], r["measure"]) == ("half", 5, "svm")
    }
    shown = difference([values["EL", s] - values["ERM", s] for s in (0, 1)])
    (line,) = [one for one in page.splitlines() if one.startswith("| tail:10, width 4, EL, half ")]
    assert line.split(" | ")[1] == str(shown)


def test_a_page_keeps_its_prose(
    whole: Study, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Begun before the first trial it takes all that comes; what it lacks is said before any work."""
    page = tmp_path / "page.md"
    page.write_text(study_page(study(tmp_path), page=page), encoding="utf-8")
    assert page.read_text(encoding="utf-8").count("Nothing is there yet.") == 5
    begun = page.read_text(encoding="utf-8").replace("## Target by target", "## Ours\n\nEL pays.")
    page.write_text(begun, encoding="utf-8")
    page.write_text(study_page(whole, {"gain.png": "the gain"}, page), encoding="utf-8")
    made = page.read_text(encoding="utf-8")
    assert "## Ours\n\nEL pays." in made and "Nothing is there yet." not in made
    assert made.replace("## Ours\n\nEL pays.", "## Target by target") == study_page(
        whole, {"gain.png": "the gain"}
    )
    assert study_page(whole, page=page) == made  # without pictures those that are linked stay
    pytest.importorskip("jsonargparse")
    from hrrl_ext.cli import main

    (tmp_path / "study.yaml").write_text(json.dumps(TINY | {"compare": [["EL", "ERM"]]}))
    words = ["study", str(tmp_path / "study.yaml"), "--out", str(tmp_path / "out")]
    assert main([*words, "--page", str(page)]) == 1
    (said,) = capsys.readouterr().err.splitlines()
    assert (
        "page.md has no place for the table 'compared': put the lines <!-- table: NAME -->" in said
    )
    assert not (tmp_path / "out").exists() and page.read_text(encoding="utf-8") == made


def test_comparisons_by_hand(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Other pairs than with the base, the best of several, and verdicts beside published gains."""
    values = {
        ("ERM", 5): [0.5, 0.6, 0.7], ("EL", 5): [0.52, 0.621, 0.719], ("CL", 5): [0.45, 0.56, 0.64],
        ("ERM", 130): [0.5, 0.6, 0.7], ("EL", 130): [0.48, 0.621, 0.719], ("CL", 130): [0.8] * 3,
    }  # fmt: skip
    rows = [
        {"profile": "tail:10", "width": 4, "method": method, "seed": seed, "target": "half",
         "count": count, "measure": "svm", "value": value}
        for (method, count), of_seeds in values.items() for seed, value in enumerate(of_seeds)
    ]  # fmt: skip
    monkeypatch.setattr(page_module, "study_rows", lambda _: rows)
    at = {"method": "EL", "target": "half", "count": 5}
    mine = study(
        tmp_path,
        methods={"ERM": {}, "EL": {"tau": 0.1}, "CL": {"lam": 3.0}},
        profiles=["tail:10", "equal"],
        compare=[["EL", "CL"], ["EL", "CL", "ERM"]],
        published={
            "a": at | {"gain": 4.1},
            "b": at | {"gain": -1},
            "c": at | {"gain": 1, "count": 130},
        },
    )
    table = [line.strip("| ").split(" | ") for line in study_page(mine).splitlines()]
    cells = {line[0]: line[1:] for line in table}

    def apart(method: str, count: int) -> str:
        pairs = zip(values["EL", count], values[method, count], strict=True)
        return str(difference([a - b for a, b in pairs]))

    known = [apart("CL", 5), apart("CL", 130)]
    assert cells["tail:10, width 4, EL against CL"][:4] == ["", "", *known]
    assert cells["tail:10, width 4, EL against the best of CL; ERM"][2:4] == [
        f"{apart('ERM', 5)} ERM",
        f"{apart('CL', 130)} CL",
    ]
    published = [line for line in table if line[0] in ("a", "b", "c")]
    assert [(one[1], one[3], one[-1]) for one in published] == [
        (gain, f"{profile}, width 4", verdict)
        for gain, found in (("+4.1", "seen"), ("-1", "the other sign"), ("+1", "not told apart"))
        for profile, verdict in (("tail:10", found), ("equal", "not there yet"))
    ]


def test_three_pictures(whole: Study, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    from hrrl_ext.plots.study import plot_study

    drawn = plot_study(whole, tmp_path)
    assert [path.name for path in drawn] == ["gain.png", "concepts.png", "cost.png"]
    for path in drawn:
        assert path.read_bytes().startswith(b"\x89PNG")
    assert plot_study(study(tmp_path / "empty"), tmp_path / "none") == {}


def test_a_training_that_fails_is_a_result(tmp_path: Path) -> None:
    mine = study(tmp_path, seeds=[0], methods={"ERM": {}, "too fast": {"lr": 1e30}})
    lines: list[str] = []
    mine.work(report=lines.append)
    assert any("too fast, seed 0: training: failed: " in line for line in lines)
    (missing,) = missing_trials(mine)
    assert "too fast, seed 0: failed: " in missing
    mine.work(report=lines.append)
    assert len([line for line in lines if "too fast" in line]) == 1  # it would fail again


def test_names_are_data(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    from hrrl_ext.plots.study import plot_study

    name = "_<b>|$x"
    mine = study(tmp_path, seeds=[0], methods={"ERM": {}, name: {"tau": 0.1}}, counts=[5])
    mine.work()
    assert "\\<b>\\|$x" in study_page(mine)
    assert len(plot_study(mine, tmp_path / "pictures")) == 3


def test_other_settings_are_refused(whole: Study) -> None:
    other = study(whole.out, training=TINY["training"] | {"lr": 0.1})
    with pytest.raises(
        ValueError, match=r"training\.json was made with other settings \(settings\)"
    ):
        other.work()
    other = study(whole.out, targets={"half": {"train": "digits", "test": "digits"}})
    with pytest.raises(ValueError, match=r"features-half-5\.json was made .* \(images\)"):
        other.work()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tragets": {}}, "study: 'tragets' is not known; did you mean 'targets'"),
        ({"source": {"train": "digits"}}, "study: source: test is missing"),
        ({"source": "digits"}, "study: source must hold names with values, got 'digits'"),
        ({"targets": {}}, "targets must hold at least one"),
        ({"targets": {"source": {"train": "digits", "test": "digits"}}}, "cannot be named 'source'"),
        ({"targets": {"a": {"train": "x", "tset": "y"}}}, "target a: 'tset' is not known"),
        ({"base": "EMR"}, "study: base 'EMR' is not known; did you mean 'ERM'"),
        ({"methods": {"ERM": {"taw": 1}}}, "method ERM: setting 'taw' is not known"),
        ({"methods": {"ERM": {"levels": "atuo"}}}, "method ERM: levels: 'atuo' is not known"),
        ({"methods": {"ERM": {"seed": 1}}}, "seed is given by the study itself"),
        ({"methods": {"ERM": {"search": {"tau": []}}}}, "search must list numbers for tau"),
        ({"methods": {"ERM": {"search": {"tau": [1], "lam": [1]}}}}, "of one setting, got tau, lam"),
        ({"methods": {"ERM": {"levels_of": ["EL"]}}}, "levels_of: method with a search 'EL' is not"),
        ({"methods": {"ERM": {}, "a b": {}, "a-b": {}}}, "'a b' and 'a-b' are too alike"),
        ({"compare": "EL"}, r"compare must list a method .* such as \[\[CL, Group DRO\]\], got 'EL'"),
        ({"compare": [["EL"]]}, "compare must list a method and others to compare it with"),
        ({"compare": [["EL", ["ERM"]]]}, "compare must list a method and others to compare it with"),
        ({"compare": [["EL", "EMR"]]}, "study: compare: 'EMR' is not known; did you mean 'ERM'"),
        ({"published": {"a": {"gain": 1, "method": "EL"}}}, "published a: target is missing"),
        ({"published": {"a": GAIN | {"gain": 0}}}, "published a: gain must be points of accuracy, not 0"),
        ({"published": {"a": GAIN | {"method": "ERM"}}}, "published a: ERM is the base"),
        ({"published": {"a": GAIN | {"target": "hlaf"}}}, "published a: target 'hlaf' is not known"),
        ({"published": {"a": GAIN | {"count": 7}}}, "published a: count 7 is not known"),
        ({"profiles": ["liner:10"]}, "profile 'liner' is not known; did you mean 'linear'"),
        ({"seeds": [0, 0]}, "seeds must be a list of different int"),
        ({"widths": 16}, "widths must be a list"),
        ({"counts": [0]}, "counts must list examples of each class, such as 5, or all; got"),
        ({"search": {"seeds": [1]}}, "seed 1 is one of the study's"),
        ({"search": {"held_out": 1}}, "held_out must lie between 0 and 1, got 1"),
        ({"training": {"width": 3}}, "width is given by the study itself"),
        ({"training": {"lr": -1}}, "study: method ERM: lr must be positive, got -1"),
        ({"methods": {"ERM": {}, "EL": {"search": {"tau": ["much"]}}}}, "search must list numbers for tau"),
        ({"methods": {"ERM": {}, "A": {"search": {"lr": [0.1, -1]}}}}, "study: method A: lr must be"),
        ({"finetuning": {"settings": {}}}, "finetuning: counts is missing"),
        ({"finetuning": {"counts": [5], "targets": ["hlaf"]}}, "finetuning: targets: 'hlaf' is not known"),
        ({"finetuning": {"counts": [5], "settings": {"lrr": 1}}}, "finetuning: setting 'lrr' is not"),
        ({"finetuning": {"counts": [5], "settings": {"method": "l3sp"}}}, "method 'l3sp' is not known"),
    ],
)  # fmt: skip
def test_bad_configurations(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        StudyConfig.read(TINY | changes)


def test_a_part_of_a_study_has_the_same_trials() -> None:
    """Its levels too: the width of the search is that of the whole."""
    whole = StudyConfig.read(TINY | SEARCHED | {"widths": [4, 8]})
    part = whole.only(widths=[8], seeds=[1])
    assert (part.widths, part.seeds, part.profiles) == ([8], [1], ["tail:10"])
    assert part.search == whole.search
    assert part.search.width == 4
    methods = SEARCHED["methods"] | {"HRRL": {"levels_of": ["CL"]}, "EL": {"tau": 0.1}}
    compared = {"compare": [["HRRL", "CL"], ["HRRL", "CL", "EL"]], "published": {"a": GAIN}}
    config = StudyConfig.read(TINY | {"methods": methods} | compared)
    some = config.only(methods=["HRRL"])
    assert list(some.methods) == ["ERM", "CL", "HRRL"]
    assert (some.compare, some.published) == ([["HRRL", "CL"]], {})
    assert list(replace(config, base="HRRL").only(methods=["EL"]).methods) == ["CL", "HRRL", "EL"]
    with pytest.raises(
        ValueError, match="study: methods: 'HRRLL' is not known; did you mean 'HRRL'"
    ):
        some.only(methods=["HRRLL"])
    with pytest.raises(ValueError, match="study: profiles: 'equl' is not known"):
        whole.only(profiles=["equl"])
    with pytest.raises(ValueError, match=r"study: seeds: 2 is not known; .*'0', '1'"):
        whole.only(seeds=[2])


def test_levels_that_are_not_searched(tmp_path: Path) -> None:
    """A method is plain but for what it says; levels="auto" says both, and leaves them to the trainer."""
    methods = {"ERM": {}, "Auto": {"levels": "auto"}, "T2": {"tau": "theorem2", "lam": 3.0}}
    levels = study(tmp_path, methods=methods).levels
    assert levels.settings("tail:10", "ERM") == {"tau": 0.0, "lam": None}
    assert levels.settings("tail:10", "Auto") == {"levels": "auto"}
    assert levels.settings("tail:10", "T2") == {"tau": "theorem2", "lam": 3.0}


def test_a_bad_evaluation_is_refused_before_any_work() -> None:
    with pytest.raises(TypeError, match="setting 'atacks' is not known; did you mean 'attacks'"):
        StudyConfig.read(TINY | {"robustness": {"atacks": []}})


def test_what_cannot_be_opened_is_said_before_any_training(tmp_path: Path) -> None:
    content = TINY | {"targets": {"half": {"train": "no.npz", "test": "no.npz"}}}
    mine = Study(StudyConfig.read(content, folder=tmp_path / "data"), tmp_path / "out")
    with pytest.raises(FileNotFoundError, match=str(tmp_path / "data/no.npz")):
        mine.work()
    assert not (tmp_path / "out").exists()
    with pytest.raises(ValueError, match="stage must be one of levels, cheap, all, got 'half'"):
        mine.work("half")


@pytest.mark.parametrize("name", ["cifar100", "digits", "features"])
def test_the_studies_that_are_shipped_are_valid(name: str) -> None:
    jsonargparse = pytest.importorskip("jsonargparse")
    file = Path(__file__).parents[2] / "configs/study" / f"{name}.yaml"
    text = file.read_text(encoding="utf-8")
    config = StudyConfig.read(jsonargparse.get_loader("yaml")(text), "data")
    levels = list(config.methods["HRRL"].levels_of)
    assert levels == ([] if name == "features" else ["EL", "CL"])  # whose levels are given
    for method in config.methods.values():  # from the weakest on
        stronger = sorted(method.grid, reverse=method.level in ("lam", "alpha"))
        assert list(method.grid) == stronger


def test_sources_in_lists_are_located(tmp_path: Path) -> None:
    digits = load_images("digits").subset(range(300))
    for part in range(2):
        rows = range(150 * part, 150 * (part + 1))
        image, label = digits.images[rows].numpy(), digits.target[rows].numpy()
        names = np.array(digits.classes)
        np.savez(tmp_path / f"{part}.npz", image=image, label=label, class_names=names)
    source = {"train": ["0.npz", "1.npz"], "test": "0.npz", "concepts": "classes"}
    mine = Study(StudyConfig.read(TINY | {"source": source}, folder=tmp_path), tmp_path / "out")
    assert mine.images.source("equal", 0).target.bincount().unique().numel() == 1


# --- for others


def test_its_trials_go_on_elsewhere(
    whole: Study, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Packed in one file and unpacked, nothing is trained again; more seeds and methods go on from there."""
    records.pack(whole.out, tmp_path / "trials.jsonl.gz")
    records.unpack(tmp_path / "trials.jsonl.gz", tmp_path / "other")
    other = study(tmp_path / "other")

    def none(*_: Any, **__: Any) -> None:
        raise AssertionError("trains")

    monkeypatch.setattr(queue_module, "train", none)
    other.work()
    assert study_rows(other) == study_rows(whole)
    more = study(other.out, methods={"CL": {"lam": 3.0}, **TINY["methods"]}, compare=[["CL", "EL"]])
    assert study_rows(more) == study_rows(whole)
    assert [line.split(", ")[2] for line in missing_trials(more)] == ["CL", "CL"]
    with pytest.raises(AssertionError, match="trains"):
        study(tmp_path / "other", seeds=[0, 1, 2]).work()


def test_weights_have_a_card(whole: Study, tmp_path: Path) -> None:
    """The networks to the bit, and on the card what the rows have of them."""
    written = write_weights(whole, tmp_path, "tiny.yaml")
    assert [to.name for to in written] == [t.name for t in all_trials(whole.config)]
    rows = study_rows(whole)
    for to, trial in zip(written, all_trials(whole.config), strict=True):
        kept = trained_model(whole.folder(trial) / "run")
        digest = weights_digest(kept)
        assert weights_digest(from_pretrained(to)) == digest
        card = (to / "README.md").read_text(encoding="utf-8")
        assert card.startswith("---\nlibrary_name: hrrl_ext\n") and digest in card
        of = {"profile": trial.profile, "method": trial.method, "seed": trial.seed}
        here = {"target": "half", "count": 5, "measure": "svm"}
        (svm,) = (100 * row["value"] for row in matching(rows, **of, **here))
        shown = f"{svm:.1f}"
        if trial.method != "ERM":
            (base,) = (r["value"] for r in matching(rows, **(of | {"method": "ERM"}), **here))
            shown += f" ({svm - 100 * base:+.1f})"
        assert f"| half | 5 |  | {shown} |" in card and "| half | 135 |" not in card
        numbers = sum(t.numel() for t in kept.state_dict().values())
        assert f"of width 4 ({numbers:,} numbers), learned with {trial.method} on" in card
        assert f"--seeds {trial.seed} --methods {trial.method} --weights WEIGHTS" in card
    begun = [p.read_bytes() for p in sorted(tmp_path.rglob("*.*"))]
    assert write_weights(whole, tmp_path, "tiny.yaml") == written
    assert [p.read_bytes() for p in sorted(tmp_path.rglob("*.*"))] == begun


def test_weights_of_nothing(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no trial is through yet"):
        write_weights(study(tmp_path / "none"), tmp_path / "weights", "tiny.yaml")
    assert not (tmp_path / "weights").exists()
