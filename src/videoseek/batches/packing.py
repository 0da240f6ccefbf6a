"""Packs episodes into rows: as documents side by side, or as trees with one prompt per group or one film per tree.

Legend: T packed tokens. Row m sees key n iff n <= m < end[n] and visible[m] & key_class[n].
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from videoseek.batches.masks import ReferenceTags, selects, token_masks
from videoseek.batches.order import cut_rows
from videoseek.batches.positions import mrope_positions
from videoseek.batches.sharing import shared_lengths
from videoseek.batches.token_batch import TokenBatch
from videoseek.types import Clip, Episode, Role

_VIDEO_ROLES = (int(Role.GLOBAL_VIDEO), int(Role.CROP_VIDEO))


@dataclass(frozen=True, slots=True)
class PackSettings:
    """Properties of the model and of the run for packing. `share_films` lets questions about one film share a tree."""

    video_pad_id: int
    tokens_per_second: float
    tdam_rule: str = "off"
    tdam_share: float = 0.0
    seed: int = 0
    share_films: bool = False
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
        self.rows = np.zeros(0, dtype=np.int64)  # of the last document's tokens
        self.ends: list[tuple[np.ndarray, int]] = []  # of each document: the rows of its tokens, and its end
        self.positions: list[torch.Tensor] = []
        self.key_class: list[np.ndarray] = []
        self.visible: list[np.ndarray] = []
        self.first_feature: dict[Clip, int] = {}  # first feature row of each clip, in order of first appearance
        self.num_features = 0
        self.vision_rows: list[np.ndarray] = []
        self.feature_rows: list[np.ndarray] = []
        self.label_rows: list[np.ndarray] = []
        self.labels: list[int] = []
        self.label_documents: list[int] = []
        self.rollout_logprobs: list[float] = []
        self.sample_ids: list[str] = []  # of each document

    def append(self, document: _Document, num_shared: int) -> None:
        """Appends a document. Its first `num_shared` tokens are rows of the document before."""
        episode, first_row = document.episode, len(self.token_ids)
        self.token_ids += episode.token_ids[num_shared:]
        self.rows = np.concatenate([self.rows[:num_shared], np.arange(first_row, len(self.token_ids))])
        self.ends.append((self.rows, len(self.token_ids)))
        # Positions count within the document alone: attention in a tree equals attention in separate episodes.
        self.positions.append(document.positions[:, num_shared:])
        self.key_class.append(document.key_class[num_shared:])
        self.visible.append(document.visible[num_shared:])
        vision = np.flatnonzero(np.isin(episode.roles, _VIDEO_ROLES))
        features = [self._feature_rows(clip) for clip in episode.clips]
        self.vision_rows.append(self.rows[vision[vision >= num_shared]])
        self.feature_rows.append(np.concatenate([self.rows[:0], *features])[vision >= num_shared])
        trained = np.flatnonzero(episode.loss_mask)
        self.label_rows.append(self.rows[trained - 1])  # the row before a token predicts it
        self.labels += [episode.token_ids[i] for i in trained]
        self.rollout_logprobs += [episode.rollout_logprobs[i] for i in trained]
        self.label_documents += [len(self.sample_ids)] * len(trained)
        self.sample_ids.append(episode.sample.id)

    def _feature_rows(self, clip: Clip) -> np.ndarray:
        # Episodes of a group often crop the same window. The vision tower encodes an equal clip once.
        first_feature = self.first_feature.setdefault(clip, self.num_features)
        self.num_features = max(self.num_features, first_feature + clip.num_tokens)
        return np.arange(first_feature, first_feature + clip.num_tokens)

    def to_batch(self) -> TokenBatch:
        """Returns the row as tensors on the host."""
        end = np.empty(len(self.token_ids), dtype=np.int32)
        for rows, stop in self.ends:
            end[rows] = stop  # the last of the documents that share a key decides
        return TokenBatch(
            token_ids=torch.tensor(self.token_ids),
            positions=torch.cat(self.positions, dim=1),
            end=torch.from_numpy(end),
            key_class=torch.from_numpy(np.concatenate(self.key_class)),
            visible=torch.from_numpy(np.concatenate(self.visible)),
            clips=list(self.first_feature),
            vision_rows=torch.from_numpy(np.concatenate(self.vision_rows)),
            feature_rows=torch.from_numpy(np.concatenate(self.feature_rows)),
            label_rows=torch.from_numpy(np.concatenate(self.label_rows)),
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
    return pack_groups([[episode] for episode in episodes], settings)


def pack_groups(groups: Sequence[Sequence[Episode]], settings: PackSettings) -> TokenBatch:
    """Packs each group as trees: an episode starts with the rows that it shares with the episode before it.

    A group of one prompt becomes the prompt once, then one branch per episode. A branch opens with its own copy of the
    last prompt token. Groups share no rows. Raises ValueError for an empty list.
    """
    if not groups:
        raise ValueError("nothing to pack")
    row = _PackedRow()
    for group in groups:
        for episode, num_shared in zip(group, shared_lengths(group), strict=True):
            row.append(_Document.of(episode, settings), num_shared)
    return row.to_batch()


def pack_rows(episodes: Sequence[Episode], max_tokens: int, settings: PackSettings) -> list[TokenBatch]:
    """Packs episodes, in order, into rows of at most `max_tokens` tokens as far as single episodes allow.

    `settings.share_films` packs neighbours about one film as one tree, and each other episode as a document.
    """
    shared = shared_lengths(episodes) if settings.share_films else [0] * len(episodes)
    cuts = cut_rows([len(episode.token_ids) for episode in episodes], max_tokens, shared)
    rows = [[episodes[i] for i in cut] for cut in cuts]
    return [pack_groups([row], settings) if settings.share_films else pack_documents(row, settings) for row in rows]
