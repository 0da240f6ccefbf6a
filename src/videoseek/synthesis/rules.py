"""What replies must keep beyond their shape: pure functions that name the fault in one sentence, or return None."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from videoseek.rewards.accuracy import tolerant_match
from videoseek.synthesis.items import Clue, Question
from videoseek.trajectory.grammar import seconds_number
from videoseek.types import Interval, letter_options

#: A model's times may be rounded up beyond the end.
ROUNDING_SECONDS = 1.0

_TIME = re.compile(r"\d{1,2}:\d{2}|\b\d+(\.\d+)?\s*(s|secs?|seconds?|mins?|minutes?)\b", re.IGNORECASE)
_META = re.compile(
    r"\b(given|provided|supplied|annotated|reference|known|ground.truth)\s+(clues?|windows?|answers?|captions?|findings?|cues?)\b"
    r"|\b(correct|right) answer (is (known|given|provided)|given|provided)\b|\bground.truth\b|\binstructions?\b",
    re.IGNORECASE,
)
_WORD = re.compile(r"[^\W_]{4,}")
#: A thought that holds this share of a finding's own words, and this many of them, tells the finding.
_TOLD_SHARE, _TOLD_WORDS = 0.5, 2


def written(window: Interval) -> list[int | float]:
    """A window as a call writes it: whole seconds without a point."""
    return [seconds_number(seconds) for seconds in window]


def window_fault(start: float, end: float, first_seconds: float, last_seconds: float) -> str | None:
    if not start < end:
        return f"the window [{start:g}, {end:g}] must start before it ends."
    if start < first_seconds - ROUNDING_SECONDS or end > last_seconds + ROUNDING_SECONDS:
        return f"the window [{start:g}, {end:g}] must lie within {first_seconds:g} and {last_seconds:g} seconds."
    return None


def captions_fault(reply: dict[str, Any], first_seconds: float, last_seconds: float) -> str | None:
    for caption in reply["captions"]:
        if not caption["text"].strip():
            return "a caption has no text."
        if fault := window_fault(caption["start"], caption["end"], first_seconds, last_seconds):
            return fault
    return None


def clues_fault(reply: dict[str, Any], duration_seconds: float) -> str | None:
    if not reply["clues"]:
        return "there is no clue; name at least one window."
    for clue in reply["clues"]:
        if not (clue["cue"].strip() and clue["finding"].strip()):
            return "a clue needs both a cue and a finding."
        if fault := window_fault(clue["start"], clue["end"], 0.0, duration_seconds):
            return fault
    return None


def question_fault(question: dict[str, Any], num_wrong: int, last_seconds: float) -> tuple[str, str] | None:
    """Code and sentence of what disqualifies one generated question."""
    options = [question["correct"], *question["wrong"]]
    if len(question["wrong"]) != num_wrong:
        return "wrong_options", f"it has {len(question['wrong'])} wrong options instead of {num_wrong}."
    if not all(option.strip() for option in options) or not question["question"].strip():
        return "empty_text", "the question or an option is empty."
    if len({" ".join(option.casefold().split()) for option in options}) < len(options):
        return "equal_options", "two options are the same."
    if found := _TIME.search(question["question"]):
        return "time_in_question", f"the question gives a time away: {found.group()!r}."
    if not question["evidence"]:
        return "no_evidence", "it names no evidence."
    for window in question["evidence"]:
        if len(window) != 2:
            return "evidence_window", f"an evidence window must be [start, end], got {window}."
        if fault := window_fault(window[0], window[1], 0.0, last_seconds):
            return "evidence_window", fault
    return None


def verdict_fault(reply: dict[str, Any], question: Question) -> str | None:
    """A reader of clips must answer in the form of the question."""
    letters = [letter for letter, _ in letter_options(question.options)]
    if letters and not any(tolerant_match(reply["answer"], letter) for letter in letters):
        return f"the answer must be one of the letters {', '.join(letters)}, got {reply['answer']!r}."
    return None if reply["answer"].strip() else "the answer is empty."


def trajectory_fault(reply: dict[str, Any], question: Question, clues: Sequence[Clue]) -> str | None:
    """Windows copied number for number, the answer kept, nothing told before it is seen. `clues` are those to look
    at: none where the overview suffices."""
    steps, final = reply["steps"], reply["final"]
    if len(steps) != len(clues):
        return f"there must be {len(clues)} steps, one for each window, got {len(steps)}."
    for number, (step, clue) in enumerate(zip(steps, clues, strict=True), 1):
        if step["window"] != list(clue.window):
            return f"the window of step {number} must be copied as {written(clue.window)}, got {step['window']}."
    if not tolerant_match(final["answer"], question.answer):
        return f"the final answer must stay {question.answer!r}, got {final['answer']!r}."
    thinks = [step["think"] for step in steps] + [final["think"]]
    for number, think in enumerate(thinks, 1):
        if not think.strip():
            return f"think {number} is empty."
        if "<" in think or ">" in think:
            return f"think {number} holds an angle bracket."
        if found := _META.search(think):
            return f"think {number} says {found.group()!r}, of which the viewer knows nothing."
    return _told_early_fault([step["think"] for step in steps], question, clues)


def _told_early_fault(thinks: Sequence[str], question: Question, clues: Sequence[Clue]) -> str | None:
    known = _words(" ".join([question.text, *question.options, *(clue.cue for clue in clues)]))
    for number, think in enumerate(thinks):
        for later, clue in enumerate(clues[number:], number + 1):
            told = told_words(think, clue.finding, known)
            if told:
                return (
                    f"the think of step {number + 1} tells what only the look of step {later} shows: "
                    f"{', '.join(sorted(told))}."
                )
        known |= _words(clues[number].finding)
    return None


def told_words(think: str, finding: str, known: set[str]) -> set[str]:
    """The finding's own words (of four letters or more, not among those known) in the think, if they are so many that
    the finding is told: at least two, and half of them. Empty otherwise."""
    own = _words(finding) - known
    told = own & _words(think)
    return told if len(told) >= max(_TOLD_WORDS, _TOLD_SHARE * len(own)) else set()


def judge_fault(reply: dict[str, Any]) -> str | None:
    if reply["is_valid"] == bool(reply["faults"]):
        return f"is_valid is {reply['is_valid']}, but faults is {reply['faults']}; it is true exactly without faults."
    return None if reply["analysis"].strip() else "the analysis is empty."


def _words(text: str) -> set[str]:
    return set(_WORD.findall(text.casefold()))
