"""Names that are not known, and "name:key=value,..." as people write it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass, fields
from fractions import Fraction
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from hrrl_ext.clustering import DiscoveredConcepts
from hrrl_ext.contrastive import ContrastiveConfig, ContrastiveTraining
from hrrl_ext.evaluation.config import EvaluationConfig
from hrrl_ext.retrieval.config import RetrievalConfig, RetrievalTraining
from hrrl_ext.robust import HRRLConfig
from hrrl_ext.spec import (
    NAMES,
    NUMBER,
    TEXT,
    TRUTH,
    WHOLE,
    closest,
    listed,
    nearest,
    not_known,
    plain,
    read_settings,
    readers_of,
    split_spec,
    written,
)
from hrrl_ext.training import TrainingConfig
from hrrl_ext.transfer.finetuning import L2SP, Similarity, read_method

PACKAGE = Path(__file__).resolve().parents[1] / "hrrl_ext"

# --- names


def test_lists_of_names() -> None:
    assert listed([]) == ""
    assert listed(["a'b", "ü"]) == "\"a'b\", 'ü'"
    assert listed(list("abcde")) == "'a', 'b', 'c', 'd', 'e'"
    assert listed(list("abcdefg")) == "'a', 'b', 'c', 'd', 'e' and 2 more"
    assert nearest(["dgo", "xyz"], ["cat", "dog"]) == "'dgo' (did you mean 'dog'?), 'xyz'"
    assert nearest([*"abcdefg"], []) == listed([*"abcdefg"])


@pytest.mark.parametrize(
    ("name", "known", "expected"),
    [
        ("resnet19", ["resnet18", "vgg"], "resnet18"),
        ("RESNET-18", ["resnet18", "vgg"], "resnet18"),
        ("linf", ["Linf", "L2"], "Linf"),
        ("ERM", ["erm", "ERM"], "erm"),  # the first of those that only their case tells apart
        ("größe", ["GRÖSSE"], "GRÖSSE"),
        ("ab", ["ac"], "ac"),  # half of the letters are enough
        ("ab", ["cd", "xyz"], None),
        ("", ["a"], None),
        ("a", [], None),
        ("a", [""], None),
    ],
)
def test_closest(name: str, known: list[str], expected: str | None) -> None:
    assert closest(name, known) == expected
    assert closest(name, iter(known)) == expected


def test_one_wording() -> None:
    assert not_known("resnet19", ["resnet18", "vgg"]) == (
        "'resnet19' is not known; did you mean 'resnet18'? known are 'resnet18', 'vgg'"
    )
    assert not_known("xyz", ["resnet18"]) == "'xyz' is not known; known is 'resnet18'"
    assert not_known("xyz", []) == "'xyz' is not known; there are none"
    assert not_known(None, ["quick"]) == "None is not known; known is 'quick'"
    assert not_known("a\nb", {"c": 1}) == "'a\\nb' is not known; known is 'c'"


def test_of_many_names_those_that_are_like_it() -> None:
    names = [f"layer{i}.conv" for i in range(200)]
    line = not_known("layer77.konv", iter(names))
    assert "did you mean 'layer77.conv'? known are 'layer77.conv', 'layer" in line
    assert line.endswith(" and 195 more")
    assert all(f"'layer{i}." not in line for i in range(4))  # which come first
    assert "more" not in not_known("x", names[:40])  # as many are shown as a screen takes
    assert not_known("x", names[:41]).endswith(" and 36 more")


def test_what_is_like_a_name_is_decided_in_one_place() -> None:
    """With one cutoff and in one wording. The program's own options go through it as well."""
    found = {p for p in PACKAGE.rglob("*.py") if "import difflib" in p.read_text("utf-8")}
    assert found == {PACKAGE / "spec.py"}


# --- name and settings


@pytest.mark.parametrize(
    ("text", "name", "settings"),
    [
        ("", "", None),
        ("plain", "plain", None),
        (" plain ", "plain", None),
        (":", "", ""),
        ("plain:", "plain", ""),
        ("a:b:c=d", "a", "b:c=d"),
        ("l2sp : alpha=1", "l2sp", " alpha=1"),
        ("größe:ü=ß", "größe", "ü=ß"),
    ],
)
def test_split(text: str, name: str, settings: str | None) -> None:
    assert split_spec(text) == (name, settings)


@pytest.mark.parametrize(
    ("text", "name", "settings"),
    [
        ("meta.csv", "meta.csv", None),
        ("meta.csv:image=FILE", "meta.csv", "image=FILE"),
        ("meta.csv: image = FILE", "meta.csv", " image = FILE"),
        ("C:\\data\\meta.csv", "C:\\data\\meta.csv", None),
        ("C:\\data\\meta.csv:image=FILE,label=C:x", "C:\\data\\meta.csv", "image=FILE,label=C:x"),
        ("C:meta.CSV:image=a=b", "C:meta.CSV", "image=a=b"),
        ("a:b=c/meta.csv", "a:b=c/meta.csv", None),  # the colon of a folder
        ("a:b=c/meta.csv:d=e", "a:b=c/meta.csv", "d=e"),
        ("old.csv/meta.csv:d=e", "old.csv/meta.csv", "d=e"),
        ("meta.csv:image=b.csv", "meta.csv", "image=b.csv"),  # a column may be called so
        ("meta.csv:", "meta.csv:", None),
        ("meta.csv:image", "meta.csv:image", None),
        ("meta.csv.gz:a=b", "meta.csv.gz:a=b", None),
        (".csv:a=b", ".csv:a=b", None),
        ("a\nb.csv:c=d", "a\nb.csv", "c=d"),
        ("", "", None),
    ],
)
def test_split_of_a_file(text: str, name: str, settings: str | None) -> None:
    assert split_spec(text, suffixes=(".csv", ".txt")) == (name, settings)


