"""The sampling half of a GRPO step: episodes, rewards, dynamic sampling (DAPO, 2503.14476) and advantages."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import compress

import torch
from torch.distributed import ProcessGroup

from videoseek.algorithms.advantages import group_advantages, has_spread
from videoseek.batches.micro_batch import Group, ScoredGroup
from videoseek.batches.order import RESERVE, SampleOrder, stream_seed
from videoseek.config import GRPOConfig, TrainConfig
from videoseek.distributed import all_max, all_sum, gather, rank_indices
from videoseek.rewards.functions import RewardFunction
from videoseek.rewards.trajectory_guided import REWARD_NAMES, write_rewards
from videoseek.rollout.engine import RolloutEngine
from videoseek.rollout.environment import Environment
from videoseek.rollout.episode_metrics import episode_sums, means
from videoseek.rollout.sampling import draw_numbers
from videoseek.rollout.setup import sampling_settings
from videoseek.stages.stage_run import StageRun
from videoseek.trajectory.run_format import run_format
from videoseek.types import Episode, Sample
from videoseek.video.decode import cancel_prefetch, prefetch
from videoseek.video.errors import VideoError


class UnreadableVideosError(Exception):
    """Too many videos of a step are unreadable for the run to continue."""


@dataclass(slots=True)
class Rollouts:
    """The rollouts of one step on this rank: `groups` to train on, and `all_groups` for metrics and records.

    `draws` numbers the groups to train on by the order of the step's prompts over all ranks. A prompt with an
    unreadable video has no group. A rank may be left without groups.
    """

    groups: list[Group] = field(default_factory=list)
    draws: list[int] = field(default_factory=list)
    all_groups: list[Group] = field(default_factory=list)
    num_unreadable: int = 0
    num_stale: int = 0
    seconds: float = 0.0
    wait_seconds: float = 0.0


def sample_groups(
    run: StageRun,
    sampler: RolloutEngine,
    functions: Sequence[RewardFunction],
    samples: Sequence[Sample],
    order: SampleOrder,
    step: int,
    weight_version: int,
    group: ProcessGroup | None = None,
) -> Rollouts:
    """Rolls out the prompts of `step`, divided among the ranks, and writes the rewards into the episodes.

    A thread beside the training thread passes a process group of its own.

    Dynamic sampling replaces groups of equal rewards and prompts with unreadable videos by prompts of the reserve, for
    at most `grpo.max_resample_rounds` rounds. All ranks count together: the prompts of a step are the same for any
    number of ranks. Raises UnreadableVideosError for too many unreadable videos.
    """
    device = run.device if group is None else torch.device("cpu")
    grpo, config, started = run.config.grpo, run.config, time.perf_counter()
    sampling = sampling_settings(config, config.rollout.temperature)
    rollouts, num_drawn, num_usable = Rollouts(), 0, 0
    for attempt in range(1 + grpo.max_resample_rounds):
        num_missing = grpo.prompts_per_step - num_usable
        if num_missing == 0:
            break
        indices = step_prompts(order, step, attempt, grpo)[:num_missing]
        own, draws = rank_indices(len(indices), contiguous=config.data.group_by_film), draw_numbers(indices)
        sampled = sampler.rollout(
            [samples[indices[i]] for i in own],
            grpo.group_size,
            stream_seed(config.seed, step, attempt),
            sampling,
            weight_version=weight_version,
            draws=[draws[i] for i in own],
            skip_unreadable=True,
        )
        reward_episodes(config, functions, [episode for group in sampled for episode in group])
        for i, episodes in zip(own, sampled, strict=True):
            if not episodes:
                rollouts.num_unreadable += 1
                continue
            rollouts.all_groups.append(episodes)
            if grpo.max_resample_rounds == 0 or has_signal(episodes, grpo.overlong):
                rollouts.groups.append(episodes)
                rollouts.draws.append(num_drawn + i)
        num_drawn += len(indices)
        # All ranks agree on the missing groups.
        usable, unreadable = all_sum([len(rollouts.groups), rollouts.num_unreadable], device, group)
        num_usable = int(usable)
        check_unreadable(int(unreadable), num_drawn, config.data.max_unreadable_share)
    cancel_prefetch()  # a clip whose group was dropped has no reader any more
    rollouts.seconds = time.perf_counter() - started
    return rollouts


def step_prompts(order: SampleOrder, step: int, attempt: int, grpo: GRPOConfig) -> list[int]:
    """Returns the indices of a rollout round's prompts: from the main order first, then from the reserve."""
    if attempt == 0:
        return order.batch(step, grpo.prompts_per_step)
    return order.batch(step * grpo.max_resample_rounds + attempt - 1, grpo.prompts_per_step, RESERVE)


