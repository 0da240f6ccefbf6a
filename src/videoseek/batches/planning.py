"""Plans a GRPO update for all ranks: cuts groups into trees, packs trees into rows, and balances rows over ranks.

Every rank computes the same plan from the same shapes. The loss is a sum over episodes divided by counts of the whole
batch, and is independent of the plan. The plan decides the time and the number of repeated prompt tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from videoseek.types import Episode


@dataclass(frozen=True, slots=True)
class GroupShape:
    """Lengths in tokens of group `index` on rank `rank`: the shared prompt, and the own part of each episode."""

    rank: int
    index: int
    prompt_length: int
    branch_lengths: tuple[int, ...]

    @classmethod
    def of(cls, rank: int, index: int, group: Sequence[Episode]) -> GroupShape:
        # The last prompt token belongs to every branch: the row of that token predicts the branch's first token.
        shared = group[0].prompt_length - 1
        return cls(rank, index, shared, tuple(len(episode.token_ids) - shared for episode in group))

    @property
    def tokens_apart(self) -> int:
        """Returns the tokens of all episodes as separate sequences."""
        return sum(self.prompt_length + length for length in self.branch_lengths)


@dataclass(frozen=True, slots=True)
class Tree:
    """Some episodes of a group behind one copy of the prompt. `length` counts all tokens."""

    shape: GroupShape
    episodes: tuple[int, ...]

    @property
    def length(self) -> int:
        return self.shape.prompt_length + sum(self.shape.branch_lengths[i] for i in self.episodes)


#: Trees in one packed row.
Row = list[Tree]


def first_fit_decreasing(lengths: Sequence[int], capacity: int) -> list[list[int]]:
    """Packs indices into bins of at most `capacity` by first-fit decreasing. A longer item gets its own bin."""
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
    """Cuts a group into few trees of at most `max_tokens` tokens, with at least one episode per tree.

    Every further tree repeats the prompt: few trees mean few tokens.
    """
    bins = first_fit_decreasing(shape.branch_lengths, max_tokens - shape.prompt_length)
    return [Tree(shape, tuple(sorted(episodes))) for episodes in bins]


def plan_rows(shapes: Sequence[GroupShape], max_tokens: int, num_ranks: int) -> list[list[Row]]:
    """Returns the packed rows of every rank, each of at most `max_tokens` tokens as far as single episodes allow.

    A rank keeps its own groups. Whole rows move from the rank with the most rows to the rank with the fewest, until the
    row counts differ by at most one: all ranks run as many passes as the fullest rank.
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
    """Returns the tokens of the plan over all ranks."""
    return sum(tree.length for rows in plan for row in rows for tree in row)
