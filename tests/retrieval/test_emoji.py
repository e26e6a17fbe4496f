"""The embedded emoji, and the tool that makes them."""

from __future__ import annotations

import hashlib
import json
import os
import re
import unicodedata
from collections import Counter
from pathlib import Path

import emoji_set
import numpy as np
import pytest
import torch
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components

from hrrl_ext.retrieval.emoji import EmojiPairs, load_emoji

EMBEDDED = emoji_set.OUT
SPLITS = ("train", "val", "test")
# Of the names of each split, joined by newlines: a split that moves makes other results of all that used it.
SPLIT_SHA256 = {
    "train": "def9fca05f07618cd26d520a33de10430226565a3cf6531b3a87f698cede6d9f",
    "val": "e49e3d3e2bd3828bf2df7c6706f7cefa4021a84a1852763c21ea17192e3ca517",
    "test": "09427c3942b761b83334e8c9793e4f137c8b0ca1ff283bb06cb14e633c055385",
}


@pytest.fixture(scope="module")
def pairs() -> EmojiPairs:
    return load_emoji("all")


def test_counts_and_shapes(pairs):
    assert len(pairs) == 1840
    assert pairs.images.images.shape == (1840, 3, 32, 32)
    assert pairs.images.images.dtype == torch.uint8
    assert pairs.group.shape == pairs.concept.shape == (1840,)
    assert len(pairs.texts) == len(pairs.names) == len(pairs.emoji) == 1840
    assert pairs.concept.bincount().tolist() == [162, 360, 145, 131, 218, 85, 257, 221, 261]
    assert pairs.concept_names[2] == "Animals & Nature"
    assert pairs.images.classes == pairs.concept_names


def test_pictures_differ_and_lie_on_white(pairs):
    pixels = pairs.images.images
    assert len(pixels.flatten(1).unique(dim=0)) == len(pairs)
    corners = pixels[:, :, [0, 0, -1, -1], [0, -1, 0, -1]]
    assert (corners == 255).float().mean() > 0.9  # keys and buttons reach into the corners
    red, green, _ = pixels[pairs.names.index("red heart"), :, 16, 16].tolist()
    assert red > 200 and green < 100  # channels in their order


def test_texts_are_text(pairs):
    for name, texts in zip(pairs.names, pairs.texts, strict=True):
        assert texts[0] == name
        assert 2 <= len(texts) <= 4
        assert len({text.casefold() for text in texts}) == len(texts)
        for text in texts:
            assert isinstance(text, str) and text and text == text.strip()
            assert not text.startswith(("b'", 'b"')) and "|" not in text
            assert all(unicodedata.category(c) not in ("Cc", "Co", "Cn") for c in text)
    assert len(set(pairs.names)) == len(set(pairs.emoji)) == len(pairs)


def test_pictures_have_the_name_of_their_character(pairs):
    """Python has names of single characters of its own, and CLDR often writes the same."""
    same = [
        name
        for emoji, name in zip(pairs.emoji, pairs.names, strict=True)
        if len(emoji) == 1 and unicodedata.name(emoji, "").casefold() == name.casefold()
    ]
    assert len(same) > 400
    assert pairs.emoji[pairs.names.index("tiger face")] == "\N{TIGER FACE}"


def test_groups_are_the_components_of_equal_texts(pairs):
    number: dict[str, int] = {}
    edges = [
        (i, number.setdefault(text.casefold(), len(number)))
        for i, texts in enumerate(pairs.texts)
        for text in texts
    ]
    rows, columns = np.array(edges).T
    held = coo_matrix((np.ones(len(edges)), (rows, columns)), (len(pairs), len(number))).tocsr()
    count, label = connected_components(held @ held.T)
    assert pairs.group.unique().tolist() == list(range(count))
    # One partition: as many pairs of labels as there are of each.
    both = {*zip(label.tolist(), pairs.group.tolist(), strict=True)}
    assert len(both) == count
    assert pairs.group.bincount().max() <= 5  # no chain that masks a batch


