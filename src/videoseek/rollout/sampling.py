"""From logits to tokens, reproducibly: an episode's randomness depends on nothing but its own key.

Legend: B sequences, V vocabulary.
"""

from __future__ import annotations

import hashlib

import numpy as np
import torch


def episode_generator(seed: int, sample_id: str, copy: int) -> np.random.Generator:
    """A stream of its own for each episode, whichever batch, order or rank it is sampled in."""
    digest = hashlib.blake2b(f"{seed}/{copy}/{sample_id}".encode(), digest_size=16).digest()
    return np.random.Generator(np.random.Philox(key=int.from_bytes(digest, "big")))


def sample_tokens(
    logits: torch.Tensor, uniforms: torch.Tensor | None, temperature: float, top_p: float, banned: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Tokens [B] and their log-probs [B] from logits [B, V]; greedy when `uniforms` [B] in [0, 1) is None.

    `banned` [K] ids are never drawn. The log-prob is that of the whole distribution at `temperature`, which is what
    the trainer computes: neither the ban nor `top_p` enters it.
    """
    distribution = torch.log_softmax(logits.float() / temperature, dim=-1)
    weights = distribution.double().exp().index_fill(-1, banned, 0.0)
    if uniforms is None:
        tokens = weights.argmax(-1)
    else:
        if top_p < 1.0:
            ordered, order = weights.sort(dim=-1, descending=True)
            before = ordered.cumsum(-1) - ordered
            ordered = ordered.masked_fill(before >= top_p * ordered.sum(-1, keepdim=True), 0.0)
            weights = torch.zeros_like(weights).scatter(-1, order, ordered)
        mass = weights.cumsum(-1)
        drawn = torch.searchsorted(mass, (uniforms.double()[:, None] * mass[:, -1:]), right=True)[:, 0]
        # Rounding may place the draw past the last token that has any weight.
        last = weights.shape[-1] - 1 - (weights > 0).flip(-1).int().argmax(-1)
        tokens = torch.minimum(drawn, last)
    return tokens, distribution.gather(-1, tokens[:, None])[:, 0]
