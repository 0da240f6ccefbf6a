"""The plan of a GRPO update for all ranks: how groups are cut into trees, trees share rows, and rows are balanced.

Every rank computes the same plan from the same shapes. The loss does not depend on the plan, since it is a sum over
episodes divided by counts of the whole batch; the plan decides the time and the number of repeated prompt tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from videoseek.types import Episode


@dataclass(frozen=True, slots=True)
class GroupShape:
    """Lengths in tokens of group number `index` of rank `rank`: the shared prompt, and each episode's own part."""

    rank: int
    index: int
    prompt_length: int
    branch_lengths: tuple[int, ...]

    @classmethod
    def of(cls, rank: int, index: int, group: Sequence[Episode]) -> GroupShape:
        # The last prompt token belongs to every branch: its row predicts the branch's first token.
        shared = group[0].prompt_length - 1
        return cls(rank, index, shared, tuple(len(episode.token_ids) - shared for episode in group))

    @property
    def tokens_apart(self) -> int:
        """Tokens of all episodes as separate sequences."""
        return sum(self.prompt_length + length for length in self.branch_lengths)


@dataclass(frozen=True, slots=True)
class Tree:
    """Some episodes of a group behind one copy of its prompt; `length` counts the tokens of all."""

    shape: GroupShape
    episodes: tuple[int, ...]

    @property
    def length(self) -> int:
        return self.shape.prompt_length + sum(self.shape.branch_lengths[i] for i in self.episodes)


#: Trees that share one packed row.
Row = list[Tree]


def first_fit_decreasing(lengths: Sequence[int], capacity: int) -> list[list[int]]:
    """Indices in bins of at most `capacity`, longest first, each in the first bin with room. A longer item is alone."""
    bins: list[list[int]] = []
    room: list[int] = []
    for index in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        fitting = next((number for number, left in enumerate(room) if lengths[index] <= left), None)
        if fitting is None:
            bins.append([])
            room.append(capacity)
            fitting = len(bins) - 1
        bins[fitting].append(index)
        room[fitting] -= lengths[index]
    return bins


def split_into_trees(shape: GroupShape, max_tokens: int) -> list[Tree]:
    """Cuts a group into few trees of at most `max_tokens` tokens, each of one episode at least.

    Every further tree repeats the prompt, so few trees mean few tokens.
    """
    bins = first_fit_decreasing(shape.branch_lengths, max_tokens - shape.prompt_length)
    return [Tree(shape, tuple(sorted(episodes))) for episodes in bins]


def plan_rows(shapes: Sequence[GroupShape], max_tokens: int, num_ranks: int) -> list[list[Row]]:
    """The packed rows of every rank, each of at most `max_tokens` tokens as far as single episodes allow.

    A rank keeps its own groups. Whole rows move from the rank with the most rows to the rank with the fewest until
    their numbers differ by one at most: all ranks run as many rows as the one with the most.
    """
    plan: list[list[Row]] = []
    for number in range(num_ranks):
        trees = [tree for shape in shapes if shape.rank == number for tree in split_into_trees(shape, max_tokens)]
        bins = first_fit_decreasing([tree.length for tree in trees], max_tokens)
        plan.append([[trees[i] for i in sorted(row)] for row in bins])
    while True:
        counts = [len(rows) for rows in plan]
        fullest, emptiest = counts.index(max(counts)), counts.index(min(counts))
        if counts[fullest] - counts[emptiest] < 2:
            return plan
        plan[emptiest].append(plan[fullest].pop())


def num_planned_tokens(plan: Sequence[Sequence[Row]]) -> int:
    """Tokens that the plan runs, over all ranks."""
    return sum(tree.length for rows in plan for row in rows for tree in row)
