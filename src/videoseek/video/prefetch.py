"""Decodes clips ahead of use, in background threads. The threads wait for decode workers."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Iterable
from threading import Condition, Thread

import torch

from videoseek.types import Clip
from videoseek.video.cache import FrameCache

logger = logging.getLogger(__name__)


class Prefetcher:
    """Fills a cache with the next clips, in order of use, only as far ahead as the cache has room.

    `read` raises the error of a failed clip. Several threads may use a prefetcher.
    """

    def __init__(self, cache: FrameCache, load: Callable[[Clip], torch.Tensor]) -> None:
        self._cache, self._load = cache, load
        self._changed = Condition()
        self._queue: deque[Clip] = deque()
        self._running: set[Clip] = set()
        self._errors: dict[Clip, Exception] = {}
        self._num_threads = 0
        self._num_cancels = 0

    def prefetch(self, clips: Iterable[Clip], num_threads: int) -> None:
        """Queues the clips outside the cache, the queue and the running decodes, and returns at once.

        At least `num_threads` threads decode from then on. A clip larger than the cache is left to `read`.
        """
        with self._changed:
            pending = {*self._queue, *self._running, *self._errors}
            for clip in clips:
                if clip not in pending and clip not in self._cache and num_bytes(clip) <= self._cache.max_bytes:
                    pending.add(clip)
                    self._queue.append(clip)
            while self._num_threads < num_threads:
                self._num_threads += 1
                Thread(target=self._work, name=f"prefetch-{self._num_threads}", daemon=True).start()
            self._changed.notify_all()

    def read(self, clip: Clip) -> torch.Tensor:
        """Returns the clip's frames, decoded here unless a background thread has begun. Raises the decode's error."""
        with self._changed:
            if clip in self._queue:
                self._queue.remove(clip)
            while clip in self._running:
                self._changed.wait()
            error = self._errors.pop(clip, None)
        if error is not None:
            raise error
        try:
            return self._cache.get(clip, self._load)
        finally:
            with self._changed:
                self._changed.notify_all()

    def cancel(self) -> None:
        """Forgets the clips in the queue, and the errors of all earlier requests."""
        with self._changed:
            self._num_cancels += 1
            self._queue.clear()
            self._errors.clear()
            self._cache.give_up_ahead()
            self._changed.notify_all()

    def _work(self) -> None:
        while True:
            with self._changed:
                while not self._has_room():
                    self._changed.wait()
                clip = self._queue.popleft()
                self._running.add(clip)
                num_cancels = self._num_cancels
            error: Exception | None = None
            try:
                self._cache.load_ahead(clip, self._load)
            except Exception as caught:  # every error belongs to the thread that reads the clip
                error = caught
            with self._changed:
                self._running.remove(clip)
                if error is not None and num_cancels == self._num_cancels:
                    self._errors[clip] = error
                self._changed.notify_all()

    def _has_room(self) -> bool:
        """Tells if the next clip fits into the cache beside the running and the unread clips."""
        if not self._queue:
            return False
        held = self._cache.num_bytes_ahead() + sum(map(num_bytes, self._running))
        return held + num_bytes(self._queue[0]) <= self._cache.max_bytes


def num_bytes(clip: Clip) -> int:
    """Returns the bytes of a clip's frames in memory."""
    return len(clip.frame_seconds) * clip.height * clip.width * 3
