"""NumPy archives: layouts, parts, concepts, and files that are broken in many ways."""

from __future__ import annotations

import io
import pickle
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch

from hrrl_ext.data import ConceptMap, load_images

IMAGES = np.random.default_rng(0).integers(0, 256, (6, 4, 5, 3), dtype=np.uint8)
ARRAYS = {
    "image": IMAGES,
    "label": np.array([0, 1, 2, 2, 1, 0]),
    "class_names": np.array(["cat", "dog", "car"]),
    "concept_names": np.array(["animal", "vehicle"]),
    "class_to_concept": np.array([0, 0, 1]),
}


def save(path, **changes):
    arrays = {key: value for key, value in (ARRAYS | changes).items() if value is not None}
    np.savez_compressed(path, **arrays)
    return path


def test_all_keys(tmp_path):
    images = load_images(save(tmp_path / "toys.npz"))
    assert np.array_equal(images.images.numpy(), IMAGES.transpose(0, 3, 1, 2))
    assert images.target.tolist() == [0, 1, 2, 2, 1, 0]
    assert images.classes == ["cat", "dog", "car"]
    assert images.concept_map == ConceptMap.from_names(["animal", "animal", "vehicle"])
    assert images.name == "toys"


def test_only_the_required_keys(tmp_path):
    none = dict.fromkeys(["class_names", "concept_names", "class_to_concept"])
    images = load_images(str(save(tmp_path / "a.npz", image=IMAGES[..., 0], **none)))
    assert images.classes == ["0", "1", "2"]
    assert images.concept_map is None
    assert images.image_shape == (3, 4, 5)


def test_byte_strings_and_small_integers(tmp_path):
    path = save(
        tmp_path / "a.npz",
        class_names=np.array([b"cat", b"dog", b"car"]),
        class_to_concept=np.array([0, 0, 1], dtype=np.int8),
        label=ARRAYS["label"].astype(np.uint8),
    )
    images = load_images(path)
    assert images.classes == ["cat", "dog", "car"]
    assert images.target.dtype == torch.int64
    assert images.concept_map is not None
    assert images.concept_map.class_to_concept.tolist() == [0, 0, 1]


# --- archives of others


def keras(**changes):
    arrays = {
        "x_train": IMAGES[..., 0], "y_train": np.array([0, 1, 2, 3, 1, 0], dtype=np.uint8),
        "x_test": IMAGES[:2, ..., 1], "y_test": np.array([2, 0], dtype=np.uint8),
    }  # fmt: skip
    return arrays | changes


def medmnist(**changes):
    arrays = {}
    for at, split in enumerate(("train", "val", "test")):
        arrays[f"{split}_images"] = IMAGES[at : at + 2]
        arrays[f"{split}_labels"] = np.array([[2 - at], [0]], dtype=np.int32)
    return arrays | changes


def test_keras(tmp_path):
    path = tmp_path / "mnist.npz"
    np.savez(path, **keras())
    train, test = (load_images(path, split=split) for split in ("train", "test"))
    assert train.target.tolist() == [0, 1, 2, 3, 1, 0]
    assert test.target.tolist() == [2, 0]
    assert train.classes == test.classes == ["0", "1", "2", "3"]  # of which 3 is in train alone
    assert np.array_equal(test[0][0][1].numpy(), IMAGES[0, ..., 1])
    with pytest.raises(
        ValueError, match=r"mnist\.npz: no image of split 'val', only 'test', 'train'"
    ):
        load_images(path, split="val")
    assert len(load_images([path, path])) == 12


def test_medmnist(tmp_path):
    path = tmp_path / "pathmnist.npz"
    np.savez(path, **medmnist())
    for at, split in enumerate(("train", "val", "test")):
        images = load_images(path, split=split)
        assert images.target.tolist() == [2 - at, 0]
        assert images.classes == ["0", "1", "2"]
        assert np.array_equal(images.images.numpy(), IMAGES[at : at + 2].transpose(0, 3, 1, 2))
    arrays = medmnist()
    del arrays["test_images"], arrays["test_labels"]
    np.savez(path, **arrays)
    assert load_images(path, split="test").target.tolist() == [1, 0]  # falls back to val
    with pytest.raises(ValueError, match="no image of split 'all', only 'train', 'val'"):
        load_images(path, split="all")


