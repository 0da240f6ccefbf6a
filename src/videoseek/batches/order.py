"""Orders the samples as a pure function of the step: a resumed run needs no stored cursor."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from functools import lru_cache

import numpy as np

#: The data order of a run, and the order of the further prompts for dynamic sampling.
MAIN, RESERVE = 0, 1


def batch_indices(step: int, batch_size: int, num_samples: int, seed: int, order: int = MAIN) -> list[int]:
    """Returns the sample indices of `step`, counted from 0.

    Each epoch is a shuffle. Epochs follow each other without a gap: a batch may span two epochs. The reserve is a
    permutation of its own, and leaves the epochs of the main order at full length.
    """
    first = step * batch_size
    return [
        int(_epoch_order(position // num_samples, num_samples, seed, order)[position % num_samples])
        for position in range(first, first + batch_size)
    ]


@lru_cache(maxsize=4)
def _epoch_order(epoch: int, num_samples: int, seed: int, order: int) -> np.ndarray:
    key = [seed, epoch] if order == MAIN else [seed, epoch, order]
    return np.random.default_rng(key).permutation(num_samples)


def stream_seed(seed: int, *counters: int) -> int:
    """Returns a 63-bit seed for one stream of a run. Neighbouring seeds and counters give unrelated streams."""
    text = "/".join(map(str, (seed, *counters)))
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") >> 1


def cut_rows(lengths: Sequence[int], max_tokens: int) -> list[list[int]]:
    """Cuts the items 0, 1, .. of the given lengths into rows of at most `max_tokens`, in order. Returns the indices.

    A longer item gets a row of its own.
    """
    rows: list[list[int]] = []
    used = max_tokens + 1  # the first item opens the first row
    for index, length in enumerate(lengths):
        if used + length > max_tokens:
            rows.append([])
            used = 0
        rows[-1].append(index)
        used += length
    return rows
