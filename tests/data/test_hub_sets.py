"""Data sets of Hugging Face's on disk: a stand-in with the interface of `datasets`, and the real one where it imports."""

from __future__ import annotations

import io
import socket
import sys
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from hrrl_ext.data import Batches, concepts_of, load_images, readable
from hrrl_ext.data.hub_sets import parquet_files

Picture = pytest.importorskip("PIL.Image")


class StandIn:
    """The part of `datasets` that is used."""

    class Image:
        def __init__(self, decode: bool = True) -> None:
            self.decode = decode

    class Value:
        def __init__(self, dtype: str) -> None:
            self.dtype = dtype

    class ClassLabel(Value):
        def __init__(self, names: list[str]) -> None:
            super().__init__("int64")
            self.names = names

    class Dataset:
        def __init__(self, rows: Mapping[str, list[Any]], features: Mapping[str, Any]) -> None:
            self._rows, self.features = dict(rows), dict(features)

        @classmethod
        def from_dict(cls, rows: Mapping[str, list[Any]], features: Mapping[str, Any]) -> Any:
            return cls(rows, features)

        def with_format(self, kind: str | None) -> Any:
            return self

        def select_columns(self, names: list[str]) -> Any:
            return type(self)(*({n: of[n] for n in names} for of in (self._rows, self.features)))

        def cast_column(self, name: str, feature: Any) -> Any:
            return type(self)(self._rows, {**self.features, name: feature})

        def __getitem__(self, rows: int | slice) -> dict[str, Any]:
            for feature in self.features.values():
                assert not getattr(feature, "decode", False), "images are not decoded by it"
            return {name: values[rows] for name, values in self._rows.items()}

    Features = DatasetDict = dict

    def __init__(self) -> None:
        self._saved: dict[str, Any] = {}

    def save(self, sets: Any, folder: Path) -> None:
        folder.mkdir()
        name = "dataset_dict.json" if isinstance(sets, dict) else "state.json"
        (folder / name).write_text("{}")
        self._saved[str(folder)] = sets

    def load_from_disk(self, folder: str, keep_in_memory: bool | None = None) -> Any:
        assert keep_in_memory is False
        return self._saved[folder]


