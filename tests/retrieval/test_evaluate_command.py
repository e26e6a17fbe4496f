"""hrrl evaluate-retrieval: what the function says, on files of any model."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from hrrl_ext.retrieval import Gallery, evaluate

pytest.importorskip("jsonargparse")

from hrrl_ext.cli import main


@pytest.fixture
def file(tmp_path):
    random = np.random.default_rng(0)
    image, owner = random.standard_normal((30, 4)), np.arange(60) // 2
    caption = image[owner] + random.standard_normal((60, 4))
    np.savez(tmp_path / "clip.npz", image_embeds=image, text_embeds=caption, caption_group=owner)
    return tmp_path / "clip.npz", evaluate(
        image, caption, caption_group=owner, folds=3, bootstrap=20
    )


def test_it_prints_and_saves_what_the_function_returns(file, capsys) -> None:
    path, expected = file
    out = path.with_name("found.json")
    options = ["--folds", "3", "--bootstrap", "20", "--out", str(out)]
    assert main(["evaluate-retrieval", str(path), *options]) == 0
    printed = capsys.readouterr().out
    assert f"{path}: {expected}" in printed
    assert json.loads(out.read_text()) == {str(path): json.loads(json.dumps(expected.as_dict()))}
    assert main(["evaluate-retrieval", str(path), "--out", str(out)]) == 1
    assert "exists; choose another out" in capsys.readouterr().err


def test_embeddings_are_compared_as_their_file_says(tmp_path, capsys) -> None:
    rows, path = torch.eye(4), tmp_path / "order.npz"
    Gallery(rows, rows, "order").save(path)
    for options, said, told in (
        ([], "; order, ", ""),
        (["--similarity", "dot"], "; dot, ", "by order"),
    ):
        assert main(["evaluate-retrieval", str(path), *options]) == 0
        printed = capsys.readouterr()
        assert said in printed.out and told in printed.err and bool(told) == bool(printed.err)


def test_errors_are_one_line(file, capsys) -> None:
    path, _ = file
    for options, said in (
        (["--folds", "coco-1k"], "coco-1k' is of 5000 images, got 30"),
        (["--similarity", "cosin"], "did you mean 'cosine'"),
    ):
        assert main(["evaluate-retrieval", str(path), *options]) == 1
        error = capsys.readouterr().err
        assert said in error and error.count("\n") == 1
