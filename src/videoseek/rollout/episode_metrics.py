"""Metrics of a batch of episodes, as sums and counts for addition over ranks."""

from __future__ import annotations

from collections.abc import Sequence

from videoseek.types import Episode, StopReason

Sums = dict[str, tuple[float, float]]


def episode_sums(groups: Sequence[Sequence[Episode]], parts: Sequence[str]) -> Sums:
    """Returns metric name -> (sum, count); sum / count is the metric. The episodes must have their rewards.

    `parts` names the parts of the reward. Every rank returns the same names for the sum over ranks: a part missing in
    all episodes is (0, 0).
    """
    episodes = [episode for group in groups for episode in group]
    count = float(len(episodes))
    lengths = [len(episode.token_ids) - episode.prompt_length for episode in episodes]
    rewards = [episode.rewards["reward"] for episode in episodes]
    calls = [record for episode in episodes for record in episode.calls]
    clipped_reasons = (StopReason.TOKEN_LIMIT, StopReason.CONTEXT_FULL)
    sums: Sums = {
        "reward/mean": (sum(rewards), count),
        "reward/square": (sum(reward**2 for reward in rewards), count),
        "completions/mean_length": (float(sum(lengths)), count),
        "completions/clipped_ratio": (float(sum(e.stop_reason in clipped_reasons for e in episodes)), count),
        "tools/calls_per_episode": (float(len(calls)), count),
        "tools/failure_rate": (float(sum(record.failed for record in calls)), float(len(calls))),
        "turns/mean": (float(sum(len(e.assistant_texts()) for e in episodes)), count),
        "turns/overlong_rate": (float(sum(e.stop_reason.overlong for e in episodes)), count),
        "answered_rate": (float(sum(e.answer is not None for e in episodes)), count),
    }
    spreads = [_reward_spread(group) for group in groups]
    best = [max(episode.rewards["accuracy"] for episode in group) for group in groups]
    worst = [min(episode.rewards["accuracy"] for episode in group) for group in groups]
    num_groups = float(len(groups))
    sums["reward/frac_zero_std"] = (float(sum(spread <= 1e-4 for spread in spreads)), num_groups)
    sums["reward/frac_all_right"] = (float(sum(value >= 1 for value in worst)), num_groups)
    sums["reward/frac_all_wrong"] = (float(sum(value <= 0 for value in best)), num_groups)
    for name in parts:
        values = [episode.rewards[name] for episode in episodes if name in episode.rewards]
        sums[f"rewards/{name}/mean"] = (float(sum(values)), float(len(values)))
    return sums


def _reward_spread(group: Sequence[Episode]) -> float:
    rewards = [episode.rewards["reward"] for episode in group]
    return max(rewards) - min(rewards)


def means(sums: Sums) -> dict[str, float]:
    """Returns the metrics of `sums`, with `reward/std` in place of `reward/square`."""
    values = {name: total / max(count, 1.0) for name, (total, count) in sums.items()}
    square = values.pop("reward/square")
    return values | {"reward/std": max(0.0, square - values["reward/mean"] ** 2) ** 0.5}
