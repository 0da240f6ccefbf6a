"""What the rest of the project asks of a video: its facts, its index, the pixels of a clip.

All of it is answered in this process, or under limits in another one where `use_worker` says so.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from videoseek.types import Clip
from videoseek.video import worker
from videoseek.video.cache import FrameCache
from videoseek.video.errors import BAD_FILES, VideoError
from videoseek.video.index import VideoIndex, VideoInfo

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
    """Pixels of a clip, uint8 [F, height, width, 3], shared through the process-wide cache. Raises VideoError."""
    return FRAME_CACHE.get(clip, decode_clip)


def decode_clip(clip: Clip) -> torch.Tensor:
    """Decode a clip from its file, uint8 [F, height, width, 3], uncached. Raises VideoError."""
    with _counted(clip.video):
        pixels = worker.decoder().frames(clip.video, clip.frame_seconds, clip.height, clip.width)
    return torch.from_numpy(pixels)


@contextmanager
def _counted(path: str) -> Iterator[None]:
    try:
        yield
    except VideoError as error:
        BAD_FILES[path] = error.code
        raise
