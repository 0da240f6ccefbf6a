"""Collectives over the ranks of a run, and how a global batch is divided among them."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import TypeVar

import torch
import torch.distributed as dist

from videoseek.ranks import rank, world_size

T = TypeVar("T")


def all_sum(values: Sequence[float], device: torch.device) -> list[float]:
    """Element-wise sum over ranks."""
    total = torch.tensor(values, dtype=torch.float64, device=device)
    if world_size() > 1:
        dist.all_reduce(total)
    return total.tolist()


def all_max(value: int, device: torch.device) -> int:
    """Maximum over ranks."""
    most = torch.tensor(value, device=device)
    if world_size() > 1:
        dist.all_reduce(most, op=dist.ReduceOp.MAX)
    return int(most)


def gather(items: list[T]) -> list[T]:
    """The lists of all ranks, joined in the order that `rank_indices` dealt them out."""
    if world_size() == 1:
        return items
    shares: list[list[T]] = [[] for _ in range(world_size())]
    dist.all_gather_object(shares, items)
    return [share[i] for i in range(max(map(len, shares))) for share in shares if i < len(share)]


def split_minibatches(items: Sequence[T], draws: Sequence[int], num_minibatches: int) -> list[list[T]]:
    """This rank's items in each of `num_minibatches` minibatches of all ranks' items.

    `draws` orders the items of all ranks. A minibatch is a stretch of that order, so that its items do not depend on
    the number of ranks. Sizes of minibatches differ by one at most.
    """
    order = sorted(gather([(draw, rank(), index) for index, draw in enumerate(draws)]))
    cuts = [len(order) * number // num_minibatches for number in range(num_minibatches + 1)]
    return [[items[i] for _, owner, i in order[a:b] if owner == rank()] for a, b in itertools.pairwise(cuts)]


def barrier() -> None:
    if world_size() > 1:
        dist.barrier()


def rank_indices(count: int) -> range:
    """Indices of a global batch that this rank handles: every world_size-th, so that ranks differ by one at most."""
    return range(rank(), count, world_size())
