"""From presentation times to pixels, in this process: seek to the keyframe, decode forward, turn upright, resize.

Imports neither torch nor anything above this floor: decode workers start in a fraction of a second.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from functools import lru_cache
from types import TracebackType

import av
import numpy as np
from av.video.reformatter import VideoReformatter
from PIL import Image

from videoseek.video.errors import VideoError
from videoseek.video.folder import FolderIndex, FrameFolder, scan_folder
from videoseek.video.index import VideoIndex, decoded_frames, file_stamp, open_video, quarter_turns, scan_file

#: A seek throws decoder state away: decoding this many frames more is cheaper.
SEEK_WORTH_FRAMES = 4
#: A frame that cannot be decoded may be stood in for by one shown at most this long before it.
MAX_STALE_SECONDS = 0.5
#: Indices kept; that of an hour at 30 fps takes 0.9 MB.
MAX_INDICES = 64


def source_stamp(path: str) -> tuple[int, int]:
    """Two numbers that change when a file, or the list of images in a frame folder, does. Raises VideoError."""
    folder = FrameFolder.parse(path)
    return file_stamp(path) if folder is None else folder.stamp()


def read_index(path: str) -> VideoIndex:
    """The index of a file or frame folder, cached until it changes. Raises VideoError."""
    return _read_index(path, source_stamp(path))


@lru_cache(maxsize=MAX_INDICES)
def _read_index(path: str, stamp: tuple[int, int]) -> VideoIndex:
    folder = FrameFolder.parse(path)
    return scan_file(path) if folder is None else scan_folder(path, folder)


def decode_frames(path: str, frame_seconds: Sequence[float], height: int, width: int) -> np.ndarray:
    """The frames shown at these seconds, in their order, RGB uint8 [F, height, width, 3]. Raises VideoError."""
    index = read_index(path)
    rows_of_frame: dict[int, list[int]] = {}
    for row, seconds in enumerate(frame_seconds):
        rows_of_frame.setdefault(index.frame_at(seconds), []).append(row)
    wanted = sorted(rows_of_frame)
    pixels = np.empty((len(frame_seconds), height, width, 3), np.uint8)
    with ExitStack() as resources:
        if isinstance(index, FolderIndex):
            images = index.images(wanted)
        else:
            images = map(shown_pixels, resources.enter_context(VideoReader(path)).frames(wanted))
        for frame_index, image in zip(wanted, images, strict=True):
            pixels[rows_of_frame[frame_index]] = _resized(image, height, width)
    return pixels


def shown_pixels(frame: av.VideoFrame) -> np.ndarray:
    """RGB uint8 [height, width, 3] of a frame as a player shows it, rotation applied."""
    # `VideoFrame.to_ndarray(format=..)` sets up a threaded scaler for each frame: 6 ms where this takes 0.05.
    rgb = VideoReformatter().reformat(frame, format="rgb24", threads=1).to_ndarray()
    return np.ascontiguousarray(np.rot90(rgb, quarter_turns(frame)))


def _resized(image: np.ndarray, height: int, width: int) -> np.ndarray:
    """Bicubic with antialias, uint8 [height, width, 3]."""
    return np.asarray(Image.fromarray(image).resize((width, height), Image.Resampling.BICUBIC))


class VideoReader:
    """An open file, read by the index of its frames in presentation order.

    num_decoded counts the frames that the decoder had to put out.
    """

    def __init__(self, path: str) -> None:
        self.index = read_index(path)
        self.num_decoded = 0
        self._path = path
        self._resources = ExitStack()
        self._container, self._stream = self._resources.enter_context(open_video(path))
        self._wanted: frozenset[int] | None = None
        self._decoder: Iterator[av.VideoFrame] = iter(())
        self._shown: av.VideoFrame | None = None
        self._ahead: av.VideoFrame | None = None

    def __enter__(self) -> VideoReader:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        # Hands FFmpeg's errors to `open_video`, which names the file.
        self._resources.__exit__(kind, error, tb)

    def frames(self, frame_indices: Sequence[int]) -> Iterator[av.VideoFrame]:
        """The frames with these ascending indices, each replaced by the one shown just before where it is damaged."""
        self._shown = None
        if self._stream.codec_context.name == "h264" and self.index.decoder_lag is None:
            self._wanted = frozenset(self.index.stamps[list(frame_indices)].tolist())
        for frame_index in frame_indices:
            yield self._frame(frame_index)

    def _frame(self, frame_index: int) -> av.VideoFrame:
        stamp = int(self.index.stamps[frame_index])
        key = int(np.searchsorted(self.index.keyframes, stamp, side="right")) - 1
        if self._must_seek(key):
            self._seek(key)
        self._advance(stamp)
        step = 1
        # A container without an index seeks by guess and may land behind the wanted frame: start earlier.
        while self._shown is None and key > 0:
            key, step = max(key - step, 0), step * 2
            self._seek(key)
            self._advance(stamp)
        shown = self._shown
        if shown is None or shown.pts is None or (stamp - shown.pts) * self.index.time_base > MAX_STALE_SECONDS:
            seconds = float(self.index.seconds([frame_index])[0])
            raise VideoError("decode_failed", f"the frame of {self._path} at {seconds:.3f} s cannot be decoded.")
        return shown

    def _must_seek(self, key: int) -> bool:
        if self._shown is None or self._shown.pts is None:
            return True
        here, at_key = np.searchsorted(self.index.stamps, [self._shown.pts, self.index.keyframes[key]])
        return bool(at_key - here > SEEK_WORTH_FRAMES)

    def _seek(self, key: int) -> None:
        self._container.seek(int(self.index.seek_stamps[key]), stream=self._stream)
        by_order = self.index if self.index.decoder_lag is not None else None
        self._decoder = decoded_frames(self._container, self._stream, by_order, self._wanted)
        self._shown = self._ahead = None

    def _advance(self, stamp: int) -> None:
        """Decode until the frame shown at `stamp` is known: it starts exactly there, or the next one starts later."""
        while self._shown is None or self._shown.pts != stamp:
            if self._ahead is None:
                self._ahead = next(self._decoder, None)
                if self._ahead is None:
                    return
                self.num_decoded += 1
            if self._ahead.pts is None or self._ahead.pts > stamp:
                return
            self._shown, self._ahead = self._ahead, None
