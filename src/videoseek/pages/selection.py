"""Which held-out questions the page shows: a few instructive ones, the same for the same files."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from videoseek.pages.records import Question, model_label

MAX_QUESTIONS = 12


@dataclass(frozen=True, slots=True)
class Chosen:
    """A question and why it is shown."""

    question: Question
    reason: str


@dataclass(frozen=True, slots=True)
class _Wish:
    reason: str
    most: int
    fits: Callable[[Question], bool]


def choose_questions(questions: Sequence[Question], models: Sequence[str]) -> list[Chosen]:
    """At most MAX_QUESTIONS, by the first episode of each model; questions about videos not yet shown come first."""
    chosen: list[Chosen] = []
    for wish in _wishes(models):
        fitting = [question for question in questions if wish.fits(question)]
        for _ in range(wish.most):
            taken = [choice.question for choice in chosen]
            videos = {question.sample.video for question in taken}
            rest = [question for question in fitting if question not in taken]
            if rest and len(chosen) < MAX_QUESTIONS:
                best = min(rest, key=lambda question: question.sample.video in videos)
                chosen.append(Chosen(best, wish.reason))
    return chosen


def _wishes(models: Sequence[str]) -> list[_Wish]:
    """By falling worth. `models` are in the order of training, the last is the one to judge."""
    if not models:
        return []
    *earlier, last = models

    def improved(model: str, most: int) -> _Wish:
        reason = f"{model_label(model)} wrong, {model_label(last)} right"
        return _Wish(reason, most, lambda q: _right(q, model) is False and _right(q, last) is True)

    def of_kind(reason: str, most: int, *kinds: str) -> _Wish:
        return _Wish(reason, most, lambda q: q.sample.kind in kinds and _right(q, last) is True)

    return [
        *(improved(model, 2 if index else 3) for index, model in enumerate(reversed(earlier))),
        of_kind("two clues", 2, "clue_multi_w_tool"),
        of_kind("no tool needed", 2, "clue_single_wo_tool", "clue_multi_wo_tool"),
        _Wish("a faulty call", 1, lambda q: any(episodes[0].has_fault for episodes in q.episodes.values())),
        _Wish(f"{model_label(last)} wrong", 2, lambda q: _right(q, last) is False),
        of_kind("one clue", 2, "clue_single_w_tool"),
    ]


def _right(question: Question, model: str) -> bool | None:
    """Of the model's first episode; None where there is none, or no score."""
    episode = question.first(model)
    return None if episode is None or math.isnan(episode.accuracy) else episode.is_right
