"""hrrl robust-linear: every kind of file, what is printed and written, what is refused."""

from __future__ import annotations

import csv
import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from margin_cases import digits_3_7, overlapping
from sklearn.datasets import load_digits
from test_cli import run

from hrrl_ext.linear import MaxMarginClassifier, certify
from hrrl_ext.plots import plot_certified
from hrrl_ext.transfer import Features, save_features


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("digits") / "digits.npz"
    X, y = load_digits(return_X_y=True)
    np.savez(path, X=X / 16, y=y)
    return path


def write_table(path: Path, X: np.ndarray, y: list[str], at: int) -> None:
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        names = [f"x{j}" for j in range(X.shape[1])]
        writer.writerow([*names[:at], "kind", *names[at:]])
        writer.writerows(
            [*row[:at], label, *row[at:]] for row, label in zip(X.tolist(), y, strict=True)
        )


def test_from_an_archive_to_a_certificate(digits: Path, tmp_path: Path, capsys) -> None:
    out = tmp_path / "out"
    options = [
        digits,
        "--classes",
        "3",
        "7",
        "--norm",
        "l1",
        "--test",
        digits,
        "--eps",
        "0.1",
        "0",
        "--out",
        out,
    ]
    status, stdout, stderr = run(capsys, "robust-linear", *options)
    assert status == 0, stderr
    assert "no linf perturbation below 0.08764 changes a training prediction" in stdout
    assert stdout.endswith(f"saved {out}\n")
    table = stdout.split("certified accuracy\n")[1].splitlines()
    assert table[0].split() == ["linf", "attack", "of", "training", "test"]
    assert table[1].split() == ["0", "100.0", "%", "100.0", "%"]
    said = json.loads((out / "certificate.json").read_text())
    stored = np.load(out / "weights.npz")
    model = MaxMarginClassifier("l1").fit(*digits_3_7())
    np.testing.assert_array_equal(stored["coef"], model.coef_)
    assert said["robust_radius"] == model.robust_radius_ and said["attack"] == "linf"
    assert said["certified_accuracy"]["test"] == [1.0, model.certified_accuracy(*digits_3_7(), 0.1)]
    radii = list(csv.DictReader((out / "training-radii.csv").open()))
    assert len(radii) == 362 and min(float(row["radius"]) for row in radii) == model.robust_radius_
    if (out / "certified.png").exists():
        assert (out / "certified.png").read_bytes().startswith(b"\x89PNG")
    status, _, stderr = run(capsys, "robust-linear", *options)
    assert status == 1 and "exists; choose another out" in stderr
    few = ("--classes", "3", "7", "--solver", "prox", "--C", "1", "--max_iter", "1")
    status, _, stderr = run(capsys, "robust-linear", digits, *few)
    assert status == 0 and re.search(r"after 1 iterations the gap is .* raise max_iter", stderr)


def test_every_kind_of_file_holds_the_same(digits: Path, tmp_path: Path, capsys) -> None:
    X, y = digits_3_7()
    X = X.astype(np.float32)
    save_features(tmp_path / "a.safetensors", Features(torch.from_numpy(X), torch.from_numpy(y)))
    write_table(tmp_path / "last.csv", X, [str(k) for k in y], 64)
    write_table(tmp_path / "first.csv", X, [str(k) for k in y], 0)
    images = np.round(X.reshape(-1, 8, 8) * 16).astype(np.uint8)
    np.savez(tmp_path / "images.npz", image=images, label=y)
    radius = MaxMarginClassifier("linf").fit(X, y).robust_radius_
    for name, scale, more in (
        ("a.safetensors", 1, []), ("last.csv", 1, []), ("first.csv", 1, ["--target", "kind"]),
        ("images.npz", 16 / 255, []),
    ):  # fmt: skip
        status, stdout, stderr = run(
            capsys, "robust-linear", tmp_path / name, "--norm", "linf", *more
        )
        assert status == 0, stderr
        assert f"no l1 perturbation below {scale * radius:.4g} " in stdout, name


