"""The paper's experiment in small: four variants, their features, one table; kept and taken up again."""

from __future__ import annotations

import json
import math
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import ANY

import pytest
import torch
import transfer_cifar100

from hrrl_ext.data import load_images, lower_resolution
from hrrl_ext.evaluation import predict
from hrrl_ext.plots import plot_histories
from hrrl_ext.processes import Processes
from hrrl_ext.training import load_model
from hrrl_ext.transfer import table
from hrrl_ext.transfer.study import difference
from hrrl_ext.transfer.table import Target, TransferTable, Trial, transfer_table, variant_config

DIGITS = load_images("digits", split="train").subset(range(150))
TARGET = Target("half", lower_resolution(DIGITS), lower_resolution(DIGITS))
SMALL: dict[str, Any] = {
    "concepts": "classes", "validation": DIGITS, "targets": [TARGET], "tau": 0.1, "lam": 5.0,
    "epochs": 2, "batch_size": 32, "lr": 0.05, "width": 4, "crop_padding": 1,
}  # fmt: skip


def test_variants() -> None:
    hrrl = {"adversary": "hrrl"}
    assert variant_config("ERM", 0.1, 5.0) == hrrl | {"tau": 0.0, "lam": None}
    assert variant_config("EL", 0.1, 5.0) == hrrl | {"tau": 0.1, "lam": None}
    assert variant_config("CL", 0.1, 5.0) == hrrl | {"tau": 0.0, "lam": 5.0}
    assert variant_config("HRRL", 0.1, 5.0) == hrrl | {"tau": 0.1, "lam": 5.0}
    assert variant_config("Group DRO", 0.1, 5.0) == {"adversary": "group_dro", "tau": 0.0}
    assert variant_config("CVaR", 0.1, 5.0) == {"adversary": "cvar", "tau": 0.0}
    known = "'ERM', 'EL', 'CL', 'HRRL', 'Group DRO', 'CVaR'"
    with pytest.raises(ValueError, match=f"variant 'DRO' is not known; .*known are {known}"):
        variant_config("DRO", 0.1, 5.0)


def test_baselines_are_rows_too() -> None:
    names = ["CVaR", "Group DRO", "ERM"]
    table = transfer_table(DIGITS, **SMALL, eta_q=1.0, variants=names)
    assert table.variants == ["ERM", "Group DRO", "CVaR"]
    q = {t.variant: t.history[-1]["q"] for t in table.trials}
    assert q["ERM"] != q["Group DRO"] != q["CVaR"]


def test_differences_are_of_one_seed() -> None:
    def trial(variant: str, seed: int, accuracy: float) -> Trial:
        return Trial(variant, seed, {}, {"half": accuracy}, [])

    rows = [("ERM", 0, 0.1), ("CL", 0, 0.4), ("ERM", 1, 0.6), ("CL", 1, 0.8), ("CL", 2, 0.9)]
    table = TransferTable([trial(*row) for row in [*rows, ("EL", 1, 0.5)]])
    found, half = table.difference("CL", "ERM", "half"), 0.05 * 12.7062  # Student's t of one degree
    assert (found.mean, found.low, found.high) == pytest.approx((0.25, 0.25 - half, 0.25 + half))
    assert table.rows("ERM")[1:] == [["EL", "-10.0 (1 seed)"], ["CL", "+25.0 (-38.5 to +88.5; 2)"]]
    with pytest.raises(ValueError, match="HRRL and ERM have no seed in common"):
        table.difference("HRRL", "ERM", "half")


