"""Scores on held-out questions: of a finished model, and of a policy under training. Every rank answers its part."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from videoseek.config import TrainConfig
from videoseek.distributed import gather, rank_indices
from videoseek.evaluation.scores import answer_greedily, answer_questions, reward_answers, scores, summarize
from videoseek.rollout.engine import RolloutEngine
from videoseek.rollout.setup import load_policy, rollout_engine, sampling_settings
from videoseek.rollout.trajectories import write_trajectories
from videoseek.runtime import Progress, rank, say
from videoseek.trajectory.run_format import run_format
from videoseek.types import Sample


def score_model(
    config: TrainConfig, device: torch.device, folder: Path, name: str, samples: list[Sample], output_dir: Path
) -> dict[str, float]:
    """Scores the model in `folder`. Every rank answers its share. Writes trajectories/eval_NAME.jsonl."""
    policy, environment = load_policy(folder, config, device)
    engine = rollout_engine(policy, environment, config)
    own_samples = [samples[i] for i in rank_indices(len(samples))]
    samples_per_prompt = config.evaluate.samples
    with Progress(f"evaluate {name}", len(own_samples) * (samples_per_prompt + 1)) as progress:
        sampled, greedy = answer_questions(
            engine,
            own_samples,
            samples_per_prompt,
            config.seed,
            sampling_settings(config, config.rollout.temperature),
            on_progress=progress.track,
            skip_unreadable=config.data.bad_samples == "skip",
        )
    sampled, greedy = gather(sampled), gather(greedy)
    shortest = config.video.min_window_seconds
    values = scores(sampled, greedy, config.reward.variant, config.reward.decay, run_format(config), shortest)
    if rank() == 0:
        write_trajectories(output_dir, f"eval_{name}", sampled)
        write_trajectories(output_dir, f"greedy_{name}", greedy)
        if values["unreadable"]:
            say(f"{name}: {values['unreadable']:.1%} of the questions have unreadable videos; no mean counts them")
        say(f"{name}: accuracy {values['accuracy']:.3f} sampled, {values['accuracy_greedy']:.3f} greedy")
    return values


def score_policy(
    config: TrainConfig, engine: RolloutEngine, name: str, step: int, samples: Sequence[Sample], output_dir: Path
) -> dict[str, float]:
    """Scores a policy under training by greedy answers alone. All ranks return `summarize` of all answers.

    Writes trajectories/greedy_NAME_step_STEP.jsonl.
    """
    groups = answer_greedily(
        engine,
        [samples[i] for i in rank_indices(len(samples))],
        sampling_settings(config, config.rollout.temperature),
        weight_version=step,
        skip_unreadable=config.data.bad_samples == "skip",
    )
    groups = gather(groups)
    shortest = config.video.min_window_seconds
    reward_answers(groups, config.reward.variant, config.reward.decay, engine.environment.fmt, shortest)
    values = summarize(groups)
    if rank() == 0:
        write_trajectories(output_dir, f"greedy_{name}_step_{step:06d}", groups)
    say(f"{name} step {step}: accuracy {values['accuracy']:.3f} greedy on {len(samples)} held-out questions")
    return values
