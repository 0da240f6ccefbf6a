"""Plans a GRPO update for all ranks: cuts groups into trees, packs trees into rows, and balances rows over ranks.

Every rank computes the same plan from the same shapes. The loss is a sum over episodes divided by counts of the whole
batch, and is independent of the plan. The plan decides the time and the number of repeated prompt tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import accumulate, groupby, pairwise

from videoseek.batches.sharing import shared_lengths
from videoseek.types import Episode


@dataclass(frozen=True, slots=True)
class GroupShape:
    """Lengths in tokens of the episodes of group `index` on rank `rank`.

    Episode i answers prompt prompts[i], and shares its first shared_lengths[i] tokens with episode i - 1. A group has
    one prompt, or several prompts about one film in the order of their token ids.
    """

    rank: int
    index: int
    prompts: tuple[int, ...]
    lengths: tuple[int, ...]
    shared_lengths: tuple[int, ...]

    @classmethod
    def of(cls, rank: int, index: int, group: Sequence[Episode]) -> GroupShape:
        shared = shared_lengths(group)
        opens = [num_shared < e.prompt_length - 1 for e, num_shared in zip(group, shared, strict=True)]
        lengths = tuple(len(episode.token_ids) for episode in group)
        return cls(rank, index, tuple(accumulate(opens)), lengths, tuple(shared))

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


def first_fit(order: Sequence[int], capacity: int, length_of: Callable[[list[int]], int]) -> list[list[int]]:
    """Packs indices, in `order`, each into the first bin that `length_of` gives at most `capacity` with the index.

    An index that fits no bin opens a new one.
    """
    bins: list[list[int]] = []
    for index in order:
        fitting = next((members for members in bins if length_of([*members, index]) <= capacity), None)
        if fitting is None:
            bins.append([index])
        else:
            fitting.append(index)
    return bins


def split_into_trees(shape: GroupShape, max_tokens: int) -> list[Tree]:
    """Cuts a group into few trees of at most `max_tokens` tokens, with at least one episode per tree.

    Every further tree repeats the film and its prompts. The prompts of a group share trees where that takes no more
    tokens than trees of one prompt each.
    """
    order = sorted(range(len(shape.lengths)), key=lambda i: (shape.prompts[i], -shape.lengths[i]))
    prompts = [list(indices) for _, indices in groupby(order, key=lambda i: shape.prompts[i])]
    joined = first_fit(order, max_tokens, shape.tree_length)
    apart = [episodes for prompt in prompts for episodes in first_fit(prompt, max_tokens, shape.tree_length)]
    bins = min(joined, apart, key=lambda bins: sum(map(shape.tree_length, bins)))
    return [Tree(shape, tuple(sorted(episodes))) for episodes in bins]


def pack_trees(trees: Sequence[Tree], max_tokens: int) -> list[Row]:
    """Packs trees into rows of at most `max_tokens` tokens by first-fit decreasing. A longer tree gets its own row."""
    lengths = [tree.length for tree in trees]
    order = sorted(range(len(trees)), key=lambda i: -lengths[i])
    bins = first_fit(order, max_tokens, lambda members: sum(lengths[i] for i in members))
    return [[trees[i] for i in sorted(members)] for members in bins]


def plan_rows(shapes: Sequence[GroupShape], max_tokens: int, num_ranks: int) -> list[list[Row]]:
    """Returns the packed rows of every rank, each of at most `max_tokens` tokens as far as single episodes allow.

    A rank keeps its own groups. Whole rows move from the rank with the most rows to the rank with the fewest, until the
    row counts differ by at most one: all ranks run as many passes as the fullest rank.
    """
    plan: list[list[Row]] = []
    for number in range(num_ranks):
        trees = [tree for shape in shapes if shape.rank == number for tree in split_into_trees(shape, max_tokens)]
        plan.append(pack_trees(trees, max_tokens))
    while True:
        counts = [len(rows) for rows in plan]
        fullest, emptiest = counts.index(max(counts)), counts.index(min(counts))
        if counts[fullest] - counts[emptiest] < 2:
            return plan
        plan[emptiest].append(plan[fullest].pop())


def num_planned_tokens(plan: Sequence[Sequence[Row]]) -> int:
    """Returns the tokens of the plan over all ranks."""
    return sum(tree.length for rows in plan for row in rows for tree in row)
