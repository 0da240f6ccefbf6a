"""Budgets number and size of frames for a view of a video: the overview and the crops of Video-o3 (2601.23224)."""

from __future__ import annotations

import numpy as np

from videoseek.config import VideoConfig
from videoseek.types import STRATEGIES, Clip
from videoseek.video.decode import load_index
from videoseek.video.errors import VideoError
from videoseek.video.index import VideoInfo
from videoseek.video.patches import FRAMES_PER_GRID
from videoseek.video.sampling import TOKEN_SIDE, frame_times, linspace_frames, smart_size

#: Smaller frames are enlarged to this size as far as the quota allows: the floor of Video-o3's public evaluation.
MIN_TOKENS_PER_GRID = 20


def crop_tokens(strategy: str, limits: VideoConfig) -> int:
    """Returns a crop's quota in merged tokens (28 x 28 px of a frame pair). Raises ValueError for a wrong strategy."""
    quotas = dict(zip(STRATEGIES, (limits.coarse_tokens, limits.medium_tokens, limits.fine_tokens), strict=True))
    if strategy not in quotas:
        raise ValueError(f"strategy {strategy!r} is not one of {', '.join(STRATEGIES)}")
    return quotas[strategy]


def overview_clip(info: VideoInfo, limits: VideoConfig) -> Clip:
    """Returns the cheap overview of a whole video. Raises VideoError."""
    return _clip(info, 0.0, info.duration_seconds, limits.overview_fps, limits.overview_tokens, limits)


def crop_clip(info: VideoInfo, start_seconds: float, end_seconds: float, strategy: str, limits: VideoConfig) -> Clip:
    """Returns a close view of a window, sampled from the source file at `crop_fps`. Raises VideoError."""
    return _clip(info, start_seconds, end_seconds, limits.crop_fps, crop_tokens(strategy, limits), limits)


def frame_size(info: VideoInfo, num_frames: int, max_tokens: int, limits: VideoConfig) -> tuple[int, int]:
    """Returns height and width of `num_frames` frames for at most `max_tokens`. Raises VideoError for a thin strip."""
    tokens_per_grid = min(limits.max_tokens_per_grid, max_tokens * FRAMES_PER_GRID / num_frames)
    least_tokens = min(MIN_TOKENS_PER_GRID, tokens_per_grid)
    try:
        return smart_size(info.height, info.width, least_tokens * TOKEN_SIDE**2, tokens_per_grid * TOKEN_SIDE**2)
    except ValueError as error:
        raise VideoError("size_unsupported", f"{info.path} cannot be resized: {error}.") from error


def _clip(
    info: VideoInfo, start_seconds: float, end_seconds: float, fps: float, max_tokens: int, limits: VideoConfig
) -> Clip:
    if not 0 <= start_seconds < end_seconds <= info.duration_seconds:
        raise VideoError(
            "window_outside",
            f"window [{start_seconds}, {end_seconds}] of {info.path} must be ascending and within "
            f"[0, {info.duration_seconds:.3f}] seconds.",
        )
    # The smallest grid costs one token, so the quota bounds first the number and then the size of grids.
    max_frames = min(limits.max_frames, max_tokens * FRAMES_PER_GRID)
    if limits.frame_policy == "uniform":
        times = frame_times(start_seconds, end_seconds, fps, limits.min_frames, max_frames)
    else:
        times = _linspace_times(info, start_seconds, end_seconds, fps, limits.min_frames, max_frames)
    height, width = frame_size(info, len(times), max_tokens, limits)
    sample_fps = len(times) / (end_seconds - start_seconds)
    return Clip(info.path, start_seconds, end_seconds, times, height, width, sample_fps)


def _linspace_times(
    info: VideoInfo, start_seconds: float, end_seconds: float, fps: float, min_frames: int, max_frames: int
) -> tuple[float, ...]:
    """Returns the presentation seconds of the linspace choice among the file's frames with start <= time <= end."""
    index = load_index(info.path)
    last = index.frame_at(end_seconds)
    first = min(index.frame_from(start_seconds), last)
    frames = linspace_frames(first, last, info.average_fps, fps, min_frames, max_frames)
    return tuple(np.asarray(index.seconds(list(frames))).tolist())
