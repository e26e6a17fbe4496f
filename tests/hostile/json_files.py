"""JSON and YAML that the library reads again: reports, configurations, clusterings, metrics, vocabularies."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from random import Random
from typing import Any

import torch
import yaml
from damage import JSON, TEXT, WILD_TEXTS, Damage, Files, lines_of_json
from torch import nn
from trial import Attempt, Family, same

from hrrl_ext.cli import command_parser
from hrrl_ext.clustering import GradientClustering
from hrrl_ext.clustering.folder import ClusterFolder
from hrrl_ext.clustering.recorder import read_recording
from hrrl_ext.data import ArrayImages, check, read_check
from hrrl_ext.evaluation import Report, evaluate
from hrrl_ext.evaluation.page import write_html
from hrrl_ext.plots.runs import read_history
from hrrl_ext.retrieval import Words
from hrrl_ext.storage import write_json, write_rows
from hrrl_ext.transfer.table import _read as read_trials

LINES: tuple[Damage, ...] = (lines_of_json,) * 10 + TEXT


def value_of(path: Path) -> Any:
    """Of an object whose keys stand once; of those that stand twice readers have the last."""
    return json.loads(path.read_bytes().decode("utf-8"))


def lines_of(path: Path) -> list[Any]:
    text = path.read_bytes().decode("utf-8").removesuffix("\n")
    return [json.loads(line) for line in text.split("\n")] if text else []


def images() -> ArrayImages:
    pixels = torch.arange(8 * 3 * 4 * 4).remainder(256).to(torch.uint8).view(8, 3, 4, 4)
    return ArrayImages(pixels, torch.arange(8) % 2, name="eight")


def model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(48, 2))


# --- an evaluation's report


def reports(folder: Path) -> Callable[[Random], Attempt]:
    """It is read, and shown as a page and as text."""
    evaluate(
        model(), images(), attacks=["linf:8/255"], corruptions=[], steps=[0.0, 1.0], out=folder
    )
    path = folder / "report.json"

    def read() -> Any:
        found = Report.from_json(path)
        write_html([found], folder / "page.html")
        str(found)
        return vars(found)

    def said() -> Any:
        value = value_of(path)
        del value["format"]
        names = list(vars(Report(**value)))
        return {name: value[name] for name in names}

    return Files({path: JSON}, read, said=said)


def checks(folder: Path) -> Callable[[Random], Attempt]:
    path = folder / "check.json"
    write_json(path, check(images()).to_dict())
    return Files({path: JSON}, partial(read_check, path), said=partial(value_of, path))


# --- what a run and a clustering left


def histories(folder: Path) -> Callable[[Random], Attempt]:
    """Lines of metrics, of a recorder of variances, of a table of transfer."""
    run = [
        {"epoch": e, "loss": 1 / e, "accuracy": 0.5, "q": {"a": 0.5, "b": 0.5}} for e in (1, 2, 3)
    ]
    of_steps = [{"step": s, "estimator": "GC", "average_variance": 0.1} for s in (1, 2)]
    trials = [
        {"variant": "ERM", "seed": s, "source": {"a": 0.5}, "targets": {"b": 0.5}, "history": run}
        for s in (1, 2)
    ]  # fmt: skip
    files = []
    for name, rows, read in (
        ("metrics.jsonl", run, read_history),
        ("variance.jsonl", of_steps, read_recording),
        ("trials.jsonl", trials, read_trials),
    ):
        path = folder / name
        write_rows(path, rows)

        def call(path: Path = path, read: Callable[[Path], Any] = read) -> Any:
            return [row if isinstance(row, dict) else vars(row) for row in read(path)]

        files.append(Files({path: LINES}, call, said=partial(lines_of, path)))
    return lambda chance: chance.choice(files)(chance)


# As hrrl cluster describes its work.
CLUSTERED = {
    "model": None,
    "weights": "0" * 64,
    "data": "eight",
    "examples": 8,
    "image_size": 4,
    "clusters": 2,
    "rounds": 1,
    "parameters": ["1.weight"],
}


def clusterings(folder: Path) -> Callable[[Random], Attempt]:
    found = GradientClustering(model(), 2).fit(images(), rounds=1)
    written = ClusterFolder(folder)
    written.begin(CLUSTERED)
    written.write_found(found, images())
    path = folder / "clusters.json"

    def read() -> Any:
        found = ClusterFolder(folder)
        found.require_data(images())
        return found.description(), found.assignment()

    return Files(
        {path: JSON}, read, named=["clusters.json", str(folder)],
        said=lambda: (value_of(path), found.assignment),
    )  # fmt: skip


# --- words


def vocabularies(folder: Path) -> Callable[[Random], Attempt]:
    path = folder / "tokenizer.json"
    Words(["a", "cat", "dog", "sits", "runs"]).save(path)
    texts = ["a cat sits", "the dog runs"]

    def read() -> Any:
        return Words.load(path).encode(texts)

    def said() -> Any:
        """What the file says of each word, where all else is as this version writes it."""
        value, intact = value_of(path), json.loads(kept)
        number, length = value["model"]["vocab"], value["truncation"]["max_length"]
        value["model"]["vocab"], intact["model"]["vocab"] = {}, {}
        intact["truncation"]["max_length"] = length
        if not same(sorted_keys(value), sorted_keys(intact)) or type(length) is not int:
            raise ValueError("of another tokenizer")
        if sorted(number.values()) != list(range(len(number))) or length < 1:
            raise ValueError("numbers")
        rows = [[number.get(w, number["[UNK]"]) for w in t.split()][:length] for t in texts]
        width = max(map(len, rows))
        tokens = torch.tensor([row + [0] * (width - len(row)) for row in rows])
        return tokens, torch.tensor([len(row) for row in rows])

    kept = path.read_bytes()
    return Files({path: JSON}, read, said=said)


def sorted_keys(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: sorted_keys(value[key]) for key in sorted(value)}
    return [sorted_keys(entry) for entry in value] if isinstance(value, list) else value


# --- YAML

_BOMB = b"a: &a [x,x,x,x,x,x,x,x,x]\n" + b"".join(
    b"%c: &%c [%s]\n" % (98 + n, 98 + n, b",".join([b"*%c" % (97 + n)] * 9)) for n in range(8)
)


def bomb(chance: Random, content: bytes) -> bytes:
    """A kilobyte of aliases that are a gigabyte of lists."""
    return chance.choice((_BOMB, _BOMB + content, content + b"\nx: &x {y: *x}\n"))


def entry(chance: Random, content: bytes) -> bytes:
    """A setting has a wild value or name."""
    lines = content.split(b"\n")
    at = chance.choice([at for at, line in enumerate(lines) if b": " in line])
    name, _, value = lines[at].partition(b": ")
    wild = chance.choice(
        (*WILD_TEXTS, "[1, 2", "{a: 1}", "!!python/name:os.system", "2001-01-01", "1:30")
    )
    word = wild.encode("utf-8", "replace")
    lines[at] = chance.choice((name + b": " + word, word + b": " + value, name + b":" + value))
    return b"\n".join(lines)


YAML: tuple[Damage, ...] = (entry,) * 8 + (bomb, *TEXT)


WORDS = ["--data", "digits", "--out", "run"]


def training_settings(folder: Path) -> Callable[[Random], Attempt]:
    path = folder / "settings.yaml"
    path.write_text(
        "concepts: classes\ntau: 0.05\nlam: 20.0\nepochs: 3\nbatch_size: 32\nlr: 0.1\n"
        "image_size: 8\nflip: false\nmodel: convnet\nseed: 7\n"
    )
    parser = command_parser("train")

    def read() -> Any:
        given = parser.parse([*WORDS, "--config", str(path)])
        return {name: plain(given.get(name)) for name in names}

    def said() -> Any:
        text = path.read_text(encoding="utf-8")
        try:
            value = yaml.safe_load(text)
        except yaml.YAMLError:  # libyaml skips byte order marks anywhere
            value = yaml.safe_load(text.replace("\ufeff", ""))
        return {name: plain(value.get(name, defaults.get(name))) for name in names}

    names = list(yaml.safe_load(path.read_bytes()))
    defaults = vars(parser.parse(WORDS))
    return Files({path: YAML}, read, said=said)


def plain(value: Any) -> Any:
    """A number whatever it is written as, for options are read as words; YAML's dates are words too."""
    if value is None or isinstance(value, bool):
        return value
    try:
        return float(str(value))
    except ValueError:
        return str(value)


FAMILIES: dict[str, Family] = {
    "reports": reports,
    "checks of images": checks,
    "histories": histories,
    "clusterings": clusterings,
    "vocabularies": vocabularies,
    "settings in YAML": training_settings,
}