# --- values


@pytest.mark.parametrize(
    ("text", "value"),
    [("0", 0.0), ("-1", -1.0), ("+.5", 0.5), ("2.", 2.0), ("1e-3", 1e-3), ("1E+3", 1e3), ("-1.5e2/3", -50.0),
     ("8/255", 8 / 255), (".5/2.", 0.25), ("1e-3/1e-3", 1.0)],
)  # fmt: skip
def test_numbers(text: str, value: float) -> None:
    assert NUMBER.read(text) == value


@pytest.mark.parametrize(
    "text",
    ["", " ", "x", "nan", "inf", "-inf", "1e999", "1/0", "1/0.0", "0/0", "1/2/3", "1/-2", "/2", "1/", "1_0", "0x1",
     ".", "e3", "1e", "--1", "+-1", "1 2", "٣", "1\n", "1,5", "__import__('os')"],
)  # fmt: skip
def test_what_is_no_number(text: str) -> None:
    with pytest.raises(ValueError):  # noqa: PT011
        NUMBER.read(text)


@given(st.integers(-(10**9), 10**9), st.integers(1, 10**9))
def test_fractions_are_the_nearest_float(a: int, b: int) -> None:
    """Division of two numbers that are exact is rounded once: by Fraction, which is exact, too."""
    assert NUMBER.read(f"{a}/{b}") == float(Fraction(a, b))


@given(st.floats(allow_nan=False, allow_infinity=False))
def test_a_float_as_python_writes_it(value: float) -> None:
    read = NUMBER.read(written(value))
    assert (read, math.copysign(1, read)) == (value, math.copysign(1, value))


@pytest.mark.parametrize(
    "text", ["", "1.0", "1e3", "many", "1_000", "٣", "0x1", "+", "1/1", "9" * 5000]
)
def test_what_is_no_whole_number(text: str) -> None:
    with pytest.raises(ValueError):  # noqa: PT011
        WHOLE.read(text)


def test_other_values() -> None:
    assert [WHOLE.read(text) for text in ("7", "+7", "-7", "007")] == [7, 7, -7, 7]
    assert [TRUTH.read(text) for text in ("true", "False", "TRUE")] == [True, False, True]
    assert NAMES.read("a") == ["a"]
    assert NAMES.read("layer4.0.conv1 + fc") == ["layer4.0.conv1", "fc"]
    assert TEXT.read("") == ""
    for reader, text in ((TRUTH, "1"), (TRUTH, ""), (NAMES, ""), (NAMES, "a++b"), (NAMES, "a+")):
        with pytest.raises((ValueError, KeyError)):
            reader.read(text)


# --- settings


@dataclass(frozen=True)
class Settings:
    """Every type that a setting may have."""

    count: int
    _: KW_ONLY
    rate: float = 0.1
    every: int | None = None
    square: bool = False
    name: str | None = None
    rule: Literal["svd", "mean"] = "svd"
    layers: Sequence[str] | None = None


READERS = readers_of(Settings)


def read(text: str | None) -> dict[str, Any]:
    return read_settings(f"found {text!r}", text, READERS, first="count", form="found:COUNT")


