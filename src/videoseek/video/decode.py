"""What the rest of the project asks of a video: its facts, its index, the pixels of a clip.

All of it is answered in this process, or under limits in another one where `use_worker` says so.
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

#: Decoded clips of this process. Tensors in it are shared: never write into them.
FRAME_CACHE = FrameCache(max_bytes=512 * 2**20)


def probe(path: str) -> VideoInfo:
    """Duration, shown size, rate and frame count of a local video file or frame folder. Raises VideoError."""
    return load_index(path).info


def load_index(path: str) -> VideoIndex:
    """The index of a local video file or frame folder, cached until it changes. Raises VideoError."""
    with _counted(path):
        return worker.decoder().index(path)


def read_frames(clip: Clip) -> torch.Tensor:
    """Pixels of a clip, uint8 [F, height, width, 3], shared through the process-wide cache. Raises VideoError.

    Waits for a clip that is being prefetched.
    """
    with CLOCK.phase("wait"):
        return _prefetcher.read(clip)


def prefetch(clips: Iterable[Clip]) -> None:
    """Decodes clips in the background, in this order, for `read_frames` later on; returns at once.

    It goes no further ahead than `FRAME_CACHE` holds. The error of an unreadable clip is raised when the clip is read.
    """
    _prefetcher.prefetch(clips, worker.decoder().num_workers)


def cancel_prefetch() -> None:
    """Forgets the clips whose decode has not begun."""
    _prefetcher.cancel()


def decode_clip(clip: Clip) -> torch.Tensor:
    """Decode a clip from its file, uint8 [F, height, width, 3], uncached. Raises VideoError."""
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
    """Threads do not survive a fork, and one of them may have held a lock."""
    global _prefetcher
    FRAME_CACHE.reset()
    _prefetcher = Prefetcher(FRAME_CACHE, decode_clip)


os.register_at_fork(after_in_child=_after_fork)
