"""Text models of Hugging Face's, from folders that are written here: a BERT of one layer, drawn at random."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable

import pytest
import torch
from torch import nn

from hrrl_ext.retrieval import (
    HuggingFaceEncoder,
    JointEmbedding,
    TokenizerWords,
    Words,
    build_joint_embedding,
    export,
    load_joint_embedding,
    save_joint_embedding,
)

CAPTIONS = ["a red fruit", "a dog", "the red dog"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    tokenizers = pytest.importorskip("tokenizers", reason="the extra text")
    transformers = pytest.importorskip("transformers", reason="the extra text")
    path = tmp_path_factory.mktemp("bert")
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=12, hidden_size=8, num_hidden_layers=1, num_attention_heads=2,
        intermediate_size=16, max_position_embeddings=10,
    )  # fmt: skip
    transformers.BertModel(config).save_pretrained(path)
    names = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "a", "red", "fruit", "dog", "the"]
    tokenizer = tokenizers.Tokenizer(
        tokenizers.models.WordPiece({name: at for at, name in enumerate(names)}, unk_token="[UNK]")
    )
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    tokenizer.post_processor = tokenizers.processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    tokenizer.enable_padding(length=9)  # as files of others do, which is not ours
    tokenizer.save(str(path / "tokenizer.json"))
    return path


@pytest.mark.parametrize("pool", ["mean", "cls"])
def test_states_are_pooled_over_a_captions_own_tokens(folder, pool: str) -> None:
    """Each caption alone, without padding and mask, by transformers itself."""
    transformers = pytest.importorskip("transformers")
    theirs = transformers.AutoModel.from_pretrained(folder).eval()
    encoder = HuggingFaceEncoder.from_folder(folder, pool=pool).eval()
    tokens, lengths = TokenizerWords(folder / "tokenizer.json").encode(CAPTIONS)
    assert lengths.tolist() == [5, 4, 5] and tokens[1].tolist() == [2, 4, 7, 3, 0]
    pooled = encoder(tokens, lengths)
    for row, token, length in zip(pooled, tokens, lengths, strict=True):
        states = theirs(input_ids=token[None, :length]).last_hidden_state[0]
        torch.testing.assert_close(row, states[0] if pool == "cls" else states.mean(0))
    pooled.sum().backward()
    assert all(p.grad is not None for p in encoder.parameters())  # no pooler that nothing reads


def test_a_joint_embedding_with_it_comes_back(folder, tmp_path) -> None:
    model = build_joint_embedding(
        "features", features=4, dim=3, text=f"huggingface:{folder}"
    ).eval()
    save_joint_embedding(model, tmp_path)
    assert str(folder) not in (tmp_path / "config.json").read_text()  # it stands on its own
    again = load_joint_embedding(tmp_path)
    assert torch.equal(again.encode_captions(CAPTIONS), model.encode_captions(CAPTIONS))
    assert again.words is not None and again.words.encode(["a " * 50])[1].item() == 10  # positions


def test_a_gru_over_tokens_of_another_tokenizer_comes_back(folder, tmp_path) -> None:
    words = TokenizerWords(folder / "tokenizer.json", max_length=4)
    model = build_joint_embedding(
        "features", words, features=4, dim=3, word_dim=2, text_width=3
    ).eval()
    save_joint_embedding(model, tmp_path)
    again = load_joint_embedding(tmp_path)
    assert torch.equal(again.encode_captions(CAPTIONS), model.encode_captions(CAPTIONS))
    assert again.words is not None and again.words.encode(CAPTIONS)[1].max() == 4


def test_it_is_exported_for_any_number_and_length(folder, tmp_path) -> None:
    model = build_joint_embedding(
        "features", features=4, dim=3, text=f"huggingface:{folder}"
    ).eval()
    files = export(model, tmp_path, formats=["torch"])
    programs = {file.stem: torch.export.load(file).module() for file in files}
    check_towers(model, lambda tower, *arguments: programs[tower](*arguments))


@pytest.mark.slow
def test_onnx_has_both_towers_for_any_number_and_length(folder, tmp_path) -> None:
    pytest.importorskip("onnxscript", reason="the extra onnx")
    runtime = pytest.importorskip("onnxruntime")
    model = build_joint_embedding(
        "features", features=4, dim=3, text=f"huggingface:{folder}"
    ).eval()
    files = export(model, tmp_path, formats=["onnx"])
    sessions = {file.stem: runtime.InferenceSession(file) for file in files}

    def run(tower: str, *arguments: torch.Tensor) -> torch.Tensor:
        names = [given.name for given in sessions[tower].get_inputs()]
        feed = {name: x.numpy() for name, x in zip(names, arguments, strict=True)}
        return torch.from_numpy(sessions[tower].run(["encoded"], feed)[0])

    check_towers(model, run)


def check_towers(model: JointEmbedding, run: Callable[..., torch.Tensor]) -> None:
    """One text and several, which are padded."""
    assert model.words is not None
    features = torch.rand(3, 4)
    for captions in (["a"], CAPTIONS):
        tokens, lengths = model.words.encode(captions)
        with torch.no_grad():
            expected = model.encode_text(tokens, lengths)
        torch.testing.assert_close(run("text", tokens, lengths), expected, rtol=0, atol=2e-6)
    with torch.no_grad():
        expected = model.encode_image(features)
    torch.testing.assert_close(run("image", features), expected, rtol=0, atol=2e-6)


def test_weights_that_are_not_there_are_an_error(folder, tmp_path) -> None:
    from safetensors.torch import load_file, save_file

    (tmp_path / "config.json").write_text((folder / "config.json").read_text())
    weights = load_file(folder / "model.safetensors")
    del weights["embeddings.word_embeddings.weight"]
    save_file(weights, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(ValueError, match=r"lacks weights.*word_embeddings"):
        HuggingFaceEncoder.from_folder(tmp_path)


def test_bad_input(folder, tmp_path) -> None:
    with pytest.raises(FileNotFoundError, match="nothing is downloaded"):
        HuggingFaceEncoder.from_folder("bert-base-uncased")
    with pytest.raises(ValueError, match="did you mean 'mean'"):
        HuggingFaceEncoder.from_folder(folder, pool="means")
    with pytest.raises(ValueError, match="leave words out"):
        build_joint_embedding("features", Words(["a"]), features=4, text=f"huggingface:{folder}")
    with pytest.raises(FileNotFoundError, match=r"save_pretrained\(folder\)"):
        TokenizerWords(tmp_path / "tokenizer.json")
    (tmp_path / "tokenizer.json").write_text(json.dumps({"model": None}))
    with pytest.raises(ValueError, match="holds no tokenizer"):
        TokenizerWords(tmp_path / "tokenizer.json")
    with pytest.raises(TypeError, match="must be a list of texts"):
        TokenizerWords(folder / "tokenizer.json").encode("a")


def test_without_the_packages_the_way_out_is_named(tmp_path, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ImportError, match=r'pip install "hrrl_ext\[text\]"'):
        HuggingFaceEncoder.from_folder(tmp_path)
    with pytest.raises(ImportError, match=r'pip install "hrrl_ext\[text\]"'):
        TokenizerWords(tmp_path / "tokenizer.json")


def test_no_text_model_is_told() -> None:
    model = nn.Linear(2, 2)
    model.config = object()  # type: ignore[assignment]
    with pytest.raises(ValueError, match="Linear is no text model"):
        HuggingFaceEncoder(model)
