"""The demo in small: what it measures, what it keeps, and that it says what the intervals say."""

from __future__ import annotations

import signal
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

pytest.importorskip("jsonargparse")

import hrrl_ext
from hrrl_ext.cli import main
from hrrl_ext.data import few_per_class
from hrrl_ext.demo import groups, levels, picture, show
from hrrl_ext.demo.levels import CONFIG, MEASURES, PURPOSE, Levels
from hrrl_ext.plots.figures import panels_of
from hrrl_ext.storage import read_json
from hrrl_ext.transfer.probe import LinearProbe
from hrrl_ext.transfer.study import Difference, difference
from hrrl_ext.transfer.study.parts import Parts

METHODS = ("ERM", "EL", "CL", "HRRL")


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two epochs of a narrow network, one value of each level, one seed of the search."""
    methods = {n: replace(m, grid=m.grid[:1]) for n, m in CONFIG.methods.items()}
    training = {**CONFIG.training, "epochs": 2}
    search = replace(CONFIG.search, seeds=(1000,))
    config = replace(CONFIG, methods=methods, training=training, search=search, widths=(4,))
    monkeypatch.setattr(levels, "CONFIG", config)
    of_groups = {"EPOCHS": 2, "WARM_UP": 1, "WIDTH": 2, "CLUSTERS": 3, "LAM_GRID": (8.0,)}
    for name, value in of_groups.items():
        monkeypatch.setattr(groups, name, value)


@pytest.mark.slow
def test_as_a_program(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Everything is there, fits a terminal, and is not made again."""
    monkeypatch.setattr(show, "_ahead", lambda out, seeds: nullcontext())  # not of these settings
    threads = torch.get_num_threads()
    assert main(["demo", "--out", str(tmp_path), "--seeds", "2"]) == 0
    first = capsys.readouterr().out
    assert torch.get_num_threads() == threads
    wide = [line for line in first.splitlines() if len(line) > 80 and str(tmp_path) not in line]
    assert not wide
    histories = ("loss", "q", "accuracy", "error", "concept_accuracy", "h")
    pictures = {f"{name}.png" for name in ("demo", *histories)}
    assert {path.name for path in tmp_path.iterdir()} == {"demo.md", "models", "parts"} | pictures
    models = [tmp_path / "models" / f"{method}-0" for method in METHODS]
    assert all((model / "results.json").is_file() for model in models)
    assert f"hrrl evaluate {models[0]} {models[-1]} \\\n    --data digits --out {tmp_path}" in first
    kept = {path: path.stat().st_mtime_ns for path in (tmp_path / "parts").iterdir()}
    assert len(kept) == 2 + 2 * len(METHODS) + 2  # the search, the trials, the groups
    assert main(["demo", "--out", str(tmp_path), "--seeds", "2"]) == 0
    assert capsys.readouterr().out == first
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "parts").iterdir()} == kept

    folder = tmp_path / "parts"
    parts = {(m, s): read_json(folder / f"{m}-{s}.json") for m in METHODS for s in (0, 1)}
    page = (tmp_path / "demo.md").read_text(encoding="utf-8")
    for name, what in MEASURES.items():
        base = [parts["ERM", s][name] for s in (0, 1)]
        cells = [f"{100 * sum(base) / 2:.1f}"]
        for method in METHODS[1:]:
            one = difference([parts[method, s][name] - base[s] for s in (0, 1)])
            cells.append(f"{100 * one.mean:+.1f} ± {100 * (one.high - one.mean):.1f}")
        assert f"| {what} | {' | '.join(cells)} |" in page


def test_a_part_of_other_settings_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small = levels.CONFIG
    Levels(tmp_path, print).search()
    monkeypatch.setattr(levels, "CONFIG", replace(small, training={**small.training, "lr": 0.2}))
    with pytest.raises(ValueError, match=r"other settings \(lr\); choose another out"):
        Levels(tmp_path, print).search()


