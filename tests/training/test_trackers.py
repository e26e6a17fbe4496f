"""What trackers are told of a run, which is theirs again when it goes on, and that none of them can end it.

MLflow and W&B are stood in for by functions with the parameters, and of MLflow the checks of names and
numbers, of mlflow-skinny 3.17.2 and wandb 0.31.0: a call that those would refuse is one here.
"""

from __future__ import annotations

import json
import math
import posixpath
import re
import sys
import warnings
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any, NamedTuple

import pytest

from hrrl_ext import HRRLTrainer
from hrrl_ext.data import load_images
from hrrl_ext.processes import Processes
from hrrl_ext.training import Loop
from hrrl_ext.training.loggers import Told
from hrrl_ext.training.trackers import MLflow, WandB, _Names

DIGITS = load_images("digits", split="train").subset(range(64))
SMALL: dict[str, Any] = {
    "model": "convnet", "data": DIGITS, "concepts": "classes", "epochs": 2, "batch_size": 32,
    "lr": 0.05, "width": 2, "crop_padding": 1, "tau": 0.0, "lam": 50.0, "progress": "off",
}  # fmt: skip
CONFIG = {"data": "digits", "classes": ["a"] * 300, "training": {"tau": 0.1, "milestones": None}}


def row(epoch: int, **more: Any) -> dict[str, Any]:
    return {"epoch": epoch, "step": 5 * epoch, "loss": 1 / epoch, **more}


class Metric(NamedTuple):
    key: str
    value: float
    timestamp: int
    step: int


class Param(NamedTuple):
    key: str
    value: str


class FakeMLflow(ModuleType):
    """mlflow, with its stores in memory."""

    def __init__(self) -> None:
        super().__init__("mlflow")
        self.runs: dict[str, dict[str, Any]] = {}
        self.stores: list[str] = []
        self.uri: str | None = None
        self.entities = SimpleNamespace(Metric=Metric, Param=Param)

    def is_tracking_uri_set(self) -> bool:
        return self.uri is not None

    def get_tracking_uri(self) -> str:
        return self.uri or f"sqlite:///{Path.cwd()}/mlflow.db"

    def MlflowClient(self, tracking_uri: str | None = None, registry_uri: str | None = None) -> Any:
        self.stores.append(str(tracking_uri))
        return _Client(self.runs)


class _Client:
    experiments: dict[str, Any] = {}  # noqa: RUF012  # of all clients, as in a store

    def __init__(self, runs: dict[str, dict[str, Any]]) -> None:
        self.runs = runs

    def get_experiment_by_name(self, name: str) -> Any:
        return self.experiments.get(name)

    def create_experiment(
        self, name: str, artifact_location: str | None = None, tags: Any = None
    ) -> str:
        self.experiments[name] = SimpleNamespace(experiment_id=f"id of {name}")
        return self.experiments[name].experiment_id

    def create_run(
        self, experiment_id: str, start_time: Any = None, tags: Any = None, run_name: Any = None
    ) -> Any:
        key = f"run{len(self.runs)}"
        self.runs[key] = {
            "name": run_name, "experiment": experiment_id, "status": "RUNNING", "metrics": [], "params": {},
        }  # fmt: skip
        return SimpleNamespace(info=SimpleNamespace(run_id=key))

    def update_run(self, run_id: str, status: str | None = None, name: str | None = None) -> None:
        self.runs[run_id]["status"] = status

    def log_batch(
        self,
        run_id: str,
        metrics: Any = (),
        params: Any = (),
        tags: Any = (),
        synchronous: Any = None,
    ) -> None:
        assert len(metrics) <= 1000 and len(params) <= 100
        for entry in (*metrics, *params):
            assert re.match(r"^[/\w.\- ]*$", entry.key) and len(entry.key) <= 250
            norm = posixpath.normpath(entry.key)
            assert norm == entry.key and norm != "." and not norm.startswith(("..", "/"))
        assert all(type(m.value) is float and type(m.step) is int for m in metrics)
        assert all(len(p.value) <= 500 for p in params)
        self.runs[run_id]["metrics"] += metrics
        for param in params:
            assert self.runs[run_id]["params"].setdefault(param.key, param.value) == param.value

    def set_terminated(self, run_id: str, status: str | None = None, end_time: Any = None) -> None:
        self.runs[run_id]["status"] = status or "FINISHED"


class FakeWandB(ModuleType):
    """wandb, whose runs are kept by their ids."""

    def __init__(self) -> None:
        super().__init__("wandb")
        self.asked: list[dict[str, Any]] = []
        self.rows: dict[str, list[dict[str, Any]]] = {}
        self.finished = 0

    def Settings(self, *, console: str) -> Any:
        return SimpleNamespace(console=console)

    def init(
        self, entity=None, project=None, dir=None, id=None, name=None, notes=None, tags=None,
        config=None, config_exclude_keys=None, config_include_keys=None, allow_val_change=None,
        group=None, job_type=None, mode=None, force=None, reinit=None, resume=None, resume_from=None,
        fork_from=None, save_code=None, tensorboard=None, sync_tensorboard=None, monitor_gym=None,
        settings=None,
    ):  # fmt: skip
        self.asked.append({"project": project, "dir": dir, "id": id, "name": name, "mode": mode,
                           "config": config, "resume": resume, "reinit": reinit})  # fmt: skip
        rows = self.rows.setdefault(id, [])

        def log(data: dict[str, Any], step: int | None = None, commit: bool | None = None) -> None:
            json.dumps(data)
            assert not rows or rows[-1]["step"] < step, "W&B drops what goes back"
            rows.append(data | {"step": step})

        def finish(exit_code: int | None = None) -> None:
            self.finished += 1

        return SimpleNamespace(log=log, finish=finish)


