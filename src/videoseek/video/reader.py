"""Reads pixels at presentation times, in this process: seek to the keyframe, decode forward, turn upright, resize.

The module imports neither torch nor any higher floor, so decode workers start in a fraction of a second.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import lru_cache
from types import TracebackType

import av
import numpy as np

from videoseek.video import watchdog
from videoseek.video.folder import FolderIndex, FrameFolder, scan_folder
from videoseek.video.index import VideoIndex, file_stamp, open_video, scan_file
from videoseek.video.index_store import load_stored, store
from videoseek.video.packets import DecodeCount, SparseDecoder
from videoseek.video.pixels import resized, shown_pixels
from videoseek.video.sequential import SEEK_WORTH_FRAMES, SequentialReader

#: After this many failed sparse runs of a file, the reader tries no further sparse run.
MAX_FAILED_RUNS = 3
#: A damaged file is read again from earlier keyframes on, so the allowance is this many times a sound file's frames.
MAX_WORK_RATIO = 8
#: Indices in memory. The index of an hour at 30 fps takes 0.9 MB.
MAX_INDICES = 64


def source_stamp(path: str) -> tuple[int, int]:
    """Returns two numbers that change with a file, or with the list of images in a frame folder. Raises VideoError."""
    folder = FrameFolder.parse(path)
    return file_stamp(path) if folder is None else folder.stamp()


def read_index(path: str) -> VideoIndex:
    """Returns the index of a video, cached in memory and on disk until the source changes. Raises VideoError."""
    return _read_index(path, source_stamp(path))


@lru_cache(maxsize=MAX_INDICES)
def _read_index(path: str, stamp: tuple[int, int]) -> VideoIndex:
    folder = FrameFolder.parse(path)
    if folder is not None:
        return scan_folder(path, folder)
    index = load_stored(path, stamp)
    if index is None:
        index = scan_file(path)
        store(index, stamp)
    return index


@dataclass(frozen=True, slots=True)
class DecodeRun:
    """Wanted frames of a single decode from keyframe number `key` on."""

    key: int
    frames: list[int]


def decode_runs(index: VideoIndex, frame_indices: Sequence[int]) -> list[DecodeRun]:
    """Cuts ascending frames at every seek to a later keyframe that skips more than SEEK_WORTH_FRAMES frames."""
    keys = np.maximum(np.searchsorted(index.keyframes, index.stamps[list(frame_indices)], side="right") - 1, 0)
    frames_at_keys = np.searchsorted(index.stamps, index.keyframes[keys])
    runs: list[DecodeRun] = []
    for frame_index, key, frame_at_key in zip(frame_indices, keys.tolist(), frames_at_keys.tolist(), strict=True):
        if not runs or frame_at_key - runs[-1].frames[-1] > SEEK_WORTH_FRAMES:
            runs.append(DecodeRun(key, []))
        runs[-1].frames.append(frame_index)
    return runs


def num_needed(index: VideoIndex, frame_indices: Sequence[int]) -> int:
    """Counts the frames from the keyframe up to the last wanted frame, over all runs."""
    runs = decode_runs(index, frame_indices)
    frames_at_keys = np.searchsorted(index.stamps, index.keyframes[[run.key for run in runs]])
    return int(sum(run.frames[-1] + 1 for run in runs) - frames_at_keys.sum())


def decode_frames(
    path: str, frame_seconds: Sequence[float], height: int, width: int, decode_threads: int = 1
) -> np.ndarray:
    """Returns the frames shown at these seconds, in the same order, RGB uint8 [F, height, width, 3]. Raises VideoError.

    `decode_threads` changes only the time of the decode. The pixels stay the same.
    """
    index = read_index(path)
    rows_of_frame: dict[int, list[int]] = {}
    for row, seconds in enumerate(frame_seconds):
        rows_of_frame.setdefault(index.frame_at(seconds), []).append(row)
    if rows_of_frame:
        allowed = MAX_WORK_RATIO * num_needed(index, sorted(rows_of_frame))
        watchdog.allow_frames(path, allowed, index.info.width * index.info.height)
    pixels = np.empty((len(frame_seconds), height, width, 3), np.uint8)
    try:
        _fill(pixels, path, index, rows_of_frame, decode_threads)
    except DamagedError:
        _fill(pixels, path, index, rows_of_frame, decode_threads=1)
    return pixels


def _fill(
    pixels: np.ndarray, path: str, index: VideoIndex, rows_of_frame: dict[int, list[int]], decode_threads: int
) -> None:
    """Resizes each frame to the size of `pixels` [F, height, width, 3] and fills the frame's rows."""
    _, height, width, _ = pixels.shape
    frames = sorted(rows_of_frame)
    with ExitStack() as resources:
        if isinstance(index, FolderIndex):
            images = index.images(frames)
        else:
            reader = resources.enter_context(VideoReader(path, decode_threads))
            images = map(shown_pixels, reader.frames(frames))
        # Memory holds one large image at a time, because no variable of this loop keeps a large image.
        small_images = map(lambda image: resized(image, height, width), images)
        for frame_index, small_image in zip(frames, small_images, strict=True):
            pixels[rows_of_frame[frame_index]] = small_image


class DamagedError(Exception):
    """Several threads met damage, real or suspected. A single thread must read the file."""


class VideoReader:
    """Reads an open file by frame index in presentation order. `num_decoded` counts decoded packets.

    A sound file is read sparsely (`SparseDecoder`), a damaged file frame after frame. With several threads a damaged
    file raises DamagedError instead, because concealed pixels depend on the number of threads.
    """

    def __init__(self, path: str, decode_threads: int = 1) -> None:
        self.index = read_index(path)
        self._path = path
        self._decode_threads = decode_threads
        self._count = DecodeCount()
        self._resources = ExitStack()
        self._num_failed_runs = 0
        self._sequential: SequentialReader | None = None
        self._sparse: SparseDecoder | None = None
        if self.index.decoder_lag is None:
            opened = self._resources.enter_context(open_video(path, decode_threads))
            self._sparse = SparseDecoder(*opened, self._count)

    @property
    def num_decoded(self) -> int:
        return self._count.num_packets

    def __enter__(self) -> VideoReader:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        # The stack hands FFmpeg's errors to `open_video`, and `open_video` names the file.
        self._resources.__exit__(kind, error, tb)

    def frames(self, frame_indices: Sequence[int]) -> Iterator[av.VideoFrame]:
        """Yields the frames with these ascending indices. The frame shown just before replaces a damaged frame."""
        if self._sequential is not None:
            self._sequential.restart()
        for run in decode_runs(self.index, frame_indices):
            num_read = 0
            for frame in self._sparse_frames(run):
                yield frame
                num_read += 1
            for frame_index in run.frames[num_read:]:
                yield self._sequential_reader().frame(frame_index)

    def _sparse_frames(self, run: DecodeRun) -> Iterator[av.VideoFrame]:
        if self._sparse is None or self._num_failed_runs >= MAX_FAILED_RUNS:
            return
        seek_stamp, key_stamp = int(self.index.seek_stamps[run.key]), int(self.index.keyframes[run.key])
        num_read = 0
        for frame in self._sparse.frames(seek_stamp, key_stamp, self.index.stamps[run.frames].tolist()):
            yield frame
            num_read += 1
        if num_read < len(run.frames):
            if self._decode_threads > 1:
                raise DamagedError
            self._num_failed_runs += 1

    def _sequential_reader(self) -> SequentialReader:
        if self._sequential is None:
            opened = self._resources.enter_context(open_video(self._path))
            self._sequential = SequentialReader(self._path, self.index, *opened, self._count)
        return self._sequential
