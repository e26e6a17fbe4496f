"""Make the embedded set of pictures and texts: Noto's emoji with names and keywords of Unicode's CLDR.

    apt-get download fonts-noto-color-emoji unicode-cldr-core unicode-data
    for package in *.deb; do dpkg -x "$package" emoji-sources; done
    python tools/emoji_set.py --root emoji-sources [--sheet docs/results/emoji.png]

--root: the folder in which those packages of Debian 12 were unpacked (/ where they are installed).
SOURCES has their versions and the digests of the files that are read; others are refused. Needs
Pillow and fontTools. Writes images.npz, texts.json and both licences to hrrl_ext/retrieval/embedded.

Rules:
- One picture is one entry. Fully qualified emoji of emoji-test.txt, in its order, without skin tones;
  gender and hair stay where they have a name of their own. Those that CLDR 41 does not name (new in
  Emoji 15) are left out. Emoji that are drawn alike, such as the flags of Norway and Svalbard, are one
  entry with the names and keywords of all.
- A picture is laid on white, made square, and averaged to 32 x 32 pixels.
- Its texts are the names, then one text for each keyword, the rarest first, up to 4 in all. A keyword
  of more than 2 pictures ("face") would name too many: it is joined with the rarest other keyword
  where at most 2 pictures have both, else with the name. Where texts are few, the name in other words
  and the subgroup of emoji-test.txt with the name fill up.
- Its concept is the group of emoji-test.txt.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import re
import zipfile
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np

from hrrl_ext.storage import replacing, write_text

FONT = "usr/share/fonts/truetype/noto/NotoColorEmoji.ttf"
ANNOTATIONS = "usr/share/unicode/cldr/common/annotations/en.xml"
DERIVED = "usr/share/unicode/cldr/common/annotationsDerived/en.xml"
ORDER = "usr/share/unicode/emoji/emoji-test.txt"
COPYRIGHT = "usr/share/doc/unicode-cldr-core/copyright"
SOURCES = {  # path: package, version, SHA-256
    FONT: (
        "fonts-noto-color-emoji 2.042-0+deb12u1",
        "e5899ed38b8ed83e08bd3ac5de09791e9d19d288333a796de1d35ad17396f1ec",
    ),
    ANNOTATIONS: (
        "unicode-cldr-core 41-0.1",
        "170a989b9aff71fd06b9f7bbd70aa3b4a3d228e15fa734692d4fc80206e536e1",
    ),
    DERIVED: (
        "unicode-cldr-core 41-0.1",
        "0fab943b22dd1197b6d6fe6ce6aec7968e925d547283484bddcf96b14daf657f",
    ),
    ORDER: (
        "unicode-data 15.0.0-1",
        "8445f23ac8388e096be19d0262e14fceff856ff52093f2356dc89485f1a853db",
    ),
    COPYRIGHT: (
        "unicode-cldr-core 41-0.1",
        "e65a02b1c28fbdc57e6abf1d0048685d031a705dfaa813a4532ee352a7cb2754",
    ),
}
SIDE = 32
MOST_TEXTS = 4
MOST_SHARED = 2  # pictures that may have one keyword as a text
SKIN_TONES = range(0x1F3FB, 0x1F400)
ROOT = Path(__file__).resolve().parents[1]
OUT = ROOT / "hrrl_ext" / "retrieval" / "embedded"
NOTICE = """\
The pictures in images.npz are those of Noto Emoji 2.042, https://github.com/googlefonts/noto-emoji,
Copyright 2013-2017 Google Inc. and Arjen Nienhuis, Copyright 2022 Google Inc., which are under the
Apache License 2.0. (The font that carries them is under the SIL Open Font License; nothing but the
pictures is taken from it. Flags are in the public domain or exempt from copyright.) They were changed:
laid on white, made square and averaged to 32 x 32 pixels by tools/emoji_set.py. The licence follows.

