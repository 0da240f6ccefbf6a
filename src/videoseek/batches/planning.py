"""Plans a GRPO update for all ranks: cuts groups into trees, packs trees into rows, and balances rows over ranks.

Every rank computes the same plan from the same shapes. The loss is a sum over episodes divided by counts of the whole
batch, and is independent of the plan. The plan decides the time and the number of repeated prompt tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise

from videoseek.batches.sharing import shared_lengths
from videoseek.types import Episode


@dataclass(frozen=True, slots=True)
class GroupShape:
    """Lengths in tokens of the episodes of group `index` on rank `rank`.

    Episode i shares its first shared_lengths[i] tokens with episode i - 1. The episodes answer one prompt, or several
    prompts about one film in the order of their token ids.
    """

    rank: int
    index: int
    lengths: tuple[int, ...]
    shared_lengths: tuple[int, ...]

    @classmethod
    def of(cls, rank: int, index: int, group: Sequence[Episode]) -> GroupShape:
        return cls(rank, index, tuple(len(episode.token_ids) for episode in group), tuple(shared_lengths(group)))

    @property
    def tokens_apart(self) -> int:
        """Returns the tokens of all episodes as separate sequences."""
        return sum(self.lengths)

    def tree_length(self, episodes: Iterable[int]) -> int:
        """Returns the tokens of one tree of some episodes."""
        indices = sorted(episodes)
        # In sorted sequences, the common prefix of two is the shortest of those of the neighbours between them.
        shared = (min(self.shared_lengths[a + 1 : b + 1]) for a, b in pairwise(indices))
        return sum(self.lengths[i] for i in indices) - sum(shared)


@dataclass(frozen=True, slots=True)
class Tree:
    """Some episodes of a group, in ascending order, behind one copy of their prompt or film."""

    shape: GroupShape
    episodes: tuple[int, ...]

    @property
    def length(self) -> int:
        """Returns the number of all tokens."""
        return self.shape.tree_length(self.episodes)


#: Trees in one packed row.
Row = list[Tree]


def first_fit_decreasing(
    lengths: Sequence[int], capacity: int, length_of: Callable[[list[int]], int] | None = None
) -> list[list[int]]:
    """Packs indices into bins of at most `capacity` by first-fit decreasing. A longer item gets its own bin.

    `length_of` gives the length of a bin's items together: by default the sum of their lengths.
    """
    length_of = length_of or (lambda members: sum(lengths[i] for i in members))
    bins: list[list[int]] = []
    for index in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        fitting = next((members for members in bins if length_of([*members, index]) <= capacity), None)
        if fitting is None:
            bins.append([index])
        else:
            fitting.append(index)
    return bins


def split_into_trees(shape: GroupShape, max_tokens: int) -> list[Tree]:
    """Cuts a group into few trees of at most `max_tokens` tokens, with at least one episode per tree.

    Every further tree repeats the prompt or the film: few trees mean few tokens.
    """
    bins = first_fit_decreasing(shape.lengths, max_tokens, shape.tree_length)
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
