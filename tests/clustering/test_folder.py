"""The folder of a clustering, by the program that writes it: same bits after a stop, tables, refusals."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from test_cli import run

from hrrl_ext.clustering import GradientClustering, gradient_variance
from hrrl_ext.clustering.folder import ClusterFolder, cluster_rows, cluster_table
from hrrl_ext.data import ArrayImages, load_images, resolve_concepts
from hrrl_ext.models import build_model
from hrrl_ext.pretrained import from_pretrained, save_pretrained, weights_digest

DIGITS = load_images("digits", split="train").subset(range(90))
CONFIG = {"model": "resnet18", "classes": DIGITS.classes, "image_size": 8, "width": 4}


def save_model(folder: Path, seed: int) -> Path:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = build_model("resnet18", num_classes=10, image_size=8, width=4)
    save_pretrained(model, folder, CONFIG)
    return folder


@pytest.fixture(autouse=True)
def no_pictures(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """They take longer than all the rest; one test has them."""
    if request.node.name != "test_what_is_written":
        monkeypatch.setattr("importlib.util.find_spec", lambda name: None)


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """model/ and other/, and data.npz."""
    folder = tmp_path_factory.mktemp("saved")
    save_model(folder / "model", 0)
    save_model(folder / "other", 1)
    assert isinstance(DIGITS, ArrayImages)
    images, target = DIGITS.images.permute(0, 2, 3, 1).numpy(), DIGITS.target.numpy()
    names = np.array(DIGITS.classes)
    np.savez(folder / "data.npz", image=images, label=target, class_names=names)
    np.savez(folder / "fewer.npz", image=images[:80], label=target[:80], class_names=names)
    np.savez(folder / "named.npz", image=images, label=target, class_names=names)
    return folder


def cluster(capsys: Any, saved: Path, out: Path, *more: str) -> tuple[int, str, str]:
    return run(
        capsys, "cluster", saved / "model", "--data", saved / "data.npz", "--clusters", "6",
        "--layers", "conv1", "fc", "--device", "cpu", "--out", out, *more,
    )  # fmt: skip


def state(out: Path) -> dict[str, Any]:
    """Without what depends on the clock."""
    loaded = torch.load(out / "state.pt", weights_only=True)
    for row in loaded["history"]:
        del row["seconds"]
    return json.loads(json.dumps(loaded, default=torch.Tensor.tolist))


def test_what_is_written(capsys: Any, saved: Path, tmp_path: Path) -> None:
    """Against the class, called by hand; every file says the same."""
    out = tmp_path / "clusters"
    status, stdout, stderr = cluster(capsys, saved, out, "--rounds", "3", "--no_weighted")
    assert status == 0, stderr
    assert [line.split()[:2] for line in stderr.splitlines()] == [["round", str(r)] for r in (1, 2, 3)]  # fmt: skip
    images = load_images(str(saved / "data.npz"))
    model = from_pretrained(saved / "model")
    by_hand = GradientClustering(model, 6, layers=["conv1", "fc"], weighted=False)
    by_hand.fit(images, rounds=3)
    found = load_file(out / "assignment.safetensors")
    for name in ("assignment", "distance", "cluster_size", "distortion"):
        assert torch.equal(found[name], getattr(by_hand, name)), name
    history = [json.loads(line) for line in (out / "history.jsonl").read_text().splitlines()]
    assert [r["objective"] for r in history] == [r["objective"] for r in by_hand.history]
    assert torch.equal(ClusterFolder(out).assignment(), by_hand.assignment)

    rows = list(csv.DictReader((out / "clusters.csv").open()))
    live = by_hand.cluster_size.nonzero().flatten().tolist()
    assert sorted(int(row["cluster"]) for row in rows) == live
    sizes = [int(row["size"]) for row in rows]
    assert sizes == sorted(sizes, reverse=True)
    assert sum(sizes) == len(images)
    for row in rows:
        members = by_hand.assignment == int(row["cluster"])
        assert members.sum() == int(row["size"])
        mean = by_hand.distance[members].mean().item()
        assert float(row["distortion"]) == pytest.approx(mean, rel=1e-12)
        counts = dict(part.split(": ") for part in row["classes"].split(", "))
        of = images.target[members].unique(return_counts=True)
        assert {int(c): int(n) for c, n in counts.items()} == dict(zip(*(t.tolist() for t in of), strict=True))  # fmt: skip
    assert sum(float(row["cost"]) for row in rows) == pytest.approx(1.0)

    concept, names = resolve_concepts(str(out / "concepts.csv"), images)
    assert torch.equal(concept, by_hand.concepts())
    assert names == [str(k) for k in live]
    assert {p.name for p in (out / "plots").iterdir()} == {"sizes.png", "rounds.png", "examples.png"}  # fmt: skip
    assert len(stdout.splitlines()) == 1 + len(rows) + 1
    assert stdout.endswith(f"hrrl train --concepts {out / 'concepts.csv'} ...\n")


def test_resumed_to_the_same_bits(
    capsys: Any, saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Interrupted after a round, and taken up twice; or asked for more rounds than before."""
    assert cluster(capsys, saved, tmp_path / "through", "--rounds", "4")[0] == 0
    save = ClusterFolder.save

    def stop(self: ClusterFolder, clustering: GradientClustering) -> None:
        save(self, clustering)
        if len(clustering.history) == 2:
            raise KeyboardInterrupt

    out = tmp_path / "stopped"
    with monkeypatch.context() as patched:
        patched.setattr(ClusterFolder, "save", stop)
        status, stdout, stderr = cluster(capsys, saved, out, "--rounds", "3")
    assert (status, stdout) == (130, "")
    assert stderr.endswith("hrrl cluster: interrupted\n")
    assert not (out / "assignment.safetensors").exists()
    status, _, stderr = run(
        capsys, "variance", saved / "model", "--data", saved / "data.npz", "--clusters", out
    )
    assert status == 1
    assert "is not through; go on with hrrl cluster ... --resume" in stderr
    for rounds, line in (("3", "round 3"), ("4", "round 4")):
        status, _, stderr = cluster(capsys, saved, out, "--rounds", rounds, "--resume")
        assert (status, stderr[:7]) == (0, line), stderr
    assert state(out) == state(tmp_path / "through")
    status, stdout, stderr = cluster(capsys, saved, out, "--rounds", "2", "--resume")
    assert (status, stderr) == (0, "")  # nothing is left to do; the table is shown once more
    assert state(out) == state(tmp_path / "through")
    for name in ("assignment.safetensors", "clusters.csv", "concepts.csv"):
        assert (out / name).read_bytes() == (tmp_path / "through" / name).read_bytes(), name


