"""Scores replies: a letter by the extractor, a window by its IoU, an open answer by its words or by a judge."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from videoseek.config import EvaluateConfig
from videoseek.evaluation.extract import extract_letter, extract_span, normalise, scope
from videoseek.evaluation.judge import JudgeSettings, OpenAnswer, judge_answers
from videoseek.evaluation.parity import parity_letter
from videoseek.evaluation.tasks.task import Question
from videoseek.rewards.clue_score import overlap


@dataclass(frozen=True, slots=True)
class Scored:
    """The answer that was read, or None, the rule or reason, and the score in [0, 1]; `status` as in metrics."""

    extracted: Any
    reason: str
    right: float
    status: str = "answered"


def score_reply(question: Question, reply: str) -> Scored:
    """Scores a reply without a judge. An unread reply is wrong, and an open answer must have the key's words."""
    sample = question.sample
    if sample.options:
        found = extract_letter(reply, [letter for letter, _ in sample.lettered_options], sample.options)
        return _scored(found.value, found.reason, float(found.value == sample.answer))
    if sample.kind == "temporal_grounding":
        found = extract_span(reply)
        window = found.value if isinstance(found.value, tuple) else None
        iou = overlap([window], sample.clues).iou if window else 0.0
        return _scored(list(window) if window else None, found.reason, iou)
    text = scope(reply).strip()
    is_equal = normalise(text) == normalise(sample.answer)
    return _scored(text or None, "equal_words" if is_equal else "other_words" if text else "empty", float(is_equal))


def _scored(extracted: Any, reason: str, right: float) -> Scored:
    return Scored(extracted, reason, right) if extracted is not None else Scored(None, reason, 0.0, "unanswered")


def parity_right(question: Question, reply: str, style: str, task: str) -> dict[str, float]:
    """Returns the score of a reply as the harness of a prompt style reads it, or {} for `ours` and without options."""
    sample = question.sample
    if style == "ours" or not sample.options:
        return {}
    letters = [letter for letter, _ in sample.lettered_options]
    return {"right_parity": float(parity_letter(style, reply, letters, sample.options, task).value == sample.answer)}


def judge_open(
    questions: Sequence[Question], scored: Sequence[Scored], evaluate: EvaluateConfig, rubric: str, cache_dir: Path
) -> list[Scored]:
    """Lets the judge score the open answers with other words than the key's. Raises EndpointError."""
    open_ones = [index for index, score in enumerate(scored) if score.reason == "other_words"]
    if evaluate.judge is None or not open_ones:
        return list(scored)
    answers = [
        OpenAnswer(questions[i].sample.question, questions[i].sample.answer, scored[i].extracted) for i in open_ones
    ]
    settings = JudgeSettings(
        model=evaluate.judge,
        endpoint=evaluate.judge_endpoint,
        api_key_env=evaluate.judge_api_key_env,
        rubric=rubric,
        cache_dir=str(cache_dir),
    )
    judged = list(scored)
    for index, found in zip(open_ones, judge_answers(answers, settings), strict=True):
        judged[index] = Scored(scored[index].extracted, found.error or "judged", found.score or 0.0, found.status)
    return judged


def majority(votes: Sequence[Scored]) -> int:
    """Returns the index of the first vote for the commonest answer; of equally common ones, the first.

    Unread replies have no vote unless all replies are unread.
    """
    counts = Counter(str(vote.extracted) for vote in votes if vote.extracted is not None)
    most = max(counts.values(), default=0)
    return next((i for i, vote in enumerate(votes) if counts.get(str(vote.extracted)) == most), 0)
