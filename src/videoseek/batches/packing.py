"""Episodes to one packed row: documents side by side, or a group as a tree with its prompt once.

Legend: T packed tokens. The mask form is `visible(m, n) = n <= m < end[n] and visible[m] & key_class[n]`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from videoseek.batches.masks import ReferenceTags, selects, token_masks
from videoseek.batches.positions import mrope_positions
from videoseek.batches.token_batch import TokenBatch
from videoseek.types import Clip, Episode, Role


@dataclass(frozen=True, slots=True)
class PackSettings:
    """What packing must know of the model and of the run."""

    video_pad_id: int
    tokens_per_second: float
    tdam_rule: str = "off"
    tdam_share: float = 0.0
    seed: int = 0
    position_rule: str = "max_all"
    reference_tags: ReferenceTags | None = None


class _Row:
    """The growing packed row."""

    def __init__(self) -> None:
        self.token_ids: list[int] = []
        self.positions: list[torch.Tensor] = []
        self.end: list[int] = []
        self.key_class: list[np.ndarray] = []
        self.visible: list[np.ndarray] = []
        self.clips: dict[Clip, int] = {}  # -> first feature row
        self.num_features = 0
        self.vision_rows: list[int] = []
        self.feature_rows: list[int] = []
        self.label_rows: list[int] = []
        self.labels: list[int] = []
        self.label_documents: list[int] = []
        self.logprobs: list[float] = []
        self.num_documents = 0

    def append(self, view: _View, start: int, stop: int, clips: Sequence[Clip]) -> None:
        """Tokens [start, stop) of a document, with the clips whose pads lie there."""
        base = len(self.token_ids)
        self.token_ids += view.episode.token_ids[start:stop]
        self.positions.append(view.positions[:, start:stop])
        self.key_class.append(view.key_class[start:stop])
        self.visible.append(view.visible[start:stop])
        roles = view.episode.roles
        self.vision_rows += [base + i - start for i in range(start, stop) if roles[i] in _VIDEO_ROLES]
        for clip in clips:
            if clip not in self.clips:
                self.clips[clip] = self.num_features
                self.num_features += clip.num_tokens
            first = self.clips[clip]
            self.feature_rows += range(first, first + clip.num_tokens)

    def label(self, view: _View, start: int, base: int) -> None:
        """Labels for the trained tokens from `start` on; token p stands at row base + p - start, its label a row up."""
        episode = view.episode
        trained = [i for i in range(start, len(episode.token_ids)) if episode.loss_mask[i]]
        self.label_rows += [base + i - start - 1 for i in trained]
        self.labels += [episode.token_ids[i] for i in trained]
        self.logprobs += [episode.logprobs[i] for i in trained]
        self.label_documents += [self.num_documents] * len(trained)
        self.num_documents += 1

    def batch(self) -> TokenBatch:
        return TokenBatch(
            token_ids=torch.tensor(self.token_ids),
            positions=torch.cat(self.positions, dim=1),
            end=torch.tensor(self.end, dtype=torch.int32),
            key_class=torch.from_numpy(np.concatenate(self.key_class)),
            visible=torch.from_numpy(np.concatenate(self.visible)),
            clips=list(self.clips),
            vision_rows=torch.tensor(self.vision_rows, dtype=torch.long),
            feature_rows=torch.tensor(self.feature_rows, dtype=torch.long),
            label_rows=torch.tensor(self.label_rows, dtype=torch.long),
            labels=torch.tensor(self.labels, dtype=torch.long),
            label_documents=torch.tensor(self.label_documents, dtype=torch.long),
            rollout_logprobs=torch.tensor(self.logprobs, dtype=torch.float32),
            num_documents=self.num_documents,
        )


_VIDEO_ROLES = (int(Role.GLOBAL_VIDEO), int(Role.CROP_VIDEO))


@dataclass(slots=True)
class _View:
    """An episode with what the packed row needs of each of its tokens."""

    episode: Episode
    positions: torch.Tensor
    key_class: np.ndarray
    visible: np.ndarray

    @classmethod
    def of(cls, episode: Episode, settings: PackSettings) -> _View:
        positions, _ = mrope_positions(
            episode.token_ids,
            episode.clips,
            settings.video_pad_id,
            settings.tokens_per_second,
            rule=settings.position_rule,
        )
        rule = settings.tdam_rule if masked_by_tdam(episode, settings) else "off"
        key_class, visible = token_masks(
            episode.token_ids, episode.roles, episode.turn_kinds, rule, reference_tags=settings.reference_tags
        )
        return cls(episode, positions, key_class, visible)


def masked_by_tdam(episode: Episode, settings: PackSettings) -> bool:
    """Whether the draw for this sample puts it among the `tdam_share` of tool-using samples that the rule is for."""
    return len(episode.clips) > 1 and selects(episode.sample.id, settings.seed, settings.tdam_share)


def pack_documents(episodes: Sequence[Episode], settings: PackSettings) -> TokenBatch:
    """Each episode a document of its own. Raises ValueError for an empty list."""
    if not episodes:
        raise ValueError("nothing to pack")
    row = _Row()
    for episode in episodes:
        view, base = _View.of(episode, settings), len(row.token_ids)
        row.append(view, 0, len(episode.token_ids), episode.clips)
        row.end += [len(row.token_ids)] * len(episode.token_ids)
        row.label(view, 0, base)
    return row.batch()


def pack_groups(groups: Sequence[Sequence[Episode]], settings: PackSettings) -> TokenBatch:
    """Each group a tree: the prompt once, then one branch an episode.

    A branch opens with its own copy of the last prompt token: that row predicts the branch's first token, so under
    TDAM it may see something else in each branch. Raises ValueError when the prompts of a group differ, and for an
    empty list.
    """
    if not groups:
        raise ValueError("nothing to pack")
    row = _Row()
    for group in groups:
        shared = group[0].prompt_length - 1
        prompt = group[0].token_ids[: shared + 1], group[0].clips[0]
        if any((episode.token_ids[: shared + 1], episode.clips[0]) != prompt for episode in group):
            raise ValueError(f"episodes of group {group[0].sample.id!r} do not share one prompt")
        base = len(row.token_ids)
        views = [_View.of(episode, settings) for episode in group]
        row.append(views[0], 0, shared, group[0].clips[:1])
        ends = []
        for view in views:
            branch = len(row.token_ids)
            length = len(view.episode.token_ids)
            row.append(view, shared, length, view.episode.clips[1:])
            ends += [len(row.token_ids)] * (length - shared)
            row.label(view, shared, branch)
        row.end += [base + shared + len(ends)] * shared + ends
    return row.batch()


def tree_length(group: Sequence[Episode]) -> int:
    """Tokens that `pack_groups` spends on a group."""
    shared = group[0].prompt_length - 1
    return shared + sum(len(episode.token_ids) - shared for episode in group)
