"""Runs a task: asks what no file answers yet, film by film, and appends the answers of each batch."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Protocol

import torch

from videoseek.config import TrainConfig
from videoseek.distributed import barrier, gather, rank_indices
from videoseek.endpoint import EndpointSettings
from videoseek.evaluation.answers import Line, append_answers, parse_shard, read_answers, require_same_prompts
from videoseek.evaluation.endpoint_engine import EndpointEngine, chat_environment, remote_facts, token_counts
from videoseek.evaluation.evidence import SwappedCrop, clue_scores, crops
from videoseek.evaluation.prompts import Notes, Prompt, make_prompt, system_prompt, with_prompts
from videoseek.evaluation.scoring import Scored, judge_open, majority, parity_right, score_reply
from videoseek.evaluation.tasks.task import Question, Task
from videoseek.rollout.environment import Environment
from videoseek.rollout.sampler import SamplingSettings
from videoseek.rollout.setup import load_policy, rollout_engine, sampling_settings
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


def open_model(config: TrainConfig, folder: Path, device: torch.device) -> Model:
    """Loads the model of a folder. Raises ModelError."""
    policy, environment = load_policy(folder, config, device)
    return Model(environment, lambda changed: rollout_engine(policy, changed, config))


def endpoint_model(config: TrainConfig, settings: EndpointSettings, cache_dir: Path) -> Model:
    """Returns a model behind an endpoint; `cache_dir` keeps the replies."""
    engine = partial(EndpointEngine, evaluate=config.evaluate, settings=settings, cache_dir=cache_dir)
    return Model(chat_environment(config), engine)


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
        index, count = parse_shard(evaluate.shard)
        films = set(list(dict.fromkeys(question.sample.video for question in self.questions))[index - 1 :: count])
        own = [question for question in self.questions if question.sample.video in films]
        return [q for q in own if q.sample.id not in answers or answers[q.sample.id]["reason"] == "no_reply"]

    def ask(self, model: Model, pending: Sequence[Question]) -> None:
        """Asks `pending` in batches over all ranks. Every batch is on disk before the next one begins."""
        evaluate = self.config.evaluate
        texts: dict[str, str] = {}
        engine = model.engine(self.environment(model.environment, texts))
        size = evaluate.questions_per_batch * world_size()
        name = f"{self.task.name}{' swapped' if self.swap else ''}"
        with Progress(name, len(pending)) as progress:
            for first in range(0, len(pending), size):
                batch = pending[first : first + size]
                own = [batch[index] for index in rank_indices(len(batch))]
                lines = gather(self._answer(engine, own, texts))
                if rank() == 0:
                    by_id = {line["id"]: line for line in lines}
                    in_order = [by_id[question.sample.id] for question in batch]
                    append_answers(self.folder, parse_shard(evaluate.shard), in_order)
                progress.track(first + len(batch), len(pending))
        barrier()

    def environment(self, environment: Environment, texts: dict[str, str]) -> Environment:
        """Returns the environment of the mode. Without a tool an episode is one turn."""
        evaluate, calling_turns = self.config.evaluate, environment.max_turns
        in_windows = self.questions if evaluate.subtitles == "window" else []
        last_call_turn = calling_turns - 1 if evaluate.final_answer else None
        return replace(
            environment,
            fmt=with_prompts(environment.fmt, system_prompt(self.task, self.config), texts),
            tool=SwappedCrop(self.config.video, self.config.seed) if self.swap else environment.tool,
            # The environment executes no call of the last turn: with one turn more, that turn must answer.
            max_turns=calling_turns + evaluate.final_answer if evaluate.mode == "tool" else 1,
            note=Notes({question.sample.id: question for question in in_windows}, last_call_turn),
        )

    def _answer(self, engine: Engine, questions: Sequence[Question], texts: dict[str, str]) -> list[Line]:
        """Asks the questions, and returns their lines."""
        config, started = self.config, time.monotonic()
        prompts = [_prompt(question, self) for question in questions]
        texts.clear()
        texts.update({q.sample.id: prompt.text for q, prompt in zip(questions, prompts, strict=True) if prompt})
        votes = config.evaluate.votes
        settings = sampling_settings(config, config.rollout.temperature if votes > 1 else 0.0)
        samples = [question.sample for question in questions if question.sample.id in texts]
        rolled = engine.rollout(samples, votes, config.seed, settings, skip_unreadable=True) if samples else []
        groups = {sample.id: group for sample, group in zip(samples, rolled, strict=True)}
        remote = {name: remote_facts(group) for name, group in groups.items()}
        asked = [q for q in questions if groups.get(q.sample.id) and "reason" not in remote[q.sample.id]]
        scored = {q.sample.id: [score_reply(q, reply(episode)) for episode in groups[q.sample.id]] for q in asked}
        chosen = {name: majority(scores) for name, scores in scored.items()}
        best = [scored[question.sample.id][chosen[question.sample.id]] for question in asked]
        final = judge_open(asked, best, config.evaluate, self.task.rubric, self.folder.parent / "judge_cache")
        verdicts = {question.sample.id: score for question, score in zip(asked, final, strict=True)}
        seconds = round((time.monotonic() - started) / max(1, len(questions)), 3)
        lines = []
        for question, prompt in zip(questions, prompts, strict=True):
            line, name = self._head(question, prompt) | {"seconds": seconds}, question.sample.id
            if name in chosen:
                line |= _verdict(verdicts[name]) | _facts(groups[name][chosen[name]])
                line |= {"votes": [vote.extracted for vote in scored[name]]} if votes > 1 else {}
                line |= clue_scores(question, groups[name][chosen[name]])
                line |= parity_right(question, line["text"], config.evaluate.prompt_style, self.task.name)
            lines.append(line | remote.get(name, {}))
        return lines

    def _head(self, question: Question, prompt: Prompt | None) -> Line:
        """Returns the line of a question that got no episode."""
        sample, root = question.sample, self.config.evaluate.data_root
        reason = "unreadable_film" if prompt else "unreadable_film_or_subtitles"
        return {
            "id": sample.id,
            "film": os.path.relpath(sample.video, root) if root else sample.video,
            "groups": {name: list(values) for name, values in question.groups.items()},
            "prompt_hash": prompt.hash if prompt else None,
            **_verdict(Scored(None, reason, 0.0, "engine_error")),
        }


def reply(episode: Episode) -> str:
    """Returns the text that holds the answer: the last assistant turn."""
    return episode.assistant_texts()[-1]


def _verdict(score: Scored) -> Line:
    return {"extracted": score.extracted, "reason": score.reason, "status": score.status, "right": score.right}


def _facts(episode: Episode) -> Line:
    return {
        "text": reply(episode),
        "stop": str(episode.stop_reason),
        "calls": sum(record.call is not None for record in episode.calls),
        "turns": len(episode.assistant_texts()),
        **token_counts(episode),
        "windows": [[round(second, 3) for second in window] for window in crops(episode)],
    }


def _prompt(question: Question, run: TaskRun) -> Prompt | None:
    """Returns a question's prompt, or None for an unreadable film or file of subtitles."""
    try:
        return make_prompt(question, run.task, run.config)
    except (VideoError, SubtitleError):
        return None