def test_trains_probes_and_keeps(tmp_path: Path) -> None:
    lines: list[str] = []
    table = transfer_table(DIGITS, **SMALL, seeds=[0, 1], out=tmp_path, report=lines.append)
    assert [(t.variant, t.seed) for t in table.trials] == [
        (variant, seed) for seed in (0, 1) for variant in ("ERM", "EL", "CL", "HRRL")
    ]
    assert len(lines) == 8
    assert table.columns == ["accuracy", "worst_concept_accuracy", "half"]
    for trial in table.trials:
        q = list(trial.history[-1]["q"].values())
        moved = max(abs(q[k] - trial.history[0]["q"][str(k)]) for k in range(10)) > 0
        assert moved == (trial.variant in ("CL", "HRRL"))
        assert 0.1 < trial.targets["half"] <= 1
    again = transfer_table(DIGITS, **SMALL, seeds=[0, 1], out=tmp_path, report=lines.append)
    assert len(lines) == 8  # nothing was trained again
    assert again == table
    kept = load_model(tmp_path / "models" / "HRRL-1")
    accuracy = predict(kept, SMALL["validation"]).correct.double().mean().item()
    assert accuracy == pytest.approx(table.trials[-1].source["accuracy"])
    path = tmp_path / "trials.jsonl"
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:-1]))
    checkpoints = tmp_path / "models" / "HRRL-1" / "checkpoints"
    for stopped_in in (sorted(checkpoints.iterdir())[-1], checkpoints):  # its last epoch, its first
        shutil.rmtree(stopped_in)
        last = transfer_table(DIGITS, **SMALL, seeds=[0, 1], out=tmp_path).trials[-1]
        assert last == replace(table.trials[-1], history=ANY)
        path.write_text("".join(path.read_text().splitlines(keepends=True)[:-1]))
    transfer_table(DIGITS, **SMALL, seeds=[0, 1], out=tmp_path)
    more = transfer_table(
        DIGITS, **SMALL, seeds=[2], variants=["EL"], out=tmp_path, report=lines.append
    )
    assert len(lines) == 9
    assert [t.seed for t in more.trials] == [2]
    assert len((tmp_path / "trials.jsonl").read_text().splitlines()) == 9
    pictures = plot_histories({t.variant: t.history for t in table.trials[:4]}, tmp_path)
    for picture in pictures:
        assert picture.read_bytes().startswith(b"\x89PNG")
    names = ["loss.png", "q.png", "accuracy.png", "error.png", "concept_accuracy.png", "h.png"]
    assert [p.name for p in pictures] == names


def trial(variant: str, seed: int, accuracy: float) -> Trial:
    return Trial(variant, seed, {"accuracy": accuracy}, {"other": accuracy / 2}, [])


def test_mean_and_spread_by_hand() -> None:
    table = TransferTable([trial("HRRL", 0, 0.5), trial("ERM", 0, 0.4), trial("ERM", 1, 0.6)])
    assert table.cell("ERM", "accuracy") == (0.5, pytest.approx(math.sqrt(0.02)))
    assert math.isnan(table.cell("HRRL", "other")[1])
    assert table.variants == ["ERM", "HRRL"]  # the paper's order
    assert table.to_markdown().splitlines() == [
        "| features | accuracy | other |",
        "| --- | ---: | ---: |",
        "| ERM | 50.0 ± 14.1 | 25.0 ± 7.1 |",
        "| HRRL | 50.0 | 25.0 |",
    ]
    assert str(table).splitlines()[1].split() == ["ERM", "50.0", "±", "14.1", "25.0", "±", "7.1"]