@pytest.fixture
def mlflow(monkeypatch: pytest.MonkeyPatch) -> FakeMLflow:
    fake = FakeMLflow()
    monkeypatch.setattr(_Client, "experiments", {})
    monkeypatch.setitem(sys.modules, "mlflow", fake)
    monkeypatch.setitem(sys.modules, "mlflow.entities", fake.entities)
    monkeypatch.delenv("MLFLOW_EXPERIMENT_NAME", raising=False)
    return fake


@pytest.fixture
def wandb(monkeypatch: pytest.MonkeyPatch) -> FakeWandB:
    fake = FakeWandB()
    monkeypatch.setitem(sys.modules, "wandb", fake)
    for name in ("WANDB_MODE", "WANDB_API_KEY", "WANDB_PROJECT", "WANDB_NAME", "WANDB_DIR"):
        monkeypatch.delenv(name, raising=False)
    return fake


# --- a whole run


def test_a_run_that_goes_on_is_the_same_run_of_each_tracker(
    tmp_path: Path, mlflow: FakeMLflow, wandb: FakeWandB
) -> None:
    class Own:
        def __init__(self) -> None:
            self.told: list[Any] = []

        def start(self, config: Any) -> None:
            self.told.append(config["training"]["epochs"])

        def log(self, row: Any, epoch: int) -> None:
            self.told.append((epoch, row["loss"]))

        def close(self) -> None:
            self.told.append("closed")

    own, out = Own(), tmp_path / "run"
    settings = SMALL | {"out": out, "loggers": ["mlflow", "wandb", own]}
    HRRLTrainer(**settings).fit(until=1)
    assert mlflow.runs["run0"]["status"] == "FINISHED"  # until it goes on
    history = HRRLTrainer(**settings, resume=True).fit().history
    losses = [r["loss"] for r in history]

    assert own.told == [2, (1, losses[0]), "closed", 2, (2, losses[1]), "closed"]
    assert list(mlflow.runs) == ["run0"] and len(wandb.rows) == 1
    run = mlflow.runs["run0"]
    assert run["name"] == "run" and run["experiment"] == "id of hrrl_ext"
    assert run["params"]["training/lam"] == "50.0" and run["params"]["model"] == "convnet"
    metrics = [(m.key, m.value, m.step) for m in run["metrics"]]
    assert [m[1:] for m in metrics if m[0] == "loss"] == list(zip(losses, [2, 4], strict=True))
    assert ("q/7", history[1]["q"]["7"], 4) in metrics
    (rows,) = wandb.rows.values()
    assert [(r["loss"], r["epoch"], r["step"]) for r in rows] == [
        (losses[0], 1, 2), (losses[1], 2, 4),
    ]  # fmt: skip
    assert wandb.finished == 2
    assert {a["id"] for a in wandb.asked} == {json.loads((out / "wandb.json").read_text())["run"]}


def test_only_the_first_process_tells() -> None:
    trainer, one = HRRLTrainer(**SMALL | {"epochs": 1}), Failing("never")
    for rank, told in ((1, []), (0, ["start", "log", "close"])):
        loop = Loop(
            trainer.recipe, trainer.loop.config, device=trainer.device, progress="off",
            processes=Processes(rank, 1), loggers=[one],
        )  # fmt: skip
        loop.fit()
        assert one.calls[1:] == told


# --- each tracker by itself


def tell(logger: Any, *rows: Any, config: Any = CONFIG) -> None:
    logger.start(config)
    for one in rows:
        logger.log(one, one["epoch"])
    logger.close()


@pytest.mark.parametrize("which", ["mlflow", "wandb"])
def test_an_epoch_that_is_done_again_is_told_once(
    which: str, tmp_path: Path, mlflow: FakeMLflow, wandb: FakeWandB
) -> None:
    """Killed after the second row was told and before its checkpoint was written."""
    make: Any = {"mlflow": MLflow, "wandb": WandB}[which]
    tell(make(tmp_path, 1), row(1), row(2))
    tell(make(tmp_path, 6), row(2), row(3))
    steps = {
        "mlflow": lambda: [m.step for m in mlflow.runs["run0"]["metrics"] if m.key == "loss"],
        "wandb": lambda: [r["step"] for rows in wandb.rows.values() for r in rows],
    }[which]()
    assert steps == [5, 10, 15]


