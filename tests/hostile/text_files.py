"""Text that people write or export: tables of images, concepts, classes, captions, lists of data sets."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from random import Random
from typing import Any

import torch
from damage import JSON, TEXT, Damage, Files, lines_of_json
from PIL import Image
from trial import Attempt, Family

from hrrl_ext.data import ArrayImages, load_images
from hrrl_ext.data.classes import read_classes
from hrrl_ext.data.concept_files import read_concept_file, read_example_concepts
from hrrl_ext.data.leaving_out import take_without
from hrrl_ext.retrieval import load_pairs

LINES: tuple[Damage, ...] = (lines_of_json,) * 10 + TEXT
_NAMES = [f"{at}.png" for at in range(4)]


def pictures(folder: Path) -> None:
    for at, name in enumerate(_NAMES):
        Image.new("RGB", (2, 2), (at, 0, 0)).save(folder / name)


# --- by another route


def decoded(path: Path) -> str:
    """UTF-8 with or without a mark; an error for anything else."""
    return path.read_bytes().decode("utf-8").removeprefix("\ufeff")


def rows(text: str, delimiter: str = ",") -> list[list[str]]:
    """CSV as RFC 4180 has it, letter by letter; lines without a cell are none."""
    found: list[list[str]] = [[]]
    word, quoted, at = "", False, 0
    while at < len(text):
        sign = text[at]
        at += 1
        if quoted and sign == '"' and text[at : at + 1] == '"':
            word, at = word + sign, at + 1
        elif quoted and sign == '"':
            quoted = False
            if text[at : at + 1] not in ("", delimiter, "\r", "\n"):
                raise ValueError("behind a quote")
        elif quoted:
            word += sign
        elif sign == '"' and not word:
            quoted = True
        elif sign == delimiter:
            found[-1].append(word)
            word = ""
        elif sign in "\r\n":
            at += sign == "\r" and text[at : at + 1] == "\n"
            if word or found[-1] or text[at - 2 : at - 1] == '"':
                found[-1].append(word)
                found.append([])
            word = ""
        else:
            word += sign
    if quoted:
        raise ValueError("open quote")
    if word or found[-1]:
        found[-1].append(word)
    return [[cell.strip() for cell in row] for row in found if row]


def delimiter_of(path: Path) -> str:
    if path.suffix == ".tsv":
        return "\t"
    first = decoded(path).replace("\r", "\n").partition("\n")[0]
    return next((sign for sign in ",;\t" if sign in first), ",")


def objects(path: Path) -> list[dict[str, Any]]:
    """JSON lines; one that is no object has no answer."""
    found = [json.loads(line) for line in decoded(path).split("\n") if line.strip()]
    if not all(isinstance(row, dict) for row in found):
        raise ValueError("no object")
    return found


def as_cell(value: Any) -> str:
    return value.strip() if isinstance(value, str) else "" if value is None else json.dumps(value)


def one(header: list[str], names: tuple[str, ...]) -> int:
    (at,) = [at for at, name in enumerate(header) if name.lower() in names]
    return at


# --- tables of images

_IMAGE = (
    "image",
    "path",
    "file",
    "filename",
    "file_name",
    "img_filename",
    "image_path",
    "img_path",
)
_LABEL = ("label", "class", "y", "target", "class_name")


def tables(folder: Path) -> Callable[[Random], Attempt]:
    pictures(folder)
    table = [
        ["file", "label", "place"],
        *([n, "ab"[i % 2], "xy"[i // 2]] for i, n in enumerate(_NAMES)),
    ]
    for suffix, sign in ((".csv", ","), (".tsv", "\t")):
        text = "".join(sign.join(row) + "\n" for row in table)
        (folder / f"images{suffix}").write_text(text)
    lines = [json.dumps(dict(zip(table[0], row, strict=True))) for row in table[1:]]
    (folder / "images.jsonl").write_text("".join(line + "\n" for line in lines))

    def read(path: Path) -> Any:
        images = load_images(path, image_size=2, split="all")
        files = [os.path.basename(file) for file in images.sources]  # type: ignore[attr-defined]
        labels = [images.classes[c] for c in images.target.tolist()]
        return files, labels, {name: list(values) for name, values in images.columns.items()}

    def said(path: Path) -> Any:
        if path.suffix == ".jsonl":
            found = objects(path)
            header = list(found[0])
            cells = [[as_cell(row[name]) for name in header] for row in found]
            if any(set(row) != set(header) for row in found):
                raise ValueError("keys")
        else:
            header, *cells = rows(decoded(path), delimiter_of(path))
        if any(len(row) != len(header) for row in cells) or len(set(header)) < len(header):
            raise ValueError("ragged")
        image, label = one(header, _IMAGE), one(header, _LABEL)
        files = [os.path.normpath(row[image]) for row in cells]
        labels = [row[label] for row in cells]
        if not set(files) <= set(_NAMES) or not all(labels):
            raise ValueError("no such file, or no class")
        return (
            files,
            labels,
            {name: [row[at] for row in cells] for at, name in enumerate(header) if at != image},
        )

    files = [
        Files({path: damages}, partial(read, path), said=partial(said, path))
        for path, damages in (
            (folder / "images.csv", TEXT), (folder / "images.tsv", TEXT), (folder / "images.jsonl", LINES),
        )
    ]  # fmt: skip
    return lambda chance: chance.choice(files)(chance)


# --- concepts and classes


def concepts(folder: Path) -> Callable[[Random], Attempt]:
    pairs = {"cat": "pet", "dog": "pet", "owl": "bird", "jay": "bird"}
    text = "".join(f"{name},{concept}\n" for name, concept in pairs.items())
    (folder / "concepts.csv").write_text("class,concept\n" + text)
    (folder / "concepts.json").write_text(json.dumps(pairs, indent=1))
    by_example = "".join(f"{at},{name}\n" for at, name in enumerate(pairs.values()))
    (folder / "examples.csv").write_text("example,concept\n" + by_example)
    (folder / "classes.txt").write_text("".join(f"{name}\n" for name in pairs))

    def of_table(name: str, header: list[str]) -> list[tuple[str, str]]:
        first, *cells = rows(decoded(folder / name))
        if first != header or any(len(row) != 2 or not row[0] or not row[1] for row in cells):
            raise ValueError("layout")
        if not cells or len({row[0] for row in cells}) < len(cells):
            raise ValueError("twice")
        return [(row[0], row[1]) for row in cells]

    def of_json() -> dict[str, str]:
        found = json.loads(decoded(folder / "concepts.json"), object_pairs_hook=list)
        value = dict(found)
        if len(value) < len(found) or not all(isinstance(c, str) and c and k for k, c in found):
            raise ValueError("twice, or no text")
        return value

    def of_examples() -> list[str]:
        pairs = of_table("examples.csv", ["example", "concept"])
        number = {int(at): concept for at, concept in pairs if at.isdecimal()}
        return [number[at] for at in range(4)] if len(number) == len(pairs) == 4 else []

    def names() -> list[str]:
        found = [line.strip() for line in decoded(folder / "classes.txt").splitlines()]
        while found and not found[-1]:
            del found[-1]
        if not found or not all(found):
            raise ValueError("empty")
        return found

    paths = [
        folder / name for name in ("concepts.csv", "concepts.json", "examples.csv", "classes.txt")
    ]
    files = [
        Files({paths[0]: TEXT}, lambda: read_concept_file(paths[0]),
              said=lambda: dict(of_table("concepts.csv", ["class", "concept"]))),
        Files({paths[1]: JSON}, lambda: read_concept_file(paths[1]), said=of_json),
        Files({paths[2]: TEXT}, lambda: read_example_concepts(paths[2], 4), said=of_examples),
        Files({paths[3]: TEXT}, lambda: read_classes(paths[3]), said=names),
    ]  # fmt: skip
    return lambda chance: chance.choice(files)(chance)


# --- lists of images to leave out


def left_out(folder: Path) -> Callable[[Random], Attempt]:
    path, images = (
        folder / "faults.csv",
        ArrayImages(torch.zeros(4, 2, 2, dtype=torch.uint8), [0] * 4),
    )
    path.write_text(
        "image,kind,leave_out\nimage 1,damaged,yes\nimage 2,turned,no\nimage 3,deep,yes\n"
    )

    def said() -> list[int]:
        header, *cells = rows(decoded(path))
        if any(len(row) != len(header) for row in cells) or len(set(header)) < len(header):
            raise ValueError("ragged")
        listed = set()
        for row in (dict(zip(header, row, strict=True)) for row in cells):
            if {"yes": True, "no": False}[row.get("leave_out", "yes")]:
                listed.add(row["image"])
        left = [at for at in range(4) if f"image {at}" not in listed]
        if not left or "image" not in header:
            raise ValueError("nothing is left, or named")
        return left

    return Files({path: TEXT}, lambda: take_without(images, path)[1].tolist(), said=said)


# --- captions


def captions(folder: Path) -> Callable[[Random], Attempt]:
    pictures(folder)
    texts = [f"the picture of {word}" for word in ("one", "two", "three", "four")]
    pairs = list(zip(_NAMES, texts, strict=True))
    table = "".join(f"{name},{text}\n" for name, text in pairs)
    (folder / "pairs.csv").write_text("image,caption\n" + table)
    lines = [json.dumps({"image": name, "caption": [text, text]}) for name, text in pairs]
    (folder / "pairs.jsonl").write_text("".join(line + "\n" for line in lines))
    images = [{"filename": n, "split": "train", "sentences": [{"raw": t}]} for n, t in pairs]
    (folder / "dataset.json").write_text(json.dumps({"images": images}, indent=1))

    def read(path: Path, split: str = "train") -> Any:
        found = load_pairs(path, image_size=2, split=split)
        files = [os.path.basename(file) for file in found.images.sources]
        owners = [files[at] for at in found.owner.tolist()]
        groups = found.image_group[found.owner].tolist() if found.group_names else None
        named = groups and [found.group_names[g] for g in groups]
        return [*zip(owners, found.captions, strict=True)], named

    def said(path: Path) -> Any:
        if path.suffix == ".csv":
            header, *cells = rows(decoded(path))
            found = [dict(zip([n.lower() for n in header], row, strict=True)) for row in cells]
        else:
            found = objects(path)
        return checked((row["image"], row["caption"]) for row in found), None

    def karpathy() -> Any:
        found = json.loads((folder / "dataset.json").read_bytes())["images"]
        wanted = [image for image in found if image.get("split", "train") == "train"]
        return checked(
            (os.path.join(image.get("filepath", ""), image["filename"]), s["raw"])
            for image in wanted
            for s in image["sentences"]
        ), None

    def checked(pairs: Iterator[tuple[str, Any]]) -> list[tuple[str, str]]:
        found = []
        for image, texts in pairs:
            for text in texts if isinstance(texts, list) else [texts]:
                name = os.path.normpath(image)
                if name not in _NAMES or not text.strip():
                    raise ValueError("no such file, or no text")
                found.append((name, text.strip()))
        return found

    paths = [folder / name for name in ("pairs.csv", "pairs.jsonl", "dataset.json")]
    files = [
        Files({path: damages}, partial(read, path), said=partial(said, path))
        for path, damages in zip(paths[:2], (TEXT, LINES), strict=True)
    ]
    files.append(Files({paths[2]: JSON}, lambda: read(paths[2]), said=karpathy))
    return lambda chance: chance.choice(files)(chance)


# --- lists that data sets come with


def lists(folder: Path) -> Callable[[Random], Attempt]:
    """Of Stanford Online Products, and tiny-imagenet's beside images."""
    products = folder / "products"
    for at, name in enumerate(("chair_final", "lamp_final")):
        (products / name).mkdir(parents=True)
        Image.new("RGB", (2, 2), (at, 0, 0)).save(products / name / "1.png")
    entries = [(1, 1, 1, "chair_final/1.png"), (2, 2, 2, "lamp_final/1.png")]
    head = "image_id class_id super_class_id path\n"
    text = "".join(" ".join(map(str, entry)) + "\n" for entry in entries)
    (products / "Ebay_train.txt").write_text(head + text)
    tiny = folder / "tiny"
    for name in ("a", "b"):
        (tiny / "train" / name).mkdir(parents=True)
        Image.new("RGB", (2, 2)).save(tiny / "train" / name / "1.png")
    (tiny / "val").mkdir()
    pictures(tiny / "val")
    of = [f"{name}\t{'ab'[at % 2]}\t0\t0\t1\t1\n" for at, name in enumerate(_NAMES)]
    (tiny / "val" / "val_annotations.txt").write_text("".join(of))

    def read(path: Path, split: str) -> Any:
        images = load_images(path, image_size=2, split=split)
        files = [os.path.relpath(f, folder) for f in images.sources]  # type: ignore[attr-defined]
        return files, [images.classes[c] for c in images.target.tolist()]

    def said_products() -> Any:
        first, *lines = [line.split(maxsplit=3) for line in decoded(listed).splitlines()]
        entries = [line for line in lines if line]
        if first != head.split() or not all(n.isdecimal() for e in entries for n in e[:3]):
            raise ValueError("layout")
        files = [os.path.normpath(f"products/{name.strip()}") for *_, name in entries]
        if not all((folder / file).is_file() for file in files):
            raise ValueError("no such file")
        return files, [entry[1] for entry in entries]

    def said_tiny() -> Any:
        lines = [line.split("\t") for line in decoded(annotations).splitlines()]
        files = [os.path.normpath(line[0]) for line in lines]
        if not set(files) <= set(_NAMES) or not {line[1].strip() for line in lines} <= {"a", "b"}:
            raise ValueError("no such file or class")
        return [f"tiny/val/{name}" for name in files], [line[1].strip() for line in lines]

    listed, annotations = products / "Ebay_train.txt", tiny / "val" / "val_annotations.txt"
    files = [
        Files({listed: TEXT}, lambda: read(listed, "all"), said=said_products),
        Files({annotations: TEXT}, lambda: read(tiny, "val"), said=said_tiny),
    ]
    return lambda chance: chance.choice(files)(chance)


FAMILIES: dict[str, Family] = {
    "tables of images": tables,
    "concepts and classes": concepts,
    "captions": captions,
    "lists to leave out": left_out,
    "lists of data sets": lists,
}
