"""Scores one reply to one question: a letter, a window or an open answer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from videoseek.evaluation.extract import extract_letter, extract_span, normalise, scope
from videoseek.evaluation.tasks.task import Question
from videoseek.rewards.clue_score import overlap


@dataclass(frozen=True, slots=True)
class Scored:
    """The answer that was read, or None, with the rule or reason, and the score in [0, 1]."""

    extracted: Any
    reason: str
    right: float


def score_reply(question: Question, reply: str) -> Scored:
    """Scores a reply by the extractor. The score of a window is its IoU; an unread reply is wrong.

    An open answer counts if its words equal the key's; a judge reads the others.
    """
    sample = question.sample
    if sample.options:
        letters = [letter for letter, _ in sample.lettered_options]
        found = extract_letter(reply, letters, sample.options)
        return Scored(found.value, found.reason, float(found.value == sample.answer))
    if sample.kind == "temporal_grounding":
        found = extract_span(reply)
        window = found.value if isinstance(found.value, tuple) else None
        iou = overlap([window], sample.clues).iou if window else 0.0
        return Scored(list(window) if window else None, found.reason, iou)
    text = scope(reply).strip()
    is_equal = normalise(text) == normalise(sample.answer)
    return Scored(text or None, "equal_words" if is_equal else "other_words" if text else "empty", float(is_equal))
