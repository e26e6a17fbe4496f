"""Labels of any width and size: bounds are held before anything is made for every class."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
import torch
from torch import nn

from hrrl_ext.data import ArrayImages, load_images
from hrrl_ext.data.ids import SPARE, class_ids
from hrrl_ext.evaluation.predictions import predict
from hrrl_ext.transfer import extract_features, load_features

IMAGES = np.zeros((3, 4, 4, 3), np.uint8)
WILD = {
    "uint32": np.array([0, 1, 2**32 - 1], np.uint32),
    "uint64": np.array([0, 1, 2**64 - 1], np.uint64),
    "beyond int64": np.array([0, 1, 2**63], np.uint64),
    "int64": np.array([0, 1, 2**63 - 1]),
    "first beyond": np.array([0, 1, 3 + SPARE], np.int32),
}


def opened(labels, way, file):
    """What comes to class ids by each way."""
    match way:
        case "ids":
            return class_ids(labels, "images: target")
        case "array":
            return ArrayImages(IMAGES, labels)
        case "column":
            return ArrayImages(IMAGES, labels[:, None])
        case "npz":
            np.savez(file, image=IMAGES, label=labels)
        case _:
            np.savez(file, x_train=IMAGES, y_train=[0, 1, 2], x_test=IMAGES, y_test=labels)
            return load_images(file, split="test")
    return load_images(file)


@pytest.mark.parametrize("name", WILD)
@pytest.mark.parametrize("way", ["ids", "array", "column", "npz", "split of an npz"])
def test_a_wild_label_is_named_and_nothing_is_made_for_its_class(name, way, tmp_path):
    labels, file = WILD[name], tmp_path / "wild.npz"
    tracemalloc.start()
    with pytest.raises(ValueError, match=r"at position 2: one for each of 3 rows.*np\.unique") as e:
        opened(labels, way, file)
    memory = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert f"must be in 0..{2 + SPARE}, got {labels[2]} " in str(e.value)
    assert str(e.value).startswith(str(file)) == ("npz" in way)
    assert memory < 2**20


def test_the_last_class_that_there_may_be():
    ids, count = class_ids(np.array([2 + SPARE, 0, 0], np.uint64), "target")
    assert (ids.tolist(), ids.dtype, count) == ([2 + SPARE, 0, 0], torch.int64, 3 + SPARE)


def test_names_are_the_bound_where_there_are_names(tmp_path):
    with pytest.raises(ValueError, match=r"in 0\.\.1, got 18446744073709551615 at position 1$"):
        class_ids(np.array([0, 2**64 - 1, 1], np.uint64), "target", num_classes=2)
    arrays = {"image": IMAGES, "label": [0, 1, 2], "concept_names": ["a", "b"]}
    np.savez(tmp_path / "c.npz", **arrays, class_to_concept=np.array([0, 1, 2**64 - 1], np.uint64))
    with pytest.raises(ValueError, match=r"c\.npz: class_to_concept must be in 0\.\.1, got 184"):
        load_images(tmp_path / "c.npz")


@pytest.mark.parametrize(
    "labels",
    [
        np.array([0, 1e18]),
        np.array([0, np.nan]),
        np.array([0, 1j]),
        np.array([0, 2**70], object),
        np.array(["0", "1"]),
        np.array(["2020-01-01", "2021-01-01"], "M8[D]"),
    ],
    ids=lambda labels: str(labels.dtype),
)
def test_what_is_no_whole_number(labels):
    with pytest.raises(
        TypeError, match=f"target must hold integers, got {labels.dtype}".replace("[", r"\[")
    ):
        class_ids(labels, "target")


def test_truth_values_are_two_classes():
    assert class_ids(np.array([True, False]), "target")[0].tolist() == [1, 0]


@pytest.mark.parametrize("label", [-1, 2, 2**62])
def test_labels_of_features_are_numbers_of_their_names(label, tmp_path):
    """hrrl probe looks names up by them, where -1 would be the last."""
    file = tmp_path / "f.npz"
    arrays = {"features": np.zeros((2, 3), np.float32), "labels": np.array([0, label])}
    np.savez(file, **arrays)
    assert load_features(file).labels.tolist() == [0, label]  # without names they are what they are
    np.savez(file, **arrays, class_names=np.array(["a", "b"]))
    with pytest.raises(
        ValueError, match=rf"f\.npz: labels, .*in 0\.\.1, got {label} at position 1"
    ):
        load_features(file)


@pytest.mark.parametrize("use", [predict, extract_features], ids=lambda use: use.__name__)
def test_labels_in_batches_are_of_any_width_and_never_wrap(use):
    """Integers that torch has few operations for, and what a cast alone would make classes of."""
    model, x = nn.Sequential(nn.Flatten(), nn.Linear(48, 2)), torch.rand(2, 3, 4, 4)
    for dtype in (torch.uint64, torch.uint32, torch.uint16, torch.int8, torch.bool):
        labels = use(model, (x, torch.tensor([0, 1], dtype=dtype))).labels
        assert (labels.dtype, labels.tolist()) == (torch.int64, [0, 1])
    wild = torch.from_numpy(np.array([0, 2**63 + 1], np.uint64))
    with pytest.raises(ValueError, match="label 9223372036854775809 at position 1 of a batch"):
        use(model, (x, wild))
    with pytest.raises(ValueError, match="integer labels"):
        use(model, (x, torch.tensor([0, 1j])))


def test_bfloat16_is_no_integer():
    with pytest.raises(TypeError, match="target must hold integers"):
        class_ids(torch.tensor([0, 1], dtype=torch.bfloat16), "target")