@pytest.mark.parametrize(
    ("image", "label"), [("images", "labels"), ("x", "y"), ("X", "Y"), ("data", "targets")]
)
def test_other_names_of_one_set(tmp_path, image, label):
    np.savez(tmp_path / "a.npz", **{image: IMAGES, label: ARRAYS["label"], "other": np.zeros(3)})
    for split in ("train", "test"):
        with pytest.warns(
            UserWarning, match=f"arrays 'other' are left out; {image} and {label} are"
        ):
            images = load_images(tmp_path / "a.npz", split=split)
        assert images.target.tolist() == ARRAYS["label"].tolist()


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"x": IMAGES, "images": IMAGES, "y": ARRAYS["label"]}, "'x', 'images' may all be the same"),
        ({"x": IMAGES, "y": ARRAYS["label"], "x_test": IMAGES, "y_test": ARRAYS["label"]},
         "'x', 'y' stand beside those of splits, 'test'; write an archive of each"),
        ({"arr_0": IMAGES, "arr_1": ARRAYS["label"]}, "no array image or label among 'arr_0', 'arr_1'"),
        ({"x_train": IMAGES, "y_test": ARRAYS["label"]}, "no array image and label alike among"),
        ({"x_extra": IMAGES, "y_extra": ARRAYS["label"]}, "no array image or label among"),
        (medmnist(train_labels=np.eye(2, 14) + np.eye(2, 14)[::-1]), r"must be one-hot.*but row 0 is not"),
    ],
)  # fmt: skip
def test_archives_that_are_not_guessed(tmp_path, arrays, message):
    np.savez(tmp_path / "a.npz", **arrays)
    with pytest.raises(ValueError, match=message) as caught:
        load_images(tmp_path / "a.npz")
    assert "expected a NumPy archive" in str(caught.value) or "write an archive" in str(
        caught.value
    )


UNNAMED = dict.fromkeys(["class_names", "concept_names", "class_to_concept"])


@pytest.mark.parametrize(
    "label", [[1, 0], [[1], [0]], np.eye(2)[::-1], np.eye(7, dtype=bool)[[1, 0]]]
)
def test_labels_without_names_may_lack_the_last_class(tmp_path, label):
    """As arrays, numbers and one-hot, of which Keras makes as many columns as it meets classes."""
    first = save(tmp_path / "a.npz", **UNNAMED)
    second = save(tmp_path / "b.npz", image=IMAGES[:2], label=np.asarray(label), **UNNAMED)
    images = load_images([first, second])
    assert images.classes == ["0", "1", "2"]
    assert images.target.tolist() == [0, 1, 2, 2, 1, 0, 1, 0]
    np.savez(tmp_path / "k.npz", **keras(y_test=np.asarray(label)))
    test = load_images(tmp_path / "k.npz", split="test")
    assert (test.classes, test.target.tolist()) == (["0", "1", "2", "3"], [1, 0])


def test_a_label_beyond_those_of_training_is_named(tmp_path):
    parts = [save(tmp_path / f"{n}.npz", label=label, **UNNAMED) for n, label in (
        ("a", ARRAYS["label"]), ("b", np.array([0, 1, 5, 2, 1, 0])))]  # fmt: skip
    with pytest.raises(
        ValueError,
        match=r"b\.npz: image 2 has the label 5, and those of .*a\.npz are in 0\.\.2; mend",
    ):
        load_images(parts)
    np.savez(tmp_path / "k.npz", **keras(y_test=np.array([0, 4])))
    assert load_images(tmp_path / "k.npz").num_classes == 4
    with pytest.raises(
        ValueError,
        match=r"k\.npz: image 1 has the label 4, and those of the split train are in 0\.\.3",
    ):
        load_images(tmp_path / "k.npz", split="test")


def test_splits_without_a_training_one_are_counted_together(tmp_path):
    arrays = {name: array for name, array in medmnist().items() if not name.startswith("train")}
    np.savez(tmp_path / "a.npz", **arrays | {"val_labels": np.array([5, 0])})
    assert [load_images(tmp_path / "a.npz", split=s).num_classes for s in ("val", "test")] == [6, 6]


def test_parts_are_concatenated_in_order(tmp_path):
    first = save(tmp_path / "a.npz")
    second = save(tmp_path / "b.npz", image=IMAGES[:2, ::-1], label=np.array([2, 0]))
    for parts in ([first, second], (str(first), second)):
        images = load_images(parts)
        assert len(images) == 8
        assert images.target.tolist() == [0, 1, 2, 2, 1, 0, 2, 0]
        assert np.array_equal(images[6][0].numpy(), IMAGES[0, ::-1].transpose(2, 0, 1))
        assert images.concept_map is not None
    assert len(load_images([first])) == 6


