"""Limits on a decode worker in units of work: it must make progress, and each frame has an allowance of time.

The kernel's alarm ends a process whose decoder stalls inside FFmpeg, where no Python code can run. A process that never
calls `start` has no limits: the functions then do nothing.
"""

from __future__ import annotations

import signal
import time
from collections.abc import Callable

from videoseek.video.errors import VideoError

#: Generous: one core decodes H.264 of 1080p at 5 to 20 ms a frame, this allows 260 ms.
SECONDS_PER_FRAME = 0.05
SECONDS_PER_MEGAPIXEL = 0.1
#: The alarm is set anew at most this many times within the stall limit, since progress is reported for every packet.
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
    """The most seconds between two reports of a worker that is still alive."""
    return stall_seconds * (1 + 1 / _ALARMS_PER_STALL)


def start(stall_seconds: float, report: Callable[[], None]) -> None:
    """From now on `progress` must be called every `stall_seconds`, or SIGALRM ends this process.

    `report` is called several times within that span while there is progress.
    """
    global _watch
    _watch = _Watch(stall_seconds, report)


def stop() -> None:
    """Switches the alarm off."""
    global _watch
    _watch = None
    signal.setitimer(signal.ITIMER_REAL, 0)


def allow_frames(path: str, num_frames: int, pixels_per_frame: int) -> None:
    """Limits the time until `stop`, in proportion to the frames that must be decoded."""
    if _watch is not None:
        per_frame = SECONDS_PER_FRAME + SECONDS_PER_MEGAPIXEL * pixels_per_frame / 1e6
        _watch.path = path
        _watch.until = time.monotonic() + _watch.stall_seconds + num_frames * per_frame


def progress() -> None:
    """Says that a packet, a frame or an image was read. Raises VideoError when all of them took too long."""
    if _watch is None:
        return
    now = time.monotonic()
    if now > _watch.until:
        raise VideoError("timeout", f"{_watch.path} takes too long to decode for the number and size of its frames.")
    if now - _watch.armed_at > _watch.stall_seconds / _ALARMS_PER_STALL:
        _watch.arm(now)
        _watch.report()
