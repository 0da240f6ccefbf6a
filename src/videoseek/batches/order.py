"""Which samples a step sees: a pure function of the step, so that resuming needs no stored cursor."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np


def batch_indices(step: int, batch_size: int, num_samples: int, seed: int) -> list[int]:
    """Indices of step `step` (from 0): consecutive stretches of an endless row of shuffled epochs."""
    first = step * batch_size
    return [
        int(_epoch_order(position // num_samples, num_samples, seed)[position % num_samples])
        for position in range(first, first + batch_size)
    ]


@lru_cache(maxsize=4)
def _epoch_order(epoch: int, num_samples: int, seed: int) -> np.ndarray:
    return np.random.default_rng([seed, epoch]).permutation(num_samples)


def micro_batches(lengths: Sequence[int], max_tokens: int) -> list[list[int]]:
    """Indices cut, in order, into rows of at most `max_tokens`; a longer item gets a row of its own."""
    rows: list[list[int]] = []
    used = max_tokens + 1
    for index, length in enumerate(lengths):
        if used + length > max_tokens:
            rows.append([])
            used = 0
        rows[-1].append(index)
        used += length
    return rows
