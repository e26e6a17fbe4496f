"""The model: what its embeddings are, what is trained, and what a folder brings back."""

from __future__ import annotations

import dataclasses
import json

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from hrrl_ext.models import ConvNet, ResNet18
from hrrl_ext.pretrained import save_pretrained
from hrrl_ext.retrieval import (
    PRESETS,
    GRUEncoder,
    JointEmbedding,
    Words,
    build_joint_embedding,
    evaluate,
    load_joint_embedding,
    save_joint_embedding,
)
from hrrl_ext.training.run_folder import RunFolder

CAPTIONS = ["a red fruit", "a dog", "the red dog of a house", "fruit"]
WORDS = Words.of(CAPTIONS, min_count=1)


def built(image: str = "convnet", **options) -> JointEmbedding:
    torch.manual_seed(0)
    sizes = {"word_dim": 3, "text_width": 5, "dim": 6} | options
    if image == "features":
        return build_joint_embedding(image, WORDS, features=7, **sizes)
    return build_joint_embedding(image, WORDS, image_size=8, width=2, **sizes)


def images_for(model: JointEmbedding, count: int = 4) -> torch.Tensor:
    torch.manual_seed(1)
    return (
        torch.rand(count, 7)
        if isinstance(model.image_encoder, nn.Identity)
        else torch.rand(count, 3, 8, 8)
    )


# --- embeddings


@pytest.mark.parametrize("preset", list(PRESETS))
@pytest.mark.parametrize("image", ["convnet", "features"])
def test_embeddings_are_those_of_the_preset(image: str, preset: str) -> None:
    """By the equations, each written out; the features as the layers before the last one give them."""
    model = built(image, preset=preset).eval().double()
    images, (tokens, lengths) = images_for(model).double(), WORDS.encode(CAPTIONS)
    features = (
        images if image == "features" else nn.Sequential(*list(model.image_encoder)[:-1])(images)
    )
    f = F.normalize(features) @ model.project_image.weight.T + model.project_image.bias
    states = model.text_encoder.gru(model.text_encoder.embed(tokens))[0]
    psi = torch.stack([row[n - 1] for row, n in zip(states, lengths, strict=True)])
    g = psi @ model.project_text.weight.T + model.project_text.bias
    f, g = (f if preset == "VSE0" else F.normalize(f)), F.normalize(g)
    f, g = (f.abs(), g.abs()) if preset == "Order0" else (f, g)
    image_embedding, caption_embedding = model(images, tokens, lengths)
    torch.testing.assert_close(image_embedding, f)
    torch.testing.assert_close(caption_embedding, g)
    expected = -(g - f[:, None]).clamp(min=0).norm(dim=2) if "Order" in preset else f @ g.T
    torch.testing.assert_close(model.similarity(f, g), expected)


def test_recall_is_measured_by_what_the_model_compares() -> None:
    assert [built(preset=name).compared for name in PRESETS] == ["dot", "cosine", "order", "order"]
    model = built().eval()
    f, g = model(images_for(model), *WORDS.encode(CAPTIONS))
    assert evaluate(f.detach(), g.detach(), similarity=model.compared).measures["rsum"] > 0


@pytest.mark.parametrize("image", ["convnet", "resnet18", "features"])
def test_precomputed_features_give_the_same_bits(image: str) -> None:
    """One place brings features to norm 1, so a model and its features from a file agree."""
    model = built(image).eval()
    nn.init.uniform_(model.project_image.bias)  # without it the length of features has no effect
    images = images_for(model)
    whole = model.encode_image(images)
    assert torch.equal(model.encode_image(model.features(images), precomputed=True), whole)
    scaled = model.encode_image(1000 * model.features(images), precomputed=True)
    torch.testing.assert_close(scaled, whole)
    model.normalise_features = False
    assert not torch.allclose(model.encode_image(images), whole)


def test_zeros_and_tiny_features_stay_finite() -> None:
    model = built("features")
    features = torch.zeros(3, 7)
    features[1] = 1e-30
    embedding = model.encode_image(features.requires_grad_())
    embedding.sum().backward()
    assert (
        embedding.isfinite().all() and features.grad is not None and features.grad.isfinite().all()
    )
    assert torch.equal(embedding[0], torch.zeros(6))  # the bias is 0, and a row of zeros stays one


def test_embeddings_are_float32_under_autocast() -> None:
    model = built().eval()
    inputs = images_for(model), *WORDS.encode(CAPTIONS)
    with torch.autocast("cpu", torch.bfloat16):
        halves = model(*inputs)
    for half, whole in zip(halves, model(*inputs), strict=True):
        assert half.dtype == torch.float32
        torch.testing.assert_close(half.norm(dim=1), torch.ones(4))  # not of bfloat16's 3 digits
        torch.testing.assert_close(half, whole, rtol=0, atol=0.05)


