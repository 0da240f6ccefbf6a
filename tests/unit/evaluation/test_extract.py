"""The extractor against a table of replies: every reply gives the specified answer for the specified reason."""

from __future__ import annotations

import re
import time
from pathlib import Path

import pytest

from videoseek.evaluation.extract import READ, UNREAD, Extraction, extract_letter, extract_number, extract_span

TABLE = Path(__file__).parent / "extractor_table.txt"
Row = tuple[str, str, str, list[str], str, str, str]


def unescape(text: str) -> str:
    code = re.compile(r"\\U([0-9a-f]{8})|\\u([0-9a-f]{4})|\\n(?![a-z])")
    return code.sub(lambda m: chr(int(m[1] or m[2], 16)) if m[1] or m[2] else "\n", text)


def rows() -> list[Row]:
    """Returns category, kind, letters, options, value, reason and reply of every line."""
    found: list[Row] = []
    for line in TABLE.read_text(encoding="utf-8").splitlines():
        if line.startswith("=="):
            category, kind, letters, options = [*(part.strip() for part in line[2:].split("|")), "", ""][:4]
            texts = [unescape(option.strip()) for option in options.split(";")] if options else []
        elif line and not line.startswith("#"):
            expected, reply = line.split(" ::", 1)
            value, reason = expected.split()
            found.append((category, kind, letters, texts, value, reason, unescape(reply.removeprefix(" "))))
    return found


def read(kind: str, letters: str, options: list[str], reply: str) -> Extraction:
    if kind == "letter":
        return extract_letter(reply, letters, options)
    return extract_number(reply) if kind == "number" else extract_span(reply)


def value_of(kind: str, value: str) -> object:
    if value == "-" or kind == "letter":
        return None if value == "-" else value
    return float(value) if kind == "number" else tuple(map(float, value.split(",")))


def test_every_reply_of_the_table_reads_as_specified() -> None:
    wrong = []
    for category, kind, letters, options, value, reason, reply in rows():
        got = read(kind, letters, options, reply)
        if got != Extraction(value_of(kind, value), reason):
            wrong.append(f"{category}: {reply!r} gives {got}, specified {value} {reason}")
    assert wrong == [], "\n".join(wrong)


def test_the_table_is_large_and_holds_every_reason() -> None:
    assert len({(row[0], row[6]) for row in rows()}) >= 400
    assert {row[5] for row in rows()} == {*READ, *UNREAD}


@pytest.mark.parametrize("unit", ["A. ", "A.", "(", "the ", "answer ", "answer is ", "<answer>", "\\boxed{", "_", "' ", "1:", "3 - "])
def test_long_replies_take_linear_time(unit: str) -> None:
    started = time.process_time()
    for kind in ("letter", "number", "span"):
        read(kind, "ABCD", ["a red car", "b", "c", "d"], unit * (40_000 // len(unit)) + "?")
    assert time.process_time() - started < 5