def test_refusals_leave_all_as_it_was(capsys: Any, saved: Path, tmp_path: Path) -> None:
    out = tmp_path / "clusters"
    assert cluster(capsys, saved, out, "--rounds", "1")[0] == 0
    before = {p: p.read_bytes() for p in out.rglob("*") if p.is_file()}
    cases = [
        (cluster(capsys, saved, out), "already holds a clustering; continue it with resume, or"),
        (cluster(capsys, saved, out, "--resume", "--rank", "2"), "other settings (rank differ)"),
        (cluster(capsys, saved, out, "--resume", "--rounds", "0"), "rounds must be at least 1"),
        (cluster(capsys, saved, tmp_path / "none", "--resume"), "holds no clustering"),
        (cluster(capsys, saved, saved / "data.npz"), "out must be a folder, got the file"),
        (cluster(capsys, saved, tmp_path / "none", "--center", "median"), "center must be"),
    ]
    for (status, stdout, stderr), message in cases:
        assert (status, stdout) == (1, ""), stderr
        assert message in stderr
        assert stderr.count("\n") == 1
    others = {"model": saved / "other", "data": saved / "fewer.npz"}
    for what, other in others.items():
        arguments = {"model": saved / "model", "data": saved / "data.npz"} | {what: other}
        status, _, stderr = run(
            capsys, "cluster", arguments["model"], "--data", arguments["data"], "--clusters", "6",
            "--layers", "conv1", "fc", "--out", out, "--resume",
        )  # fmt: skip
        assert status == 1
        assert f"({'weights' if what == 'model' else 'data, examples'} differ)" in stderr
    (out / "state.pt").write_bytes(before[out / "state.pt"][:100])
    status, _, stderr = cluster(capsys, saved, out, "--resume")
    assert (status, stderr.count("\n")) == (1, 1)
    assert "state.pt cannot be read" in stderr
    (out / "state.pt").write_bytes(before[out / "state.pt"])
    assert {p: p.read_bytes() for p in out.rglob("*") if p.is_file()} == before


