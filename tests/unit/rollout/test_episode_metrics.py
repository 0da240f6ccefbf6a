from __future__ import annotations

from dataclasses import replace
from statistics import fmean, pstdev

import pytest
from support.tiny_world import MALFORMED, answer, look, tiny_world

from videoseek.rollout.episode_metrics import Sums, episode_sums, means
from videoseek.types import Episode, StopReason

PARTS = ("accuracy", "length")


@pytest.fixture
def groups() -> list[list[Episode]]:
    world = tiny_world()
    first = [world.replay(0, answer("A")), world.replay(0, look(4, 8), look(500, 504), answer("B"))]
    second = [world.replay(5, MALFORMED, look(4, 8)), world.replay(5, answer("C"))]
    values = [(2.0, 1.0), (0.5, 0.0), (0.0, 0.0), (0.0, 0.0)]
    for episode, (reward, accuracy) in zip([*first, *second], values, strict=True):
        episode.rewards = {"reward": reward, "accuracy": accuracy}
    first[0].rewards["length"] = 0.25
    second[0].stop_reason = StopReason.TURN_LIMIT
    second[1].stop_reason = StopReason.TOKEN_LIMIT
    return [first, second]


def test_metrics_equal_hand_computed_values(groups: list[list[Episode]]) -> None:
    metrics = means(episode_sums(groups, PARTS))
    episodes = [episode for group in groups for episode in group]
    rewards = [episode.rewards["reward"] for episode in episodes]
    expected = {
        "reward/mean": fmean(rewards),
        "reward/std": pstdev(rewards),
        "reward/frac_zero_std": 0.5,
        "reward/frac_all_right": 0.0,
        "reward/frac_all_wrong": 0.5,
        "rewards/accuracy/mean": 0.25,
        "rewards/length/mean": 0.25,
        "completions/mean_length": fmean(len(e.token_ids) - e.prompt_length for e in episodes),
        "completions/clipped_ratio": 0.25,
        "tools/calls_per_episode": 3 / 4,
        "tools/failure_rate": 2 / 3,
        "turns/mean": 7 / 4,
        "turns/overlong_rate": 0.5,
        "answered_rate": 3 / 4,
    }
    assert metrics == pytest.approx(expected)


def test_a_group_all_right_is_counted(groups: list[list[Episode]]) -> None:
    for episode in groups[0]:
        episode.rewards = {"reward": 1.5, "accuracy": 1.0}
    metrics = means(episode_sums(groups, PARTS))
    assert (metrics["reward/frac_all_right"], metrics["reward/frac_zero_std"]) == (0.5, 1.0)


def added(first: Sums, second: Sums) -> Sums:
    return {name: (first[name][0] + second[name][0], first[name][1] + second[name][1]) for name in first}


def test_sums_add_up_over_ranks(groups: list[list[Episode]]) -> None:
    parts = [episode_sums([group], PARTS) for group in groups]
    assert means(added(*parts)) == pytest.approx(means(episode_sums(groups, PARTS)))


def test_episodes_without_calls_have_no_failed_calls(groups: list[list[Episode]]) -> None:
    quiet = [[replace(episode, calls=[]) for episode in group] for group in groups]
    metrics = means(episode_sums(quiet, PARTS))
    assert metrics["tools/failure_rate"] == 0.0 and metrics["tools/calls_per_episode"] == 0.0


def test_a_rank_without_groups_adds_nothing(groups: list[list[Episode]]) -> None:
    empty, full = episode_sums([], PARTS), episode_sums(groups, PARTS)
    assert all(value == (0.0, 0.0) for value in empty.values())
    assert means(empty)["reward/std"] == 0.0
    assert full == added(empty, full)
