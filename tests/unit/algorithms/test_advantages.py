from __future__ import annotations

import pytest
import torch

from videoseek.algorithms.advantages import KINDS, group_advantages, has_spread

REWARDS = torch.tensor([1.0, 3.0, 2.0, 5.0, 5.0])
GROUPS = torch.tensor([0, 0, 0, 1, 1])
ALL = torch.ones(5, dtype=torch.bool)


@pytest.mark.parametrize(
    ("kind", "expected"),
    [("grpo", [-1.0, 1.0, 0.0, 0, 0]), ("dr_grpo", [-1.0, 1.0, 0.0, 0, 0]), ("rloo", [-1.5, 1.5, 0.0, 0, 0])],
)
def test_advantages_equal_hand_computed_values(kind: str, expected: list[float]) -> None:
    # Mean 2, squared deviations 1 + 1 + 0 over n - 1 = 2: the deviation is 1.
    found = group_advantages(REWARDS, GROUPS, ALL, kind=kind)
    torch.testing.assert_close(found, torch.tensor(expected), atol=2e-6, rtol=0)


def test_the_deviation_is_unbiased() -> None:
    found = group_advantages(torch.tensor([0.0, 4.0]), torch.tensor([0, 0]), ALL[:2], kind="grpo")
    torch.testing.assert_close(found, torch.tensor([-1.0, 1.0]) / 2**0.5, atol=2e-6, rtol=0)


@pytest.mark.parametrize("kind", KINDS)
def test_excluded_episodes_get_nothing_and_leave_the_baseline_alone(kind: str) -> None:
    included = torch.tensor([True, True, False, True, True])
    found = group_advantages(REWARDS, GROUPS, included, kind=kind)
    without = group_advantages(REWARDS[included], GROUPS[included], ALL[:4], kind=kind)
    assert found[2] == 0
    torch.testing.assert_close(found[included], without)
    wild = REWARDS.clone()
    wild[2] = float("nan")
    torch.testing.assert_close(group_advantages(wild, GROUPS, included, kind=kind), found)


@pytest.mark.parametrize("kind", KINDS)
def test_order_and_group_names_do_not_matter(kind: str) -> None:
    rewards, groups = torch.rand(12), torch.arange(12) % 3
    order = torch.randperm(12)
    whole = group_advantages(rewards, groups, torch.ones(12, dtype=torch.bool), kind=kind)
    shuffled = group_advantages(rewards[order], groups[order] * 5 + 2, torch.ones(12, dtype=torch.bool), kind=kind)
    torch.testing.assert_close(shuffled, whole[order])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size", [1, 3, 7])
def test_equal_rewards_teach_nothing(kind: str, size: int) -> None:
    rewards = torch.full((size,), 2.8125 / 3)
    found = group_advantages(
        rewards, torch.zeros(size, dtype=torch.int64), torch.ones(size, dtype=torch.bool), kind=kind
    )
    assert found.abs().max() < 1e-6


@pytest.mark.parametrize("kind", KINDS)
def test_a_group_of_at_most_one_episode_has_zero_advantage(kind: str) -> None:
    included = torch.tensor([True, False, False, False, False])
    assert group_advantages(REWARDS, GROUPS, included, kind=kind).tolist() == [0] * 5


@pytest.mark.parametrize("kind", KINDS)
def test_an_empty_batch_has_no_advantages(kind: str) -> None:
    empty = torch.zeros(0)
    assert group_advantages(empty, empty.long(), empty.bool(), kind=kind).shape == (0,)


def test_spread_looks_at_included_rewards_only() -> None:
    rewards = torch.tensor([1.0, 1.00005, 2.0, 2.0, 3.0, 3.0, 0.0])
    groups = torch.tensor([0, 0, 1, 1, 1, 2, 3])
    everyone = torch.ones(7, dtype=torch.bool)
    assert has_spread(rewards, groups, everyone).tolist() == [False, True, False, False]
    assert has_spread(rewards, groups, everyone, tolerance=1e-6).tolist() == [True, True, False, False]
    without = everyone.clone()
    without[4] = without[6] = False
    assert has_spread(rewards, groups, without).tolist() == [False, False, False, False]


def test_bad_input_is_named() -> None:
    with pytest.raises(ValueError, match="'ppo' is not one of grpo, dr_grpo, rloo"):
        group_advantages(REWARDS, GROUPS, ALL, kind="ppo")
    with pytest.raises(ValueError, match=r"must be \[N\] alike"):
        group_advantages(REWARDS, GROUPS[:2], ALL, kind="grpo")
    with pytest.raises(ValueError, match="must be finite"):
        group_advantages(REWARDS / 0, GROUPS, ALL, kind="grpo")
