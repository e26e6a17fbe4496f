#!/usr/bin/env python3
"""Checks the message of a commit: `area: what changes`, 72 characters at most, and a body that says why.

tools/commit_subject.py .git/COMMIT_EDITMSG
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

LONGEST = 72
_SUBJECT = re.compile(r"[a-z][\w./-]*(, [a-z][\w./-]*)*: \S")
_OF_GIT = re.compile(r"(Merge|Revert|fixup!|squash!) ?")  # written by git itself


def faults(message: str) -> list[str]:
    """What is wrong with a message, in words."""
    lines = [line for line in message.splitlines() if not line.startswith("#")]
    subject, *rest = lines or [""]
    if _OF_GIT.match(subject):
        return []
    found = []
    if not _SUBJECT.match(subject):
        found.append(f"the subject must be `area: what changes`, got {subject!r}")
    if len(subject) > LONGEST:
        found.append(f"the subject has {len(subject)} characters, at most {LONGEST}")
    if rest and rest[0]:
        found.append("the second line must be empty")
    if not any(line.strip() for line in rest):
        found.append("a body must say why")
    return found


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    if found := faults(Path(sys.argv[1]).read_text(encoding="utf-8")):
        sys.exit("\n".join(f"commit message: {fault}" for fault in found))
