"""Orders the samples as a pure function of the step: a resumed run needs no stored cursor."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Hashable, Sequence
from functools import lru_cache

import numpy as np

from videoseek.types import Sample

#: The data order of a run, and the order of the further prompts for dynamic sampling.
MAIN, RESERVE = 0, 1
#: Most questions about one film in sequence. A film with hundreds of questions would fill whole batches.
FILM_STRETCH = 8


class SampleOrder:
    """Orders samples by epochs. An epoch is a shuffle of all samples, or of stretches of questions about one film.

    A stretch has up to FILM_STRETCH questions. Epochs follow each other without a gap: a batch may span two epochs, and
    two batches may divide a stretch. The reserve is a permutation of its own, by the same rule, and leaves the epochs
    of the main order at full length.
    """

    def __init__(self, num_samples: int, seed: int, films: Sequence[Hashable] | None = None) -> None:
        """`films` names the film of each sample, for stretches of questions about one film."""
        self._num_samples, self._seed, self._films = num_samples, seed, films
        self._epoch_order = lru_cache(maxsize=4)(self._shuffle)

    @classmethod
    def of(cls, samples: Sequence[Sample], seed: int, *, by_film: bool) -> SampleOrder:
        """Returns the order of `samples`. `by_film` makes stretches of questions that open with one clip."""
        if not by_film:
            return cls(len(samples), seed)
        films: list[Hashable] = []
        draws: Counter[str] = Counter()
        for sample in samples:
            # A mixture repeats samples. Draws of one sample lie in different stretches, and rarely share a batch.
            films.append((sample.video, sample.window, draws[sample.id]))
            draws[sample.id] += 1
        return cls(len(samples), seed, films)

    def batch(self, step: int, batch_size: int, order: int = MAIN) -> list[int]:
        """Returns the sample indices of `step`, counted from 0."""
        first, num_samples = step * batch_size, self._num_samples
        return [
            int(self._epoch_order(position // num_samples, order)[position % num_samples])
            for position in range(first, first + batch_size)
        ]

    def _shuffle(self, epoch: int, order: int) -> np.ndarray:
        random = np.random.default_rng([self._seed, epoch] if order == MAIN else [self._seed, epoch, order])
        shuffled = random.permutation(self._num_samples)
        if self._films is None:
            return shuffled
        by_film: dict[Hashable, list[int]] = {}
        for index in shuffled.tolist():
            by_film.setdefault(self._films[index], []).append(index)
        stretches = [
            indices[first : first + FILM_STRETCH]
            for indices in by_film.values()
            for first in range(0, len(indices), FILM_STRETCH)
        ]
        return np.array([index for number in random.permutation(len(stretches)) for index in stretches[number]])


def stream_seed(seed: int, *counters: int) -> int:
    """Returns a 63-bit seed for one stream of a run. Neighbouring seeds and counters give unrelated streams."""
    text = "/".join(map(str, (seed, *counters)))
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") >> 1


def cut_rows(lengths: Sequence[int], max_tokens: int, shared_lengths: Sequence[int] | None = None) -> list[list[int]]:
    """Cuts the items 0, 1, .. of the given lengths into rows of at most `max_tokens`, in order. Returns the indices.

    A longer item gets a row of its own. In one row, item i shares its first `shared_lengths[i]` tokens with item i - 1.
    """
    rows: list[list[int]] = []
    used = max_tokens + 1  # the first item opens the first row
    for index, length in enumerate(lengths):
        own_length = length - (shared_lengths[index] if shared_lengths is not None else 0)
        if used + own_length > max_tokens:
            rows.append([])
            used, own_length = 0, length
        rows[-1].append(index)
        used += own_length
    return rows
