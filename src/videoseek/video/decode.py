"""Gives the rest of the project a video's facts, a video's index and a clip's pixels.

This process reads the files, or after a call of `use_worker` a worker process reads the files under limits.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterable

import torch

from videoseek.timing import CLOCK
from videoseek.types import Clip
from videoseek.video import worker
from videoseek.video.cache import FrameCache
from videoseek.video.folder import FrameFolder
from videoseek.video.index import VideoIndex, VideoInfo
from videoseek.video.overviews import OverviewStore
from videoseek.video.prefetch import Prefetcher

#: Decoded clips of this process. Callers share the tensors and must never write into a tensor.
FRAME_CACHE = FrameCache(max_bytes=512 * 2**20)


def probe(path: str) -> VideoInfo:
    """Returns duration, shown size, rate and frame count of a local video file or frame folder. Raises VideoError."""
    return load_index(path).info


def load_index(path: str) -> VideoIndex:
    """Returns the index of a local video file or frame folder, cached until the source changes. Raises VideoError."""
    return worker.decoder().index(path)


def read_frames(clip: Clip) -> torch.Tensor:
    """Returns the pixels of a clip, uint8 [F, height, width, 3], shared through the process-wide cache.

    Waits while a background thread decodes the clip. Raises VideoError.
    """
    with CLOCK.phase("wait"):
        return _prefetcher.read(clip)


def prefetch(clips: Iterable[Clip]) -> None:
    """Decodes clips in the background, in this order, for a later `read_frames`, and returns at once.

    The prefetch goes only as far ahead as `FRAME_CACHE` has room. `read_frames` raises the error of an unreadable clip.
    """
    _prefetcher.prefetch(clips, worker.decoder().num_workers)


def cancel_prefetch() -> None:
    """Forgets the clips still in the queue."""
    _prefetcher.cancel()


def decode_clip(clip: Clip) -> torch.Tensor:
    """Returns the pixels of a clip, uint8 [F, height, width, 3], past the cache in memory. Raises VideoError.

    After `keep_overviews`, a stored overview is read, and any other overview is decoded and stored.
    """
    store = _overviews if _overviews is not None and _is_overview(clip) else None
    file = store.file_of(clip) if store is not None else None  # named before the decode: the film may change meanwhile
    pixels = store.load(file, clip) if store is not None and file is not None else None
    if pixels is None:
        started = time.perf_counter()
        pixels = worker.decoder().frames(clip.video, clip.frame_seconds, clip.height, clip.width)
        CLOCK.add("decode", time.perf_counter() - started)
        if store is not None and file is not None:
            store.save(file, pixels)
    return torch.from_numpy(pixels)


def keep_overviews(store: OverviewStore | None) -> None:
    """Makes this process keep decoded overviews on disk, or no longer for None."""
    global _overviews
    _overviews = store


def _is_overview(clip: Clip) -> bool:
    """Returns whether the clip shows a whole film. Folders of images are left out: they are cheap to read."""
    info = probe(clip.video)
    is_whole = clip.start_seconds == 0 and clip.end_seconds == info.duration_seconds
    return is_whole and FrameFolder.parse(clip.video) is None


_overviews: OverviewStore | None = None
_prefetcher = Prefetcher(FRAME_CACHE, decode_clip)


def _after_fork() -> None:
    """Replaces threads and locks: a fork ends all other threads, and a lost thread may have held a lock."""
    global _prefetcher
    FRAME_CACHE.reset()
    if _overviews is not None:
        _overviews.reset()
    _prefetcher = Prefetcher(FRAME_CACHE, decode_clip)


os.register_at_fork(after_in_child=_after_fork)