def test_mlflow_goes_where_it_is_told_and_on_where_it_began(
    tmp_path: Path, mlflow: FakeMLflow, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
    monkeypatch.chdir(tmp_path / "a")
    tell(MLflow(tmp_path, 1), row(1))
    monkeypatch.chdir(tmp_path / "b")
    tell(MLflow(tmp_path, 6), row(2))
    mlflow.uri = "https://moved"
    tell(MLflow(tmp_path, 11), row(3))
    assert mlflow.stores == [f"sqlite:///{tmp_path}/a/mlflow.db"] * 2 + ["https://moved"]
    assert "classes" not in mlflow.runs["run0"]["params"]  # 300 names
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "mine")
    tell(MLflow(tmp_path / "b", 1), row(1))
    tell(MLflow(tmp_path / "a", 1), row(1))
    assert [run["experiment"] for run in mlflow.runs.values()][1:] == ["id of mine"] * 2


def test_names_that_mlflow_would_refuse(tmp_path: Path, mlflow: FakeMLflow) -> None:
    """Of concepts, which are whatever their makers wrote; null is no number, NaN is one."""
    hard = [
        *("", ".", "..", "/", "a/b", "a/../b"),
        *("shirt, white", "shirt; white", "été", "x" * 900, "a:b\n"),
    ]
    numbers = {name: float(n) for n, name in enumerate(hard)}
    tell(MLflow(tmp_path, 1), row(1, q=numbers | {"nan": math.nan, "none": None}))
    got = {m.key: m.value for m in mlflow.runs["run0"]["metrics"] if m.key.startswith("q/")}
    assert sorted(set(got.values()) & set(numbers.values())) == list(numbers.values())
    assert got["q/shirt_ white"] == 6 and got["q/shirt_ white_2"] == 7 and got["q/été"] == 8
    assert math.isnan(got["q/nan"]) and "q/none" not in got
    names = _Names()
    assert [names.of(name) for name in ("q/a b", "loss", "q/a b")] == ["q/a b", "loss", "q/a b"]


def test_wandb_is_offline_unless_the_environment_says_more(
    tmp_path: Path, wandb: FakeWandB, monkeypatch: pytest.MonkeyPatch
) -> None:
    tell(WandB(tmp_path / "first", 1), row(1))
    monkeypatch.setenv("WANDB_API_KEY", "k" * 40)
    monkeypatch.setenv("WANDB_PROJECT", "mine")
    monkeypatch.setenv("WANDB_DIR", "/elsewhere")
    tell(WandB(tmp_path / "second", 1), row(1))
    first, second = wandb.asked
    assert (first["mode"], first["project"], first["name"]) == ("offline", "hrrl_ext", "first")
    assert first["dir"] == str(tmp_path / "first") and first["config"] == CONFIG
    assert (first["resume"], first["reinit"]) == ("allow", "create_new")
    assert (second["mode"], second["project"], second["dir"]) == (None, "mine", "/elsewhere")
    assert first["id"] != second["id"]


# --- what fails


class Failing:
    def __init__(self, where: str) -> None:
        self.where, self.calls = where, [""]

    def _call(self, name: str) -> None:
        self.calls.append(name)
        if name == self.where:
            raise OSError("the server is gone")

    def start(self, config: Any) -> None:
        self._call("start")

    def log(self, row: Any, epoch: int) -> None:
        self._call("log")

    def close(self) -> None:
        self._call("close")


@pytest.mark.parametrize(
    ("where", "calls"),
    [
        ("start", ["start"]),
        ("log", ["start", "log", "log", "close"]),  # a server may come back
        ("close", ["start", "log", "log", "close"]),
    ],
)
def test_one_that_fails_is_warned_of_once_and_the_others_go_on(where: str, calls: Any) -> None:
    failing, well = Failing(where), Failing("never")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        with Told([failing, well], None, 1, CONFIG) as told:
            told.log(row(1))
            told.log(row(2))
    assert failing.calls[1:] == calls
    assert well.calls[1:] == ["start", "log", "log", "close"]
    (warning,) = caught
    assert "Failing failed (OSError: the server is gone); the run goes on" in str(warning.message)


def test_a_run_that_is_stopped_closes_them() -> None:
    well = Failing("never")
    with pytest.raises(KeyboardInterrupt), Told([well], None, 1, CONFIG):
        raise KeyboardInterrupt
    assert well.calls[1:] == ["start", "close"]


def test_refused_before_any_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for asked, error, match in (
        ("mlflow", TypeError, r"loggers must be a list, got 'mlflow'; give \['mlflow'\]"),
        (["wandbb"], ValueError, "did you mean 'wandb'"),
        ([object()], TypeError, r"must have start\(config\), log\(row, epoch\).*got object"),
    ):
        with pytest.raises(error, match=match):
            HRRLTrainer(**SMALL, loggers=asked, out=tmp_path / "run")
    for name in ("mlflow", "wandb"):
        with pytest.raises(ValueError, match=f"{name!r} needs out"):
            HRRLTrainer(**SMALL, loggers=[name])
        monkeypatch.setitem(sys.modules, name, None)
        with pytest.raises(ImportError, match=rf"pip install 'hrrl_ext\[{name}\]'"):
            HRRLTrainer(**SMALL, loggers=[name], out=tmp_path / "run")
    assert not (tmp_path / "run").exists()