def test_what_is_refused(digits: Path, tmp_path: Path, capsys) -> None:
    X, y = overlapping()
    np.savez(tmp_path / "mixed.npz", X=X, y=y)
    np.savez(tmp_path / "other.npz", rows=X)
    (tmp_path / "not.npz").write_text("text")
    (tmp_path / "empty.csv").write_text("")
    (tmp_path / "words.csv").write_text("a,b,kind\n1,2,x\n1,two,y\n")
    (tmp_path / "short.csv").write_text("a,b,kind\n1,2,x\n1,y\n")
    (tmp_path / "a.txt").write_text("1")
    for words, told in (
        (["mixed.npz"], "no hyperplane separates"),
        (["other.npz"], "must hold one of the pairs"),
        (["not.npz"], "is not an .npz"),
        (["empty.csv"], "is empty"),
        (["words.csv"], "row 2, column 'b': 'two' is not a number"),
        (["short.csv"], "row 2 has 2 columns, where the first has 3"),
        (["words.csv", "--target", "knd"], "did you mean 'kind'"),
        (["mixed.npz", "--target", "kind"], "has no columns with names"),
        (["a.txt"], "by its suffix"),
        (["none.csv"], "no file"),
        (["mixed.npz", "--classes", "2"], "class '2' is not known"),
        (["mixed.npz", "--norm", "l7x"], "norm 'l7x' is not known"),
    ):
        status, _, stderr = run(capsys, "robust-linear", tmp_path / words[0], *words[1:])
        assert status == 1 and told in stderr, (words, stderr)


ROWS = "1,2,x\n3,5,x\n-4,0.5,y\n-2,1e-1,y\n"


@pytest.mark.parametrize(
    ("text", "options"),
    [
        ("a,b,kind\n" + ROWS, []),
        (ROWS, []),
        ("0,1,kind\n" + ROWS, []),
        ("0,1,2\n" + ROWS, []),
        ("1,2,kind\n" + ROWS, []),
        ("2019,2020,kind\n" + ROWS, []),
        (("a,b,kind\n" + ROWS).replace(",", ";"), []),
        (("\ufeffa,b,kind\n" + ROWS).replace(",", "\t"), []),
        (ROWS.replace(",", " ;"), []),
        ('"a, b",b,kind\n' + ROWS.replace("1,2,x", '"1","2"," x"'), []),
        ("\n".join(["kind,a,b", "x,1,2", "x,3,5", "y,-4,0.5", "y,-2,0.1"]), ["--target", "kind"]),
        ("\n".join(["x,1,2", "x,3,5", "y,-4,0.5", "y,-2,0.1"]), ["--target", "0"]),
        ("\n".join(["id,a,b,kind", "9,1,2,x", "8,3,5,x", "7,-4,0.5,y", "6,-2,0.1,y"]), ["--without", "id"]),
        ("\n".join([",a,b,kind", "0,1,2,x", "1,3,5,x", "2,-4,0.5,y", "3,-2,0.1,y"]), []),
    ],
)  # fmt: skip
def test_tables_as_others_write_them(text: str, options: list[str], tmp_path: Path, capsys) -> None:
    """Header or none, what parts the columns, a number of the row: the same four examples."""
    (tmp_path / "a.csv").write_text(text, encoding="utf-8")
    X, y = np.array([[1, 2], [3, 5], [-4, 0.5], [-2, 0.1]]), list("xxyy")
    radius = MaxMarginClassifier("l2").fit(X, y).robust_radius_
    status, stdout, stderr = run(capsys, "robust-linear", tmp_path / "a.csv", *options)
    assert status == 0, stderr
    assert stdout.startswith("4 examples of 2 numbers, 2 classes") and f" {radius:.4g} " in stdout
    assert ("first column has no name" in stderr) == text.startswith(",")


@pytest.mark.parametrize(
    ("text", "options", "told"),
    [
        ("a,b,kind\n1,,x\n", [], "row 1, column 'b': '' is not a number; fill in"),
        ("a,b,kind\n1,nan,x\n", [], "'nan' is not a number"),
        ("a;b;kind\n1;0,5;x\n", [], "'0,5' is not a number; decimals are written with a point"),
        ("a,b,kind\n1,2,\n", [], "row 1 has no label in the column 'kind'"),
        ("a,b,kind\n", [], "0 examples of 2 features"),
        ("kind\nx\n", [], "1 examples of 0 features"),
        ("a,kind,kind\n1,2,x\n", [], "2 columns are called 'kind'"),
        ("a,kind\n1,x\n2," + "x" * 140_000 + "\n", [], "field larger than field limit"),
        ("a,b,kind\n1,2,x\n", ["--without", "c"], "column 'c' is not known"),
        ("a,b,kind\n1,2,x\n2,3,x\n", [], "1 class (x); give examples of another one too"),
    ],
)
def test_tables_that_are_refused(
    text: str, options: list[str], told: str, tmp_path: Path, capsys
) -> None:
    (tmp_path / "a.csv").write_text(text)
    status, _, stderr = run(capsys, "robust-linear", tmp_path / "a.csv", *options)
    assert status == 1 and told in stderr and stderr.count("\n") == 1, stderr


