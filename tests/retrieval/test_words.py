"""Words and their numbers: what a word is, what is left out, the file, and the same by tokenizers."""

from __future__ import annotations

import json
import re
import unicodedata

import pytest
import torch

from hrrl_ext.retrieval import Words, load_emoji
from hrrl_ext.retrieval.words import PAD, UNKNOWN, split_words

TEXTS = [
    "A red apple, isn't it?",
    "  tabs\tand\nlines  ",
    "ΟΔΟΣ ΣΑΣ",  # a final sigma
    "İstanbul STRASSE Straße",
    "cafe\u0301 caf\u00e9",  # two ways to write one word
    "हिन्दी में 漢字 ไทย",
    "👩‍🚀 🇫🇷 ❤️ snake_case x²",
    "[UNK] [PAD]",
    "",
    "\u200b\x00",
    "word " * 300,
]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (TEXTS[0], ["a", "red", "apple", ",", "isn", "'", "t", "it", "?"]),
        (TEXTS[1], ["tabs", "and", "lines"]),
        (TEXTS[2], ["οδοσ", "σασ"]),
        (TEXTS[3], ["i\u0307stanbul", "strasse", "straße"]),
        (TEXTS[4], ["caf\u00e9", "caf\u00e9"]),
        (TEXTS[5], ["हिन्दी", "में", "漢字", "ไทย"]),
        (TEXTS[6], ["👩", "🚀", "🇫", "🇷", "❤", "snake_case", "x²"]),
        (TEXTS[7], ["[", "unk", "]", "[", "pad", "]"]),
        (TEXTS[8], []),
        (TEXTS[9], []),
    ],
)
def test_what_a_word_is(text: str, words: list[str]) -> None:
    assert split_words(text) == words


def test_the_most_frequent_come_first_and_rare_ones_are_unknown() -> None:
    words = Words.of(["b b a", "c a b", "d"], min_count=2)
    assert len(words) == 4 and "a" in words and "c" not in words
    tokens, lengths = words.encode(["b a", "c", "", "a d b"])
    assert tokens.tolist() == [[2, 3, 0], [1, 0, 0], [1, 0, 0], [3, 1, 2]]
    assert lengths.tolist() == [2, 1, 1, 3]
    assert tokens.dtype == lengths.dtype == torch.int64


def test_equal_counts_are_in_the_order_of_the_words_not_of_the_captions() -> None:
    one, other = Words.of(["z y", "x"], min_count=1), Words.of(["x", "y z"], min_count=1)
    assert one.encode(["x y z"])[0].tolist() == other.encode(["x y z"])[0].tolist() == [[2, 3, 4]]


def test_a_long_caption_is_cut_and_an_empty_list_is_empty() -> None:
    words = Words.of(["a b c"], min_count=1, max_length=2)
    tokens, lengths = words.encode(["c b a", "a"])
    assert tokens.tolist() == [[4, 3], [2, 0]] and lengths.tolist() == [2, 1]
    tokens, lengths = words.encode([])
    assert tokens.shape == (0, 0) and lengths.shape == (0,)


def test_a_file_brings_the_same_words_back(tmp_path) -> None:
    words = Words.of(TEXTS, min_count=1, max_length=7)
    words.save(tmp_path / "tokenizer.json")
    again = Words.load(tmp_path / "tokenizer.json")
    assert len(again) == len(words) and again.max_length == 7
    assert all(
        torch.equal(*pair) for pair in zip(words.encode(TEXTS), again.encode(TEXTS), strict=True)
    )


def test_tokenizers_reads_the_file_and_finds_the_same_tokens(tmp_path) -> None:
    tokenizers = pytest.importorskip("tokenizers", reason="the extra text")
    captions = [*TEXTS, *(text for texts in load_emoji("val").texts for text in texts)]
    words = Words.of(captions[::2], min_count=1)  # so that some are unknown
    words.save(tmp_path / "tokenizer.json")
    theirs = tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    tokens, lengths = words.encode(captions)
    batch = theirs.encode_batch(captions)
    assert [one.ids for one, text in zip(batch, captions, strict=True) if split_words(text)] == [
        row for row, text in zip(tokens.tolist(), captions, strict=True) if split_words(text)
    ]
    assert [sum(one.attention_mask) or 1 for one in batch] == lengths.tolist()
    assert theirs.token_to_id(PAD) == 0 and theirs.token_to_id(UNKNOWN) == 1


def test_tokenizers_parts_at_the_same_characters(tmp_path) -> None:
    """Every character that this Python's Unicode has; a newer one has more letters."""
    tokenizers = pytest.importorskip("tokenizers", reason="the extra text")
    Words(["a"]).save(tmp_path / "tokenizer.json")
    theirs = tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    known = [
        c for c in map(chr, range(0x30000)) if unicodedata.category(c) not in ("Cn", "Cs", "Co")
    ]
    for first in range(0, len(known), 500):
        text = " ".join(f"a{c}b" for c in known[first : first + 500])
        pieces = theirs.pre_tokenizer.pre_tokenize_str(theirs.normalizer.normalize_str(text))
        assert [piece for piece, _ in pieces] == split_words(text)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda file: file["model"].pop("vocab"), "holds no vocabulary"),
        (lambda file: file["model"]["vocab"].update(a=9), "is of another tokenizer (model differ"),
        (lambda file: file["model"].update(type="BPE"), "is of another tokenizer (model differ"),
        (lambda file: file.update(normalizer=None), "is of another tokenizer (normalizer differ"),
        (lambda file: file.update(truncation=None), "holds no vocabulary"),
    ],
)
def test_a_file_of_another_kind_is_refused(tmp_path, change, said: str) -> None:
    path = tmp_path / "tokenizer.json"
    Words(["a", "b"]).save(path)
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))
    with pytest.raises(ValueError, match=re.escape(f"{path} {said}")):
        Words.load(path)


def test_bad_input(tmp_path) -> None:
    with pytest.raises(TypeError, match="put it into a list"):
        Words.of("a caption")
    with pytest.raises(TypeError, match="must be a list of texts"):
        Words(["a"]).encode("a")
    with pytest.raises(TypeError, match="must be text, got bytes"):
        Words(["a"]).encode([b"a"])  # type: ignore[list-item]
    with pytest.raises(ValueError, match="lower min_count"):
        Words.of(["a b", "c"], min_count=2)
    with pytest.raises(ValueError, match="min_count must be at least 1"):
        Words.of(["a"], min_count=0)
    with pytest.raises(ValueError, match="'a' twice"):
        Words(["a", "b", "a"])
    with pytest.raises(ValueError, match="max_length must be at least 1"):
        Words(["a"], max_length=0)
    with pytest.raises(FileNotFoundError, match="no vocabulary at"):
        Words.load(tmp_path / "none.json")