def test_readers_of_a_dataclass() -> None:
    assert list(READERS) == [field.name for field in fields(Settings)]
    text = "3,rate=1/4,every=5,square=true,name=a=b,rule=mean,layers=a+b"
    expected = Settings(
        3, rate=0.25, every=5, square=True, name="a=b", rule="mean", layers=["a", "b"]
    )
    assert Settings(**read(text)) == expected
    spaced = " 3 , rate = 1/4 ,every=5,  square=true,name = a=b ,rule=mean,layers= a + b "
    assert Settings(**read(spaced)) == expected
    assert read("-3") == {"count": -3}
    assert read_settings("x", None, READERS) == {}  # nothing was given, and nothing must be

    @dataclass
    class Other:
        of: complex = 0j

    with pytest.raises(KeyError):
        readers_of(Other)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "count is missing"),
        ("", "count must be a whole number, got ''"),
        ("rate=1", "count must be a whole number, got 'rate=1'"),
        ("3,", "a setting is empty; write NAME=VALUE, and a comma only between two"),
        ("3,,rate=1", "a setting is empty"),
        ("3, ,rate=1", "a setting is empty"),
        (",,,", "count must be a whole number, got ''"),
        ("3,rte=1", "setting 'rte' is not known; did you mean 'rate'? known are 'rate', 'every', "),
        ("3,Rate=1", "setting 'Rate' is not known; did you mean 'rate'?"),
        ("3,=1", "setting '' is not known; known are"),
        ("3,x", "setting 'x' is not known; known are"),
        ("3,größe=1", "setting 'größe' is not known"),
        ("3,a\nb=1", "setting 'a\\nb' is not known"),
        ("3,rate", "rate has no value; write rate=VALUE, a finite number or fraction, such as"),
        ("3,rate=", "rate must be a finite number or fraction, such as 0.5, 1e-3 or 8/255, got ''"),
        (
            "3,rate==1",
            "rate must be a finite number or fraction, such as 0.5, 1e-3 or 8/255, got '=1'",
        ),
        ("3,rate=1,rate=1", "rate is given twice"),
        ("3,rate=1, rate =2", "rate is given twice"),
        ("3,count=3", "count is given twice"),
        ("3,every=1.5", "every must be a whole number, got '1.5'"),
        ("3,every=none", "every must be a whole number, got 'none'"),
        ("3,square=yes", "square must be true or false, got 'yes'"),
        ("3,rule=meen", "rule: 'meen' is not known; did you mean 'mean'? known are 'svd', 'mean'"),
        ("3,layers=a++b", "layers must be names joined by \"+\", got 'a++b'"),
    ],
)
def test_settings_that_are_refused(text: str | None, message: str) -> None:
    with pytest.raises(ValueError, match=r"^found ") as refused:
        read(text)
    line = str(refused.value)
    assert line.startswith(f"found {text!r}: {message}")
    assert line.endswith("; expected found:COUNT")
    assert "\n" not in line


@pytest.mark.parametrize("text", ["x", "x=1", "1"])
def test_where_there_is_nothing_to_set(text: str) -> None:
    with pytest.raises(ValueError, match=rf"^plain: it takes no setting, got '{text}'$"):
        read_settings("plain", text, {})
    with pytest.raises(ValueError, match=rf"^linf: it takes no setting, got '{text}'$"):
        read_settings("linf", f"8/255,{text}", {"radius": NUMBER}, first="radius")
    with pytest.raises(ValueError, match=r"^plain: a setting is empty"):
        read_settings("plain", "", {})
    assert read_settings("plain", None, {}) == {}


LAYERS = st.lists(st.text("abc019._", min_size=1, max_size=5), min_size=1, max_size=3)


@given(
    st.builds(
        DiscoveredConcepts,
        st.integers(2, 10**6),
        every=st.none() | st.integers(1, 10**6),
        rounds=st.integers(1, 99),
        layers=st.none() | LAYERS,
        center=st.sampled_from(["svd", "mean"]),
        seed=st.integers(-(2**63), 2**63),
    )
)
def test_concepts_that_are_found_as_text_and_back(settings: DiscoveredConcepts) -> None:
    assert DiscoveredConcepts.parse(str(settings)) == settings


@given(st.builds(L2SP, alpha=st.floats(0, 1e9), beta=st.floats(0, 1e9)) | st.builds(Similarity, w_sim=st.floats(0, 1e9), squared=st.booleans(), mean=st.booleans()))  # fmt: skip
def test_penalties_as_text_and_back(penalty: L2SP | Similarity) -> None:
    name = "l2sp" if isinstance(penalty, L2SP) else "similarity"
    given = {field.name: getattr(penalty, field.name) for field in fields(penalty)}
    text = ",".join(f"{key}={written(value)}" for key, value in given.items() if value is not None)
    assert read_method(f"{name}:{text}") == penalty


def test_scalars_of_arrays_are_python_s_own() -> None:
    """Whatever is given: files of a run and its checkpoints hold no others."""
    value = {
        "a": np.int64(1), "b": [np.float32(0.5), (np.bool_(True), np.str_("x"))], "c": torch.tensor(2.0),
        "d": {"e": np.array(3)}, "f": None, "g": "text",
    }  # fmt: skip
    found = plain(value)
    assert found == {
        "a": 1, "b": [0.5, (True, "x")], "c": 2.0, "d": {"e": 3}, "f": None, "g": "text",
    }  # fmt: skip
    kinds = [type(found["a"]), type(found["b"][0]), *map(type, found["b"][1]), type(found["c"])]
    assert kinds == [int, float, bool, str, float]
    array = np.arange(3)
    assert plain(array) is array


@pytest.mark.parametrize(
    "settings",
    [
        *(TrainingConfig, HRRLConfig, ContrastiveConfig, ContrastiveTraining, RetrievalConfig),
        *(RetrievalTraining, EvaluationConfig),
    ],
)
def test_every_number_of_a_configuration_may_be_numpy_s(settings: Any) -> None:
    usual = settings()
    of: dict[type, Any] = {int: np.int64, float: np.float64}
    values = {f.name: getattr(usual, f.name) for f in fields(settings)}
    scalars: dict[str, Any] = {n: of[type(v)](v) for n, v in values.items() if type(v) in of}
    assert scalars
    same = settings(**scalars)
    assert same == usual
    assert all(type(getattr(same, name)) is type(values[name]) for name in scalars)
