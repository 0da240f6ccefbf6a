"""The tokens that episodes share in a packed row: one prompt of a group, or one film of several questions."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from videoseek.types import Episode, Role


def shared_lengths(episodes: Sequence[Episode]) -> list[int]:
    """Returns the number of tokens that each episode shares with the episode before it, and 0 for the first."""
    return [0, *map(_shared_length, episodes, episodes[1:])][: len(episodes)]


def _shared_length(first: Episode, second: Episode) -> int:
    """Returns the length of the common prefix of two prompts: equal ids and roles behind an equal first clip.

    Equal ids and clips have equal positions, and equal roles have equal masks: a tree equals its episodes apart.
    Prompts about two films share nothing: a system prompt is short, and would join all films of a row to one tree.
    """
    if first.clips[:1] != second.clips[:1]:
        return 0
    # The last prompt token predicts the first token of a branch. A shared row could carry only one label, and under
    # TDAM only one mask. Hence the prefix excludes the last prompt token.
    limit = min(first.prompt_length, second.prompt_length) - 1
    ids, other_ids = (np.array(episode.token_ids[:limit]) for episode in (first, second))
    roles, other_roles = (np.array(episode.roles[:limit]) for episode in (first, second))
    # TDAM treats rows from the first crop on, in some samples only. All rows before the first crop see everything.
    parted = (ids != other_ids) | (roles != other_roles) | (roles == Role.CROP_VIDEO)
    return int(parted.argmax()) if parted.any() else limit
