"""Scores of a policy on held-out questions, sampled and greedy."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from videoseek.config import TrainConfig
from videoseek.rewards.clue_score import MIN_WINDOW_SECONDS, overlap
from videoseek.rewards.trajectory_guided import write_rewards
from videoseek.rollout.engine import RolloutEngine
from videoseek.rollout.sampler import SamplingSettings
from videoseek.trajectory.grammar import CallFormat
from videoseek.types import Episode, Sample, StopReason

Groups = list[list[Episode]]


def answer_questions(
    engine: RolloutEngine,
    samples: Sequence[Sample],
    samples_per_prompt: int,
    seed: int,
    sampling: SamplingSettings,
    *,
    on_progress: Callable[[int, int], None] | None = None,
    skip_unreadable: bool = False,
) -> tuple[Groups, Groups]:
    """Samples `samples_per_prompt` episodes per question (the goal of RL) and one greedy episode (the view of a user).

    Raises VideoError for an unreadable video; `skip_unreadable` returns empty groups for the question instead.
    """
    total = len(samples) * (samples_per_prompt + 1)

    def shifted(offset: int) -> Callable[[int, int], None]:
        return lambda done, _: on_progress(offset + done, total) if on_progress is not None else None

    sampled = engine.rollout(
        samples, samples_per_prompt, seed, sampling, on_progress=shifted(0), skip_unreadable=skip_unreadable
    )
    first_greedy = len(samples) * samples_per_prompt
    greedy = answer_greedily(
        engine, samples, sampling, on_progress=shifted(first_greedy), skip_unreadable=skip_unreadable
    )
    return sampled, greedy


def answer_greedily(
    engine: RolloutEngine,
    samples: Sequence[Sample],
    sampling: SamplingSettings,
    *,
    weight_version: int = 0,
    on_progress: Callable[[int, int], None] | None = None,
    skip_unreadable: bool = False,
) -> Groups:
    """Returns one greedy episode per question, under the limits of `sampling`. See `answer_questions` for errors."""
    return engine.rollout(
        samples,
        1,
        0,  # greedy answers draw no numbers
        replace(sampling, temperature=0.0),
        weight_version=weight_version,
        on_progress=on_progress,
        skip_unreadable=skip_unreadable,
    )


def scores(
    sampled: Groups,
    greedy: Groups,
    variant: str,
    decay: float,
    call_format: str | CallFormat,
    min_window_seconds: float = MIN_WINDOW_SECONDS,
) -> dict[str, float]:
    """Rewards every episode. Returns `summarize` of the sampled episodes and the accuracies of the greedy episodes."""
    reward_answers([*sampled, *greedy], variant, decay, call_format, min_window_seconds)
    accuracies = {name: value for name, value in summarize(greedy).items() if name.startswith("accuracy")}
    return summarize(sampled) | {f"{name.replace('accuracy', 'accuracy_greedy')}": v for name, v in accuracies.items()}


def reward_answers(
    groups: Groups,
    variant: str,
    decay: float,
    call_format: str | CallFormat,
    min_window_seconds: float = MIN_WINDOW_SECONDS,
) -> None:
    """Writes the rewards into every episode."""
    episodes = [episode for group in groups for episode in group]
    scored = [episode for episode in episodes if episode.sample.kind != "perception"]
    write_rewards(scored, variant, decay, call_format, min_window_seconds)
    for episode in episodes:
        if episode.sample.kind == "perception":
            right = _parts(episode.assistant_texts()[0]) == _parts(episode.sample.turns[0])
            episode.rewards = {"accuracy": float(right), "format": 1.0, "reward": float(right)}


def summarize(groups: Groups) -> dict[str, float]:
    """Returns means over episodes: of all questions, and `_tool` of questions with evidence only in a crop.

    `clue_iou` is the overlap of the union of an episode's executed crops with the union of the clues, on tool kinds.
    `chance` is the accuracy of guessing among the options. `overlong_rate` is the share of episodes cut off by a limit
    of turns, tokens or time before an answer (counted as wrong). `deadline_rate` is the part cut off by time, and
    depends on the machine. `unreadable` is the share of questions without an episode because of an unreadable video.
    All other means exclude unreadable questions.
    """
    episodes = [episode for group in groups for episode in group]
    needing = [episode for episode in episodes if needs_tool(episode.sample)]
    values = {
        "accuracy": _mean([episode.rewards["accuracy"] for episode in episodes]),
        "format": _mean([episode.rewards["format"] for episode in episodes]),
        "reward": _mean([episode.rewards["reward"] for episode in episodes]),
        "calls_per_episode": _mean([float(len(episode.calls)) for episode in episodes]),
        "chance": _mean([1 / len(e.sample.options) for e in episodes if e.sample.options]),
        "accuracy_tool": _mean([episode.rewards["accuracy"] for episode in needing]),
        "chance_tool": _mean([1 / len(e.sample.options) for e in needing if e.sample.options]),
        "clue_iou": _mean([clue_iou(episode) for episode in needing]),
        "overlong_rate": _mean([float(episode.stop_reason.overlong) for episode in episodes]),
        "deadline_rate": _mean([float(episode.stop_reason == StopReason.DEADLINE) for episode in episodes]),
        "unreadable": _mean([float(not group) for group in groups]),
    }
    for kind in sorted({episode.sample.kind for episode in episodes}):
        values[f"accuracy_{kind}"] = _mean([e.rewards["accuracy"] for e in episodes if e.sample.kind == kind])
    return values


def _parts(text: str) -> list[str]:
    """Returns the distinct things named by a perception answer, sorted."""
    return sorted({part.strip() for part in text.removeprefix("<think>").removesuffix("</think>").split(",")})


def needs_tool(sample: Sample) -> bool:
    return sample.kind.endswith("_w_tool")


def clue_iou(episode: Episode) -> float:
    windows = [(clip.start_seconds, clip.end_seconds) for clip in episode.clips[1:]]
    return overlap(windows, episode.sample.clues).iou


def _mean(values: list[float]) -> float:
    return sum(values) / len(values) if values else 0.0


def summary_of(config: TrainConfig, values: dict[str, dict[str, float]], seconds: float) -> dict[str, Any]:
    """Returns `SCORE/MODEL` for every model's scores. `chance` depends on the questions only and stands alone."""
    summary: dict[str, Any] = {"recipe": config.recipe, "seed": config.seed, "wall_seconds": seconds}
    for model, of_model in values.items():
        summary |= {name if name.startswith("chance") else f"{name}/{model}": v for name, v in of_model.items()}
    return summary
