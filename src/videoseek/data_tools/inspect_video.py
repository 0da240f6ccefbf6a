"""Inspects a video file: size, content, length, and decoding of frames."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np

from videoseek.samples.readers.rows import Problem
from videoseek.types import Clip
from videoseek.video.decode import load_index, read_frames
from videoseek.video.errors import VideoError
from videoseek.video.folder import FrameFolder
from videoseek.video.index import VideoIndex, VideoInfo

#: Number of decoded frames in each inspected second.
_FRAMES_PER_SECOND = 8
#: A header may round up, count the last frame's time differently, or give the length of a longer audio track.
_HEADER_SLACK_SECONDS, _HEADER_SLACK_SHARE = 1.0, 0.02
_FRAME_SIDE = 28
#: A film of at least `_STEADY_FRAMES` gaps has a steady rate if this share of gaps, or all but `_FEW`, are equal.
#: Screen recordings and slides have no steady rate: a frame stays on screen on purpose.
_STEADY_SHARE, _STEADY_FRAMES, _FEW = 0.99, 24, 3
#: The shortest gap that counts as a hole in a steady film; the loss of a few frames is harmless.
_HOLE_SECONDS, _HOLE_FRAMES = 1.0, 10


@dataclass(frozen=True, slots=True)
class VideoFacts:
    """The facts about a video; `info` is None for an unopenable video. `problems` are all faults of the video."""

    info: VideoInfo | None
    problems: tuple[Problem, ...] = ()


def content_size(video: str) -> int:
    """Returns the number of bytes of a file, or of all images of a folder. Raises VideoError."""
    with _reachable(video):
        return sum(os.stat(file).st_size for file in _files(video))


def content_digest(video: str) -> str:
    """Returns the SHA-256 of the digests of a file, or of a folder's images in order. Raises VideoError."""
    whole = hashlib.sha256()
    with _reachable(video):
        for name in _files(video):
            with open(name, "rb") as file:
                whole.update(hashlib.file_digest(file, "sha256").digest())
    return whole.hexdigest()


@contextmanager
def _reachable(video: str) -> Iterator[None]:
    try:
        yield
    except (OSError, ValueError) as error:
        raise VideoError("missing_file", f"{video!r} does not exist or cannot be reached.") from error


def _files(video: str) -> list[str]:
    folder = FrameFolder.parse(video)
    return [video] if folder is None else [file for _, file in sorted(folder.numbered_images().items())]


def inspect_video(video: str, *, decode: bool) -> VideoFacts:
    """Opens a video and, with `decode`, decodes frames of the first, middle and last second."""
    try:
        index = load_index(video)
    except VideoError as error:
        return VideoFacts(None, (Problem(error.code, error.message),))
    info = index.info
    problems = [*_cut_off(info), *_hole(index)]
    if decode:
        try:
            for clip in _three_seconds(info):
                read_frames(clip)
        except VideoError as error:
            problems.append(Problem(error.code, error.message))
    return VideoFacts(info, tuple(problems))


def _three_seconds(info: VideoInfo) -> Iterator[Clip]:
    """Yields the first, the middle and the last second, without repetition for a shorter video."""
    last = max(info.duration_seconds - 1, 0.0)
    for start_seconds in sorted({0.0, last / 2, last}):
        end_seconds = min(start_seconds + 1, info.duration_seconds)
        step = (end_seconds - start_seconds) / _FRAMES_PER_SECOND
        times = tuple(start_seconds + index * step for index in range(_FRAMES_PER_SECOND))
        yield Clip(info.path, start_seconds, end_seconds, times, _FRAME_SIDE, _FRAME_SIDE, 1 / step)


def _hole(index: VideoIndex) -> Iterator[Problem]:
    """Yields a problem if frames are missing in a film of steady rate: a still replaces the missing frames."""
    seconds = index.seconds(slice(None))
    steps = np.diff(seconds)
    if len(steps) < _STEADY_FRAMES:
        return
    usual, longest = float(np.median(steps)), int(np.argmax(steps))
    num_longer = np.count_nonzero(steps > 1.5 * usual)
    is_steady = num_longer <= max(_FEW, (1 - _STEADY_SHARE) * len(steps))
    if is_steady and steps[longest] > max(_HOLE_SECONDS, _HOLE_FRAMES * usual):
        where = f"{steps[longest]:.1f} seconds from {seconds[longest]:.1f} on"
        yield Problem("frames_missing", f"{index.info.path} has no frame for {where}, where one is shown all along")


def _cut_off(info: VideoInfo) -> Iterator[Problem]:
    """Yields a problem if the frames end before the header's end."""
    claimed_seconds = info.header_seconds or 0.0
    if claimed_seconds * (1 - _HEADER_SLACK_SHARE) > info.duration_seconds + _HEADER_SLACK_SECONDS:
        yield Problem(
            "truncated",
            f"{info.path} ends after {info.duration_seconds:.1f} of the {claimed_seconds:.1f} seconds in its header",
        )
