"""The sampling half of a GRPO step: episodes, rewards, dynamic sampling (DAPO, 2503.14476) and advantages."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch

from videoseek.algorithms.advantages import group_advantages, has_spread
from videoseek.batches.micro_batch import Group, ScoredGroup
from videoseek.batches.order import batch_indices
from videoseek.config import TrainConfig
from videoseek.distributed import all_max, all_sum, gather, rank_indices
from videoseek.engine import TrainEngine
from videoseek.rewards.functions import RewardFunction
from videoseek.rewards.trajectory_guided import REWARD_NAMES, write_rewards
from videoseek.rollout.episode_metrics import episode_sums, means
from videoseek.rollout.native import NativeEngine
from videoseek.rollout.setup import sampling_settings
from videoseek.stages.stage_run import StageRun
from videoseek.types import Episode, Sample


@dataclass(slots=True)
class Rollouts:
    """What one step sampled on this rank: the `groups` to train on, and `all_groups` for metrics and records.

    A prompt whose video cannot be read has no group. Under data.bad_samples=skip a rank may be left without any.
    """

    groups: list[Group] = field(default_factory=list)
    all_groups: list[Group] = field(default_factory=list)
    num_unreadable: int = 0
    seconds: float = 0.0


def sample_groups(
    run: StageRun,
    engine: TrainEngine,
    sampler: NativeEngine,
    functions: Sequence[RewardFunction],
    samples: Sequence[Sample],
    step: int,
) -> Rollouts:
    """Rolls out this rank's prompts of `step` and writes the rewards into the episodes.

    Dynamic sampling: further prompts replace the groups whose rewards are all equal, for at most
    `grpo.max_resample_rounds` rounds.
    """
    grpo, started = run.config.grpo, time.perf_counter()
    sampling = sampling_settings(run.config, run.config.rollout.temperature)
    num_rounds = 1 + grpo.max_resample_rounds
    num_wanted = len(rank_indices(grpo.prompts_per_step))
    rollouts = Rollouts()
    sampler.features.clear()  # the features of the last step belong to older weights, unless the vision tower is frozen
    for attempt in range(num_rounds):
        # Every attempt of every step draws its own stretch of the data order, so that resuming needs no cursor.
        draw = step * num_rounds + attempt
        indices = batch_indices(draw, grpo.prompts_per_step, len(samples), run.config.seed)
        num_missing = num_wanted - len(rollouts.groups)
        prompts = [samples[indices[i]] for i in rank_indices(len(indices))][:num_missing]
        with engine.whole_weights():
            sampled = sampler.rollout(
                prompts,
                grpo.group_size,
                run.config.seed + draw,
                sampling,
                weight_version=step,
                skip_unreadable=run.config.data.bad_samples == "skip",
            )
        groups = [group for group in sampled if group]
        rollouts.num_unreadable += len(sampled) - len(groups)
        reward_episodes(run.config, functions, [episode for group in groups for episode in group])
        rollouts.all_groups += groups
        rollouts.groups += [group for group in groups if num_rounds == 1 or has_signal(group, grpo.overlong)]
        # All ranks go on together: one that is complete still takes part in gathering the weights.
        (num_missing_everywhere,) = all_sum([num_wanted - len(rollouts.groups)], run.device)
        if num_missing_everywhere == 0:
            break
    rollouts.seconds = time.perf_counter() - started
    return rollouts


def reward_episodes(config: TrainConfig, functions: Sequence[RewardFunction], episodes: Sequence[Episode]) -> None:
    """Writes the reward and its parts into each episode: the rule's value plus the values of the user's functions."""
    write_rewards(episodes, config.reward.variant, config.reward.decay, config.prompt.format)
    for function in functions:
        for episode, value in zip(episodes, function(episodes), strict=True):
            if value is not None:
                episode.rewards[function.name] = value
                episode.rewards["reward"] += value


def rollout_metrics(rollouts: Rollouts, functions: Sequence[RewardFunction], device: torch.device) -> dict[str, float]:
    """Metrics of all sampled episodes, over all ranks."""
    parts = {*REWARD_NAMES, *(function.name for function in functions)} - {"reward"}
    sums = episode_sums(rollouts.all_groups, sorted(parts))
    totals = iter(all_sum([number for pair in sums.values() for number in pair], device))
    (num_unreadable,) = all_sum([rollouts.num_unreadable], device)
    values = means({name: (next(totals), next(totals)) for name in sums})
    return values | {"rollout/unreadable_prompts": num_unreadable, "time/rollout_s": rollouts.seconds}


def filler_group(rollouts: Rollouts, device: torch.device) -> ScoredGroup | None:
    """One episode that a rank trains on at weight zero while other ranks have more rows.

    It is this rank's own, or another rank's where this rank has none. None if no rank has any episode.
    """
    episodes = [group[:1] for group in rollouts.all_groups[:1]]
    if all_max(int(not episodes), device):
        episodes = (episodes + gather(episodes))[:1]
    return (episodes[0], [0.0]) if episodes else None


def with_advantages(groups: Sequence[Group], kind: str, overlong: str) -> list[ScoredGroup]:
    """The episodes to train on, by group, with the advantage of each.

    `overlong` says what happens to episodes that a limit cut off: `exclude` takes them out of the baseline and the
    loss (a cut says nothing about the answer), `mask` out of the loss only, `keep` trains on them.
    """
    scored: list[ScoredGroup] = []
    for group in groups:
        values = group_advantages(*_rewards(group), _in_baseline(group, overlong), kind=kind).tolist()
        kept = [i for i, episode in enumerate(group) if overlong == "keep" or not episode.stop_reason.overlong]
        if kept:
            scored.append(([group[i] for i in kept], [values[i] for i in kept]))
    return scored


def has_signal(group: Group, overlong: str) -> bool:
    """Whether the rewards of a group differ. Equal rewards give advantages of zero and no gradient."""
    return bool(has_spread(*_rewards(group), _in_baseline(group, overlong)).any())


def _in_baseline(group: Group, overlong: str) -> torch.Tensor:
    return torch.tensor([overlong != "exclude" or not episode.stop_reason.overlong for episode in group])


def _rewards(group: Group) -> tuple[torch.Tensor, torch.Tensor]:
    """The rewards of one group and its group index (0) for each, as the pure functions take them."""
    return torch.tensor([e.rewards["reward"] for e in group]), torch.zeros(len(group), dtype=torch.long)