"""


@dataclass
class Entry:
    """A picture [SIDE, SIDE, 3], the first emoji that is drawn so, and what is said of all that are."""

    emoji: str
    pixels: Any
    group: str
    subgroup: str
    names: list[str] = field(default_factory=list)
    keywords: list[str] = field(default_factory=list)


def check_sources(root: Path) -> None:
    """Raise ValueError unless the files are those that SOURCES names."""
    for path, (package, expected) in SOURCES.items():
        if not (root / path).is_file():
            raise ValueError(f"{root / path} does not exist; it is in Debian's {package}")
        got = hashlib.sha256((root / path).read_bytes()).hexdigest()
        if got != expected:
            raise ValueError(f"{root / path}: expected that of {package}, {expected}, got {got}")


def read_annotations(text: str) -> tuple[dict[str, str], dict[str, list[str]]]:
    """Emoji (without U+FE0F) → short name, and → keywords, of an annotations file of CLDR."""
    names, keywords = {}, {}
    for item in ElementTree.fromstring(text).iter("annotation"):
        if item.get("type") == "tts":
            names[item.attrib["cp"]] = (item.text or "").strip()
        else:
            keywords[item.attrib["cp"]] = [word.strip() for word in (item.text or "").split("|")]
    return names, keywords


def read_order(text: str) -> Iterator[tuple[str, str, str]]:
    """(emoji without U+FE0F, group, subgroup) in the order of emoji-test.txt, without skin tones."""
    group = subgroup = ""
    for line in text.splitlines():
        if line.startswith("# group: "):
            group = line.removeprefix("# group: ")
        elif line.startswith("# subgroup: "):
            subgroup = line.removeprefix("# subgroup: ")
        elif "; fully-qualified" in line:
            points = [int(point, 16) for point in line.partition(";")[0].split()]
            if not any(point in SKIN_TONES for point in points):
                yield "".join(map(chr, points)).replace("\ufe0f", ""), group, subgroup


class Font:
    """The pictures of a colour font that holds them as PNG files (tables CBDT and CBLC)."""

    def __init__(self, path: Path) -> None:
        from fontTools.ttLib import TTFont

        font = TTFont(path)
        self._glyph = font.getBestCmap()
        (self._pictures,) = font["CBDT"].strikeData
        self._joined = {
            (first, *ligature.Component): ligature.LigGlyph
            for lookup in font["GSUB"].table.LookupList.Lookup
            if lookup.LookupType == 4
            for table in lookup.SubTable
            for first, ligatures in table.ligatures.items()
            for ligature in ligatures
        }

    def pixels(self, emoji: str) -> Any:
        """[SIDE, SIDE, 3] uint8. KeyError if the font does not draw it as one picture."""
        from PIL import Image

        glyphs = tuple(self._glyph[ord(point)] for point in emoji)
        glyph = glyphs[0] if len(glyphs) == 1 else self._joined[glyphs]
        with Image.open(io.BytesIO(self._pictures[glyph].imageData)) as file:
            picture = file.convert("RGBA")
        side = max(picture.size)
        square = Image.new("RGBA", (side, side), "white")
        square.alpha_composite(picture, ((side - picture.width) // 2, (side - picture.height) // 2))
        return np.asarray(square.convert("RGB").resize((SIDE, SIDE), Image.Resampling.BOX))


def read_entries(root: Path) -> list[Entry]:
    """Every picture once."""
    names: dict[str, str] = {}
    keywords: dict[str, list[str]] = {}
    for path in (ANNOTATIONS, DERIVED):
        some_names, some_keywords = read_annotations((root / path).read_text(encoding="utf-8"))
        names |= some_names
        keywords |= some_keywords
    font, entries = Font(root / FONT), dict[bytes, Entry]()
    for emoji, group, subgroup in read_order((root / ORDER).read_text(encoding="utf-8")):
        if emoji not in names:
            continue
        pixels = font.pixels(emoji)
        entry = entries.setdefault(pixels.tobytes(), Entry(emoji, pixels, group, subgroup))
        entry.names.append(names[emoji])
        entry.keywords += [word for word in keywords.get(emoji, []) if word not in entry.keywords]
    return list(entries.values())


def words(text: str) -> frozenset[str]:
    """Two texts with the same ones say the same, in whatever order."""
    return frozenset(re.findall(r"\w+", text.casefold())) or frozenset([text])


def texts_of(entry: Entry, holders: dict[str, set[str]]) -> list[str]:
    """Up to MOST_TEXTS texts. holders: keyword in lower case → the emoji that have it."""
    name = entry.names[0]
    kind, _, subject = name.rpartition(": ")
    names = {name.casefold() for name in entry.names}
    rare = sorted(entry.keywords, key=lambda word: (len(holders[word.casefold()]), word))
    rare = [word for word in rare if word.casefold() not in names]
    texts = []
    for word in rare:
        held = holders[word.casefold()]
        pair = (o for o in rare if o != word and len(held & holders[o.casefold()]) <= MOST_SHARED)
        if len(held) <= MOST_SHARED:
            texts.append(word)
        elif other := next(pair, None):
            texts.append(f"{word} {other}")
        elif not words(word) <= words(name):
            texts.append(f"{word} {subject}")
    if kind:
        texts.append(f"{subject} {kind}")
    texts.append(f"{entry.subgroup.replace('-', ' ')} {subject}")
    distinct: dict[frozenset[str], str] = {}
    for text in texts:
        if text.casefold() not in names:
            distinct.setdefault(words(text), text)
    return [*entry.names, *distinct.values()][:MOST_TEXTS]


def all_texts(entries: list[Entry]) -> list[list[str]]:
    holders: dict[str, set[str]] = defaultdict(set)
    for entry in entries:
        for word in entry.keywords:
            holders[word.casefold()].add(entry.emoji)
    return [texts_of(entry, holders) for entry in entries]


def as_json(entries: list[Entry], texts: list[list[str]]) -> str:
    """A line for each picture: the emoji, the number of its concept, its texts, the name first."""
    concepts = list(dict.fromkeys(entry.group for entry in entries))
    lines = [
        json.dumps([entry.emoji, concepts.index(entry.group), some], ensure_ascii=False)
        for entry, some in zip(entries, texts, strict=True)
    ]
    listed = ",\n".join(lines)
    return f'{{"concepts": {json.dumps(concepts)},\n"pictures": [\n{listed}\n]}}\n'


def write_images(path: Path, images: Any) -> None:
    """As np.savez_compressed, at the highest level, and without the time of day."""
    content = io.BytesIO()
    np.save(content, images)
    with replacing(path) as partial, zipfile.ZipFile(partial, "w") as archive:
        entry = zipfile.ZipInfo("image.npy")  # dated 1980
        archive.writestr(entry, content.getvalue(), zipfile.ZIP_DEFLATED, 9)


def write_sheet(path: Path, entries: list[Entry], columns: int = 24) -> None:
    """A row for each concept, of pictures evenly spaced over it."""
    from PIL import Image

    rows: dict[str, list[Any]] = defaultdict(list)
    for entry in entries:
        rows[entry.group].append(entry.pixels)
    grid = [
        np.concatenate([row[i * len(row) // columns] for i in range(columns)], axis=1)
        for row in rows.values()
    ]
    with replacing(path) as partial:
        Image.fromarray(np.concatenate(grid)).save(partial, "PNG", optimize=True)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--root", type=Path, required=True, help="folder of the unpacked packages")
    parser.add_argument(
        "--out", type=Path, default=OUT, help="folder to write to (default: %(default)s)"
    )
    parser.add_argument("--sheet", type=Path, help="a PNG file, a row of pictures for each concept")
    options = parser.parse_args()

    try:
        check_sources(options.root)
    except ValueError as error:
        parser.error(str(error))
    entries = read_entries(options.root)
    write_images(options.out / "images.npz", np.stack([entry.pixels for entry in entries]))
    write_text(options.out / "texts.json", as_json(entries, all_texts(entries)))
    apache = (ROOT / "LICENSE").read_text(encoding="utf-8")
    write_text(options.out / "NOTO-LICENSE.txt", NOTICE + apache.lstrip("\n"))
    unicode = (options.root / COPYRIGHT).read_text(encoding="utf-8")
    write_text(
        options.out / "UNICODE-LICENSE.txt",
        "texts.json is made of CLDR 41 and emoji-test.txt 15.0, changed by tools/emoji_set.py. Their "
        f"licence, as Debian's unicode-cldr-core gives it, follows.\n\n{unicode}",
    )
    if options.sheet:
        write_sheet(options.sheet, entries)


if __name__ == "__main__":
    main()
