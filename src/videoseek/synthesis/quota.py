"""From what a model says of clues to windows, and from windows to the price of a crop: pure functions."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

from videoseek.config import VideoConfig
from videoseek.synthesis.items import Clue
from videoseek.types import STRATEGIES, Interval
from videoseek.video.patches import FRAMES_PER_GRID
from videoseek.video.quotas import crop_tokens

#: How fine the evidence is -> merged tokens (28 x 28 px) that a frame pair needs to show it.
#: large: a scene or an action that fills the picture, told at 224 x 224 px. medium: an object or a gesture, which
#: wants about 300 x 300 px. small: writing, counts, distant things, from about 450 x 450 px on. With Video-o3's quotas
#: at 2 fps, medium makes 2 s coarse, 28 s medium and 35 s fine, the prices in that paper's worked example.
TOKENS_PER_GRID = {"large": 64, "medium": 128, "small": 256}
DETAILS = tuple(TOKENS_PER_GRID)


def sampling_strategy(length_seconds: float, detail: str, limits: VideoConfig) -> str:
    """The cheapest quota that shows a window of this length finely enough, or the largest when none does.

    A quota is shared by all frame pairs of a crop, so a longer window needs a larger one for the same detail; paying
    for more would teach a policy to spend context on nothing.
    """
    frames = min(max(length_seconds * limits.crop_fps, limits.min_frames), limits.max_frames)
    num_grids = max(frames / FRAMES_PER_GRID, 1.0)
    wanted = min(TOKENS_PER_GRID[detail], limits.max_tokens_per_grid)
    enough = (strategy for strategy in STRATEGIES if crop_tokens(strategy, limits) / num_grids >= wanted)
    return next(enough, STRATEGIES[-1])


def whole_seconds(start_seconds: float, end_seconds: float, duration_seconds: float, least_seconds: float) -> Interval:
    """The window rounded outwards to whole seconds, at least `least_seconds` long, inside the video.

    A model's times are no finer than the frames it saw, and whole seconds are what a policy can learn to write. The
    end of the video is kept to a tenth, the precision of a written call.
    """
    last = math.floor(duration_seconds * 10) / 10
    start, end = max(math.floor(start_seconds), 0), min(math.ceil(end_seconds), last)
    if end - start < least_seconds:
        end = min(start + math.ceil(least_seconds), last)
        start = max(min(start, math.floor(end - least_seconds)), 0)
    return float(start), float(end)


def tidy_clues(
    clues: Sequence[Clue], duration_seconds: float, merge_gap_seconds: float, limits: VideoConfig
) -> tuple[Clue, ...]:
    """Clues in order of time, on whole seconds, near ones joined, each with the quota of its crop."""
    windows = [whole_seconds(*clue.window, duration_seconds, max(limits.min_window_seconds, 1.0)) for clue in clues]
    placed = [
        replace(clue, start_seconds=start, end_seconds=end) for clue, (start, end) in zip(clues, windows, strict=True)
    ]
    joined: list[Clue] = []
    for clue in sorted(placed, key=lambda clue: clue.window):
        if joined and clue.start_seconds - joined[-1].end_seconds <= merge_gap_seconds:
            joined[-1] = _join(joined[-1], clue)
        else:
            joined.append(clue)
    return tuple(
        replace(clue, strategy=sampling_strategy(clue.end_seconds - clue.start_seconds, clue.detail, limits))
        for clue in joined
    )


def _join(first: Clue, second: Clue) -> Clue:
    return replace(
        first,
        end_seconds=max(first.end_seconds, second.end_seconds),
        cue=f"{first.cue} {second.cue}",
        finding=f"{first.finding} {second.finding}",
        detail=max(first.detail, second.detail, key=DETAILS.index),
    )


def covered_share(clues: Sequence[Clue], duration_seconds: float) -> float:
    """Share of the video inside clues that do not overlap."""
    return sum(clue.end_seconds - clue.start_seconds for clue in clues) / duration_seconds
