"""Chooses the frames of a window and the size of frames, by arithmetic only.

Sizes and frame indices agree with qwen-vl-utils 0.0.14, as the released Qwen2.5-VL weights expect. The docstrings
below name the exceptions. Every exception is a case with a broken limit in qwen-vl-utils.
"""

from __future__ import annotations

import math

import torch

from videoseek.video.patches import FRAMES_PER_GRID, MERGE, PATCH_PIXELS

#: Side of the square of pixels behind one merged token.
TOKEN_SIDE = PATCH_PIXELS * MERGE
MAX_ASPECT_RATIO = 200
#: A window this little short of another frame still gets the frame, so a rounded time base costs no frame pair.
COUNT_SLACK_FRAMES = 0.01


def count_frames(wanted: float, min_frames: int, max_frames: int) -> int:
    """Clamps `wanted` to the limits and rounds down to whole pairs. `max_frames` wins over `min_frames`."""
    least = math.ceil(min_frames / FRAMES_PER_GRID) * FRAMES_PER_GRID
    most = math.floor(max_frames / FRAMES_PER_GRID) * FRAMES_PER_GRID
    if most < FRAMES_PER_GRID:
        raise ValueError(f"max_frames is {max_frames}; a clip needs at least {FRAMES_PER_GRID} frames")
    return math.floor(min(max(wanted, least), most) / FRAMES_PER_GRID) * FRAMES_PER_GRID


def frame_times(
    start_seconds: float, end_seconds: float, fps: float, min_frames: int, max_frames: int
) -> tuple[float, ...]:
    """Returns the times of the `uniform` policy: the first instants of n equal slots of the window [start, end).

    `count_frames` rounds (end - start) * fps to n. If the product is already even and within the limits, frames are
    exactly 1 / fps apart, and a pair stays in a stretch of 2 / fps seconds. All times are below `end`.
    """
    duration = end_seconds - start_seconds
    if not (duration > 0 and fps > 0):
        raise ValueError(f"window [{start_seconds}, {end_seconds}) at {fps} fps must have a length and a rate above 0")
    num_frames = count_frames(duration * fps + COUNT_SLACK_FRAMES, min_frames, max_frames)
    fits = abs(duration * fps - num_frames) <= COUNT_SLACK_FRAMES
    step_seconds = 1 / fps if fits else duration / num_frames
    return tuple(start_seconds + i * step_seconds for i in range(num_frames))


def linspace_frames(
    first: int, last: int, average_fps: float, fps: float, min_frames: int, max_frames: int
) -> tuple[int, ...]:
    """Returns the indices of the `linspace` policy: evenly spread frames among first..last, both ends included.

    The indices equal qwen-vl-utils' choice, with an exception: copies of the last frame fill a window with fewer frames
    than `min_frames` (qwen-vl-utils returns fewer frames, or fails on a single frame).
    """
    available = last - first + 1
    num_frames = count_frames(available / average_fps * fps, min_frames, max_frames)
    if num_frames > available:
        fewest = count_frames(min_frames, min_frames, max_frames)
        num_frames = max(available // FRAMES_PER_GRID * FRAMES_PER_GRID, fewest)
    if num_frames > available:
        return tuple(range(first, last + 1)) + (last,) * (num_frames - available)
    # float32, as in qwen-vl-utils: the rounding of halves decides between two neighbours.
    return tuple(torch.linspace(first, last, num_frames).round().long().tolist())


def smart_size(height: int, width: int, min_pixels: float, max_pixels: float) -> tuple[int, int]:
    """Returns height and width after resizing: multiples of 28, aspect kept as far as possible, area within the limits.

    The size equals `smart_resize` of qwen-vl-utils, with two exceptions. The area of an enlarged small frame stays
    within `max_pixels`. A very oblong frame keeps a side of 28 instead of 0. `max_pixels` must hold a token (784).
    """
    if not TOKEN_SIDE**2 <= max_pixels >= min_pixels:
        raise ValueError(f"max_pixels {max_pixels} must be at least {TOKEN_SIDE**2} and min_pixels {min_pixels}")
    if min(height, width) <= 0 or max(height, width) > MAX_ASPECT_RATIO * min(height, width):
        raise ValueError(f"frame size {height}x{width} must be positive with sides at most {MAX_ASPECT_RATIO}:1")
    new_height = max(TOKEN_SIDE, round(height / TOKEN_SIDE) * TOKEN_SIDE)
    new_width = max(TOKEN_SIDE, round(width / TOKEN_SIDE) * TOKEN_SIDE)
    if new_height * new_width < min_pixels:
        scale = math.sqrt(min_pixels / (height * width))
        new_height = math.ceil(height * scale / TOKEN_SIDE) * TOKEN_SIDE
        new_width = math.ceil(width * scale / TOKEN_SIDE) * TOKEN_SIDE
    if new_height * new_width > max_pixels:
        shrink = math.sqrt((height * width) / max_pixels)
        longest = math.floor(max_pixels / TOKEN_SIDE**2) * TOKEN_SIDE
        new_height = min(max(TOKEN_SIDE, math.floor(height / shrink / TOKEN_SIDE) * TOKEN_SIDE), longest)
        new_width = min(max(TOKEN_SIDE, math.floor(width / shrink / TOKEN_SIDE) * TOKEN_SIDE), longest)
    return new_height, new_width
