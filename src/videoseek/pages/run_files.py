"""Reads the files of a run and the held-out questions for the report. A missing file is an empty value."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from videoseek.config import UsageError
from videoseek.metrics import RunError, read_metrics
from videoseek.trajectory_record import TrajectoryRecord
from videoseek.types import Sample

#: Models of a run, in the order of training, with their names on the page.
MODEL_LABELS = {"direct": "Direct", "sft": "SFT", "sft_rl": "SFT + RL"}

#: The limit of questions in the report.
MAX_QUESTIONS = 12

_TRAINING_FILES = "grpo_step_" + "[0-9]" * 6 + ".jsonl"


@dataclass(slots=True, eq=False)
class Question:
    """A held-out question, and the sampled episodes of each model."""

    sample: Sample
    episodes: dict[str, list[TrajectoryRecord]] = field(default_factory=dict)

    def first(self, model: str) -> TrajectoryRecord | None:
        """Returns the model's first episode, for the page."""
        return next(iter(self.episodes.get(model, ())), None)


@dataclass(frozen=True, slots=True)
class RunFiles:
    """The contents of a run folder. `training` maps a GRPO step to its file of episodes."""

    folder: Path
    config_text: str
    environment: dict[str, Any]
    summary: dict[str, Any]
    metrics: list[dict[str, Any]]
    questions: list[Question]
    training: dict[int, Path]

    @classmethod
    def read(cls, folder: Path) -> RunFiles:
        """Reads the folder. Raises UsageError for a folder of another kind, RunError for a malformed file."""
        if not folder.is_dir():
            raise UsageError(f"output folder {str(folder)!r} does not exist")
        config = folder / "config.yaml"
        trajectories = folder / "trajectories"
        held_out = {path.stem.removeprefix("eval_"): path for path in sorted(trajectories.glob("eval_*.jsonl"))}
        run = cls(
            folder=folder,
            config_text=config.read_text(encoding="utf-8", errors="replace") if config.is_file() else "",
            environment=_read_json_object(folder / "env.json"),
            summary=_read_json_object(folder / "summary.json"),
            metrics=read_metrics(folder / "metrics.jsonl"),
            questions=_read_questions(held_out),
            training={int(path.stem[-6:]): path for path in sorted(trajectories.glob(_TRAINING_FILES))},
        )
        if not (run.config_text or run.summary or run.metrics or run.questions or run.training):
            raise UsageError(f"folder {str(folder)!r} holds no run: neither config.yaml nor results")
        return run

    @property
    def models(self) -> list[str]:
        """Returns every scored or recorded model, in the order of training."""
        scored = {name.removeprefix("accuracy/") for name in self.summary if name.startswith("accuracy/")}
        models = scored | {model for question in self.questions for model in question.episodes}
        return [model for model in MODEL_LABELS if model in models] + sorted(models - MODEL_LABELS.keys())

    def number(self, name: str) -> float | None:
        """Returns a number of the summary, or None for a missing or non-finite number."""
        value = self.summary.get(name)
        return float(value) if isinstance(value, int | float) and math.isfinite(value) else None

    def standard_error(self, model: str, *, tool_only: bool = False) -> float | None:
        """Returns the standard error of the mean accuracy over questions, or None for fewer than two questions.

        The samples of one question are dependent: their mean counts as one value.
        """
        means = []
        for question in self.questions:
            accuracies = [episode.accuracy for episode in question.episodes.get(model, ())]
            if accuracies and (not tool_only or question.sample.kind.endswith("_w_tool")):
                means.append(sum(accuracies) / len(accuracies))
        if len(means) < 2:
            return None
        mean = sum(means) / len(means)
        error = math.sqrt(sum((value - mean) ** 2 for value in means) / (len(means) - 1) / len(means))
        return error if math.isfinite(error) else None


def model_label(model: str) -> str:
    """Returns the model's name on the page."""
    return MODEL_LABELS.get(model, model)