def test_a_network_is_taken_without_its_last_layer_and_stays_as_it_was() -> None:
    for network in (ResNet18(3, stem="small", width=2), ConvNet(3, width=2)):
        model = JointEmbedding(network, GRUEncoder(5, word_dim=2, width=3), dim=4)
        assert model.project_image.in_features == 16
        assert network(torch.rand(2, 3, 8, 8)).shape == (2, 3)
        assert not any(p.shape == (3, 16) for p in model.parameters())


# --- captions


def test_padding_does_not_reach_an_embedding() -> None:
    model = built()
    tokens, lengths = WORDS.encode(CAPTIONS)
    wide = F.pad(tokens, (0, 3), value=4)
    wide[torch.arange(wide.shape[1]) >= lengths[:, None]] = 5
    assert torch.equal(model.encode_text(wide, lengths), model.encode_text(tokens, lengths))


def test_neither_does_the_company_of_other_captions() -> None:
    """Up to the rounding of a product whose size depends on the batch."""
    model = built().double()
    together = model.encode_captions(CAPTIONS)
    alone = torch.cat([model.encode_captions([text]) for text in CAPTIONS])
    torch.testing.assert_close(together, alone, rtol=1e-12, atol=1e-12)
    assert torch.equal(model.encode_captions(CAPTIONS), together)
    assert model.encode_captions([]).shape == (0, 6)


def test_the_last_word_counts_and_what_is_not_known_is_one_word() -> None:
    model = built()
    one, other, unknown, also = model.encode_captions(["a red", "a dog", "xyz", ""])
    assert not torch.allclose(one, other)
    torch.testing.assert_close(unknown, also)


# --- what is trained


def test_a_frozen_encoder_has_no_gradient_and_keeps_its_statistics() -> None:
    model = built(freeze=True).train()
    before = {name: value.clone() for name, value in model.image_encoder.state_dict().items()}
    f, g = model(images_for(model), *WORDS.encode(CAPTIONS))
    (f * g).sum().backward()
    assert all(p.grad is None and not p.requires_grad for p in model.image_encoder.parameters())
    assert all(
        p.grad is not None
        for p in [*model.project_image.parameters(), *model.text_encoder.parameters()]
    )
    assert not any(module.training for module in model.image_encoder.modules())
    assert model.training and model.text_encoder.training
    for name, value in model.image_encoder.state_dict().items():
        assert torch.equal(value, before[name]), name


def test_parts_that_their_owner_froze_stay_so() -> None:
    network = ConvNet(3, width=2)
    network.stage1.requires_grad_(False)
    network.stage1.eval()
    model = JointEmbedding(network, GRUEncoder(5, word_dim=2, width=3), dim=4)
    assert not any(p.requires_grad for p in model.image_encoder.stage1.parameters())
    assert all(p.requires_grad for p in model.image_encoder.stage2.parameters())
    assert not model.image_encoder.stage1.training


def test_fine_tuning_goes_on_from_a_frozen_one() -> None:
    model = built(freeze=True)
    model.freeze(False)
    assert model.image_encoder.training and not model.eval().image_encoder.training
    model.train()
    f, g = model(images_for(model), *WORDS.encode(CAPTIONS))
    (f * g).sum().backward()
    assert all(p.grad is not None for p in model.image_encoder.parameters())


# --- files


@pytest.mark.parametrize("preset", list(PRESETS))
@pytest.mark.parametrize("image", ["convnet", "resnet18", "features"])
def test_a_folder_brings_the_same_bits_back(tmp_path, image: str, preset: str) -> None:
    model = built(image, preset=preset, freeze=image == "resnet18")
    inputs = images_for(model), *WORDS.encode(CAPTIONS)
    with torch.no_grad():
        model.train()(*inputs)  # statistics of their own
    save_joint_embedding(model, tmp_path / "model")
    again = load_joint_embedding(tmp_path / "model")
    assert not again.training and again.settings() == model.settings()
    with pytest.raises(ValueError, match="which='last' chooses among the models of a run"):
        load_joint_embedding(tmp_path / "model", which="last")
    for ours, theirs in zip(model.eval()(*inputs), again(*inputs), strict=True):
        assert torch.equal(ours, theirs)
    assert torch.equal(again.encode_captions(CAPTIONS), model.encode_captions(CAPTIONS))
    save_joint_embedding(again, tmp_path / "again")
    for file in (tmp_path / "model").iterdir():
        assert file.read_bytes() == (tmp_path / "again" / file.name).read_bytes(), file.name


