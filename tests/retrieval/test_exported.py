"""Files of both encoders, run as others would: by torch.export.load alone, and by onnxruntime."""

from __future__ import annotations

import sys

import pytest
import torch
from torch import nn

from hrrl_ext.retrieval import (
    GRUEncoder,
    JointEmbedding,
    Words,
    build_joint_embedding,
    export,
)

WORDS = Words.of(["a red fruit", "a dog", "the red dog of a house"], min_count=1)
CAPTIONS = ["the red dog of a house the red dog", "a", "", "dog house"]
SIZES = {"word_dim": 3, "text_width": 5, "dim": 6}
# Measured 1.2e-7 at most: embeddings of norm 1, whose sums another program takes in another order.
CLOSE = {"rtol": 0.0, "atol": 2e-6}


@pytest.fixture(
    scope="module",
    params=[
        "convnet VSE++",
        pytest.param("resnet18 VSE0", marks=pytest.mark.slow),
        "features Order0",
    ],
)
def model(request) -> JointEmbedding:
    torch.manual_seed(0)
    image, preset = request.param.split()
    sizes = SIZES | ({"features": 7} if image == "features" else {"image_size": 16, "width": 2})
    model = build_joint_embedding(image, WORDS, preset=preset, **sizes)
    for norm in model.modules():
        if isinstance(norm, nn.BatchNorm2d):
            norm.running_mean = torch.rand(norm.num_features)  # not what it would be without
    return model.eval()


def inputs(model: JointEmbedding, count: int) -> dict[str, tuple[torch.Tensor, ...]]:
    shape = (7,) if isinstance(model.image_encoder, nn.Identity) else (3, 16, 16)
    return {"image": (torch.rand(count, *shape),), "text": WORDS.encode(CAPTIONS[:count])}


def check(model: JointEmbedding, run) -> None:
    for count in (1, 2, 4):
        for tower, arguments in inputs(model, count).items():
            encode = model.encode_image if tower == "image" else model.encode_text
            with torch.no_grad():
                torch.testing.assert_close(run(tower, arguments), encode(*arguments), **CLOSE)


def test_torch_export_computes_the_same_of_any_number_and_length(model, tmp_path) -> None:
    files = export(model.train(), tmp_path, formats=["torch"])
    assert [file.name for file in files] == ["image.pt2", "text.pt2"]
    assert model.training  # it was borrowed
    model.eval()
    programs = {file.stem: torch.export.load(file).module() for file in files}
    check(model, lambda tower, arguments: programs[tower](*arguments))
    assert len(Words.load(tmp_path / "tokenizer.json")) == len(WORDS)


def test_onnx_computes_the_same_of_any_number_and_length(model, tmp_path) -> None:
    pytest.importorskip("onnxscript", reason="the extra onnx")
    runtime = pytest.importorskip("onnxruntime")
    options = runtime.SessionOptions()
    options.log_severity_level = 3  # not that it leaves out what it does not need
    files = export(model, tmp_path, formats=["onnx"])
    sessions = {file.stem: runtime.InferenceSession(file, options) for file in files}
    names = {tower: [one.name for one in s.get_inputs()] for tower, s in sessions.items()}
    assert names == {"image": ["image"], "text": ["tokens", "lengths"]}

    def run(tower: str, arguments: tuple[torch.Tensor, ...]) -> torch.Tensor:
        feed = {n: x.numpy() for n, x in zip(names[tower], arguments, strict=True)}
        return torch.from_numpy(sessions[tower].run(["encoded"], feed)[0])

    check(model, run)


def test_the_form_that_is_exported_is_the_gru() -> None:
    """By float64, where the two ways differ by rounding alone."""
    torch.manual_seed(0)
    encoder = GRUEncoder(9, word_dim=4, width=5).double()
    tokens, lengths = torch.randint(9, (4, 6)), torch.tensor([6, 1, 4, 3])
    packed = encoder(tokens, lengths)
    by_words = encoder._scan(encoder.embed(tokens), lengths)
    torch.testing.assert_close(by_words, packed, rtol=1e-12, atol=1e-12)


def test_a_module_of_ones_own_is_exported_with_its_images(tmp_path) -> None:
    image = nn.Sequential(nn.Flatten(), nn.Linear(12, 4))
    model = JointEmbedding(image, GRUEncoder(9, word_dim=2, width=3), dim=5, image_features=4)
    with pytest.raises(ValueError, match="give images="):
        export(model, tmp_path)
    with pytest.raises(ValueError, match="must be two or more, got 1"):
        export(model, tmp_path, images=torch.rand(1, 3, 2, 2))
    files = export(model, tmp_path, formats=["torch"], images=torch.rand(2, 3, 2, 2))
    images = torch.rand(5, 3, 2, 2)
    found = torch.export.load(files[0]).module()(images)
    torch.testing.assert_close(found, model.encode_image(images))
    assert not (tmp_path / "tokenizer.json").exists()  # it has no words


def test_bad_input(tmp_path, monkeypatch) -> None:
    model = build_joint_embedding("features", WORDS, features=3, **SIZES)
    with pytest.raises(ValueError, match=r"of torch, onnx, got \['tflite'\]"):
        export(model, tmp_path, formats=["tflite"])
    with pytest.raises(ValueError, match="of torch, onnx"):
        export(model, tmp_path, formats=[])
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    with pytest.raises(ImportError, match=r'pip install "hrrl_ext\[onnx\]"'):
        export(model, tmp_path, formats=["onnx"])
