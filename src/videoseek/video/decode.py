"""From a clip's presentation times to pixels: seek to the keyframe, decode forward, resize, remember."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from types import TracebackType

import av
import numpy as np
import torch
from PIL import Image

from videoseek.types import Clip
from videoseek.video.cache import FrameCache
from videoseek.video.errors import VideoError
from videoseek.video.index import VideoInfo, decoded_frames, load_index, open_video

#: A seek throws decoder state away: decoding this many frames more is cheaper.
SEEK_WORTH_FRAMES = 4
#: A frame that cannot be decoded may be stood in for by one shown at most this long before it.
MAX_STALE_SECONDS = 0.5

#: Decoded clips of this process. Tensors in it are shared: never write into them.
FRAME_CACHE = FrameCache(max_bytes=512 * 2**20)


def probe(path: str) -> VideoInfo:
    """Duration, shown size, rate and frame count of a local video file. Raises VideoError."""
    return load_index(path).info


def read_frames(clip: Clip) -> torch.Tensor:
    """Pixels of a clip, uint8 [F, height, width, 3], shared through the process-wide cache. Raises VideoError."""
    return FRAME_CACHE.get(clip, decode_clip)


def decode_clip(clip: Clip) -> torch.Tensor:
    """Decode a clip from its file, uint8 [F, height, width, 3], uncached.

    Takes and returns plain values only, so that it can run in another process under a deadline. Raises VideoError.
    """
    pixels = np.empty((len(clip.frame_seconds), clip.height, clip.width, 3), np.uint8)
    rows_of_frame: dict[int, list[int]] = {}
    with VideoReader(clip.video) as reader:
        for row, seconds in enumerate(clip.frame_seconds):
            rows_of_frame.setdefault(reader.index.frame_at(seconds), []).append(row)
        for frame_index in sorted(rows_of_frame):
            pixels[rows_of_frame[frame_index]] = _shown_pixels(reader.frame(frame_index), clip.height, clip.width)
    return torch.from_numpy(pixels)


def _shown_pixels(frame: av.VideoFrame, height: int, width: int) -> np.ndarray:
    """RGB uint8 [height, width, 3] of a frame as a player shows it: rotated, then resized bicubic with antialias."""
    # The stamp of the display matrix is counter-clockwise, as is rot90.
    shown = np.rot90(frame.to_ndarray(format="rgb24"), round(frame.rotation / 90) % 4)
    return np.asarray(Image.fromarray(np.ascontiguousarray(shown)).resize((width, height), Image.Resampling.BICUBIC))


class VideoReader:
    """Frames of one open file by their index in presentation order; cheapest when asked for in ascending order.

    num_decoded counts the frames that the decoder had to produce.
    """

    def __init__(self, path: str) -> None:
        self.index = load_index(path)
        self.num_decoded = 0
        self._path = path
        self._resources = ExitStack()
        self._container, self._stream = self._resources.enter_context(open_video(path))
        self._frames: Iterator[av.VideoFrame] = iter(())
        self._shown: av.VideoFrame | None = None
        self._ahead: av.VideoFrame | None = None

    def __enter__(self) -> VideoReader:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self._resources.close()

    def frame(self, frame_index: int) -> av.VideoFrame:
        """The frame with this index, or the one shown just before it where that frame is damaged."""
        stamp = int(self.index.stamps[frame_index])
        keyframes = self.index.keyframes
        key = int(np.searchsorted(keyframes, stamp, side="right")) - 1
        if self._must_seek(frame_index, key):
            self._seek(key)
        self._advance(stamp)
        step = 1
        # Some containers seek by decoding order or by guess and land behind the wanted frame: start earlier.
        while self._shown is None and key >= 0:
            key, step = key - step, step * 2
            self._seek(key)
            self._advance(stamp)
        shown = self._shown
        if shown is None or shown.pts is None or (stamp - shown.pts) * self.index.time_base > MAX_STALE_SECONDS:
            seconds = float(self.index.seconds([frame_index])[0])
            raise VideoError("decode_failed", f"the frame of {self._path} at {seconds:.3f} s cannot be decoded.")
        return shown

    def _must_seek(self, frame_index: int, key: int) -> bool:
        if self._shown is None or self._shown.pts is None:
            return True
        here = int(np.searchsorted(self.index.stamps, self._shown.pts))
        key_index = int(np.searchsorted(self.index.stamps, self.index.keyframes[key])) if key >= 0 else 0
        return here > frame_index or key_index - here > SEEK_WORTH_FRAMES

    def _seek(self, key: int) -> None:
        """Go to the keyframe with this number, or to the start of the file for a negative one."""
        offset = int(self.index.keyframes[key]) if key >= 0 else min(int(self.index.stamps[0]), 0)
        try:
            self._container.seek(offset, stream=self._stream)
        except av.FFmpegError as error:
            raise VideoError("decode_failed", f"{self._path} cannot be positioned for reading.") from error
        self._frames = decoded_frames(self._container, self._stream)
        self._shown = self._ahead = None

    def _advance(self, stamp: int) -> None:
        """Decode until the frame shown at `stamp` is known: the next one starts later, or starts exactly there."""
        while self._shown is None or self._shown.pts != stamp:
            if self._ahead is None:
                try:
                    self._ahead = next(self._frames, None)
                except av.FFmpegError as error:
                    raise VideoError("decode_failed", f"{self._path} cannot be decoded.") from error
                if self._ahead is None:
                    return
                self.num_decoded += 1
            if self._ahead.pts is None or self._ahead.pts > stamp:
                return
            self._shown, self._ahead = self._ahead, None
