"""Words of captions and their numbers, in a file that the package tokenizers reads too.

A text is brought to Unicode's NFC and to lower case, letter by letter (a final sigma becomes σ, ß stays).
A word is a run of letters, digits and connectors (_), with the marks in it; of punctuation and symbols,
emoji among them, each character is a word of its own; spaces, controls and everything else only part
words.
"""

from __future__ import annotations

import re
import sys
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from functools import cache
from itertools import groupby
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from .._regular import regular
from ..storage import FilePath, read_json, write_json

PAD, UNKNOWN = "[PAD]", "[UNK]"
"""Numbers 0 and 1. No caption has them as words, as brackets are words of their own."""

_NORMALISER = {"type": "Sequence", "normalizers": [{"type": "NFC"}, {"type": "Lowercase"}]}
_SPLIT = {
    "type": "Split",
    "pattern": {"Regex": r"[\p{L}\p{N}\p{Pc}][\p{L}\p{M}\p{N}\p{Pc}]*|[\p{P}\p{S}]"},
    "behavior": "Removed",
    "invert": True,
}


class Vocabulary(Protocol):
    """What makes tokens of captions: `Words`, `TokenizerWords`, or one of your own."""

    def __len__(self) -> int: ...

    def encode(self, texts: Sequence[str]) -> tuple[Tensor, Tensor]: ...

    def save(self, path: FilePath) -> None: ...