def test_splits_part_the_set(pairs):
    parts = [load_emoji(split) for split in SPLITS]
    names = [name for part in parts for name in part.names]
    assert sorted(names) == sorted(pairs.names)
    assert [len(part) for part in parts] == [1287, 270, 283]
    for part in parts:
        assert part.concept.unique().tolist() == list(range(9))
        rows = [pairs.names.index(name) for name in part.names]
        assert rows == sorted(rows)
        assert torch.equal(part.images.images, pairs.images.images[rows])
        assert torch.equal(part.images.target, pairs.concept[rows])
        assert torch.equal(part.group, pairs.group[rows])
        assert part.texts == [pairs.texts[row] for row in rows]
        assert part.emoji == [pairs.emoji[row] for row in rows]


@pytest.mark.parametrize("split", SPLITS)
def test_splits_are_stable(split):
    joined = "\n".join(load_emoji(split).names)
    assert hashlib.sha256(joined.encode()).hexdigest() == SPLIT_SHA256[split]


def test_unknown_split():
    with pytest.raises(ValueError, match="emoji: split 'tests' is not known; did you mean 'test'"):
        load_emoji("tests")


def test_licences_and_sources_are_beside_it():
    noto = (EMBEDDED / "NOTO-LICENSE.txt").read_text(encoding="utf-8")
    assert "Google Inc." in noto and "They were changed" in noto
    assert "TERMS AND CONDITIONS FOR USE, REPRODUCTION, AND DISTRIBUTION" in noto
    unicode = (EMBEDDED / "UNICODE-LICENSE.txt").read_text(encoding="utf-8")
    assert "Copyright © 1991-2022 Unicode, Inc." in unicode
    assert "Permission is hereby granted, free of charge" in unicode
    readme = (EMBEDDED / "README.md").read_text(encoding="utf-8")
    for path, (package, digest) in emoji_set.SOURCES.items():
        (line,) = [line for line in readme.splitlines() if digest in line]
        assert package in line
        assert path.endswith(line.split("`")[1])


def test_all_of_it_is_below_two_megabytes():
    assert sum(file.stat().st_size for file in EMBEDDED.iterdir()) < 2_000_000


def test_the_page_has_the_numbers(pairs):
    page = (emoji_set.ROOT / "docs" / "emoji.md").read_text(encoding="utf-8")
    for split in (*SPLITS, "all"):
        part = load_emoji(split)
        sizes = (len(part), sum(map(len, part.texts)), len(part.group.unique()))
        smallest = int(part.concept.bincount().min())
        assert f"| {split} | {' | '.join(map(str, sizes))} | {smallest} |" in page
    count = Counter(text.casefold() for texts in pairs.texts for text in texts)
    assert f"{sum(held > 1 for held in count.values())} of the texts still belong to more" in page
    shared = int((pairs.group.bincount()[pairs.group] > 1).sum())
    assert f"{shared} pictures are in\n  a group" in page
    known = {text.casefold() for texts in load_emoji("train").texts for text in texts}
    met = sum(text.casefold() in known for texts in load_emoji("test").texts for text in texts)
    assert f"{met} of the test texts are" in page
    vocabulary = set().union(*map(emoji_set.words, known))
    tested = [
        re.findall(r"\w+", text.casefold()) for texts in load_emoji("test").texts for text in texts
    ]
    new = [word not in vocabulary for words in tested for word in words]
    assert f"{np.mean(new):.0%}".replace("%", " %") + " are in no training" in page
    old = np.mean([vocabulary.issuperset(words) for words in tested])
    assert f"{old:.0%}".replace("%", " %") + " of the texts have no such word" in page


# --- the tool


def test_tool_reads_names_and_keywords():
    names, keywords = emoji_set.read_annotations(
        "<ldml><annotations>"
        '<annotation cp="🐯">face | tiger &amp; co</annotation>'
        '<annotation cp="🐯" type="tts">tiger face</annotation>'
        "</annotations></ldml>"
    )
    assert names == {"🐯": "tiger face"}
    assert keywords == {"🐯": ["face", "tiger & co"]}


