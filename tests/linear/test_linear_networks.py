"""examples/linear_real.py and robust_networks.py: on tiny data, again without work, and the page as committed."""

from __future__ import annotations

import csv
import math
from pathlib import Path

import kept_rows
import linear_real
import numpy as np
import pytest
import robust_networks
import robust_networks_page
import torch
from problems_linear import largest_radius

from hrrl_ext.data import load_images

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "docs" / "results" / "linear-networks"
PAGE = ROOT / "docs" / "results" / "linear-networks.md"
needs_the_tree = pytest.mark.skipif(not RESULTS.exists(), reason="needs the source tree")


def read(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def empty_page(path: Path, *names: str) -> Path:
    path.write_text("".join(f"<!-- table: {n} -->\n<!-- end: {n} -->\n" for n in names))
    return path


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    """Grey images of ten classes, 8 of each: noise, and a bright row that tells the class."""
    random = np.random.default_rng(0)
    label = np.repeat(np.arange(10), 8)
    image = random.integers(0, 60, (80, 10, 10), dtype=np.uint8)
    image[np.arange(80), label] += 150
    path = tmp_path / "grey.npz"
    np.savez(path, image=image, label=label, class_names=np.array([f"kind {c}" for c in range(10)]))
    return path


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Networks of an epoch, and what was measured on them."""
    folder = tmp_path_factory.mktemp("networks")
    names = ("trained", "trades", "norms", "order")
    page = empty_page(folder / "page.md", *names)
    robust_networks.main([*settings(folder), "--page", str(page)])
    return folder


def settings(folder: Path) -> list[str]:
    text = "--seeds 0 --epochs 1 --width 2 --count 12 --attack-steps 1"
    ways = ["PGD 0", "TRADES l2 1", "HRRL"]
    return [*text.split(), "--ways", *ways, "--work", str(folder / "work"), "--out", str(folder)]


def test_pairs_are_those_of_the_anchors(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page = empty_page(tmp_path / "page.md", "pairs", "kept")
    command = ["--digits", "3", "7", "--out", str(tmp_path), "--page", str(page)]
    linear_real.main(command)
    rows = {r["norm"]: r for r in read(tmp_path / "pairs.csv")}
    assert [float(rows[n][a]) for n, a in list(linear_real.NORMS.items())[:3]] == pytest.approx(
        [0.08764, 0.3637, 1.598], rel=6e-4
    )  # as printed, with four digits
    for norm, attack in linear_real.NORMS.items():
        assert float(rows[norm]["gap"]) < 1e-8
        assert all(
            float(r[attack]) <= float(rows[norm][attack]) * (1 + 1e-5) for r in rows.values()
        )
    assert "| digits | least of 1 pairs |" in page.read_text()
    before, said = (tmp_path / "pairs.csv").read_bytes(), capsys.readouterr().out
    linear_real.main(command)
    assert (tmp_path / "pairs.csv").read_bytes() == before
    assert "digits 3, 7" in said and "digits 3, 7" not in capsys.readouterr().out


def test_pairs_of_files_are_drawn_by_the_seed(archive: Path, tmp_path: Path) -> None:
    command = ["--digits", "--fashion", str(archive), "--per-class", "5", "--seeds", "0", "1"]
    parts = list(linear_real.problems(linear_real_args(command, tmp_path)))
    assert len(parts) == 5 * 2
    name, pair, seed, X, y = parts[1]
    assert (name, pair, seed, X.shape) == ("Fashion-MNIST", "kind 0, kind 6", 1, (10, 100))
    assert X.min() >= 0 and X.max() <= 1 and set(y) == {0, 6}
    rows = {r["norm"]: r for r in linear_real.of_pair(X, y)}
    signed = torch.from_numpy(np.where(y == 6, 1.0, -1.0)[:, None] * X)
    for norm in ("l1", "l2", "linf"):  # without a bias no radius is larger
        free = float(str(rows[norm][linear_real.NORMS[norm]]))
        assert free >= largest_radius(signed, norm) * (1 - 1e-7)


def linear_real_args(command: list[str], out: Path) -> object:
    return linear_real.parser().parse_args([*command, "--out", str(out)])


def test_what_cannot_be_separated_is_said(tmp_path: Path) -> None:
    X, y = np.array([[0.0], [1.0], [2.0]]), np.array([0, 1, 0])
    found = list(linear_real.of_pair(X, y))
    assert [row["linf"] for row in found] == [""] * 4
    rows = kept_rows.KeptRows(tmp_path / "pairs.csv", ("data", "pair", "seed", "n"))
    rows.add({"data": "made", "pair": "0, 1", "seed": 0, "n": 3} | row for row in found)
    assert "(1 not separable)" in linear_real.pair_table(rows.rows)


def test_heads_are_certified(work: Path, archive: Path, tmp_path: Path) -> None:
    runs = sorted((work / "work").iterdir())
    target = ["--target", "grey", str(archive), str(archive)]
    digits = ["--target", "digits", "digits", "digits"]
    sizes = ["--head-per-class", "5", "--head-test", "30"]
    linear_real.main(
        ["--digits", "--out", str(tmp_path), *sizes, *target, *digits, "--runs", *map(str, runs)]
    )
    rows = read(tmp_path / "heads.csv")
    assert len(rows) == len(runs) * 2 * 4
    assert {(r["method"], r["seed"]) for r in rows} >= {("PGD-0", "0"), ("HRRL", "0")}
    for row in rows:
        # ‖δ‖∞ ≤ ‖δ‖₂ ≤ ‖δ‖₁: what withstands a ball withstands those within it.
        same = {r["attack"]: float(r["mean_certified"]) for r in rows if key(r) == key(row)}
        assert same["linf"] <= same["l2"] <= same["l1"]
        assert same["l2"] < 2  # of rows of norm 1 no two are further apart


def key(row: dict[str, str]) -> tuple[str, ...]:
    return row["method"], row["seed"], row["target"]


def test_a_method_and_a_seed_are_in_the_folders_name() -> None:
    found = {
        n: linear_real.method_of(Path("x") / n) for n in ("a_w16_ERM_2/run", "PGD-1_0", "lam_x")
    }
    assert list(found.values()) == [("a_w16_ERM", "2"), ("PGD-1", "0"), ("lam_x", "0")]


def test_networks_are_measured_once(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = read(work / "curves.csv")
    assert {r["norm"] for r in rows} == {"l2", "linf", "fourier"}
    assert len({r["method"] for r in rows}) == 3
    for norm in ("l2", "linf"):
        for (curve,) in robust_networks_page.curves(rows, norm).values():
            accuracy = [float(r["accuracy"]) for r in curve]
            assert accuracy == sorted(accuracy, reverse=True)
    before = {p: p.read_bytes() for p in work.rglob("*") if p.suffix in (".csv", ".safetensors")}
    robust_networks.main(settings(work))
    assert {p: p.read_bytes() for p in before} == before
    assert "best eps_train" in capsys.readouterr().out and (work / "networks.png").exists()
    assert "| PGD 0 | " in (work / "page.md").read_text()


def test_runs_are_attacked_in_bands(work: Path, archive: Path, tmp_path: Path) -> None:
    small = ["--seeds", "--attack-steps", "1", "--runs", str(work / "work" / "PGD-0_0")]
    for images, count in (
        ("digits", 30),
        (archive, 1),
    ):  # of one image none may be right: no picture
        out = tmp_path / Path(images).stem
        robust_networks.main(
            [*small, "--out", str(out), "--images", str(images), "--count", str(count)]
        )
        rows = read(out / "curves.csv")
        assert {r["norm"] for r in rows} == set(robust_networks.BANDS)
        assert {(r["method"], r["data"]) for r in rows} == {("PGD-0", Path(images).stem)}
    assert (tmp_path / "digits" / "perturbations.png").exists()


def test_half_of_the_accuracy_lies_between_two_radii() -> None:
    def curve(*accuracy: float) -> list[dict[str, str]]:
        return [{"eps": str(k / 10), "accuracy": str(a)} for k, a in enumerate(accuracy)]

    assert robust_networks_page.half(curve(0.8, 0.6, 0.2)) == pytest.approx(0.15)
    assert robust_networks_page.half(curve(0.8, 0.4, 0.4)) == pytest.approx(0.1)
    assert math.isnan(robust_networks_page.half(curve(0.8, 0.6, 0.5)))
    assert math.isnan(robust_networks_page.half(curve(0.0, 0.0)))


def test_the_ways_train_what_they_say() -> None:
    of = robust_networks.ways()
    assert all(of[f"PGD {eps:g}"]["tau"] == eps for eps in robust_networks.TRAINED)
    assert (of["PGD 0"]["example_steps"], of["PGD 1"]["example_steps"]) == (
        1,
        robust_networks.STEPS,
    )
    assert of["TRADES l2 3"]["penalty"].beta == 3 and of["TRADES l2 3"]["tau"] == 0
    assert of["TRADES fourier 3"]["penalty"].norm == "fourier"
    assert len(load_images("digits", split="test")) > 400


@needs_the_tree
def test_the_committed_page_is_that_of_its_rows() -> None:
    page = PAGE.read_text(encoding="utf-8")
    pairs, heads, curves = (read(RESULTS / f"{n}.csv") for n in ("pairs", "heads", "curves"))
    assert linear_real.pair_table(pairs) in page and linear_real.kept_table(pairs) in page
    assert linear_real.head_table(heads) in page
    for table in robust_networks_page.tables(curves).values():
        assert table in page
    assert len({r["pair"] for r in pairs if r["data"] == "digits"}) == 45
