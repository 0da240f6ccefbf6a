"""Packs groups of episodes into the micro-batches of a policy update.

A group trains as one packed tree with one copy of the prompt. The groups about one film can train as one tree with one
copy of the film. A tree beyond the row's limit becomes several trees.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from videoseek.batches.packing import PackSettings, pack_groups
from videoseek.batches.planning import GroupShape, Tree, num_planned_tokens, plan_rows
from videoseek.batches.token_batch import TokenBatch
from videoseek.distributed import gather
from videoseek.runtime import rank, world_size
from videoseek.types import Clip, Episode

Group = list[Episode]
ScoredGroup = tuple[Group, list[float]]  # the episodes of one prompt with their advantages


@dataclass(slots=True)
class MicroBatch:
    """One packed row of trees, with the advantage and the log-prob before the first update for each of N labels.

    `old_logprobs` is None for a batch with a single update: the probability ratio is 1.
    """

    batch: TokenBatch
    advantages: torch.Tensor
    old_logprobs: torch.Tensor | None = None

    @property
    def sample_ids(self) -> list[str]:
        return self.batch.sample_ids


@dataclass(frozen=True, slots=True)
class PlanAccount:
    """Tokens of a minibatch over all ranks: in the plan, and as separate episodes."""

    num_tokens: int
    num_tokens_apart: int


def pack_micro_batch(groups: Sequence[ScoredGroup], packing: PackSettings, device: torch.device) -> MicroBatch:
    """Packs scored groups into one row on `device`."""
    batch = pack_groups([group for group, _ in groups], packing).to(device)
    by_document = torch.tensor([value for _, values in groups for value in values], device=device)
    return MicroBatch(batch, by_document[batch.label_documents])


def plan_micro_batches(
    groups: Sequence[ScoredGroup], max_tokens: int, packing: PackSettings, device: torch.device
) -> tuple[list[MicroBatch], PlanAccount]:
    """Packs the groups of all ranks by one plan. Returns this rank's micro-batches and the account of the whole plan.

    `packing.share_films` joins this rank's groups about one film. Rows move between ranks as token ids and references
    to clips, never as pixels.
    """
    if packing.share_films:
        groups = join_films(groups)
    own = [GroupShape.of(rank(), index, episodes) for index, (episodes, _) in enumerate(groups) if episodes]
    shapes = sorted(gather(own), key=lambda shape: (shape.rank, shape.index))
    plan = plan_rows(shapes, max_tokens, world_size())
    trees = {tree: _scored(groups, tree) for rows in plan for row in rows for tree in row if tree.shape.rank == rank()}
    moved = {tree for number, rows in enumerate(plan) for row in rows for tree in row if tree.shape.rank != number}
    if moved:
        trees |= dict(gather([(tree, scored) for tree, scored in trees.items() if tree in moved]))
    rows = [pack_micro_batch([trees[tree] for tree in row], packing, device) for row in plan[rank()]]
    return rows, PlanAccount(num_planned_tokens(plan), sum(shape.tokens_apart for shape in shapes))


def join_films(groups: Sequence[ScoredGroup]) -> list[ScoredGroup]:
    """Joins the groups whose prompts show the same clip, in the order of their prompts' token ids."""
    films: dict[Clip, list[ScoredGroup]] = {}
    for group in groups:
        if group[0]:
            films.setdefault(group[0][0].clips[0], []).append(group)
    return [_joined(sorted(film, key=lambda group: _prompt_ids(group[0][0]))) for film in films.values()]


def _joined(groups: Sequence[ScoredGroup]) -> ScoredGroup:
    return [e for episodes, _ in groups for e in episodes], [value for _, values in groups for value in values]


def _prompt_ids(episode: Episode) -> list[int]:
    return episode.token_ids[: episode.prompt_length]


def _scored(groups: Sequence[ScoredGroup], tree: Tree) -> ScoredGroup:
    episodes, advantages = groups[tree.shape.index]
    return [episodes[i] for i in tree.episodes], [advantages[i] for i in tree.episodes]


def plan_metrics(accounts: Sequence[PlanAccount]) -> dict[str, float]:
    """Returns the metrics of a batch: tokens of the plan, tokens of separate episodes, and the ratio of both."""
    num_tokens = sum(account.num_tokens for account in accounts)
    num_apart = sum(account.num_tokens_apart for account in accounts)
    saving = num_apart / num_tokens if num_tokens else 1.0
    return {"plan/tokens": num_tokens, "plan/tokens_apart": num_apart, "plan/saving": saving}