def test_the_measures_are_what_they_say(tmp_path: Path) -> None:
    """Of the network that was kept, by hand."""
    settings = {"tau": 0.3, "lam": 3.0}
    part = Levels(tmp_path, print).trial("EL", 0, settings, keep=True)
    assert (part["of"]["tau"], part["of"]["lam"]) == (0.3, None)
    assert [row["accuracy"] is not None for row in part["history"]] == [True, True]
    model = hrrl_ext.load_model(tmp_path / "models" / "EL-0").eval()
    train, test = (hrrl_ext.load_images("digits", split=split) for split in ("train", "test"))
    x, target = test.images.float() / 255, test.target
    hit = model(x).argmax(1) == target
    assert part["home"] == pytest.approx(hit.double().mean().item())
    of_digit = [hit[target == c].double().mean().item() for c in range(10)]
    assert part["worst"] == pytest.approx(min(of_digit))
    x.requires_grad_()
    torch.nn.functional.cross_entropy(model(x), target, reduction="sum").backward()
    step = x.grad / x.grad.flatten(1).norm(dim=1)[:, None, None, None]
    moved = model(x.detach() + levels.STEP * step).argmax(1) == target
    one_image = 1 / len(target)  # of another rounding
    assert part["moved"] == pytest.approx(moved.double().mean().item(), abs=one_image)

    count = torch.bincount(Levels(tmp_path, print).images.source(levels.PROFILE, 0).target)
    falling = [135 * 30 ** (-k / 9) for k in range(9, -1, -1)]  # a tail of 30, of ten digits
    assert sorted(count.tolist()) == pytest.approx(falling, abs=4)  # digits are not all as frequent
    rare = [c for c in range(10) if count[c] <= 1.2 * falling[4]]
    few = train.subset(few_per_class(train, levels.EXAMPLES, 0))  # of a class, whatever the others
    features = [
        hrrl_ext.extract_features(model, s.subset([i for i, c in enumerate(s.target) if c in rare]))
        for s in (few, test)
    ]
    svm = LinearProbe().fit(features[0].features, features[0].labels)
    assert len(features[0].labels) == 25
    assert part["rare"] == pytest.approx(svm.score(features[1].features, features[1].labels))


def test_the_best_level_is_taken_and_of_equal_ones_the_weakest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(levels, "CONFIG", CONFIG)
    scores = {("tau", 0.1): 0.7, ("tau", 0.3): 0.9, ("tau", 1.0): 0.9}
    scores |= {("lam", 10.0): 0.5, ("lam", 3.0): 0.6, ("lam", 1.0): 0.8}
    monkeypatch.setattr(Levels, "_score", lambda self, level, value: scores[level, value])
    lines: list[str] = []
    assert Levels(tmp_path, lines.append).search() == {"tau": 0.3, "lam": 1.0}
    assert lines[0] == "EL    tau  0.1: 70.0  0.3: 90.0  1: 90.0  ->  0.3"


def test_a_training_that_fails_is_no_level(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*args: Any) -> None:
        raise FloatingPointError("the loss is not finite")

    monkeypatch.setattr(levels, "_fit", fails)
    assert Levels(tmp_path, print)._score("lam", 1.0) == 0


def test_another_process_goes_ahead(tmp_path: Path) -> None:
    """It finds its function, also with settings of its own; and it ends with what it is beside."""
    with show._ahead(tmp_path, 0) as child:
        pass
    assert child.returncode == 0
    with pytest.raises(KeyError), show._ahead(tmp_path, 1) as child:
        raise KeyError
    assert child.returncode == -signal.SIGKILL
    assert not list(tmp_path.iterdir())


def test_what_the_other_process_makes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[int] = []

    def compare(self: groups._Seed) -> dict[str, Any]:
        made.append(self.seed)
        return {}

    monkeypatch.setattr(groups._Seed, "compare", compare)
    groups.make(str(tmp_path), 2)
    assert made == [0, 1]
    groups.worst_groups(Parts(tmp_path / "parts"), 1)
    assert made == [0, 1]  # it is there


# What is said


def of(low: float, high: float) -> Difference:
    return Difference((low + high) / 2, low, high, 8)


