"""torchvision's data sets: stand-ins with its interface, and the real one where it imports."""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch

from hrrl_ext.data import ArrayImages, ConceptMap, load_images
from hrrl_ext.data.resize import fit_picture

PIXELS = np.random.default_rng(0).integers(0, 256, (4, 6, 8, 3), dtype=np.uint8)


class CIFAR10:
    """In memory, with train=."""

    classes: tuple[str, ...] = ("plane", "car")

    def __init__(self, root, train=True, transform=None, target_transform=None, download=None):
        assert download is False
        if root == "empty":
            raise RuntimeError("Dataset not found or corrupted. You can use download=True")
        self.data = PIXELS[:3] if train else PIXELS[3:]
        self.targets = [0, 1, 1] if train else [0]

    def __len__(self):
        return len(self.data)


class CIFAR100(CIFAR10):
    classes = tuple(str(i) for i in range(100))


class SVHN:
    """In memory, channels first, with split=, `labels` and no class names."""

    def __init__(self, root, split="train", download=False):
        if split not in ("train", "test", "extra"):
            raise ValueError(f"Unknown value '{split}' for argument split.")
        self.data = PIXELS.transpose(0, 3, 1, 2)
        self.labels = np.array([2, 0, 1, 1])

    def __len__(self):
        return len(self.data)


class Files:
    """Decodes files, has no download= and calls its held-out images val, as ImageNet does."""

    classes = (("tench", "Tinca tinca"), ("goldfish",))
    wnids = ("n01440764", "n01443537")

    def __init__(self, root, split="train", **kwargs):
        assert not kwargs
        if split not in ("train", "val"):
            raise ValueError(f"Unknown value '{split}' for argument split.")
        self.order = [0, 1, 2, 3] if split == "train" else [3]
        self.samples = [(f"{i}.jpg", i % 2) for i in self.order]

    def __len__(self):
        return len(self.order)

    def __getitem__(self, i):
        from PIL import Image

        return Image.fromarray(PIXELS[self.order[i]]), self.samples[i][1]


class NoAttribute(Files):
    """Its labels can only be had by fetching."""

    def __init__(self, root):
        super().__init__(root)
        self.pairs = self.samples
        del self.samples

    def __getitem__(self, i):
        self.samples = self.pairs
        item = super().__getitem__(i)
        del self.samples
        return item


class Boxes(NoAttribute):
    """No class per image."""

    def __getitem__(self, i):
        return super().__getitem__(i)[0], [{"box": 0}]


@pytest.fixture
def fake(monkeypatch):
    datasets: Any = ModuleType("torchvision.datasets")
    for kind in (CIFAR10, CIFAR100, SVHN, Files, NoAttribute, Boxes):
        setattr(datasets, kind.__name__, kind)
    datasets.__all__ = ["CIFAR10", "CIFAR100", "SVHN", "Files", "NoAttribute", "Boxes"]
    monkeypatch.setitem(sys.modules, "torchvision", ModuleType("torchvision"))
    monkeypatch.setitem(sys.modules, "torchvision.datasets", datasets)


@pytest.mark.usefixtures("fake")
def test_arrays_with_train_flag(tmp_path):
    train = load_images("torchvision:CIFAR10", root=tmp_path)
    assert isinstance(train, ArrayImages)
    assert np.array_equal(train.images.numpy(), PIXELS[:3].transpose(0, 3, 1, 2))
    assert train.target.tolist() == [0, 1, 1]
    assert train.classes == ["plane", "car"]
    assert train.name == "torchvision:CIFAR10"
    test = load_images("torchvision:CIFAR10", split="test", root=tmp_path, image_size=6)
    assert len(test) == 1
    assert test.image_shape == (3, 6, 6)


@pytest.mark.usefixtures("fake")
def test_arrays_with_split_name(tmp_path):
    images = load_images("torchvision:SVHN", split="test", root=tmp_path)
    assert isinstance(images, ArrayImages)
    assert np.array_equal(images.images.numpy(), PIXELS.transpose(0, 3, 1, 2))
    assert images.classes == ["0", "1", "2"]


@pytest.mark.usefixtures("fake")
def test_cifar100_carries_its_super_classes(tmp_path):
    images = load_images("torchvision:CIFAR100", root=tmp_path)
    assert images.concept_map == ConceptMap.cifar100()