def read_trajectories(path: Path) -> list[TrajectoryRecord]:
    """Reads a trajectory file without its token ids. Raises RunError with the line number of a malformed line."""
    episodes = []
    with path.open(encoding="utf-8", errors="replace", newline="\n") as lines:
        for number, line in enumerate(lines, start=1):
            try:
                record = TrajectoryRecord.from_json(json.loads(line))
            except (LookupError, TypeError, ValueError, AttributeError, RecursionError) as error:
                reason = f"{type(error).__name__} {error}"
                raise RunError(f"{path}, line {number} is not a recorded episode: {reason}") from error
            # The ids take most of a long episode's memory, and no page shows token ids.
            episodes.append(replace(record, token_ids=()))
    return episodes


def _read_questions(held_out: dict[str, Path]) -> list[Question]:
    """Reads the evaluation files (one path per model) and groups the episodes by question."""
    questions: dict[tuple[str, str], Question] = {}
    for model, path in held_out.items():
        for episode in read_trajectories(path):
            sample = episode.sample
            question = questions.setdefault((sample.id, sample.video), Question(sample))
            question.episodes.setdefault(model, []).append(episode)
    return list(questions.values())


def _read_json_object(path: Path) -> dict[str, Any]:
    """Reads a JSON object, or {} for a missing file. Raises RunError for any other content."""
    if not path.is_file():
        return {}
    try:
        value = json.loads(path.read_text(encoding="utf-8", errors="replace"))
    except (ValueError, RecursionError) as error:
        raise RunError(f"{path} is not JSON: {error}") from error
    if not isinstance(value, dict):
        raise RunError(f"{path} holds no JSON object")
    return value


@dataclass(frozen=True, slots=True)
class ChosenQuestion:
    """A question on the page, and the reason for its choice."""

    question: Question
    reason: str


@dataclass(frozen=True, slots=True)
class _Wish:
    """A reason to show up to `most` fitting questions."""

    reason: str
    most: int
    fits: Callable[[Question], bool]


def choose_questions(questions: Sequence[Question], models: Sequence[str]) -> list[ChosenQuestion]:
    """Chooses at most MAX_QUESTIONS instructive questions. The same files give the same choice.

    The first episode of each model decides. Among fitting questions, a question about a new video wins.
    """
    chosen: list[ChosenQuestion] = []
    for wish in _wishes(models):
        fitting = [question for question in questions if wish.fits(question)]
        for _ in range(wish.most):
            taken = [choice.question for choice in chosen]
            videos = {question.sample.video for question in taken}
            rest = [question for question in fitting if question not in taken]
            if rest and len(chosen) < MAX_QUESTIONS:
                best = min(rest, key=lambda question: question.sample.video in videos)
                chosen.append(ChosenQuestion(best, wish.reason))
    return chosen


def _wishes(models: Sequence[str]) -> list[_Wish]:
    """Returns the wishes, the most instructive first, judged by the last of `models` (the end of training)."""
    if not models:
        return []
    *earlier, last = models

    def improved(model: str, most: int) -> _Wish:
        reason = f"{model_label(model)} wrong, {model_label(last)} right"
        return _Wish(reason, most, lambda q: _first_is_right(q, model) is False and _first_is_right(q, last) is True)

    def of_kind(reason: str, most: int, *kinds: str) -> _Wish:
        return _Wish(reason, most, lambda q: q.sample.kind in kinds and _first_is_right(q, last) is True)

    return [
        *(improved(model, 2 if index else 3) for index, model in enumerate(reversed(earlier))),
        of_kind("two clues", 2, "clue_multi_w_tool"),
        of_kind("no tool needed", 2, "clue_single_wo_tool", "clue_multi_wo_tool"),
        _Wish("a faulty call", 1, lambda q: any(episodes[0].has_fault for episodes in q.episodes.values())),
        _Wish(f"{model_label(last)} wrong", 2, lambda q: _first_is_right(q, last) is False),
        of_kind("one clue", 2, "clue_single_w_tool"),
    ]


def _first_is_right(question: Question, model: str) -> bool | None:
    """Returns whether the model's first episode is right, or None without an episode or a score."""
    episode = question.first(model)
    return None if episode is None or math.isnan(episode.accuracy) else episode.is_right
