"""The two public harnesses' readings: replies with known results, and the agreement of the three modes on the table."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.extractor_table import rows

from videoseek.evaluation.parity import Question, agreement_table, parity_letter, read_all_modes

DOCS = Path(__file__).parents[3] / "docs/scoring.md"
OPTIONS = ("a red car", "a blue car", "two dogs", "nobody at all")


@pytest.mark.parametrize(
    ("mode", "benchmark", "reply", "letter"),
    [
        ("lmms", "", "b", None),
        ("lmms", "", "B", "B"),
        ("lmms", "", "The answer is B because A is wrong", "A"),
        ("lmms", "", "A person walks in, so the answer is C", "A"),
        ("lmms", "", "So the answer is C, a red car", "C"),
        ("lmms", "", "(A) no, (B) no, it is (C) for sure", "C"),
        ("lmms", "", "E", None),
        ("lmms", "", "I do not know", None),
        ("lmms", "", "maybe D is it, or C", "C"),
        ("lmms", "", "Don't know", "D"),
        ("lmms", "longvideobench", "Answer: B", "A"),
        ("lmms", "longvideobench", "Because C", "B"),
        ("lmms", "longvideobench", "I Don't know", "D"),
        ("lmms", "longvideobench", "The best option is E", "E"),
        ("lmms", "longvideobench", "none", None),
        ("lmms", "video_holmes", "(A) or (C)", "C"),
        ("lmms", "video_holmes", "I say B and then C here", "C"),
        ("lmms", "video_holmes", "it is C. clearly", "C"),
        ("lmms", "video_holmes", "there were two dogs in the yard", "C"),
        ("lmms", "video_holmes", "two dogs", None),
        ("vlmevalkit", "", "Answer: B", "B"),
        ("vlmevalkit", "", "The best option is B", "B"),
        ("vlmevalkit", "", "Best answer: C", "B"),
        ("vlmevalkit", "", "Because C", "B"),
        ("vlmevalkit", "", "Failed to obtain answer via API.", None),
        ("vlmevalkit", "", "E", None),
        ("vlmevalkit", "longvideobench", "E", "E"),
        ("vlmevalkit", "", "two dogs", "C"),
        ("vlmevalkit", "", "two dogs, a red car", None),
        ("vlmevalkit", "", "two dogs " * 20, None),
        ("ours", "", "The answer is B because A is wrong", "B"),
    ],
)
def test_harnesses_read_letters_as_their_code_does(mode: str, benchmark: str, reply: str, letter: str | None) -> None:
    found = parity_letter(mode, reply, "ABCD", OPTIONS, benchmark)
    assert found.value == letter
    draws = mode == "lmms" and benchmark != ""
    assert letter is not None or found.reason == ("drawn" if draws else "no_answer")


def test_an_unknown_mode_is_refused() -> None:
    with pytest.raises(ValueError, match="'mine' is not one of ours, lmms, vlmevalkit"):
        parity_letter("mine", "A", "ABCD")


def table(category: str | None = None, benchmark: str = "") -> str:
    letters = [row for row in rows() if row.kind == "letter" and category in (None, row.category)]
    return agreement_table(read_all_modes(Question(row.reply, row.letters, row.options, benchmark) for row in letters))


def test_the_modes_agree_on_the_table_as_counted() -> None:
    head, disagreements = table().split("\n\n")
    assert len(disagreements.splitlines()) - 2 == 290
    assert head.splitlines()[2:] == [
        "| ours | 617 | 365 | 375 |",
        "| lmms | 365 | 617 | 497 |",
        "| vlmevalkit | 375 | 497 | 617 |",
        "| a letter is read | 419 | 447 | 474 |",
        "| the harness draws | 0 | 0 | 0 |",
    ]


def test_the_docs_show_the_agreement() -> None:
    docs = DOCS.read_text(encoding="utf-8")
    assert f"holds {len(rows())} replies" in docs
    faults = table("faults of public scorers")
    for text in (table(), table(benchmark="longvideobench"), faults):
        assert text.split("\n\n")[0] in docs
    assert faults.split("\n\n")[1] in docs