@pytest.mark.usefixtures("fake")
@pytest.mark.parametrize("name", ["Files", "NoAttribute"])
def test_files_are_decoded_late(name, tmp_path):
    pillow = pytest.importorskip("PIL.Image")
    images = load_images(f"torchvision:{name}", root=tmp_path, image_size=4)
    assert not isinstance(images, ArrayImages)
    assert images.classes == ["n01440764", "n01443537"]
    assert images.target.tolist() == [0, 1, 0, 1]
    expected = fit_picture(pillow.fromarray(PIXELS[3]), 4)
    assert torch.equal(images[3][0], expected)
    assert torch.equal(images.subset([3, 0])[0][0], expected)


@pytest.mark.parametrize(
    ("mode", "colour", "expected"), [("L", 7, 7), ("RGBA", (9, 8, 7, 0), 255), ("I;16", 7, None)]
)
def test_pictures_that_a_set_opens_itself_are_brought_to_rgb(
    tmp_path, fake, monkeypatch, mode, colour, expected
):
    pillow = pytest.importorskip("PIL.Image")
    monkeypatch.setattr(Files, "__getitem__", lambda *_: (pillow.new(mode, (4, 4), colour), 0))
    images = load_images("torchvision:Files", root=tmp_path, image_size=4)
    if expected is None:
        with pytest.raises(OSError, match="cannot decode image 0: mode I;16 has more than 8 bits"):
            images[0]
    else:
        assert images[0][0].unique().tolist() == [expected]


def test_files_of_a_folder_have_the_decoder_of_all_others(tmp_path, fake, monkeypatch):
    pillow = pytest.importorskip("PIL.Image")
    pillow.new("RGBA", (4, 4), (9, 8, 7, 0)).save(tmp_path / "hidden.png")

    class ImageFolder(Files):
        """As torchvision's, which reads by an attribute."""

        def __init__(self, root):
            super().__init__(root)
            self.root = root
            self.loader = lambda path: pillow.open(path).convert("RGB")  # shows what is hidden

        def __getitem__(self, i):
            return self.loader(f"{self.root}/hidden.png"), 0

    monkeypatch.setattr(sys.modules["torchvision.datasets"], "ImageFolder", ImageFolder, False)
    images = load_images("torchvision:ImageFolder", root=tmp_path, image_size=4)
    assert images[0][0].unique().tolist() == [255]


@pytest.mark.usefixtures("fake")
def test_test_falls_back_to_val(tmp_path):
    pytest.importorskip("PIL.Image")
    assert len(load_images("torchvision:Files", split="test", root=tmp_path, image_size=4)) == 1


@pytest.mark.usefixtures("fake")
@pytest.mark.parametrize(
    ("name", "settings", "error", "message"),
    [
        ("CIFAR10", {"root": None}, ValueError, "needs root="),
        ("CIFAR10", {"root": "empty"}, FileNotFoundError, "no data under empty.*is downloaded"),
        ("CIFAR10", {"split": "val"}, ValueError, "no split 'val': the set has train and test"),
        ("SVHN", {"split": "all"}, ValueError, "no split 'all': Unknown value 'all'"),
        ("CIFAR1O", {}, ValueError, "data set 'CIFAR1O' is not known; did you mean 'CIFAR10'"),
        ("Files", {}, ValueError, "give image_size"),
        ("Boxes", {"image_size": 4}, ValueError, "no single class per image"),
    ],
)
def test_refusals(name, settings, error, message):
    with pytest.raises(error, match=message):
        load_images(f"torchvision:{name}", **({"root": "data"} | settings))


def test_without_torchvision(monkeypatch):
    monkeypatch.setitem(sys.modules, "torchvision.datasets", None)
    with pytest.raises(ImportError, match=r'pip install "hrrl_ext\[torchvision\]"'):
        load_images("torchvision:CIFAR10", root="data")


def test_torchvision_built_for_another_torch(monkeypatch):
    def mismatch(name):
        raise RuntimeError("operator torchvision::nms does not exist")

    monkeypatch.setattr("importlib.import_module", mismatch)
    with pytest.raises(ImportError, match=r"matches torch .*nms does not exist"):
        load_images("torchvision:CIFAR10", root="data")


def test_the_real_torchvision(tmp_path):
    try:
        from torchvision.transforms import functional as transforms
    except (ImportError, RuntimeError) as error:
        pytest.skip(f"torchvision does not import: {error}")
    pillow = pytest.importorskip("PIL.Image")
    (tmp_path / "a").mkdir()
    pillow.fromarray(PIXELS[0]).save(tmp_path / "a" / "0.png")
    ours = load_images("torchvision:ImageFolder", root=tmp_path, image_size=5)
    scaled = transforms.resize(pillow.fromarray(PIXELS[0]), 5)
    assert torch.equal(ours[0][0], transforms.pil_to_tensor(transforms.center_crop(scaled, 5)))
