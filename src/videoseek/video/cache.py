"""Least-recently-used store of decoded clips, bounded in bytes."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from threading import Lock

import torch

from videoseek.types import Clip


class FrameCache:
    """Clip -> uint8 frames; holds at most `max_bytes` bytes of pixels. Safe to use from several threads."""

    def __init__(self, max_bytes: int) -> None:
        _check_bound(max_bytes)
        self.max_bytes = max_bytes
        self.num_bytes = 0
        self._frames: OrderedDict[Clip, torch.Tensor] = OrderedDict()
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
                return frames
        frames = load(clip)
        with self._lock:
            self._store(clip, frames)
        return frames

    def resize(self, max_bytes: int) -> None:
        """Set another bound; drops the least recently used clips that no longer fit."""
        _check_bound(max_bytes)
        with self._lock:
            self.max_bytes = max_bytes
            self._evict()

    def clear(self) -> None:
        with self._lock:
            self._frames.clear()
            self.num_bytes = 0

    def _store(self, clip: Clip, frames: torch.Tensor) -> None:
        if frames.nbytes > self.max_bytes or clip in self._frames:
            return
        self._frames[clip] = frames
        self.num_bytes += frames.nbytes
        self._evict()

    def _evict(self) -> None:
        while self.num_bytes > self.max_bytes:
            _, dropped = self._frames.popitem(last=False)
            self.num_bytes -= dropped.nbytes


def _check_bound(max_bytes: int) -> None:
    if max_bytes < 0:
        raise ValueError(f"max_bytes is {max_bytes}; it must be 0 (store nothing) or more")