def test_no_line_of_q_leaves_the_picture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The panels share an axis; the first run's small q must not cut off the second's large one."""
    from matplotlib.figure import Figure

    limits = []
    save = Figure.savefig

    def look(figure: Figure, *arguments: Any, **options: Any) -> None:
        limits.append([axes.get_ylim() for axes in figure.axes])
        save(figure, *arguments, **options)

    monkeypatch.setattr(Figure, "savefig", look)
    runs = {
        name: [{"epoch": e, "loss": 1.0, "q": {"a": q, "b": 1 - q}} for e in (1, 2)]
        for name, q in (("flat", 0.5), ("corner", 0.95))
    }
    plot_histories(runs, tmp_path)
    for low, high in limits[1]:
        assert low == 0
        assert high > 0.95


def test_plots_without_validation(tmp_path: Path) -> None:
    rows = [{"epoch": e, "loss": 1 / e, "q": {"a": 0.5, "b": 0.5}} for e in (1, 2)]
    assert [p.name for p in plot_histories({"run": rows}, tmp_path)] == ["loss.png", "q.png"]


def test_trials_are_plain_json_and_of_one_call(tmp_path: Path) -> None:
    """A training that was stopped is no trial, and of another call none is taken."""
    lines: list[str] = []
    call: dict[str, Any] = {"variants": ["ERM"], "out": tmp_path, "report": lines.append}
    call |= SMALL | {"epochs": 1, "concepts": DIGITS.target.numpy()}
    stopped = transfer_table(DIGITS, **call, max_minutes=1e-9)
    assert stopped.trials == [] and str(stopped) == "features"
    assert lines == ["ERM   seed 0  stopped in epoch 1"]
    assert len(transfer_table(DIGITS, **call).trials) == 1
    for name, other in (
        ("tau", 0.3),
        ("epochs", 2),
        ("targets", [TARGET, replace(TARGET, name="more")]),
        ("concepts", 9 - DIGITS.target.numpy()),
        ("validation", DIGITS.subset(range(20))),
    ):
        with pytest.raises(ValueError, match=rf"other settings \({name} differ\)"):
            transfer_table(DIGITS, **(call | {name: other}))
    with pytest.raises(ValueError, match=r"other settings \(data differ\)"):
        transfer_table(DIGITS.subset(range(20)), **call)
    assert len(transfer_table(DIGITS, **call, device="cpu").trials) == 1
    stored = json.loads((tmp_path / "trials.jsonl").read_text())
    assert stored["variant"] == "ERM"
    assert torch.tensor(stored["targets"]["half"]) <= 1
    (tmp_path / "table.json").unlink()
    with pytest.raises(ValueError, match=r"trials of before .* table.json; choose another out"):
        transfer_table(DIGITS, **call)


def test_networks_are_made_by_name_in_one_process(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(TypeError, match="needs model by name, got Linear"):
        transfer_table(DIGITS, **SMALL, model=torch.nn.Linear(1, 1))
    monkeypatch.setattr(table, "start_processes", lambda device: (Processes(0, 2), device))
    with pytest.raises(ValueError, match="work of one process; start it without torchrun"):
        transfer_table(DIGITS, **SMALL)


def test_the_results_page_is_written_by_its_example(tmp_path: Path) -> None:
    table = transfer_table(DIGITS, **SMALL, seeds=[0, 1], variants=["ERM", "CL"])
    page = tmp_path / "page.md"
    old = (Path(__file__).parents[2] / "docs/results/cifar100.md").read_text(encoding="utf-8")
    page.write_text(old, encoding="utf-8")
    halves = {(t.variant, t.seed): t.targets["half"] for t in table.trials}
    above = [halves["CL", seed] - halves["ERM", seed] for seed in (0, 1)]
    for _ in range(2):  # once more changes nothing
        transfer_cifar100.write_page(table, page)
        new = page.read_text(encoding="utf-8")
        assert table.to_markdown() in new
        assert str(difference(above)) in new.split("<!-- table: difference -->")[1]
        assert "| EL |" not in new
        assert new.split("<!-- table: accuracy -->")[0] == old.split("<!-- table: accuracy -->")[0]
        assert new.split("<!-- end: seconds -->")[1] == old.split("<!-- end: seconds -->")[1]
    assert len((tmp_path / "page/trials.csv").read_text().splitlines()) == 5
    page.write_text(new.replace(str(difference(above)), "?"), encoding="utf-8")
    transfer_cifar100.main(["--page", str(page)])
    assert page.read_text(encoding="utf-8") == new  # from the trials alone
    for told in ([], [str(tmp_path)]):
        with pytest.raises(SystemExit):
            transfer_cifar100.main(told)
    page.write_text("no place", encoding="utf-8")
    with pytest.raises(ValueError, match="no place for the table"):
        transfer_cifar100.write_page(table, page)
