"""Samples tokens from logits, reproducibly: the randomness of an episode depends on its own key alone.

Legend: B sequences, V vocabulary.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Hashable, Sequence

import numpy as np
import torch


def draw_numbers(keys: Sequence[Hashable]) -> list[int]:
    """Returns for each key the number of equal keys before it: which draw of a sample an entry of a round is."""
    seen: Counter[Hashable] = Counter()
    numbers = []
    for key in keys:
        numbers.append(seen[key])
        seen[key] += 1
    return numbers


def stream_key(seed: int, sample_id: str, index: int, draw: int = 0) -> int:
    """Returns the key of the random stream of episode `index` of a prompt, equal for every batch, order and rank.

    `draw` tells the draws of one sample in one round apart (`draw_numbers`).
    """
    episode = f"{index}.{draw}" if draw else f"{index}"
    digest = hashlib.blake2b(f"{seed}/{episode}/{sample_id}".encode(), digest_size=16).digest()
    return int.from_bytes(digest, "big")


def stream_uniforms(key: int, first: int, count: int) -> np.ndarray:
    """Returns draws [first, first + count) of a stream, float64 in [0, 1)."""
    return np.random.Generator(np.random.Philox(key=key)).random(first + count)[first:]


def sample_tokens(
    logits: torch.Tensor, uniforms: torch.Tensor | None, temperature: float, top_p: float, banned: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Draws tokens [B] from logits [B, V]. Returns the tokens and their log-probs [B].

    `uniforms` [B] in [0, 1) decide the draws; None is greedy. `banned` ids [K] are excluded from the draws. Log-probs
    are of the whole distribution at `temperature`, ignoring `banned` and `top_p`, as in the trainer.
    """
    distribution = torch.log_softmax(logits.float() / temperature, dim=-1)
    # Double precision: a cumulative sum over 152k weights in single precision would lose the rare tokens.
    weights = distribution.double().exp().index_fill(-1, banned, 0.0)
    if uniforms is None:
        tokens = weights.argmax(-1)
    else:
        if top_p < 1.0:
            ordered, order = weights.sort(dim=-1, descending=True)
            mass_before = ordered.cumsum(-1) - ordered
            ordered = ordered.masked_fill(mass_before >= top_p * ordered.sum(-1, keepdim=True), 0.0)
            weights = torch.zeros_like(weights).scatter(-1, order, ordered)
        mass = weights.cumsum(-1)
        drawn = torch.searchsorted(mass, (uniforms.double()[:, None] * mass[:, -1:]), right=True)[:, 0]
        # Rounding may place the draw after the last token with a positive weight.
        last = weights.shape[-1] - 1 - (weights > 0).flip(-1).int().argmax(-1)
        tokens = torch.minimum(drawn, last)
    return tokens, distribution.gather(-1, tokens[:, None])[:, 0]