@pytest.fixture(params=["stand-in", "real"])
def library(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Any:
    if request.param == "stand-in":
        stand_in = StandIn()
        monkeypatch.setitem(sys.modules, "datasets", stand_in)
        return stand_in
    real = pytest.importorskip("datasets")
    real.disable_progress_bars()
    names = ("Image", "Value", "ClassLabel", "Dataset", "DatasetDict", "Features")
    return SimpleNamespace(
        save=lambda sets, folder: sets.save_to_disk(folder), **{n: getattr(real, n) for n in names}
    )


def pixels(number: int) -> np.ndarray:
    return np.random.default_rng(number).integers(0, 256, (8, 8, 3), dtype=np.uint8)


def png(array: np.ndarray) -> bytes:
    stream = io.BytesIO()
    Picture.fromarray(array).save(stream, "PNG")
    return stream.getvalue()


def image(number: int) -> dict[str, Any]:
    return {"bytes": png(pixels(number)), "path": f"{number}.png"}


def saved(
    library: Any, folder: Path, features: Mapping[str, Any], **splits: Mapping[str, list[Any]]
) -> Path:
    """`one` alone is a set without splits."""
    kinds = library.Features(features)
    sets = {name: library.Dataset.from_dict(rows, features=kinds) for name, rows in splits.items()}
    library.save(sets["one"] if list(sets) == ["one"] else library.DatasetDict(sets), folder)
    return folder


def cifar(library: Any) -> dict[str, Any]:
    """Columns as of CIFAR-100, and a place."""
    return {
        "img": library.Image(),
        "fine_label": library.ClassLabel(names=["cat", "dog", "eel"]),
        "coarse_label": library.ClassLabel(names=["land", "sea"]),
        "place": library.Value("string"),
    }


def rows(*numbers: int) -> dict[str, list[Any]]:
    return {
        "img": [image(n) for n in numbers],
        "fine_label": [n % 3 for n in numbers],
        "coarse_label": [int(n % 3 == 2) for n in numbers],
        "place": [f" {'ab'[n % 2]}" for n in numbers],
    }


def test_rows_of_a_split(library: Any, tmp_path: Path) -> None:
    folder = saved(
        library, tmp_path / "d", cifar(library), train=rows(0, 1, 2, 3, 4), validation=rows(5, 6)
    )
    images = load_images(f"hf:{folder}:label=fine_label", image_size=8)
    assert images.classes == ["cat", "dog", "eel"]
    assert images.target.tolist() == [0, 1, 2, 0, 1]
    at = [3, 0, -1]
    x, _ = images.__getitems__(at)
    assert x.numpy().transpose(0, 2, 3, 1).tolist() == [pixels(n).tolist() for n in (3, 0, 4)]
    part = images.subset(at)
    assert torch.equal(part.__getitems__(range(3))[0], x)
    assert part.columns["place"].tolist() == ["b", "a", "a"]
    assert concepts_of("column:coarse_label", images)[1] == ["land", "sea"]
    batches = Batches(images, images.target, 2, shuffle=False, num_workers=1, keep_gib=0)
    assert torch.equal(torch.cat([x for x, *_ in batches.epoch(0)])[at].mul(255).round().byte(), x)
    for source, split in (
        ("label=fine_label", "test"),
        ("label=fine_label,split=validation", "train"),
    ):
        held_out = load_images(f"hf:{folder}:{source}", split=split, image_size=8)
        assert held_out.target.tolist() == [2, 0]
    with pytest.raises(
        ValueError, match="'fine_label', 'coarse_label' may all be it; give label=COLUMN"
    ):
        load_images(f"hf:{folder}", image_size=8)


def test_labels_without_a_type(library: Any, tmp_path: Path) -> None:
    """Classes are those of all splits, in the order of everywhere; one set is given for every split."""
    features = {
        "image": library.Image(),
        "label": library.Value("int32"),
        "x": library.Value("float64"),
    }
    of = {
        n: {"image": [image(0)] * len(n), "label": list(n), "x": [0.5] * len(n)}
        for n in ((10, 2), (3, 2))
    }
    folder = saved(library, tmp_path / "d", features, train=of[10, 2], test=of[3, 2])
    images = load_images(f"hf:{folder}", split="test", image_size=8)
    assert (images.classes, images.target.tolist()) == (["2", "3", "10"], [1, 0])
    assert images.columns["x"].tolist() == ["0.5", "0.5"]
    alone = saved(library, tmp_path / "e", features, one=of[10, 2])
    for split in ("train", "test", "all"):
        assert load_images(f"hf:{alone}", split=split, image_size=8).classes == ["2", "10"]


@pytest.mark.parametrize(
    ("change", "settings", "error"),
    [
        ({"fine_label": [0, -1]}, "label=fine_label", "row 1 has no label"),
        ({"place": ["a", None]}, "label=place", "row 1 has no label"),
        ({}, "label=fin_label", "did you mean 'fine_label'"),
        ({}, "label=img", "label column 'img' is not known"),
        ({}, "image=imgs", "did you mean 'img'"),
        ({}, "label=place,split=dev", "split 'dev' is not known"),
    ],
)
def test_refused(
    library: Any, tmp_path: Path, change: dict[str, Any], settings: str, error: str
) -> None:
    folder = saved(library, tmp_path / "d", cifar(library), train=rows(0, 1) | change, test=rows(2))
    with pytest.raises(ValueError, match=f"{folder}.*{error}"):
        load_images(f"hf:{folder}:{settings}", image_size=8)


def test_two_splits_of_a_kind_and_none(library: Any, tmp_path: Path) -> None:
    folder = saved(library, tmp_path / "d", cifar(library), dev=rows(0), validation=rows(1))
    with pytest.raises(
        ValueError, match="'dev' and 'validation' are both the split val; say which"
    ):
        load_images(f"hf:{folder}:label=place", split="test", image_size=8)
    folder = saved(library, tmp_path / "e", cifar(library), train=rows(0), extra=rows(1))
    with pytest.raises(ValueError, match="no image of split 'test', only 'extra', 'train'"):
        load_images(f"hf:{folder}:label=place", split="test", image_size=8)


def test_the_decoder_is_that_of_files(library: Any, tmp_path: Path) -> None:
    """Grey becomes RGB; 16 bits, noise and nothing are told by their row, and left out where that is asked for."""
    table = rows(0, 0, 0, 0)
    deep = png(pixels(0)[..., 0].astype(np.uint16))
    contents = [png(pixels(0)[..., 0]), deep, b"noise"]
    table["img"] = [*({"bytes": content, "path": None} for content in contents), None]
    images = load_images(
        f"hf:{saved(library, tmp_path / 'd', cifar(library), one=table)}:label=place", image_size=8
    )
    assert torch.equal(images[0][0], torch.from_numpy(pixels(0)[..., 0]).expand(3, 8, 8))
    for row, error in ((1, "more than 8 bits"), (2, "first bytes"), (3, "no image in it")):
        with pytest.raises(OSError, match=f"cannot decode image row {row}: .*({error})"):
            images[row]
    with pytest.warns(UserWarning, match="3 of 4"):
        assert readable(images).left_out == ["row 1", "row 2", "row 3"]


@pytest.mark.parametrize(
    "library", ["stand-in"], indirect=True
)  # the real one writes their bytes by now
def test_images_that_are_files_lie_below_the_root(library: Any, tmp_path: Path) -> None:
    for place in ("d/in.png", "f/out.png"):
        (tmp_path / place).parent.mkdir(exist_ok=True)
        (tmp_path / place).write_bytes(png(pixels(1)))
    table = rows(0, 0)
    table["img"] = [
        {"bytes": None, "path": str(tmp_path / place)} for place in ("f/out.png", "d/in.png")
    ]
    folder = saved(library, tmp_path / "s", cifar(library), one=table)
    below = load_images(f"hf:{folder}:label=place", image_size=8, root=tmp_path / "f")
    assert torch.equal(below[0][0], torch.from_numpy(pixels(1)).permute(2, 0, 1))
    with pytest.raises(OSError, match=r"row 1: .*must be relative to .*f and stay below it"):
        below[1]


def test_what_is_not_here_is_not_fetched(
    library: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(socket.socket, "connect", lambda *_: pytest.fail("a network is asked"))
    with pytest.raises(FileNotFoundError, match=r"load_dataset\('user/cats'\).save_to_disk"):
        load_images("hf:user/cats", image_size=8)
    with pytest.raises(
        ValueError, match=r"not a readable data set: neither dataset_dict\.json nor"
    ):
        load_images(f"hf:{tmp_path}", image_size=8)
    (tmp_path / "state.json").write_text("{")
    with pytest.raises(ValueError, match=f"{tmp_path}: not a readable data set"):
        load_images(f"hf:{tmp_path}", image_size=8)


def test_without_the_library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(ImportError, match=r'pip install "hrrl_ext\[datasets\]"'):
        load_images(f"hf:{tmp_path}", image_size=8)


@pytest.mark.parametrize(
    ("files", "found"),
    [
        (["data/train-00000-of-00002.parquet", "data/train-00001-of-00002.parquet", "data/test-0-of-1.parquet", "README.md"], {"train": 2, "test": 1}),
        (["train/0000.parquet", "train/0001.parquet", "validation/0000.parquet"], {"train": 2, "validation": 1}),
        (["cats_train.parquet", "cats_test.parquet"], {"train": 1, "test": 1}),
        (["full-00000-of-00001.parquet", ".cache/x.parquet"], {"full": 1}),
        (["a.PARQUET", "b.parquet"], {"": 2}),
        (["en/train-0-of-1.parquet", "fr/train-0-of-1.parquet"], "several sets .*'en', 'fr'"),
        (["README.md"], "nor a .parquet"),
    ],
)  # fmt: skip
def test_parquet_files(tmp_path: Path, files: list[str], found: dict[str, int] | str) -> None:
    for file in files:
        (tmp_path / file).parent.mkdir(exist_ok=True)
        (tmp_path / file).write_bytes(b"")
    if isinstance(found, str):
        with pytest.raises((FileNotFoundError, ValueError), match=found):
            parquet_files(tmp_path)
    else:
        assert {split: len(of) for split, of in parquet_files(tmp_path).items()} == found


def test_parquet_as_the_hub_has_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same bits as of Arrow, and nobody is asked for them."""
    real = pytest.importorskip("datasets")
    real.disable_progress_bars()
    monkeypatch.setattr(real.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr(socket.socket, "connect", lambda *_: pytest.fail("a network is asked"))
    (tmp_path / "data").mkdir()
    for split, numbers in (("train", (0, 1)), ("test", (2, 4))):
        dataset = real.Dataset.from_dict(rows(*numbers), features=real.Features(cifar(real)))
        dataset.to_parquet(tmp_path / "data" / f"{split}-00000-of-00001.parquet")
    images = load_images(f"hf:{tmp_path}/data:label=fine_label", split="test", image_size=8)
    assert (images.classes, images.target.tolist()) == (["cat", "dog", "eel"], [2, 1])
    assert images[1][0].permute(1, 2, 0).tolist() == pixels(4).tolist()
    (tmp_path / "data" / "test-00000-of-00001.parquet").write_bytes(b"PAR1 and more")
    with pytest.raises(ValueError, match=f"{tmp_path}/data: not a readable data set"):
        load_images(f"hf:{tmp_path}/data:label=fine_label", split="test", image_size=8)
