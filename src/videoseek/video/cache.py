"""Least-recently-used store of decoded clips, bounded in bytes."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from threading import Lock

import torch

from videoseek.types import Clip


class FrameCache:
    """Clip -> uint8 frames; holds at most `max_bytes` bytes of pixels. Safe to use from several threads.

    Clips that were loaded ahead of their first use are kept before all others, until that use.
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
        """The stored frames, or those of `load(clip)`, which runs outside the lock so that threads decode in parallel.

        A clip larger than the whole store is returned but not kept.
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
        """Stores `load(clip)` for a `get` to come, unless the clip is stored already."""
        if clip in self._frames:
            return
        frames = load(clip)
        with self._lock:
            self._store(clip, frames)
            if clip in self._frames:
                self._ahead.add(clip)

    def num_bytes_ahead(self) -> int:
        """Size of the clips that were loaded ahead and not used yet."""
        with self._lock:
            return sum(self._frames[clip].nbytes for clip in self._ahead)

    def give_up_ahead(self) -> None:
        """Clips that were loaded ahead and not used yet are kept no longer than others."""
        with self._lock:
            self._ahead.clear()

    def resize(self, max_bytes: int) -> None:
        """Set another bound; drops the least recently used clips that no longer fit."""
        _check_bound(max_bytes)
        with self._lock:
            self.max_bytes = max_bytes
            self._evict()

    def reset(self) -> None:
        """An empty store with a new lock, for a forked process: another thread may have held the old one."""
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
        """The newest clip stays: without it the store would be of no use while clips ahead fill it."""
        while self.num_bytes > self.max_bytes:
            older = list(self._frames)[:-1] or list(self._frames)
            clip = next((clip for clip in older if clip not in self._ahead), older[0])
            self._ahead.discard(clip)
            self.num_bytes -= self._frames.pop(clip).nbytes


def _check_bound(max_bytes: int) -> None:
    if max_bytes < 0:
        raise ValueError(f"max_bytes is {max_bytes}; it must be 0 (store nothing) or more")
