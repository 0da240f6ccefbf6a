"""Packs episodes into one row: as documents side by side, or as trees with one prompt per group.

Legend: T packed tokens. Row m sees key n iff n <= m < end[n] and visible[m] & key_class[n].
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

_VIDEO_ROLES = (int(Role.GLOBAL_VIDEO), int(Role.CROP_VIDEO))


@dataclass(frozen=True, slots=True)
class PackSettings:
    """Properties of the model and of the run for packing."""

    video_pad_id: int
    tokens_per_second: float
    tdam_rule: str = "off"
    tdam_share: float = 0.0
    seed: int = 0
    position_rule: str = "max_all"
    reference_tags: ReferenceTags | None = None


@dataclass(slots=True)
class _Document:
    """An episode with the positions and the masks of its tokens, computed for the episode alone."""

    episode: Episode
    positions: torch.Tensor
    key_class: np.ndarray
    visible: np.ndarray

    @classmethod
    def of(cls, episode: Episode, settings: PackSettings) -> _Document:
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


class _PackedRow:
    """Collects the fields of a TokenBatch while documents are appended."""

    def __init__(self) -> None:
        self.token_ids: list[int] = []
        self.positions: list[torch.Tensor] = []
        self.end: list[int] = []
        self.key_class: list[np.ndarray] = []
        self.visible: list[np.ndarray] = []
        self.first_feature: dict[Clip, int] = {}  # first feature row of each clip, in order of first appearance
        self.num_features = 0
        self.vision_rows: list[int] = []
        self.feature_rows: list[int] = []
        self.label_rows: list[int] = []
        self.labels: list[int] = []
        self.label_documents: list[int] = []
        self.rollout_logprobs: list[float] = []
        self.sample_ids: list[str] = []  # of each document

    def append(self, document: _Document, start: int, stop: int, clips: Sequence[Clip]) -> int:
        """Appends tokens [start, stop) of a document, with the `clips` of their pads. Returns the first row."""
        first_row = len(self.token_ids)
        self.token_ids += document.episode.token_ids[start:stop]
        # Positions count within the document alone: attention in a tree equals attention in separate episodes.
        self.positions.append(document.positions[:, start:stop])
        self.key_class.append(document.key_class[start:stop])
        self.visible.append(document.visible[start:stop])
        roles = document.episode.roles
        self.vision_rows += [first_row + i - start for i in range(start, stop) if roles[i] in _VIDEO_ROLES]
        for clip in clips:
            # Episodes of a group often crop the same window. The vision tower encodes an equal clip once.
            if clip not in self.first_feature:
                self.first_feature[clip] = self.num_features
                self.num_features += clip.num_tokens
            first_feature = self.first_feature[clip]
            self.feature_rows += range(first_feature, first_feature + clip.num_tokens)
        return first_row

    def append_labels(self, document: _Document, start: int, first_row: int) -> None:
        """Appends the labels of a document from token `start` (at row `first_row`) on, and closes the document."""
        episode = document.episode
        trained = [i for i in range(start, len(episode.token_ids)) if episode.loss_mask[i]]
        # The row before a token predicts it.
        self.label_rows += [first_row + i - start - 1 for i in trained]
        self.labels += [episode.token_ids[i] for i in trained]
        self.rollout_logprobs += [episode.rollout_logprobs[i] for i in trained]
        self.label_documents += [len(self.sample_ids)] * len(trained)
        self.sample_ids.append(episode.sample.id)

    def to_batch(self) -> TokenBatch:
        """Returns the row as tensors on the host."""
        return TokenBatch(
            token_ids=torch.tensor(self.token_ids),
            positions=torch.cat(self.positions, dim=1),
            end=torch.tensor(self.end, dtype=torch.int32),
            key_class=torch.from_numpy(np.concatenate(self.key_class)),
            visible=torch.from_numpy(np.concatenate(self.visible)),
            clips=list(self.first_feature),
            vision_rows=torch.tensor(self.vision_rows, dtype=torch.long),
            feature_rows=torch.tensor(self.feature_rows, dtype=torch.long),
            label_rows=torch.tensor(self.label_rows, dtype=torch.long),
            labels=torch.tensor(self.labels, dtype=torch.long),
            label_documents=torch.tensor(self.label_documents, dtype=torch.long),
            rollout_logprobs=torch.tensor(self.rollout_logprobs, dtype=torch.float32),
            sample_ids=self.sample_ids,
        )


def masked_by_tdam(episode: Episode, settings: PackSettings) -> bool:
    """Returns whether TDAM masks an episode: the episode shows a crop, and `selects` draws its sample."""
    return len(episode.clips) > 1 and selects(episode.sample.id, settings.seed, settings.tdam_share)


def pack_documents(episodes: Sequence[Episode], settings: PackSettings) -> TokenBatch:
    """Packs each episode as a document of its own. Raises ValueError for an empty list."""
    if not episodes:
        raise ValueError("nothing to pack")
    row = _PackedRow()
    for episode in episodes:
        document, length = _Document.of(episode, settings), len(episode.token_ids)
        first_row = row.append(document, 0, length, episode.clips)
        row.end += [first_row + length] * length
        row.append_labels(document, 0, first_row)
    return row.to_batch()


def pack_groups(groups: Sequence[Sequence[Episode]], settings: PackSettings) -> TokenBatch:
    """Packs each group as a tree: the prompt once, then one branch per episode.

    A branch opens with its own copy of the last prompt token. Raises ValueError for unequal prompts in a group and for
    an empty list.
    """
    if not groups:
        raise ValueError("nothing to pack")
    row = _PackedRow()
    for group in groups:
        # The last prompt token predicts the first token of a branch. A shared row could carry only one label, and under
        # TDAM only one mask. Hence the trunk excludes the last prompt token.
        trunk = group[0].prompt_length - 1
        prompt = group[0].token_ids[: trunk + 1], group[0].clips[0]
        if any((episode.token_ids[: trunk + 1], episode.clips[0]) != prompt for episode in group):
            raise ValueError(f"episodes of group {group[0].sample.id!r} do not share one prompt")
        documents = [_Document.of(episode, settings) for episode in group]
        # Masks before the first crop are independent of the turns: any document gives the trunk.
        first_row = row.append(documents[0], 0, trunk, group[0].clips[:1])
        branch_ends: list[int] = []
        for document in documents:
            length = len(document.episode.token_ids)
            branch_row = row.append(document, trunk, length, document.episode.clips[1:])
            # Keys of a branch end with the branch: later branches see none. Keys of the trunk end with the whole tree.
            branch_ends += [branch_row + length - trunk] * (length - trunk)
            row.append_labels(document, trunk, branch_row)
        row.end += [first_row + trunk + len(branch_ends)] * trunk + branch_ends
    return row.to_batch()