def test_classes_must_be_those_of_the_model(capsys: Any, saved: Path, tmp_path: Path) -> None:
    images = np.zeros((4, 8, 8, 3), np.uint8)
    np.savez(tmp_path / "more.npz", image=images, label=np.array([0, 1, 10, 1]))
    for command in (["cluster", "--clusters", "2"], ["variance"]):
        status, _, stderr = run(
            capsys, command[0], saved / "model", "--data", tmp_path / "more.npz", *command[1:]
        )
        assert status == 1
        assert "data has 11 classes (0, 1, 2, ...), " in stderr
        assert "10 classes (0, 1, 2, ...): '10' is none of those of " in stderr
    assert not (saved / "model/clusters").exists()


def test_variance(capsys: Any, saved: Path, tmp_path: Path) -> None:
    """GC's clusters, their parameters and their number; SVRG's snapshot; against the function."""
    out, result = tmp_path / "clusters", tmp_path / "variance.json"
    assert cluster(capsys, saved, out, "--rounds", "2")[0] == 0
    command = [
        "variance", saved / "model", "--data", saved / "data.npz", "--clusters", out, "--snapshot",
        saved / "other", "--num_batches", "4", "--seed", "3", "--device", "cpu",
    ]  # fmt: skip
    status, stdout, stderr = run(capsys, *command, "--out", result)
    assert status == 0, stderr
    rows = {r["estimator"]: r for r in json.loads(result.read_text())["estimators"]}
    assert list(rows) == ["SG-B", "SG-2B", "SVRG", "GC"]
    images = load_images(str(saved / "data.npz"))
    clusters = ClusterFolder(out).assignment()
    names = ["conv1.weight", "fc.weight", "fc.bias"]
    by_hand = gradient_variance(
        from_pretrained(saved / "model"), images, ["SG-2B", "GC"], assignment=clusters,
        parameters=names, batch_size=len(clusters.unique()), num_batches=4, seed=3,
    )  # fmt: skip
    for name, measured in by_hand.items():
        assert rows[name] == {"estimator": name} | vars(measured)
    assert f"{by_hand['GC'].average_variance:.3e}" in stdout
    status, _, stderr = run(capsys, *command, "--out", result)
    assert status == 1
    assert f"{result} exists; choose another out" in stderr

    status, stdout, _ = run(capsys, *command, "--estimators", "SG-B", "--batch_size", "7")
    assert (status, [line.split()[0] for line in stdout.splitlines()]) == (0, ["estimator", "SG-B"])
    status, stdout, stderr = run(capsys, *command, "--data", saved / "named.npz", "--estimators", "GC")  # fmt: skip
    assert status == 0, stderr
    assert stderr.startswith("hrrl: warning: ") and "the same place in the list" in stderr
    refused: list[tuple[list[str | Path], str]] = [
        (["--data", saved / "fewer.npz"], "clusters 90 examples"),
        (["--estimators", "SGB"], "no estimator 'SGB'"),
        (["--form", "raw"], "form must be 'corrected' or 'paper'"),
        (["--clusters", tmp_path], "holds no clustering; hrrl cluster writes one"),
    ]
    for more, message in refused:
        status, _, stderr = run(capsys, *command, *more)
        assert (status, stderr.count("\n")) == (1, 1), stderr
        assert message in stderr


def test_a_snapshot_has_the_classes_of_the_model_whatever_the_images_call_them(
    capsys: Any, saved: Path, tmp_path: Path
) -> None:
    words = CONFIG | {"classes": [f"digit {n}" for n in range(10)]}
    save_pretrained(from_pretrained(saved / "model"), tmp_path / "words", words)
    names = [f"figure {n}" for n in range(10)]
    (tmp_path / "classes.txt").write_text("\n".join(names))
    with np.load(saved / "data.npz") as data:
        np.savez(tmp_path / "data.npz", **(dict(data) | {"class_names": np.array(names)}))
    status, stdout, stderr = run(
        capsys, "variance", tmp_path / "words", "--data", tmp_path / "data.npz", "--classes",
        tmp_path / "classes.txt", "--snapshot", tmp_path / "words", "--num_batches", "2",
        "--batch_size", "4", "--estimators", "SVRG", "--device", "cpu",
    )  # fmt: skip
    assert status == 0, stderr
    assert "SVRG" in stdout


