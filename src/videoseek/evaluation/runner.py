"""Runs a task: asks what no file answers yet, film by film, and appends the answers of each batch."""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

from videoseek.config import TrainConfig
from videoseek.distributed import barrier, gather, rank_indices
from videoseek.evaluation.answers import Line, Shard, append_answers, read_answers, require_same_prompts
from videoseek.evaluation.evidence import SwappedCrop, clue_scores, crops
from videoseek.evaluation.prompts import Prompt, WindowSubtitles, make_prompt, with_prompts
from videoseek.evaluation.scoring import Scored, score_reply
from videoseek.evaluation.tasks.task import Question, Task
from videoseek.rollout.environment import Environment
from videoseek.rollout.native import SamplingSettings
from videoseek.rollout.setup import sampling_settings
from videoseek.runtime import Progress, rank, world_size
from videoseek.types import Episode, Sample
from videoseek.video.errors import VideoError
from videoseek.video.subtitles import SubtitleError


class Engine(Protocol):
    """What a run needs of a rollout engine."""

    def rollout(
        self,
        samples: Sequence[Sample],
        samples_per_prompt: int,
        seed: int,
        settings: SamplingSettings,
        *,
        skip_unreadable: bool = False,
    ) -> list[list[Episode]]:
        """Returns a group of episodes for each sample, empty for an unreadable film."""


@dataclass(frozen=True, slots=True)
class Model:
    """A loaded model: the environment of its run, and the engine for a changed environment."""

    environment: Environment
    engine: Callable[[Environment], Engine]


@dataclass(frozen=True, slots=True)
class TaskRun:
    """A task's drawn questions, film by film, under a configuration, with the folder of its answers."""

    task: Task
    config: TrainConfig
    questions: Sequence[Question]
    folder: Path
    swap: bool = False

    def pending(self) -> list[Question]:
        """Returns the shard's questions without an answer. Raises UsageError for changed prompts, and for a style that
        the task lacks.
        """
        answers = read_answers(self.folder)
        evaluate = self.config.evaluate
        if evaluate.subtitles != "covering_frames":  # whose prompts need every film's index
            prompts = {question.sample.id: _prompt(question, self) for question in self.questions}
            hashes = {name: prompt.hash for name, prompt in prompts.items() if prompt is not None}
            require_same_prompts(answers, hashes, self.folder)
        films = {film: number for number, film in enumerate(dict.fromkeys(q.sample.video for q in self.questions))}
        shard = Shard.parse(evaluate.shard)
        own = [question for question in self.questions if shard.takes(films[question.sample.video])]
        return [question for question in own if question.sample.id not in answers]

    def ask(self, model: Model, pending: Sequence[Question]) -> None:
        """Asks `pending` in batches over all ranks. Every batch is on disk before the next one begins."""
        evaluate = self.config.evaluate
        texts: dict[str, str] = {}
        system = next((prompt.system for q in pending[:1] if (prompt := _prompt(q, self))), "")
        engine = model.engine(self._environment(model.environment, system, texts))
        size = max(1, self.config.rollout.episodes_per_batch // evaluate.votes) * world_size()
        name = f"{self.task.name}{' swapped' if self.swap else ''}"
        with Progress(name, len(pending)) as progress:
            for first in range(0, len(pending), size):
                batch = pending[first : first + size]
                own = [batch[index] for index in rank_indices(len(batch))]
                lines = gather(self._answer(engine, own, texts))
                if rank() == 0:
                    by_id = {line["id"]: line for line in lines}
                    in_order = [by_id[question.sample.id] for question in batch]
                    append_answers(self.folder, Shard.parse(evaluate.shard), in_order)
                progress.track(first + len(batch), len(pending))
        barrier()

    def _environment(self, environment: Environment, system: str, texts: dict[str, str]) -> Environment:
        """Returns the environment of the mode. Without a tool an episode is one turn."""
        evaluate = self.config.evaluate
        has_tool = evaluate.mode == "tool"
        questions = {question.sample.id: question for question in self.questions}
        return replace(
            environment,
            fmt=with_prompts(environment.fmt, system, texts),
            tool=SwappedCrop(self.config.video, self.config.seed) if self.swap else environment.tool,
            max_turns=environment.max_turns if has_tool else 1,
            final_answer=evaluate.final_answer and has_tool,
            note=WindowSubtitles(questions) if evaluate.subtitles == "window" else environment.note,
        )

    def _answer(self, engine: Engine, questions: Sequence[Question], texts: dict[str, str]) -> list[Line]:
        config, started = self.config, time.monotonic()
        prompts = {question.sample.id: _prompt(question, self) for question in questions}
        asked = [question for question in questions if prompts[question.sample.id] is not None]
        texts.clear()
        texts.update({name: prompt.text for name, prompt in prompts.items() if prompt is not None})
        votes = config.evaluate.votes
        settings = sampling_settings(config, config.rollout.temperature if votes > 1 else 0.0)
        samples = [question.sample for question in asked]
        groups = engine.rollout(samples, votes, config.seed, settings, skip_unreadable=True) if asked else []
        seconds = (time.monotonic() - started) / max(1, len(questions))
        by_id = {question.sample.id: group for question, group in zip(asked, groups, strict=True)}
        return [
            self._line(question, prompts[question.sample.id], by_id.get(question.sample.id, []), seconds)
            for question in questions
        ]

    def _line(self, question: Question, prompt: Prompt | None, group: list[Episode], seconds: float) -> Line:
        sample, root = question.sample, self.config.evaluate.data_root
        line: Line = {
            "id": sample.id,
            "film": os.path.relpath(sample.video, root) if root else sample.video,
            "prompt_hash": prompt.hash if prompt else None,
            "groups": {name: list(values) for name, values in question.groups.items()},
            "seconds": round(seconds, 3),
            "error": not group,
        }
        if not group:
            reason = "unreadable_film" if prompt else "unreadable_film_or_subtitles"
            return line | {"text": None, "extracted": None, "reason": reason, "right": 0.0}
        replies = [episode.assistant_texts()[-1] for episode in group]
        scored = [score_reply(question, reply) for reply in replies]
        chosen = majority(scored)
        episode, score = group[chosen], scored[chosen]
        line |= {"text": replies[chosen], "extracted": score.extracted, "reason": score.reason, "right": score.right}
        line |= {"votes": [vote.extracted for vote in scored]} if len(group) > 1 else {}
        line |= {
            "stop": str(episode.stop_reason),
            "calls": sum(record.call is not None for record in episode.calls),
            "turns": len(episode.assistant_texts()),
            "tokens": len(episode.token_ids),
            "new_tokens": sum(episode.loss_mask),
            "windows": [[round(second, 3) for second in window] for window in crops(episode)],
        }
        return line | clue_scores(question, episode)


def _prompt(question: Question, run: TaskRun) -> Prompt | None:
    """Returns a question's prompt, or None for an unreadable film or file of subtitles."""
    try:
        return make_prompt(question, run.task, run.config)
    except (VideoError, SubtitleError):
        return None


def majority(votes: Sequence[Scored]) -> int:
    """Returns the index of the first vote for the commonest answer; of equally common ones, the first.

    Unread replies have no vote unless all replies are unread.
    """
    counts = Counter(str(vote.extracted) for vote in votes if vote.extracted is not None)
    if not counts:
        return 0
    most = max(counts.values())
    return next(index for index, vote in enumerate(votes) if counts.get(str(vote.extracted)) == most)
