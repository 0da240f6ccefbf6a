"""Reads `tests/unit/evaluation/extractor_table.txt`: replies with their specified answers."""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

TABLE = Path(__file__).parents[1] / "unit/evaluation/extractor_table.txt"


class Row(NamedTuple):
    category: str
    kind: str
    letters: str
    options: tuple[str, ...]
    value: str
    reason: str
    reply: str


def unescape(text: str) -> str:
    code = re.compile(r"\\U([0-9a-f]{8})|\\u([0-9a-f]{4})|\\n(?![a-z])")
    return code.sub(lambda m: chr(int(m[1] or m[2], 16)) if m[1] or m[2] else "\n", text)


def rows() -> list[Row]:
    """Returns every line of the table under the head of its section."""
    found: list[Row] = []
    for line in TABLE.read_text(encoding="utf-8").splitlines():
        if line.startswith("=="):
            category, kind, letters, options = [*(part.strip() for part in line[2:].split("|")), "", ""][:4]
            texts = tuple(unescape(option.strip()) for option in options.split(";")) if options else ()
        elif line and not line.startswith("#"):
            expected, reply = line.split(" ::", 1)
            value, reason = expected.split()
            found.append(Row(category, kind, letters, texts, value, reason, unescape(reply.removeprefix(" "))))
    return found
