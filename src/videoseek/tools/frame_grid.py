"""FrameGrid: many small frames of a window, for a wide look at a small price."""

from __future__ import annotations

from dataclasses import replace

from videoseek.config import VideoConfig
from videoseek.tools.crop import VideoCrop
from videoseek.tools.subtitles import window_of
from videoseek.tools.tool import Observation, Tool
from videoseek.types import Call, Fault, ToolCall
from videoseek.video.quotas import MIN_TOKENS_PER_GRID

_NUM_FRAMES, _MAX_FRAMES = 16, 64


class FrameGrid(Tool):
    name = "frame_grid"
    description = (
        "Shows many small frames of a window, evenly spread. Arguments: start_time and end_time in seconds, and "
        f"optionally num_frames (2 to {_MAX_FRAMES}, {_NUM_FRAMES} by default)."
    )

    def __init__(self, limits: VideoConfig) -> None:
        self._crop = VideoCrop(
            replace(limits, max_tokens_per_grid=min(MIN_TOKENS_PER_GRID, limits.max_tokens_per_grid))
        )

    def plan(self, video: str, call: ToolCall) -> Observation:
        crop = self._call(call)
        return crop if isinstance(crop, Fault) else self._crop.plan(video, crop)

    def run(self, video: str, call: ToolCall) -> Observation:
        crop = self._call(call)
        return crop if isinstance(crop, Fault) else self._crop.run(video, crop)

    def _call(self, call: ToolCall) -> Call | Fault:
        window, number = window_of(call), call.arguments.get("num_frames", _NUM_FRAMES)
        if isinstance(window, Fault):
            return window
        if isinstance(number, bool) or not isinstance(number, int) or not 2 <= number <= _MAX_FRAMES:
            return Fault("bad_frames", f"num_frames must be a whole number from 2 to {_MAX_FRAMES}.")
        return Call(*window, "coarse", num_frames=number)
