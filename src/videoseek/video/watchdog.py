"""Limits a decode worker in units of work: a worker must make progress, and each frame has an allowance of time.

The kernel's alarm ends a process with a stalled decoder: FFmpeg blocks all Python code of the process. Limits hold only
after `start`. Before `start`, the other functions do nothing.
"""

from __future__ import annotations

import signal
import time
from collections.abc import Callable

from videoseek.video.errors import VideoError

#: Generous: one core decodes H.264 of 1080p at 5 to 20 ms a frame, and the allowance is 260 ms.
SECONDS_PER_FRAME = 0.05
SECONDS_PER_MEGAPIXEL = 0.1
#: Every packet reports progress, so the alarm is set again at most this many times within the stall limit.
_ALARMS_PER_STALL = 8


class _Watch:
    def __init__(self, stall_seconds: float, report: Callable[[], None]) -> None:
        self.stall_seconds = stall_seconds
        self.report = report
        self.armed_at = 0.0
        self.until = float("inf")
        self.path = ""
        self.arm(time.monotonic())

    def arm(self, now: float) -> None:
        self.armed_at = now
        signal.setitimer(signal.ITIMER_REAL, longest_silence(self.stall_seconds))


_watch: _Watch | None = None


def longest_silence(stall_seconds: float) -> float:
    """Returns the most seconds between two reports of a live worker."""
    return stall_seconds * (1 + 1 / _ALARMS_PER_STALL)


def start(stall_seconds: float, report: Callable[[], None]) -> None:
    """Starts the limits: SIGALRM ends this process after `stall_seconds` without a call of `progress`.

    `progress` calls `report` several times within `stall_seconds`.
    """
    global _watch
    _watch = _Watch(stall_seconds, report)


def stop() -> None:
    """Switches the alarm off."""
    global _watch
    _watch = None
    signal.setitimer(signal.ITIMER_REAL, 0)


def allow_frames(path: str, num_frames: int, pixels_per_frame: int) -> None:
    """Limits the time until `stop`, in proportion to the frames to decode."""
    if _watch is not None:
        per_frame = SECONDS_PER_FRAME + SECONDS_PER_MEGAPIXEL * pixels_per_frame / 1e6
        _watch.path = path
        _watch.until = time.monotonic() + _watch.stall_seconds + num_frames * per_frame


def progress() -> None:
    """Reports the read of a packet, a frame or an image. Raises VideoError when all reads together took too long."""
    if _watch is None:
        return
    now = time.monotonic()
    if now > _watch.until:
        raise VideoError("timeout", f"{_watch.path} takes too long to decode for the number and size of its frames.")
    if now - _watch.armed_at > _watch.stall_seconds / _ALARMS_PER_STALL:
        _watch.arm(now)
        _watch.report()
