"""The sampling half of a GRPO step: roll out, reward, and keep the groups that can teach."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch

from videoseek.algorithms.advantages import group_advantages, has_spread
from videoseek.config import TrainConfig
from videoseek.data.order import batch_indices
from videoseek.engine import TrainEngine, all_max, all_sum, gather, my_share
from videoseek.rewards.functions import RewardFunction
from videoseek.rewards.trajectory_guided import REWARD_NAMES, write_rewards
from videoseek.rollout.native import NativeEngine
from videoseek.rollout.statistics import episode_sums, means
from videoseek.stages.run import StageRun, sampling_settings
from videoseek.types import Episode, Sample

Group = list[Episode]
ScoredGroup = tuple[Group, list[float]]  # and the advantage of each episode


@dataclass(slots=True)
class Harvest:
    """What one step sampled on this rank: the groups that can teach, and all of them for the record.

    Prompts whose video could not be read have no group; under data.bad_samples=skip they may be all there are.
    """

    groups: list[Group] = field(default_factory=list)
    every: list[Group] = field(default_factory=list)
    num_unreadable: int = 0
    seconds: float = 0.0


def harvest(
    run: StageRun,
    engine: TrainEngine,
    sampler: NativeEngine,
    functions: Sequence[RewardFunction],
    samples: Sequence[Sample],
    step: int,
) -> Harvest:
    """Rolls out this rank's prompts, and further ones in place of groups without spread, a bounded number of times."""
    settings, started = run.config.grpo, time.perf_counter()
    sampling = sampling_settings(run.config, run.config.rollout.temperature)
    rounds = 1 + (settings.max_resample_rounds if settings.filter_zero_spread else 0)
    wanted = len(my_share(settings.prompts_per_step))
    crop = Harvest()
    sampler.forget()
    for attempt in range(rounds):
        draw = step * rounds + attempt
        indices = batch_indices(draw, settings.prompts_per_step, len(samples), run.config.seed)
        mine = [samples[indices[i]] for i in my_share(len(indices))][: wanted - len(crop.groups)]
        with engine.whole_weights():
            sampled = sampler.rollout(
                mine,
                settings.group_size,
                run.config.seed + draw,
                sampling,
                weight_version=step,
                skip_unreadable=run.config.data.bad_samples == "skip",
            )
        groups = [group for group in sampled if group]
        crop.num_unreadable += len(sampled) - len(groups)
        reward_episodes(run.config, functions, [episode for group in groups for episode in group])
        crop.every += groups
        crop.groups += [g for g in groups if not settings.filter_zero_spread or _teaches(g, settings.over_limit)]
        (missing,) = all_sum([wanted - len(crop.groups)], run.device)
        if missing == 0:
            break
    crop.seconds = time.perf_counter() - started
    return crop


def reward_episodes(config: TrainConfig, functions: Sequence[RewardFunction], episodes: Sequence[Episode]) -> None:
    """Writes the reward and its parts into each episode: the rule's value, plus what the user's functions add."""
    write_rewards(episodes, config.reward.variant, config.reward.decay, config.prompt.format)
    for function in functions:
        for episode, value in zip(episodes, function(episodes), strict=True):
            if value is not None:
                episode.rewards[function.name] = value
                episode.rewards["reward"] += value


def harvest_metrics(crop: Harvest, functions: Sequence[RewardFunction], device: torch.device) -> dict[str, float]:
    """Metrics of all that was sampled, over all ranks."""
    parts = {*REWARD_NAMES, *(function.name for function in functions)} - {"reward"}
    sums = episode_sums(crop.every, sorted(parts))
    totals = iter(all_sum([number for pair in sums.values() for number in pair], device))
    (num_unreadable,) = all_sum([crop.num_unreadable], device)
    values = means({name: (next(totals), next(totals)) for name in sums})
    return values | {"rollout/unreadable_prompts": num_unreadable}


def spare_group(crop: Harvest, device: torch.device) -> list[Group]:
    """A group of one episode, to fill up rows with: this rank's, or where it has none another's; [] if no rank has."""
    spare = [group[:1] for group in crop.every[:1]]
    if all_max(int(not spare), device):
        spare = (spare + gather(spare))[:1]
    return spare


def _included(group: Group, over_limit: str) -> torch.Tensor:
    return torch.tensor([over_limit != "exclude" or not episode.stop_reason.over_limit for episode in group])


def _rewards(group: Group) -> tuple[torch.Tensor, torch.Tensor]:
    """Rewards of a group and its index for each, as the pure functions take them."""
    return torch.tensor([e.rewards["reward"] for e in group]), torch.zeros(len(group), dtype=torch.long)


def _teaches(group: Group, over_limit: str) -> bool:
    return bool(has_spread(*_rewards(group), _included(group, over_limit)).any())


def judge(groups: Sequence[Group], kind: str, over_limit: str) -> list[ScoredGroup]:
    """The episodes to train on, by group, and their advantages; a limit was no verdict, so its episodes drop out."""
    scored: list[ScoredGroup] = []
    for group in groups:
        values = group_advantages(*_rewards(group), _included(group, over_limit), kind=kind).tolist()
        kept = [i for i, episode in enumerate(group) if over_limit == "keep" or not episode.stop_reason.over_limit]
        if kept:
            scored.append(([group[i] for i in kept], [values[i] for i in kept]))
    return scored