@pytest.mark.parametrize(
    ("one", "said", "elsewhere"),
    [
        (of(0.01, 0.03), "pays here, +2.0 (+1.0 to +3.0; 8)", False),
        (of(-0.01, 0.03), "not told from 0, +1.0 (-1.0 to +3.0; 8)", True),
        (of(-0.03, -0.01), "costs here, -2.0 (-3.0 to -1.0; 8)", True),
    ],
)
def test_what_is_said_of_a_level_follows_from_its_interval(
    one: Difference, said: str, elsewhere: bool
) -> None:
    gain = of(0.1, 0.2)
    for method, (_, names, page) in PURPOSE.items():
        found = {m: dict.fromkeys(MEASURES, gain) for m in PURPOSE}
        found[method][names[0]] = one
        lines = list(show._of_levels(found))
        assert f"- {MEASURES[names[0]]}: {said}" in lines
        assert any(page in line for line in lines) == elsewhere
    found = {m: dict.fromkeys(MEASURES, gain) | {"home": one} for m in PURPOSE}
    besides = [line for line in show._of_levels(found) if "besides, digits at home" in line]
    open_ = one.verdict == "open"
    assert besides == ([] if open_ else len(PURPOSE) * [f"- besides, digits at home: {said}"])


@pytest.mark.parametrize(
    ("found", "other", "said"),
    [
        (0.7, 0.5, ("pays here, +30.0", "does not do as well: -20.0")),
        (0.7, 0.9, ("pays here, +30.0", "does better without any groups: +20.0")),
        (0.3, 0.3, ("costs here, -10.0", "is not told from it: +0.0")),
    ],
)
def test_what_is_said_of_hidden_groups(found: float, other: float, said: tuple[str, str]) -> None:
    parts = [
        {"ERM": 0.4 + d, "found": found + d, "batch norm": other + d + e, "share found": 0.5}
        for d, e in ((0.0, 0.01), (0.1, -0.01), (0.2, 0.01), (0.0, -0.01))
    ]
    text = "\n".join(show._of_groups(parts))
    assert all(words in text for words in said)
    assert "50 % of the hidden images" in text


@pytest.mark.parametrize(("plain", "lam", "found"), [(0.5, 32.0, 0.5), (0.6, None, 0.4)])
def test_the_lam_of_hidden_groups_is_the_best_on_validation(
    plain: float, lam: float | None, found: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not the one that is best on the test images; none, where plain training is as good."""
    validation = {None: plain, 8.0: 0.3, 32.0: 0.6}
    test = {None: 0.4, 8.0: 0.9, 32.0: 0.5}

    def fit(self: groups._Seed, network: object, epochs: int, **settings: Any) -> SimpleNamespace:
        lam = settings.get("lam")
        return SimpleNamespace(
            model=torch.nn.Linear(1, 1),
            history=[{"worst_concept_accuracy": validation[lam]}],
            batches=SimpleNamespace(concept=(self.sets["train"].group == 1).long()),
            recipe=SimpleNamespace(config=SimpleNamespace(lam=lam)),
        )

    monkeypatch.setattr(groups, "LAM_GRID", (8.0, 32.0))
    monkeypatch.setattr(groups._Seed, "fit", fit)
    monkeypatch.setattr(groups._Seed, "worst", lambda self, run: test[run.recipe.config.lam])
    part = groups.worst_groups(Parts(tmp_path), seed=0)
    assert (part["lam"], part["found"], part["ERM"]) == (lam, found, 0.4)
    assert part["share found"] == pytest.approx(0.5, abs=0.02)  # one of the two minorities


@pytest.mark.parametrize("values", [[0.1], [0.1, 0.3]])
def test_the_picture_has_intervals_where_there_are_several_seeds(
    values: list[float], tmp_path: Path
) -> None:
    one = difference(values)
    found = {method: dict.fromkeys(MEASURES, one) for method in PURPOSE}
    _, (axes,) = panels_of(1)
    picture._levels(axes, found)
    assert [bars.has_xerr for bars in axes.containers] == len(PURPOSE) * [len(values) > 1]
    for bars in axes.containers:
        assert bars.lines[0].get_xdata() == pytest.approx(len(MEASURES) * [100 * one.mean])
    path = picture.draw(found, dict.fromkeys(groups.WAYS, values), tmp_path / "demo.png")
    assert path.read_bytes().startswith(b"\x89PNG")