def test_tool_leaves_out_tones_and_what_is_not_fully_qualified():
    lines = (
        "# group: People & Body",
        "# subgroup: hand-fingers-open",
        "1F44B       ; fully-qualified     # 👋 E0.6 waving hand",
        "1F44B 1F3FB ; fully-qualified     # 👋🏻 E1.0 waving hand: light skin tone",
        "1F590 FE0F  ; fully-qualified     # 🖐️ E0.7 hand with fingers splayed",
        "1F590       ; unqualified         # 🖐 E0.7 hand with fingers splayed",
        "# group: Component",
        "1F3FB       ; component           # 🏻 E1.0 light skin tone",
    )
    found = list(emoji_set.read_order("\n".join(lines)))
    assert found == [(emoji, "People & Body", "hand-fingers-open") for emoji in "👋🖐"]


def entry(emoji: str, subgroup: str, names: list[str], keywords: list[str]) -> emoji_set.Entry:
    return emoji_set.Entry(emoji, None, "group", subgroup, names, keywords)


def test_tool_writes_texts():
    entries = [
        entry("1", "cat-face", ["tiger face"], ["tiger face", "face", "stripes"]),
        entry("2", "bird", ["owl"], ["face", "Bird"]),
        entry("3", "bird", ["eagle"], ["bird", "face"]),
        entry("4", "bird", ["gull"], ["bird", "face", "a", "b", "c"]),
        entry("5", "country-flag", ["flag: Norway", "flag: Svalbard"], []),
        entry("6", "sign", ["bang"], ["!", "?"]),
    ]
    assert emoji_set.all_texts(entries) == [
        # One picture has "stripes"; "face" of four is joined with it; the subgroup fills up.
        ["tiger face", "stripes", "face stripes", "cat face tiger face"],
        # "bird" and "face" of three and four, both of three at once: joined with the name.
        ["owl", "Bird owl", "face owl"],
        ["eagle", "bird eagle", "face eagle"],
        ["gull", "a", "b", "c"],
        ["flag: Norway", "flag: Svalbard", "Norway flag", "country flag Norway"],
        ["bang", "!", "?", "sign bang"],
    ]


def test_tool_does_not_join_keywords_to_the_name():
    entries = [
        entry("1", "sign", ["hot red"], ["hot", "red"]),
        *(entry(str(i), "sign", [f"sign {i}"], ["hot" if i < 4 else "red"]) for i in range(2, 8)),
    ]
    assert emoji_set.all_texts(entries)[0] == ["hot red", "red hot", "sign hot red"]


def test_tool_refuses_other_sources(tmp_path):
    with pytest.raises(
        ValueError, match=r"does not exist; it is in Debian's fonts-noto-color-emoji"
    ):
        emoji_set.check_sources(tmp_path)
    (tmp_path / emoji_set.FONT).parent.mkdir(parents=True)
    (tmp_path / emoji_set.FONT).write_bytes(b"another font")
    with pytest.raises(
        ValueError, match=r"NotoColorEmoji.ttf: expected that of .* 2.042.* got [0-9a-f]{64}"
    ):
        emoji_set.check_sources(tmp_path)


def test_tool_writes_the_same_bytes_each_time(tmp_path):
    for name in ("one.npz", "two.npz"):
        emoji_set.write_images(tmp_path / name, np.arange(12, dtype=np.uint8).reshape(1, 2, 2, 3))
    assert (tmp_path / "one.npz").read_bytes() == (tmp_path / "two.npz").read_bytes()
    with np.load(tmp_path / "one.npz") as archive:
        assert archive["image"].ravel().tolist() == list(range(12))


SOURCES = os.environ.get("HRRL_EMOJI_SOURCES")


@pytest.mark.skipif(
    not SOURCES,
    reason="HRRL_EMOJI_SOURCES is not set: the folder of the packages that the tool names",
)
def test_tool_makes_what_is_embedded(pairs):
    pytest.importorskip("fontTools")
    assert SOURCES
    root = Path(SOURCES)
    emoji_set.check_sources(root)
    entries = emoji_set.read_entries(root)
    made = emoji_set.as_json(entries, emoji_set.all_texts(entries))
    assert made == (EMBEDDED / "texts.json").read_text(encoding="utf-8")
    assert len(json.loads(made)["pictures"]) == len(entries)
    pixels = np.stack([entry.pixels for entry in entries]).transpose(0, 3, 1, 2)
    assert np.array_equal(pixels, pairs.images.images.numpy())
