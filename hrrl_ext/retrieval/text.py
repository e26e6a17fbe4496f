"""Captions are text, whatever they come as."""

from __future__ import annotations

import re
from pathlib import Path

from .._reading import read_text

_OF_BYTES = re.compile(r"""b'.*'|b".*\"""", re.DOTALL)


def as_text(text: object, where: str) -> str:
    """``text`` without space around it; bytes are decoded as UTF-8.

    TypeError for anything else; ValueError for an empty text, and for one that is bytes as Python prints
    them, b'...': its letters would be words that no other caption has.
    """
    if isinstance(text, bytes):
        try:
            text = text.decode("utf-8")
        except UnicodeDecodeError as error:
            raise ValueError(f"{where} is not text in UTF-8: {error}") from None
    if not isinstance(text, str):
        raise TypeError(f"{where} must be text, got {type(text).__name__}")
    text = text.strip()
    if not text:
        raise ValueError(f"{where} is empty; leave it out")
    if _OF_BYTES.fullmatch(text):
        raise ValueError(
            f"{where} is {text[:40]!r}, bytes that were written by str(); write .decode('utf-8') of them"
        )
    return text


def read_lines(path: Path) -> list[str]:
    """Lines of a file in UTF-8, with or without a byte order mark, as the line feeds part them."""
    text = read_text(path)
    # Not splitlines, which also breaks at characters that may stand within a caption.
    return text.replace("\r\n", "\n").removesuffix("\n").split("\n") if text else []
