"""How many frames, of which size, a view of a video may spend: the overview and the crops of Video-o3 (2601.23224)."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from videoseek.types import STRATEGIES, Clip
from videoseek.video.decode import load_index
from videoseek.video.errors import VideoError
from videoseek.video.index import VideoInfo
from videoseek.video.patches import FRAMES_PER_GRID
from videoseek.video.sampling import TOKEN_SIDE, count_frames, frame_times, linspace_frames, smart_size

FRAME_POLICIES = ("linspace", "uniform")
#: Smaller frames are enlarged to this as far as the quota allows: the floor of Video-o3's public evaluation.
MIN_TOKENS_PER_GRID = 20


@dataclass(frozen=True, slots=True)
class VideoLimits:
    """Budgets of one run. Tokens are merged ones (28 x 28 px of a frame pair); a grid is a pair of frames.

    *_fps: sampled frames per second of video. *_tokens: most tokens of a whole clip. frame_policy: `linspace` takes
    the frames that qwen-vl-utils takes, both ends of the window included; `uniform` takes a fixed rate over the
    half-open window.
    """

    overview_fps: float = 2.0
    crop_fps: float = 2.0
    overview_tokens: int = 16384
    coarse_tokens: int = 2048
    medium_tokens: int = 4096
    fine_tokens: int = 6144
    min_frames: int = 4
    max_frames: int = 768
    max_tokens_per_grid: int = 768
    min_window_seconds: float = 1.0
    frame_policy: str = "linspace"

    def __post_init__(self) -> None:
        for name in self.__slots__:
            value = getattr(self, name)
            if name != "frame_policy" and not 0 < value < math.inf:
                raise ValueError(f"{name} of the video limits is {value}; it must be above 0")
        if self.frame_policy not in FRAME_POLICIES:
            raise ValueError(f"frame_policy {self.frame_policy!r} is not one of {', '.join(FRAME_POLICIES)}")
        count_frames(0, self.min_frames, self.max_frames)

    def crop_tokens(self, strategy: str) -> int:
        """Quota of a crop, in merged tokens."""
        quotas = dict(zip(STRATEGIES, (self.coarse_tokens, self.medium_tokens, self.fine_tokens), strict=True))
        if strategy not in quotas:
            raise ValueError(f"strategy {strategy!r} is not one of {', '.join(STRATEGIES)}")
        return quotas[strategy]


def overview_clip(info: VideoInfo, limits: VideoLimits) -> Clip:
    """The cheap look at a whole video. Raises VideoError."""
    return _clip(info, 0.0, info.duration_seconds, limits.overview_fps, limits.overview_tokens, limits)


def crop_clip(info: VideoInfo, start_seconds: float, end_seconds: float, strategy: str, limits: VideoLimits) -> Clip:
    """A close look at one window, sampled from the source file at its own rate. Raises VideoError."""
    return _clip(info, start_seconds, end_seconds, limits.crop_fps, limits.crop_tokens(strategy), limits)


def frame_size(info: VideoInfo, num_frames: int, max_tokens: int, limits: VideoLimits) -> tuple[int, int]:
    """Height and width at which `num_frames` frames cost at most `max_tokens`. Raises VideoError for a thin strip."""
    tokens_per_grid = min(limits.max_tokens_per_grid, max_tokens * FRAMES_PER_GRID / num_frames)
    least_tokens = min(MIN_TOKENS_PER_GRID, tokens_per_grid)
    try:
        return smart_size(info.height, info.width, least_tokens * TOKEN_SIDE**2, tokens_per_grid * TOKEN_SIDE**2)
    except ValueError as error:
        raise VideoError("size_unsupported", f"{info.path} cannot be resized: {error}.") from error


def _clip(
    info: VideoInfo, start_seconds: float, end_seconds: float, fps: float, max_tokens: int, limits: VideoLimits
) -> Clip:
    if not 0 <= start_seconds < end_seconds <= info.duration_seconds:
        raise VideoError(
            "window_outside",
            f"window [{start_seconds}, {end_seconds}] of {info.path} must be ascending and within "
            f"[0, {info.duration_seconds:.3f}] seconds.",
        )
    # The smallest grid costs one token, so the quota bounds the number of grids before it bounds their size.
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
    """Presentation seconds of the linspace choice among the file's own frames with start <= time <= end."""
    index = load_index(info.path)
    last = index.frame_at(end_seconds)
    first = min(index.frame_from(start_seconds), last)
    frames = linspace_frames(first, last, info.average_fps, fps, min_frames, max_frames)
    return tuple(np.asarray(index.seconds(list(frames))).tolist())
