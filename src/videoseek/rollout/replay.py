"""Recorded trajectories as episodes."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from threading import Lock

from videoseek.rollout.environment import Environment
from videoseek.samples.schema import DataError
from videoseek.types import Episode, Sample
from videoseek.video.errors import VideoError

#: Tokens of the cached episodes, at about 40 bytes each.
_MAX_CACHED_TOKENS = 2**23


class ReplayedEpisodes(Sequence[Episode]):
    """Recorded trajectories as episodes: token ids and references to clips, without pixels.

    The first access replays an episode. A cache of `max_cached_tokens` tokens holds the most recently used episodes.
    """

    def __init__(
        self, samples: Sequence[Sample], environment: Environment, max_cached_tokens: int = _MAX_CACHED_TOKENS
    ) -> None:
        self._samples = samples
        self._environment = environment
        self._episodes: OrderedDict[int, Episode] = OrderedDict()
        self._num_cached_tokens, self._max_cached_tokens = 0, max_cached_tokens
        self._lock = Lock()  # a separate thread replays the next step's batch

    def __len__(self) -> int:
        return len(self._samples)

    def __getitem__(self, index: int) -> Episode:  # type: ignore[override]
        with self._lock:
            return self._get(index)

    def _get(self, index: int) -> Episode:
        if index in self._episodes:
            self._episodes.move_to_end(index)
            return self._episodes[index]
        sample = self._samples[index]
        try:
            episode = self._environment.replay(sample)
        except (ValueError, VideoError) as error:
            raise DataError(f"sample {sample.id!r}: {error}") from error
        self._episodes[index] = episode
        self._num_cached_tokens += len(episode.token_ids)
        while self._num_cached_tokens > self._max_cached_tokens:
            _, oldest = self._episodes.popitem(last=False)
            self._num_cached_tokens -= len(oldest.token_ids)
        return episode