def test_variance_needs_what_it_is_asked_for(capsys: Any, saved: Path) -> None:
    for name, needed in (("SVRG", "snapshot="), ("GC", "assignment=")):
        status, _, stderr = run(
            capsys, "variance", saved / "model", "--data", saved / "data.npz", "--batch_size", "4",
            "--estimators", name,
        )  # fmt: skip
        assert status == 1
        assert f"{name} needs {needed}" in stderr


def test_a_runs_folder(capsys: Any, saved: Path, tmp_path: Path) -> None:
    """Train, cluster beside the run, and train with the clusters as concepts."""
    train = [
        "train", "--data", saved / "data.npz", "--epochs", "1", "--width", "4", "--crop_padding", "1",
        "--batch_size", "32", "--lr", "0.05", "--progress", "off",
    ]  # fmt: skip
    out = tmp_path / "run"
    status, _, stderr = run(capsys, *train, "--concepts", "classes", "--out", out)
    assert status == 0, stderr
    status, stdout, stderr = run(
        capsys, "cluster", out, "--data", saved / "data.npz", "--clusters", "5", "--rounds", "1"
    )
    assert status == 0, stderr
    concepts = out / "clusters/concepts.csv"
    assert str(concepts) in stdout
    arguments = ["--concepts", concepts, "--tau", "0.1", "--lam", "20", "--out", tmp_path / "again"]
    status, _, stderr = run(capsys, *train, *arguments)
    assert status == 0, stderr
    with_concepts = json.loads((tmp_path / "again/config.json").read_text())["concepts"]
    live = ClusterFolder(out / "clusters").assignment().unique().tolist()
    assert with_concepts == [str(k) for k in live]


def fitted(sizes: list[int], classes: int) -> tuple[GradientClustering, torch.Tensor]:
    """As if it had found clusters of these sizes, the distance of cluster k being k + 1."""
    clustering = GradientClustering(torch.nn.Linear(2, 2), len(sizes))
    clustering.cluster_size = torch.tensor(sizes)
    clustering.assignment = torch.arange(len(sizes)).repeat_interleave(clustering.cluster_size)
    clustering.distortion = torch.arange(1, len(sizes) + 1).double()
    target = torch.arange(sum(sizes)) % classes
    return clustering, target


def test_rows_by_hand() -> None:
    clustering, target = fitted([2, 0, 5, 2], classes=2)
    rows = cluster_rows(clustering, target, ["cat", "dog"])
    assert [(r["cluster"], r["size"]) for r in rows] == [(2, 5), (0, 2), (3, 2)]
    # The most frequent first, and equal ones in the order of the classes.
    classes = [list(r["classes"].items()) for r in rows]
    assert classes == [[("cat", 3), ("dog", 2)], [("cat", 1), ("dog", 1)], [("cat", 1), ("dog", 1)]]
    costs = [25 * 3, 4 * 1, 4 * 4]
    assert [r["cost"] for r in rows] == pytest.approx([c / sum(costs) for c in costs])
    clustering.weighted = False
    costs = [5 * 3, 2 * 1, 2 * 4]
    rows = cluster_rows(clustering, target, ["cat", "dog"])
    assert [r["cost"] for r in rows] == pytest.approx([c / sum(costs) for c in costs])


def test_long_tables_are_cut() -> None:
    clustering, target = fitted([5] * 23, classes=5)
    table = cluster_table(cluster_rows(clustering, target, list("abcde"))).splitlines()
    assert len(table) == 1 + 20 + 1
    assert table[1].endswith("a: 1, b: 1, c: 1, 2 more")
    assert table[-1] == "and 3 smaller ones"


def test_no_distortion_has_no_cost() -> None:
    clustering, target = fitted([3, 3], classes=2)
    clustering.distortion = torch.zeros(2, dtype=torch.float64)
    assert [row["cost"] for row in cluster_rows(clustering, target, ["a", "b"])] == [0.0, 0.0]


def test_the_digest_is_of_every_value() -> None:
    model = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.BatchNorm1d(2)).bfloat16()
    first = weights_digest(model)
    assert weights_digest(model) == first
    for tensor in [model[0].weight, model[1].running_mean, model[1].num_batches_tracked]:
        before = tensor.clone()
        with torch.no_grad():
            tensor.add_(1)
            assert weights_digest(model) != first
            tensor.copy_(before)
    assert weights_digest(model) == first
