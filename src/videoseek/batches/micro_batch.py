"""Groups of episodes as the micro-batches of a policy update.

A group trains as one packed tree, its prompt once. A group that exceeds the row's limit is cut into several trees.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from videoseek.batches.order import cut_rows
from videoseek.batches.packing import PackSettings, pack_groups, tree_length
from videoseek.batches.token_batch import TokenBatch
from videoseek.types import Episode

Group = list[Episode]
ScoredGroup = tuple[Group, list[float]]  # the episodes of one prompt, and the advantage of each


@dataclass(slots=True)
class MicroBatch:
    """One packed row of trees. For each of its N labels: the advantage, and the log-prob before the first update.

    `old_logprobs` is None where the batch gets a single update: the probability ratio is 1 then.
    """

    batch: TokenBatch
    advantages: torch.Tensor
    old_logprobs: torch.Tensor | None = None


def pack_micro_batch(groups: Sequence[ScoredGroup], packing: PackSettings, device: torch.device) -> MicroBatch:
    """Packs scored groups into one row on `device`."""
    batch = pack_groups([group for group, _ in groups], packing).to(device)
    by_document = torch.tensor([value for _, values in groups for value in values], device=device)
    return MicroBatch(batch, by_document[batch.label_documents])


def pack_micro_batches(
    groups: Sequence[ScoredGroup], max_tokens: int, packing: PackSettings, device: torch.device
) -> list[MicroBatch]:
    """Packs scored groups into rows of at most `max_tokens`. A longer episode gets a row of its own."""
    trees = [tree for group, advantages in groups for tree in split_group(group, advantages, max_tokens)]
    rows = cut_rows([tree_length(group) for group, _ in trees], max_tokens)
    return [pack_micro_batch([trees[i] for i in row], packing, device) for row in rows]


def split_group(group: Group, advantages: Sequence[float], max_tokens: int) -> list[ScoredGroup]:
    """Cuts a group into trees of at most `max_tokens` tokens and at least one episode. Each tree repeats the prompt.

    The gradient equals that of the whole group: the loss is a sum over episodes, divided by counts of the whole batch.
    """
    # The last prompt token belongs to every branch: it predicts the branch's first token.
    shared = group[0].prompt_length - 1
    cuts = cut_rows([len(episode.token_ids) - shared for episode in group], max_tokens - shared)
    return [([group[i] for i in cut], [advantages[i] for i in cut]) for cut in cuts]