@pytest.mark.parametrize(
    ("what", "changes"),
    [
        ("image size", {"image": IMAGES[:, :2]}),
        ("dtype", {"image": IMAGES / 255}),
        ("classes", {"class_names": np.array(["cat", "cow", "car"])}),
        ("concepts", {"class_to_concept": np.array([0, 1, 1])}),
        ("concepts", {"concept_names": None, "class_to_concept": None}),
    ],
)
def test_parts_must_agree(tmp_path, what, changes):
    parts = [save(tmp_path / "a.npz"), save(tmp_path / "b.npz", **changes)]
    with pytest.raises(ValueError, match=rf"b\.npz: {what} differ from .*a\.npz"):
        load_images(parts)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"image": None}, "no array image"),
        ({"label": None}, "no array label"),
        ({"image": IMAGES[..., None]}, "images must have shape"),
        ({"image": IMAGES.astype(np.int32)}, "must be uint8"),
        ({"image": IMAGES * 1.0}, r"must lie in \[0, 1\]; image 0"),
        ({"label": ARRAYS["label"] * 1.0}, "must hold integers"),
        ({"label": ARRAYS["label"][:3]}, "6 images, but 3 labels"),
        (
            {"label": ARRAYS["label"] + 1},
            r"must be in 0\.\.2, but counts the classes from 1 to 3: sub",
        ),
        ({"label": ARRAYS["label"] * 2}, r"must be in 0\.\.2, got 4"),
        ({"concept_names": None}, "belong together"),
        ({"class_to_concept": np.array([0, 1])}, "concept_map has 2 classes"),
        ({"class_to_concept": np.array([0, 0, 0])}, "no class belongs to concept 'vehicle'"),
        ({"class_to_concept": np.array([0.0, 0, 1])}, "must hold integers"),
        ({"image": np.array([{}] * 6)}, "allow_pickle=False"),
    ],
)
def test_other_layouts_name_the_file_and_the_layout(tmp_path, changes, message):
    path = save(tmp_path / "bad.npz", **changes)
    with pytest.raises(ValueError, match=message) as caught:
        load_images(path)
    assert str(path) in str(caught.value)
    assert "expected a NumPy archive (.npz) with image" in str(caught.value)


def test_truncated_at_any_place(tmp_path):
    path = save(tmp_path / "bad.npz")
    whole = path.read_bytes()
    for size in range(0, len(whole) - 1, 37):
        path.write_bytes(whole[:size])
        with pytest.raises(ValueError, match=r"bad\.npz: not a readable archive"):
            load_images(path)


def test_damaged_content(tmp_path):
    path = save(tmp_path / "bad.npz")
    damaged = bytearray(path.read_bytes())
    damaged[200:220] = bytes(20)  # inside the compressed images
    path.write_bytes(damaged)
    with pytest.raises(ValueError, match=r"bad\.npz: not a readable archive"):
        load_images(path)


def test_a_single_array_is_no_archive(tmp_path):
    path = tmp_path / "bad.npz"
    with path.open("wb") as file:
        np.save(file, IMAGES)
    with pytest.raises(ValueError, match="not a readable archive"):
        load_images(path)


def test_missing_part(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"none\.npz does not exist; expected"):
        load_images([save(tmp_path / "a.npz"), tmp_path / "none.npz"])


class Payload:
    """What an attacker would put into a file: unpickling it writes another file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.write_text, (self.path, "executed")


@pytest.mark.parametrize("key", ["image", "label", "class_names", "concept_names"])
def test_pickled_content_is_refused_and_not_run(tmp_path, key):
    written = tmp_path / "written"
    harmful = np.empty(6, dtype=object)
    harmful[:] = [Payload(written)] * 6
    pickle.loads(pickle.dumps(harmful))
    assert written.exists()  # it would
    written.unlink()
    with pytest.raises(
        ValueError, match=r"harmful\.npz: not a readable archive: .*allow_pickle=False"
    ):
        load_images(save(tmp_path / "harmful.npz", **{key: harmful}))
    (tmp_path / "bare.npz").write_bytes(pickle.dumps(Payload(written)))
    with pytest.raises(ValueError, match=r"bare\.npz: not a readable archive"):
        load_images(tmp_path / "bare.npz")
    assert not written.exists()


def test_members_that_lead_out_are_not_written(tmp_path):
    path = tmp_path / "inner" / "a.npz"
    path.parent.mkdir()
    save(path)
    array = io.BytesIO()
    np.save(array, np.zeros(3))
    with zipfile.ZipFile(path, "a") as archive:
        for name in ("../escaped.npy", f"{tmp_path}/absolute.npy", "..\\escaped.npy"):
            archive.writestr(name, array.getvalue())
    with pytest.warns(UserWarning, match="are left out; image and label are taken"):
        assert len(load_images(path)) == 6
    assert [p.name for p in tmp_path.rglob("*")] == ["inner", "a.npz"]
