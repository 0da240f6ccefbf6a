"""Gives the rest of the project a video's facts, a video's index and a clip's pixels.

This process reads the files, or after a call of `use_worker` a worker process reads the files under limits.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch

from videoseek.timing import CLOCK
from videoseek.types import Clip
from videoseek.video import worker
from videoseek.video.cache import FrameCache
from videoseek.video.errors import BAD_FILES, VideoError
from videoseek.video.index import VideoIndex, VideoInfo
from videoseek.video.prefetch import Prefetcher

#: Decoded clips of this process. Callers share the tensors and must never write into a tensor.
FRAME_CACHE = FrameCache(max_bytes=512 * 2**20)


def probe(path: str) -> VideoInfo:
    """Returns duration, shown size, rate and frame count of a local video file or frame folder. Raises VideoError."""
    return load_index(path).info


def load_index(path: str) -> VideoIndex:
    """Returns the index of a local video file or frame folder, cached until the source changes. Raises VideoError."""
    with _counted(path):
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
    """Decodes a clip from the file into uint8 [F, height, width, 3], past the cache. Raises VideoError."""
    started = time.perf_counter()
    with _counted(clip.video):
        pixels = worker.decoder().frames(clip.video, clip.frame_seconds, clip.height, clip.width)
    CLOCK.add("decode", time.perf_counter() - started)
    return torch.from_numpy(pixels)


@contextmanager
def _counted(path: str) -> Iterator[None]:
    try:
        yield
    except VideoError as error:
        BAD_FILES[path] = error.code
        raise


_prefetcher = Prefetcher(FRAME_CACHE, decode_clip)


def _after_fork() -> None:
    """Replaces threads and locks: a fork ends all other threads, and a lost thread may have held a lock."""
    global _prefetcher
    FRAME_CACHE.reset()
    _prefetcher = Prefetcher(FRAME_CACHE, decode_clip)


os.register_at_fork(after_in_child=_after_fork)
