"""VideoCrop: the tool for showing a window of the video again, from the source file, at a chosen token quota."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from videoseek.config import VideoConfig
from videoseek.types import STRATEGIES, Call, Clip, Fault
from videoseek.video.decode import probe, read_frames
from videoseek.video.errors import VideoError, warn_once
from videoseek.video.index import VideoInfo
from videoseek.video.quotas import crop_clip


@dataclass(frozen=True, slots=True)
class VideoCrop:
    """Runs calls on video files. The model reads a fault's sentence: the sentence states the limits and hides paths."""

    limits: VideoConfig

    def run(self, video: str, call: Call) -> Clip | Fault:
        """Returns the clip of the call, decoded into the frame cache, or the fault of the call.

        Calls by a model and broken files lead to a fault instead of an exception.
        """
        try:
            clip = self.plan(video, call)
            if isinstance(clip, Clip):
                read_frames(clip)  # decodes now: a failure can still become a fault for the model
        except VideoError as error:
            warn_once(error.message)
            return Fault(error.code, "This part of the video cannot be shown; try another window or answer now.")
        return clip

    def plan(self, video: str, call: Call) -> Clip | Fault:
        """Returns the clip of the call without decoding, or the fault of the call.

        Raises VideoError for an unreadable video.
        """
        info = probe(video)
        call = _in_seconds(info, call)
        fault = self._check(info, call)
        if fault is not None:
            return fault
        start_seconds, end_seconds = _clamp(info, call)
        return crop_clip(info, start_seconds, end_seconds, call.strategy, _narrowed(self.limits, call))

    def _check(self, info: VideoInfo, call: Call) -> Fault | None:
        duration = info.duration_seconds
        window = f"[{call.start_seconds:.6g}, {call.end_seconds:.6g}]"
        if call.strategy not in STRATEGIES:
            return Fault("bad_strategy", f"The sampling strategy must be one of {', '.join(STRATEGIES)}.")
        if not (math.isfinite(call.start_seconds) and math.isfinite(call.end_seconds)):
            return Fault("window_outside", f"The window must be two numbers between 0 and {duration:.1f} seconds.")
        if call.end_seconds <= call.start_seconds:
            return Fault("window_reversed", f"The window {window} must start before it ends.")
        if call.start_seconds >= duration or call.end_seconds <= 0:
            return Fault(
                "window_outside", f"The window {window} must lie between 0 and {duration:.1f} seconds of the video."
            )
        start_seconds, end_seconds = _clamp(info, call)
        if end_seconds - start_seconds < self.limits.min_window_seconds - 1e-6:
            return Fault(
                "window_too_short",
                f"The window {window} must cover at least {self.limits.min_window_seconds:g} seconds "
                f"between 0 and {duration:.1f}.",
            )
        return None


def _in_seconds(info: VideoInfo, call: Call) -> Call:
    """Returns a call in parts of the video (`num_parts`) as a call in seconds."""
    if call.num_parts is None:
        return call
    part_seconds = info.duration_seconds / call.num_parts
    return replace(call, start_seconds=call.start_seconds * part_seconds, end_seconds=call.end_seconds * part_seconds)


def _narrowed(limits: VideoConfig, call: Call) -> VideoConfig:
    """Returns the limits with the frame rate, the number and the size of frames that a call asks for."""
    if call.fps is not None:
        limits = replace(limits, crop_fps=call.fps)
    if call.num_frames is not None:
        num_frames = min(call.num_frames + call.num_frames % 2, limits.max_frames)  # frames come in pairs
        limits = replace(limits, min_frames=num_frames, max_frames=num_frames)
    if call.scale is not None:
        limits = replace(limits, max_tokens_per_grid=max(1, int(limits.max_tokens_per_grid * call.scale**2)))
    return limits


def _clamp(info: VideoInfo, call: Call) -> tuple[float, float]:
    return max(call.start_seconds, 0.0), min(call.end_seconds, info.duration_seconds)