def test_a_test_file_has_the_features_of_training(tmp_path: Path, capsys) -> None:
    train, test = tmp_path / "train.csv", tmp_path / "test.csv"
    train.write_text("a,b,kind\n" + ROWS)
    test.write_text("b,a,kind\n" + ROWS)
    status, _, stderr = run(capsys, "robust-linear", train, "--test", test)
    assert status == 1 and "in their order: ['a', 'b'], got ['b', 'a']" in stderr
    test.write_text("a,b,kind\n1,2,z\n2,3,x\n")
    status, _, stderr = run(capsys, "robust-linear", train, "--test", test)
    assert status == 1 and f"'z' is none of those of {train}" in stderr
    status, _, stderr = run(
        capsys, "robust-linear", train, "--test", test, "--classes", "x", "--out", tmp_path / "out"
    )
    assert status == 1 and "1 class" in stderr and not (tmp_path / "out").exists()
    assert run(capsys, "robust-linear", train, "--out", tmp_path / "out")[0] == 0
    assert np.load(tmp_path / "out/weights.npz")["features"].tolist() == ["a", "b"]
    status, _, stderr = run(capsys, "robust-linear", train, "--eps", "-1")
    assert status == 1 and "eps must be at least 0, got -1" in stderr


CLASSES = ["x", "y"], ["3", "7"]
KINDS = "words.csv", "words.npz", "named.npz", "images.npz", "named.safetensors"


def write_examples(path: Path, classes: list[str], kind: str, rows: str = ROWS) -> Path:
    """`rows`, whose x and y are called ``classes``; files with numbers count these backwards."""
    cells = [row.split(",") for row in rows.splitlines()]
    X = np.array([row[:2] for row in cells], dtype=np.float32)
    number = np.array([row[2] != "x" for row in cells]).astype(np.int64)
    path /= kind
    if kind == "words.csv":
        path.write_text("a,b,kind\n" + rows.replace("x", classes[0]).replace("y", classes[1]))
    elif kind == "words.npz":
        labels = np.array(classes)[number]
        np.savez(path, X=X, y=labels.astype(float) if labels[0].isdigit() else labels)
    elif kind == "images.npz":
        np.savez(path, image=X[:, None], label=1 - number, class_names=classes[::-1])
    else:
        features = Features(torch.from_numpy(X), torch.from_numpy(1 - number))
        save_features(path, features, classes=classes[::-1])
    return path


@pytest.mark.parametrize("classes", CLASSES)
@pytest.mark.parametrize("train", ["words.csv", "named.npz"])
def test_classes_of_two_files_are_matched_by_name(
    train: str, classes: list[str], tmp_path: Path, capsys
) -> None:
    """Whatever kinds the files are of, and numbers by value: every test example is right."""
    other = tmp_path / "other"
    other.mkdir()
    train_file = write_examples(tmp_path, classes, train)
    for kind in KINDS:
        test = write_examples(other, classes, kind)
        chosen = ["--classes", *classes] if kind != train else []
        status, stdout, stderr = run(
            capsys, "robust-linear", train_file, "--test", test, *chosen, "--eps", "0", "1"
        )
        assert status == 0 and stderr == "", (kind, stderr)
        assert [row.split()[1::2] for row in stdout.splitlines()[-2:]] == [["100.0"] * 2] * 2