def prefetch_prompts(
    environment: Environment, config: TrainConfig, samples: Sequence[Sample], order: SampleOrder, step: int
) -> None:
    """Starts to decode the prompt clips of this rank's first rollout round of a step."""
    indices = step_prompts(order, step, 0, config.grpo)
    for i in rank_indices(len(indices), contiguous=config.data.group_by_film):
        try:
            prefetch([environment.prompt_clip(samples[indices[i]])])
        except VideoError:
            continue  # the rollout meets the error again and names the video


def check_unreadable(num_unreadable: int, num_prompts: int, max_share: float) -> None:
    """Raises UnreadableVideosError when more than `max_share` of a step's prompts have unreadable videos."""
    if num_unreadable > max(1, max_share * num_prompts):
        raise UnreadableVideosError(
            f"{num_unreadable} of {num_prompts} videos of this step cannot be read, more than "
            f"data.max_unreadable_share={max_share:g} allows; the lines above name them"
        )


def reward_episodes(config: TrainConfig, functions: Sequence[RewardFunction], episodes: Sequence[Episode]) -> None:
    """Writes the reward and its parts into each episode: the rule's value plus the values of the user's functions."""
    shortest = config.video.min_window_seconds
    write_rewards(episodes, config.reward.variant, config.reward.decay, run_format(config), shortest)
    for function in functions:
        for episode, value in zip(episodes, function(episodes), strict=True):
            if value is not None:
                episode.rewards[function.name] = value
                episode.rewards["reward"] += value


def drop_stale(rollouts: Rollouts, oldest_version: int) -> None:
    """Drops and counts the groups to train on with a token sampled by weights older than `oldest_version`."""
    fresh = [min(episode.weight_version for episode in group) >= oldest_version for group in rollouts.groups]
    rollouts.num_stale = fresh.count(False)
    rollouts.groups = list(compress(rollouts.groups, fresh))
    rollouts.draws = list(compress(rollouts.draws, fresh))


def rollout_metrics(
    rollouts: Rollouts, functions: Sequence[RewardFunction], device: torch.device, step: int
) -> dict[str, float]:
    """Returns the metrics of all episodes of a step over all ranks."""
    parts = {*REWARD_NAMES, *(function.name for function in functions)} - {"reward"}
    sums = episode_sums(rollouts.all_groups, sorted(parts))
    totals = iter(all_sum([number for pair in sums.values() for number in pair], device))
    gaps = [step - episode.weight_version for group in rollouts.all_groups for episode in group]
    counts = [rollouts.num_unreadable, len(rollouts.all_groups), rollouts.num_stale, sum(gaps), len(gaps)]
    num_unreadable, num_groups, num_stale, sum_of_gaps, num_gaps = all_sum(counts, device)
    return means({name: (next(totals), next(totals)) for name in sums}) | {
        "rollout/unreadable_prompts": num_unreadable,
        "rollout/groups": num_groups,
        "rollout/dropped_stale_groups": num_stale,
        "rollout/version_gap_mean": sum_of_gaps / max(num_gaps, 1),
        "rollout/version_gap_max": all_max(max(gaps, default=0), device),
        "time/rollout_s": rollouts.seconds,
        "time/rollout_wait_s": rollouts.wait_seconds,
    }


def filler_group(rollouts: Rollouts, device: torch.device) -> ScoredGroup | None:
    """Returns an episode to train on at weight zero, while other ranks have more rows.

    The episode comes from this rank if possible, else from another rank. Returns None if all ranks have zero episodes.
    """
    episodes = [group[:1] for group in rollouts.all_groups[:1]]
    if all_max(int(not episodes), device):
        episodes = (episodes + gather(episodes))[:1]
    return (episodes[0], [0.0]) if episodes else None


def with_advantages(groups: Sequence[Group], kind: str, overlong: str) -> list[ScoredGroup]:
    """Returns the episodes to train on and advantages of every group. A group may be empty.

    `overlong` is the treatment of episodes cut off by a limit: `exclude` removes the episodes from the baseline and the
    loss (a cut says nothing about the answer), `mask` from the loss only, `keep` trains on the episodes.
    """
    scored: list[ScoredGroup] = []
    for group in groups:
        values = group_advantages(*_rewards(group), _in_baseline(group, overlong), kind=kind).tolist()
        kept = [i for i, episode in enumerate(group) if overlong == "keep" or not episode.stop_reason.overlong]
        scored.append(([group[i] for i in kept], [values[i] for i in kept]))
    return scored


def has_signal(group: Group, overlong: str) -> bool:
    """Returns whether the rewards of a group differ. Equal rewards give advantages of zero and no gradient."""
    return bool(has_spread(*_rewards(group), _in_baseline(group, overlong)).any())


def _in_baseline(group: Group, overlong: str) -> torch.Tensor:
    return torch.tensor([overlong != "exclude" or not episode.stop_reason.overlong for episode in group])


def _rewards(group: Group) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns the rewards of a group and the group index (0) of each, in the form of `algorithms.advantages`."""
    return torch.tensor([e.rewards["reward"] for e in group]), torch.zeros(len(group), dtype=torch.long)
