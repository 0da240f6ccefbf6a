"""Advantages of grouped episodes: compares each episode with the others of the same prompt."""

from __future__ import annotations

from typing import NamedTuple

import torch

KINDS = ("grpo", "dr_grpo", "rloo")

#: Added to the standard deviation of a group (Video-o3's training code).
STD_EPSILON = 1e-6


class _GroupStatistics(NamedTuple):
    """Statistics per group [G] over included episodes: number, mean, and summed squared deviation."""

    number: torch.Tensor
    mean: torch.Tensor
    squares: torch.Tensor


def _check(rewards: torch.Tensor, groups: torch.Tensor, included: torch.Tensor) -> None:
    if not rewards.shape == groups.shape == included.shape or rewards.dim() != 1:
        shapes = [tuple(tensor.shape) for tensor in (rewards, groups, included)]
        raise ValueError(f"rewards, groups and included must be [N] alike, got {shapes}")
    if not torch.isfinite(rewards[included]).all():
        raise ValueError("rewards of included episodes must be finite")


def _statistics(rewards: torch.Tensor, groups: torch.Tensor, included: torch.Tensor) -> _GroupStatistics:
    num_groups = int(groups.max()) + 1 if groups.numel() else 0
    zeros = rewards.new_zeros(num_groups)
    kept, group = rewards[included], groups[included]
    number = zeros.index_add(0, group, torch.ones_like(kept))
    mean = zeros.index_add(0, group, kept) / number.clamp(min=1)
    squares = zeros.index_add(0, group, (kept - mean[group]) ** 2)
    return _GroupStatistics(number, mean, squares)


def group_advantages(rewards: torch.Tensor, groups: torch.Tensor, included: torch.Tensor, *, kind: str) -> torch.Tensor:
    """Returns the advantage of each episode, [N].

    rewards [N] float, groups [N] int64 (index of the prompt), included [N] bool.
    grpo (2402.03300, eq. 3): (R - mean) / (std + 1e-6), std unbiased; dr_grpo (2503.20783): R - mean; rloo
    (2402.14740): R - mean of the others. Excluded episodes get 0 and leave the baseline. A single included episode of a
    group gets 0. Raises ValueError for an unknown kind, unequal shapes and non-finite rewards.
    """
    if kind not in KINDS:
        raise ValueError(f"advantage kind {kind!r} is not one of {', '.join(KINDS)}")
    _check(rewards, groups, included)
    # Double precision: grpo divides by the deviation, and rounding of the mean must not look like a deviation.
    precise = rewards.double()
    number, mean, squares = _statistics(precise, groups, included)
    advantages = torch.where(included, precise - mean[groups], 0.0)
    others = (number - 1).clamp(min=1)
    if kind == "grpo":
        advantages = advantages / ((squares / others).sqrt() + STD_EPSILON)[groups]
    if kind == "rloo":
        advantages = advantages * (number / others)[groups]
    return advantages.to(rewards.dtype)


def has_spread(
    rewards: torch.Tensor, groups: torch.Tensor, included: torch.Tensor, *, tolerance: float = 1e-4
) -> torch.Tensor:
    """Returns per group [G] whether included rewards differ by more than `tolerance`. Equal rewards teach nothing."""
    _check(rewards, groups, included)
    num_groups = int(groups.max()) + 1 if groups.numel() else 0
    kept, group = rewards[included], groups[included]
    highest = rewards.new_full((num_groups,), -torch.inf).scatter_reduce(0, group, kept, "amax")
    lowest = rewards.new_full((num_groups,), torch.inf).scatter_reduce(0, group, kept, "amin")
    return highest - lowest > tolerance
