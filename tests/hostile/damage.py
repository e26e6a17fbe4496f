"""Ways to damage what stands in a file, by draws: bytes, text, the tree of a JSON object."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from random import Random
from typing import Any

from trial import Attempt, same

Damage = Callable[[Random, bytes], bytes]

WILD_TEXTS = (
    "", " ", "0", "-1", "1", "1e999", "nan", "NaN", "inf", "None", "null", "true", "4294967295",
    "18446744073709551616", "9" * 400, "1_0", "0x10", "١", "a" * 1000, "../../../etc/passwd", "/dev/null",
    "\0", "a\0b", "a\nb", "a\r\nb", '"', "''", ",", ";", "\t", "<script>", "=1+1", "é", "e\u0301", "\ufeff",
    "\u202e", "\ud800", "\U0001f600", "%s", "{}", "[1]", "..", ".", "~", "*", "b'x'", "&x",
)  # fmt: skip
WILD_VALUES: tuple[Any, ...] = (
    None, True, False, 0, -1, 1, 2**31, 2**32 - 1, 2**63, 10**400, -0.0, 0.5, 1e308, float("nan"),
    float("inf"), [], {}, [[]], [None], {"": None}, {"a": {"b": [1]}}, *WILD_TEXTS,
)  # fmt: skip
_TOKENS = (
    b",", b";", b"\t", b"\n", b"\r", b"\r\n", b'"', b"'", b"\0", b"\xff", b"\xc3", b"\xef\xbb\xbf", b"{", b"}",
    b"[", b"]", b":", b"#", b"&a ", b"*a", b"!!python/object/apply:os.system ", b"---\n", b"\\", b"=", b"-", b"%",
)  # fmt: skip


# --- bytes


def bit(chance: Random, content: bytes) -> bytes:
    changed = bytearray(content)
    for _ in range(chance.choice((1, 1, 1, 2, 8, 64))):
        changed[chance.randrange(len(changed))] ^= 1 << chance.randrange(8)
    return bytes(changed)


def cut(chance: Random, content: bytes) -> bytes:
    left = chance.choice((0, 1, chance.randrange(len(content)), len(content) - 1))
    return content[:left]


def blank(chance: Random, content: bytes) -> bytes:
    """A block of zeros, as a file system leaves after a crash."""
    start, length = _block(chance, content)
    return content[:start] + bytes(length) + content[start + length :]


def noise(chance: Random, content: bytes) -> bytes:
    start, length = _block(chance, content)
    return content[:start] + chance.randbytes(length) + content[start + length :]


def lost(chance: Random, content: bytes) -> bytes:
    start, length = _block(chance, content)
    return content[:start] + content[start + length :]


def doubled(chance: Random, content: bytes) -> bytes:
    start, length = _block(chance, content)
    return content[: start + length] + content[start:]


def longer(chance: Random, content: bytes) -> bytes:
    return content + chance.choice((b"\0", b"\n", b"{", chance.randbytes(100), content))


def foreign(chance: Random, content: bytes) -> bytes:
    """Another file altogether."""
    heads = (
        b"PK\x03\x04",
        b"\x89PNG\r\n\x1a\n",
        b"\x80\x04",
        b"\x93NUMPY\x01\x00",
        b"II*\0",
        b"%PDF",
        b"\xff\xd8\xff",
    )
    return chance.choice(heads) + chance.randbytes(chance.choice((0, 8, 200)))


def _block(chance: Random, content: bytes) -> tuple[int, int]:
    start = chance.randrange(len(content))
    return start, chance.choice((1, 2, 8, 64, max(1, len(content) // 2)))


BYTES: tuple[Damage, ...] = (bit, bit, bit, cut, blank, noise, lost, doubled, longer, foreign)


# --- text


def token(chance: Random, content: bytes) -> bytes:
    """A sign that means something, put in or in place of a byte."""
    start = chance.randrange(len(content) + 1)
    return content[:start] + chance.choice(_TOKENS) + content[start + chance.randrange(2) :]


def line(chance: Random, content: bytes) -> bytes:
    """Lines are lost, doubled, moved."""
    lines = content.split(b"\n")
    at, to = chance.randrange(len(lines)), chance.randrange(len(lines))
    return b"\n".join(chance.choice((
        lines[:at] + lines[at + 1 :], lines[: at + 1] + lines[at:], sorted(lines),
        lines[at:] + lines[:at], [*lines[:to], lines[at], *lines[to:]],
    )))  # fmt: skip


def cell(chance: Random, content: bytes) -> bytes:
    """A word between separators becomes a wild one."""
    words = list(content.replace(b"\n", b",").replace(b"\t", b",").split(b","))
    old = chance.choice(words)
    new = chance.choice(WILD_TEXTS).encode("utf-8", "surrogatepass")
    return content.replace(old, new, 1) if old else token(chance, content)


def encoded(chance: Random, content: bytes) -> bytes:
    text = content.decode("utf-8", "replace")
    return text.encode(chance.choice(("utf-16", "utf-8-sig", "utf-16-be", "cp1252")), "replace")


TEXT: tuple[Damage, ...] = (token, token, token, line, line, cell, cell, cell, encoded, *BYTES)


# --- JSON


def tree(chance: Random, content: bytes) -> bytes:
    """A value in an object becomes a wild one, is lost, moved or joined by another."""
    value = json.loads(content)
    way = chance.choice(_places(value))
    if not way:
        return json.dumps(chance.choice(WILD_VALUES)).encode()
    within = value
    for key in way[:-1]:
        within = within[key]
    last, wild = way[-1], chance.choice(WILD_VALUES)
    kind = chance.randrange(6)
    if kind == 0:
        del within[last]
    elif kind == 1 and isinstance(within, dict):
        within[chance.choice(WILD_TEXTS)] = within.pop(last)
    elif kind == 2:
        within[last] = {last: within[last]} if isinstance(within, dict) else [within[last]]
    elif kind == 3 and isinstance(within, list):
        within.append(wild)
    else:
        within[last] = wild
    return json.dumps(value).encode()


def twice(chance: Random, content: bytes) -> bytes:
    """A key that stands twice, of which readers keep the last."""
    value = json.loads(content)
    if not isinstance(value, dict) or not value:
        return token(chance, content)
    key = chance.choice(list(value))
    return b"{" + json.dumps(key).encode() + b": 1, " + content.lstrip()[1:]


def deep(chance: Random, content: bytes) -> bytes:
    opening, closing = chance.choice(((b"[", b"]"), (b'{"a":', b"}")))
    times = chance.choice((100, 5000, 100_000))
    return opening * times + b"1" + closing * times


JSON: tuple[Damage, ...] = (tree,) * 12 + (twice, deep, *TEXT)


def lines_of_json(chance: Random, content: bytes) -> bytes:
    lines = content.splitlines()
    at = chance.randrange(len(lines))
    lines[at] = chance.choice((tree, tree, twice, deep))(chance, lines[at])
    return b"\n".join(lines) + b"\n"


def _places(value: Any, way: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    found = [way]
    pairs: Any = ()
    if isinstance(value, dict):
        pairs = value.items()
    elif isinstance(value, list):
        pairs = enumerate(value)
    for key, inner in pairs:
        found += _places(inner, (*way, key))
    return found


# --- files


class Files:
    """Files as they were written, and an attempt to read them after one of them was damaged."""

    def __init__(
        self,
        damaged: Mapping[Path, Sequence[Damage]],
        read: Callable[[], Any],
        *,
        said: Callable[[], Any] | None = None,
        told: Callable[[], Any] | None = None,
        named: Sequence[str] = (),
        close: Callable[[Any, Any], bool] = same,
    ) -> None:
        """
        damaged: the files, and how each may be.
        said: what the files say by another route, where they have no digests, so that other content is
            another input rather than a damaged one.
        told: the answer that may stand in with a warning.
        named: of what messages hold one; the names of the files if not given.
        """
        self._content = {path: path.read_bytes() for path in damaged}
        self._read, self._damages, self._said, self._told = read, damaged, said, told
        self._intact = read()
        self._named, self._close = named or [path.name for path in damaged], close

    def __call__(self, chance: Random) -> Attempt:
        for path, content in self._content.items():
            path.write_bytes(content)
        path = chance.choice(list(self._content))
        content, what = self._content[path], ""
        others = [c for p, c in self._content.items() if p != path and p.suffix == path.suffix]
        if others and chance.random() < 0.1:
            changed, what = chance.choice(others), "the content of another file"
        else:
            changed = content
            while changed == content:
                damage = chance.choice(self._damages[path])
                changed, what = damage(chance, content), damage.__name__
        path.write_bytes(changed)
        return Attempt(
            self._read,
            [lambda: self._intact, *([] if self._said is None else [self._said])],
            self._named,
            [] if self._told is None else [self._told],
            f"{path.name}, {what}",
            close=self._close,
        )