def test_best_of_a_run_is_such_a_folder(tmp_path) -> None:
    from hrrl_ext.retrieval.saved import described

    model, run = built(), RunFolder(tmp_path / "run")
    run.describe(described(model))
    model.save_files(run.path)
    run.save_best(model, {"epoch": 1})
    for folder in (run.path, run.best):
        again = load_joint_embedding(folder)
        assert torch.equal(again.encode_captions(CAPTIONS), model.encode_captions(CAPTIONS))


def test_a_module_of_ones_own_is_filled(tmp_path) -> None:
    def fresh(width: int = 4) -> JointEmbedding:
        text = GRUEncoder(len(WORDS), word_dim=2, width=3)
        image = nn.Sequential(nn.Flatten(), nn.Linear(12, width))
        return JointEmbedding(image, text, dim=5, image_features=width, words=WORDS)

    model = fresh()
    save_joint_embedding(model, tmp_path)
    with pytest.raises(ValueError, match="a module of your own; pass a fresh one as model="):
        load_joint_embedding(tmp_path)
    again = load_joint_embedding(tmp_path, fresh())
    assert torch.equal(
        again.encode_image(torch.ones(2, 3, 2, 2)), model.encode_image(torch.ones(2, 3, 2, 2))
    )
    with pytest.raises(ValueError, match=r"does not fit the model.*mismatched"):
        load_joint_embedding(tmp_path, fresh(width=6))


@pytest.mark.parametrize("change", ["missing", "unexpected", "words"])
def test_weights_that_do_not_fit_are_an_error(tmp_path, change: str) -> None:
    """Not a model that is loaded in part: nothing of it would say so but its recall."""
    model = built()
    config = tmp_path / "config.json"
    save_joint_embedding(model, tmp_path)
    (tmp_path / "digests.json").unlink()  # of whoever writes the rest as well
    if change == "words":
        Words.of(CAPTIONS[:1], min_count=1).save(tmp_path / "tokenizer.json")
    else:
        content = json.loads(config.read_text())
        content["model"] = "resnet18" if change == "missing" else "features"
        config.write_text(json.dumps(content))
    with pytest.raises(
        ValueError, match="words, expected" if change == "words" else "does not fit"
    ):
        load_joint_embedding(tmp_path)


def test_a_folder_of_another_model_is_told(tmp_path) -> None:
    config = {"model": "convnet", "classes": ["a", "b"], "image_size": 8, "width": 2}
    save_pretrained(ConvNet(2, width=2), tmp_path, config)
    with pytest.raises(ValueError, match="holds no joint embedding"):
        load_joint_embedding(tmp_path)
    with pytest.raises(FileNotFoundError, match="no model and no run"):
        load_joint_embedding(tmp_path / "none")


# --- bad input


def test_bad_input() -> None:
    text = GRUEncoder(5, word_dim=2, width=3)
    with pytest.raises(ValueError, match="did you mean 'cosine'"):
        JointEmbedding(nn.Identity(), text, similarity="cosin", image_features=3)
    with pytest.raises(ValueError, match=r"image encoder \(Identity\).*image_features="):
        JointEmbedding(nn.Identity(), text)
    with pytest.raises(ValueError, match=r"text encoder \(Identity\).*text_features="):
        JointEmbedding(ConvNet(2, width=2), nn.Identity())
    with pytest.raises(ValueError, match="dim must be at least 1"):
        JointEmbedding(nn.Identity(), text, 0, image_features=3)
    with pytest.raises(ValueError, match=r"did you mean 'VSE\+\+'"):
        built(preset="vse++")
    with pytest.raises(ValueError, match="did you mean 'gru'"):
        built(text="grus")
    with pytest.raises(ValueError, match="needs the words"):
        build_joint_embedding("features", features=3)
    with pytest.raises(ValueError, match="needs image_size"):
        build_joint_embedding("convnet", WORDS)
    with pytest.raises(ValueError, match=r"must give \[B, 7\], got \[2, 8\]"):
        built("features").encode_image(torch.rand(2, 8))
    with pytest.raises(ValueError, match="has no words"):
        JointEmbedding(nn.Identity(), text, image_features=3).encode_captions(["a"])
    with pytest.raises(ValueError, match="at least 1"):
        GRUEncoder(0)


def test_every_switch_of_a_preset_reaches_the_model() -> None:
    model = built(preset=dataclasses.replace(PRESETS["VSE++"], normalise_caption=False))
    assert model.settings()["normalise_caption"] is False and model.compared == "dot"
