"""Least-recently-used store of decoded clips, bounded in bytes."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from threading import Lock

import torch

from videoseek.types import Clip


class FrameCache:
    """Maps clips to uint8 frames and holds at most `max_bytes` bytes of pixels. Several threads may use a cache.

    Clips loaded ahead of the first use outlast all other clips until the first use.
    """

    def __init__(self, max_bytes: int) -> None:
        _check_bound(max_bytes)
        self.max_bytes = max_bytes
        self.num_bytes = 0
        self._frames: OrderedDict[Clip, torch.Tensor] = OrderedDict()
        self._ahead: set[Clip] = set()
        self._lock = Lock()

    def __len__(self) -> int:
        return len(self._frames)

    def __contains__(self, clip: Clip) -> bool:
        return clip in self._frames

    def get(self, clip: Clip, load: Callable[[Clip], torch.Tensor]) -> torch.Tensor:
        """Returns the stored frames, or calls `load(clip)` outside the lock, so threads decode in parallel.

        A clip larger than the whole store is returned and left out of the store.
        """
        with self._lock:
            frames = self._frames.get(clip)
            if frames is not None:
                self._frames.move_to_end(clip)
                self._ahead.discard(clip)
                return frames
        frames = load(clip)
        with self._lock:
            self._store(clip, frames)
        return frames

    def load_ahead(self, clip: Clip, load: Callable[[Clip], torch.Tensor]) -> None:
        """Stores `load(clip)` for a later `get`, unless the store already holds the clip."""
        if clip in self._frames:
            return
        frames = load(clip)
        with self._lock:
            self._store(clip, frames)
            if clip in self._frames:
                self._ahead.add(clip)

    def num_bytes_ahead(self) -> int:
        """Returns the bytes of the clips loaded ahead and still unused."""
        with self._lock:
            return sum(self._frames[clip].nbytes for clip in self._ahead)

    def give_up_ahead(self) -> None:
        """Ends the preference for clips loaded ahead and still unused."""
        with self._lock:
            self._ahead.clear()

    def resize(self, max_bytes: int) -> None:
        """Sets another bound and drops the least recently used clips beyond the bound."""
        _check_bound(max_bytes)
        with self._lock:
            self.max_bytes = max_bytes
            self._evict()

    def reset(self) -> None:
        """Empties the store and makes a new lock in a forked process: another thread may have held the old lock."""
        self._lock = Lock()
        self.clear()

    def clear(self) -> None:
        with self._lock:
            self._frames.clear()
            self._ahead.clear()
            self.num_bytes = 0

    def _store(self, clip: Clip, frames: torch.Tensor) -> None:
        if frames.nbytes > self.max_bytes or clip in self._frames:
            return
        self._frames[clip] = frames
        self.num_bytes += frames.nbytes
        self._evict()

    def _evict(self) -> None:
        """Drops old clips, clips ahead last. The newest clip stays, so a store full of clips ahead still works."""
        while self.num_bytes > self.max_bytes:
            older = list(self._frames)[:-1] or list(self._frames)
            clip = next((clip for clip in older if clip not in self._ahead), older[0])
            self._ahead.discard(clip)
            self.num_bytes -= self._frames.pop(clip).nbytes


def _check_bound(max_bytes: int) -> None:
    if max_bytes < 0:
        raise ValueError(f"max_bytes is {max_bytes}; it must be 0 (store nothing) or more")