def test_classes_of_two_files_that_cannot_be_matched(tmp_path: Path, capsys) -> None:
    named, three = tmp_path / "named.npz", np.array([0, 1, 2, 0])
    X = np.eye(4, dtype=np.float32)
    np.savez(named, features=X, labels=three, class_names=["cat", "ant", "bee"])
    test = tmp_path / "test.npz"
    for arrays, told in (
        ({"labels": three, "class_names": ["ant", "bee", "dog"]}, "'dog' is none of those of"),
        ({"labels": np.array([3, 4, 5, 3])}, "'3' is none of those of"),
        ({"labels": three, "class_names": ["ant", "bee", "ant"]}, "two of class_names are equal"),
        ({"labels": three + 1, "class_names": ["ant", "bee", "cat"]}, "from 1 to 3: subtract 1"),
        ({"labels": three, "features": X[:, :3]}, "must be of 4 numbers, as those of"),
        ({"labels": three[:0], "features": X[:0]}, "features has no example"),
    ):
        np.savez(test, **{"features": X} | arrays)
        status, _, stderr = run(capsys, "robust-linear", named, "--test", test)
        assert status == 1 and told in stderr and stderr.count("\n") == 1, stderr
    np.savez(test, features=X, labels=three)  # without names: in the order of the file, and said
    status, stdout, stderr = run(capsys, "robust-linear", named, "--test", test, "--eps", "0")
    assert status == 0 and "taken for the same, in their order, such as '0' for 'cat'" in stderr
    assert stdout.splitlines()[-1].split()[1::2] == ["100.0"] * 2
    status, _, stderr = run(
        capsys, "robust-linear", named, "--test", test, "--classes", "ant", "cat"
    )
    assert status == 1 and f"{test} has no example of the classes ant, cat" in stderr
    np.savez(test, features=X, labels=three, class_names=["ant", "bee", "cat"])
    np.savez(named, features=X[:2], labels=three[:2], class_names=["cat", "ant", "bee"])
    status, _, stderr = run(capsys, "robust-linear", named, "--test", test)
    assert status == 1 and f"class 'bee' has no example in {named}; leave it out" in stderr
    status, stdout, _ = run(
        capsys, "robust-linear", named, "--test", test, "--classes", "ant", "cat", "--eps", "0"
    )
    assert status == 0 and "2 classes" in stdout


def test_arrays_that_are_refused(tmp_path: Path, capsys) -> None:
    X, y = np.arange(12.0).reshape(4, 3), np.array(list("aabb"))
    for arrays, told in (
        ({"X": X, "y": y[:3]}, "a label per row of X, got [3] and [4, 3]"),
        ({"X": X, "y": y[:, None]}, "got [4, 1] and [4, 3]"),
        ({"X": np.where(X == 7, np.inf, X), "y": y}, "number 1 of example 2 of X is inf"),
        ({"X": X, "y": y.astype(object)}, "y.astype(str)"),
    ):
        np.savez(tmp_path / "a.npz", **arrays)
        status, _, stderr = run(capsys, "robust-linear", tmp_path / "a.npz")
        assert status == 1 and told in stderr and stderr.count("\n") == 1, stderr


def test_with_slack_it_says_so(tmp_path: Path, capsys) -> None:
    X, y = overlapping()
    np.savez(tmp_path / "mixed.npz", X=X, y=y)
    for C, told in (("1", "training examples are misclassified"), ("1e-9", "all weights are 0")):
        status, stdout, stderr = run(
            capsys, "robust-linear", tmp_path / "mixed.npz", "--norm", "l1", "--C", C
        )
        assert status == 0, stderr
        assert told in stdout and "lam up to" not in stdout


def test_the_curve_is_exact_at_every_eps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    figure = pytest.importorskip("matplotlib.figure")
    drawn = []
    monkeypatch.setattr(figure.Figure, "savefig", lambda self, *_, **__: drawn.append(self))
    X, y = overlapping()
    model = MaxMarginClassifier("l1", C=1.0).fit(X, y)
    certificate = model.certify(X, y)
    plot_certified({"_$a": certificate}, tmp_path / "picture.png")
    (line,) = drawn[0].axes[0].get_lines()
    eps, share = line.get_data()
    for at in (0.0, eps[3], eps[5] + 1e-9, eps[-1] + 1):
        shown = share[np.searchsorted(eps, at, side="right") - 1]
        assert shown == pytest.approx(100 * certificate.accuracy(at))
    other = certify(model, X, y, "l2")
    with pytest.raises(ValueError, match="of one norm, got"):
        plot_certified({"a": certificate, "b": other}, tmp_path / "picture.png")
