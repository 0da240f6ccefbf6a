"""Task-decoupled attention masking (TDAM) as one class bit per key and one visible set per row.

Row m sees key n iff n <= m, both belong to one document, and visible[m] & key_class[n] is nonzero. The predicted token
decides the mask of a row: row p - 1 follows the role (or the kind of turn) of token p. Video-o3 (2601.23224) masks
during SFT only, a tenth of the tool-using samples. In the public code of Video-o3 and in the rule `reference`, token p
decides the mask of row p.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from videoseek.types import Role, TurnKind

TEXT, GLOBAL, CROP = 1, 2, 4
ALL_VISIBLE = TEXT | GLOBAL | CROP

RULES = ("off", "spans", "turns", "isolated", "reference")


@dataclass(frozen=True, slots=True)
class ReferenceTags:
    """The fixed token ids of the span tags in the public code. A closing `>` fuses with text and is excluded."""

    vision_start: int
    vision_end: int
    answer_open: tuple[int, ...]
    answer_close: tuple[int, ...]
    call_open: tuple[int, ...]
    call_close: tuple[int, ...]

    @classmethod
    def from_vocabulary(cls, vocabulary: Mapping[str, int]) -> ReferenceTags:
        """Finds the tags in a tokenizer's vocabulary (token -> id, with added tokens). Raises ValueError."""

        def ids(*tokens: str) -> tuple[int, ...]:
            missing = [token for token in tokens if token not in vocabulary]
            if missing:
                raise ValueError(f"the rule 'reference' needs Qwen's vocabulary, which has the token {missing[0]!r}")
            return tuple(vocabulary[token] for token in tokens)

        (vision_start,), (vision_end,) = ids("<|vision_start|>"), ids("<|vision_end|>")
        return cls(
            vision_start=vision_start,
            vision_end=vision_end,
            answer_open=ids("<", "answer"),
            answer_close=ids("</", "answer"),
            call_open=ids("<", "ground", "ing"),
            call_close=ids("}</", "ground", "ing"),
        )


def selects(sample_id: str, seed: int, share: float) -> bool:
    """Returns whether a sample is masked: a pure function of sample id and seed, true for `share` of all ids."""
    if not 0 <= share <= 1:
        raise ValueError(f"tdam.share is {share}, must lie between 0 and 1")
    digest = hashlib.blake2b(f"{seed}:{sample_id}".encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest, "big") < share * 2.0**64


def token_masks(
    token_ids: Sequence[int],
    roles: Sequence[int],
    turn_kinds: Sequence[int],
    rule: str,
    *,
    reference_tags: ReferenceTags | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Returns key_class and visible, int32 [T], of one document under a rule of `RULES`.

    Rules act from the first crop token on: a document without crops sees everything. The last row predicts nothing and
    sees everything. Under `spans` the predicted token decides the mask of a row. Under `turns` and `isolated` the end
    of the turn decides, a call or an answer. A sampling policy cannot know the end of the turn: TDAM applies to
    recorded text only.
    """
    if rule not in RULES:
        raise ValueError(f"tdam.rule {rule!r} is not one of {', '.join(RULES)}")
    if not len(token_ids) == len(roles) == len(turn_kinds):
        raise ValueError(f"{len(token_ids)} tokens, {len(roles)} roles and {len(turn_kinds)} turn kinds must agree")
    if rule == "reference":
        if reference_tags is None:
            raise ValueError("tdam.rule 'reference' needs reference_tags")
        return _reference_masks(np.asarray(token_ids), np.asarray(roles), reference_tags)
    role, kind = np.asarray(roles, dtype=np.int32), np.asarray(turn_kinds, dtype=np.int32)
    key_class = np.full(len(role), TEXT, dtype=np.int32)
    key_class[role == Role.GLOBAL_VIDEO] = GLOBAL
    key_class[role == Role.CROP_VIDEO] = CROP
    visible = np.full(len(role), ALL_VISIBLE, dtype=np.int32)
    if rule == "off":
        return key_class, visible
    if rule == "spans":
        seeks, answers = role[1:] == Role.CALL, role[1:] == Role.ANSWER
    else:
        seeks, answers = kind[1:] == TurnKind.SEEK, kind[1:] == TurnKind.ANSWER
    after_crop = np.logical_or.accumulate(role == Role.CROP_VIDEO)[:-1]
    visible[:-1][seeks & after_crop] &= ~CROP
    visible[:-1][answers & after_crop] &= ~GLOBAL
    if rule == "isolated":
        visible[role == Role.CROP_VIDEO] &= ~GLOBAL
    return key_class, visible


def _find(ids: np.ndarray, tag: tuple[int, ...]) -> list[int]:
    """Returns the start positions of a tag."""
    if len(ids) < len(tag):
        return []
    windows = np.lib.stride_tricks.sliding_window_view(ids, len(tag))
    return np.flatnonzero((windows == np.asarray(tag)).all(axis=1)).tolist()


def _pairs(starts: list[int], ends: list[int]) -> list[tuple[int, int]]:
    """Pairs each start with the first unused end after the start, like the public code. Ignores nesting."""
    pairs: list[tuple[int, int]] = []
    remaining = iter(ends)
    for start in starts:
        end = next((position for position in remaining if position > start), None)
        if end is None:
            break
        pairs.append((start, end))
    return pairs


def _reference_masks(ids: np.ndarray, roles: np.ndarray, tags: ReferenceTags) -> tuple[np.ndarray, np.ndarray]:
    """Applies the public code's rule bit for bit: masks the rows of a span's own tokens, found by fixed ids.

    The rule misses spans with tags fused with other text, skips the first call, masks the last answer only, and leaves
    the row before an option's letter unmasked.
    """
    key_class = np.full(len(ids), TEXT, dtype=np.int32)
    visible = np.full(len(ids), ALL_VISIBLE, dtype=np.int32)
    videos = _pairs(np.flatnonzero(ids == tags.vision_start).tolist(), np.flatnonzero(ids == tags.vision_end).tolist())
    for index, (start, end) in enumerate(videos):
        key_class[start + 1 : end] = CROP if index else GLOBAL
    if len(videos) < 2:
        return key_class, visible
    assistant = np.isin(roles, (Role.THINK, Role.CALL, Role.ANSWER, Role.TAG))
    text = np.where(assistant, ids, -1)

    def rows(opening: tuple[int, ...], closing: tuple[int, ...]) -> list[slice]:
        last_of_closing = [position + len(closing) - 1 for position in _find(text, closing)]
        return [slice(start + len(opening), end) for start, end in _pairs(_find(text, opening), last_of_closing)]

    for span in rows(tags.answer_open, tags.answer_close)[-1:]:
        visible[span] &= ~GLOBAL
    for span in rows(tags.call_open, tags.call_close)[1:]:
        visible[span] &= ~CROP
    return key_class, visible