class Words:
    """The vocabulary of a text encoder: a number for each word, 0 for padding, 1 for all other words.

    Args:
        words: all different, in the order of their numbers, from 2 on.
        max_length: words of a text that are read; the rest of a longer one is left out.
    """

    def __init__(self, words: Sequence[str], *, max_length: int = 128) -> None:
        if type(max_length) is not int or max_length < 1:
            raise ValueError(f"Words: max_length must be at least 1, got {max_length!r}")
        self.max_length = max_length
        self._number = {word: at for at, word in enumerate((PAD, UNKNOWN, *words))}
        if len(self._number) != len(words) + 2:
            twice = [word for word, count in Counter((PAD, UNKNOWN, *words)).items() if count > 1]
            raise ValueError(f"Words: words must differ, got {twice[0]!r} twice")

    @classmethod
    def of(cls, captions: Iterable[str], *, min_count: int = 2, max_length: int = 128) -> Words:
        """Those that ``captions`` have ``min_count`` times or more, the most frequent first.

        Give it the captions that are trained on, and no others. With min_count=1 no training caption has
        an unknown word, so nothing is learnt of what those of other captions are to count.
        """
        if isinstance(captions, str):
            raise TypeError("Words.of: captions must be texts, got one text; put it into a list")
        if min_count < 1:
            raise ValueError(f"Words.of: min_count must be at least 1, got {min_count}")
        count = Counter(word for caption in captions for word in split_words(caption))
        words = [word for word, many in count.items() if many >= min_count]
        if not words:
            raise ValueError(
                f"Words.of: no word is in the captions {min_count} times; lower min_count"
            )
        return cls(sorted(words, key=lambda word: (-count[word], word)), max_length=max_length)

    def __len__(self) -> int:
        """Numbers there are: the words, the padding and the unknown one."""
        return len(self._number)

    def __contains__(self, word: object) -> bool:
        return word in self._number

    def __repr__(self) -> str:
        return f"Words({len(self)}, max_length={self.max_length})"

    def encode(self, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """tokens [B, L] int64, with 0 behind the end, and lengths [B] int64, from 1 to max_length.

        L is the largest length. A text without a word, such as "", is one unknown word. TypeError for
        what is no list of texts.
        """
        if isinstance(texts, str):
            raise TypeError("Words.encode: texts must be a list of texts, got one text")
        unknown = self._number[UNKNOWN]
        rows = []
        for text in texts:
            words = split_words(text)[: self.max_length]
            rows.append([self._number.get(word, unknown) for word in words] or [unknown])
        return padded(rows)

    def save(self, path: FilePath) -> None:
        """A JSON file that :meth:`load` and ``tokenizers.Tokenizer.from_file`` read."""
        write_json(path, self._description())

    @staticmethod
    def wrote(path: FilePath) -> bool:
        """Whether a JSON file splits texts as this class does."""
        return read_json(Path(path)).get("pre_tokenizer") == _SPLIT

    @classmethod
    def load(cls, path: FilePath) -> Words:
        """FileNotFoundError; ValueError where it is no file that :meth:`save` wrote."""
        path = Path(path)
        if not regular(path).is_file():
            raise FileNotFoundError(f"Words.load: no vocabulary at {path}")
        found = read_json(path)
        try:
            vocabulary = found["model"]["vocab"]
            in_order = sorted(vocabulary, key=vocabulary.__getitem__)
            words = cls(in_order[2:], max_length=found["truncation"]["max_length"])
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            raise ValueError(f"Words.load: {path} holds no vocabulary: {error!r}") from error
        expected = words._description()
        wrong = [name for name, value in expected.items() if found.get(name) != value]
        if wrong:
            raise ValueError(
                f"Words.load: {path} is of another tokenizer ({', '.join(wrong)} differ); its words "
                "would be other ones here: load_words(path) reads it by the package tokenizers"
            )
        return words

    def _description(self) -> dict[str, Any]:
        # No added_tokens: a caption that spells [UNK] is the word "unk" between brackets.
        return {
            "version": "1.0",
            "truncation": {
                "direction": "Right",
                "max_length": self.max_length,
                "strategy": "LongestFirst",
                "stride": 0,
            },
            "padding": {
                "strategy": "BatchLongest",
                "direction": "Right",
                "pad_to_multiple_of": None,
                "pad_id": self._number[PAD],
                "pad_type_id": 0,
                "pad_token": PAD,
            },
            "added_tokens": [],
            "normalizer": _NORMALISER,
            "pre_tokenizer": _SPLIT,
            "post_processor": None,
            "decoder": None,
            "model": {"type": "WordLevel", "vocab": self._number, "unk_token": UNKNOWN},
        }


def padded(rows: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
    """tokens [B, L] with zeros behind the end of each row, and lengths [B]."""
    lengths = torch.tensor([len(row) for row in rows], dtype=torch.int64)
    within = torch.arange(int(lengths.max()) if rows else 0) < lengths[:, None]
    tokens = torch.zeros(within.shape, dtype=torch.int64)
    tokens[within] = torch.tensor([token for row in rows for token in row], dtype=torch.int64)
    return tokens, lengths


def split_words(text: str) -> list[str]:
    if not isinstance(text, str):
        raise TypeError(f"a caption must be text, got {type(text).__name__}")
    # The one letter whose lower case depends on its neighbours, which tokenizers does not look at.
    lower = unicodedata.normalize("NFC", text).replace("Σ", "σ").lower()
    return _pattern().findall(lower)


@cache
def _pattern() -> re.Pattern[str]:
    r"""That of _SPLIT, in the words of re, which has no \p{...}."""
    of = {"letter": "", "mark": "", "sign": ""}
    for kind, first, last in _ranges():
        of[kind] += f"\\U{first:08x}-\\U{last:08x}"
    return re.compile(f"[{of['letter']}][{of['letter']}{of['mark']}]*|[{of['sign']}]")


def _ranges() -> Iterator[tuple[str, int, int]]:
    for kind, run in groupby(range(sys.maxunicode + 1), key=_kind):
        if kind is not None:
            codes = list(run)
            yield kind, codes[0], codes[-1]


def _kind(code: int) -> str | None:
    category = unicodedata.category(chr(code))
    if category == "Pc":
        return "letter"
    return {"L": "letter", "N": "letter", "M": "mark", "P": "sign", "S": "sign"}.get(category[0])
