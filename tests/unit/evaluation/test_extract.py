"""The extractor against a table of replies: every reply gives the specified answer for the specified reason."""

from __future__ import annotations

import time
from collections.abc import Sequence

import pytest
from support.extractor_table import rows

from videoseek.evaluation.extract import READ, UNREAD, Extraction, extract_letter, extract_number, extract_span


def read(kind: str, letters: str, options: Sequence[str], reply: str) -> Extraction:
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
    assert len({(row.category, row.reply) for row in rows()}) >= 400
    assert {row.reason for row in rows()} == {*READ, *UNREAD}


UNITS = ("A. ", "A.", "(", "the ", "answer ", "answer is ", "<answer>", "\\boxed{", "_", "' ", "1:", "3 - ", " ", "\n")


@pytest.mark.parametrize("unit", UNITS)
def test_long_replies_take_linear_time(unit: str) -> None:
    started = time.process_time()
    for kind in ("letter", "number", "span"):
        read(kind, "ABCD", ["a red car", "b", "c", "d"], unit * (40_000 // len(unit)) + "?")
    assert time.process_time() - started < 5
