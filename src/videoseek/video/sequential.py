"""Decodes frame after frame from a keyframe on, for damaged files and for files without presentation times."""

from __future__ import annotations

from collections.abc import Iterator

import av
import numpy as np
from av.container import InputContainer
from av.video.stream import VideoStream

from videoseek.video.errors import VideoError
from videoseek.video.index import VideoIndex, decoded_frames
from videoseek.video.packets import DecodeCount

#: Decoding this many more frames is cheaper than a seek, because a seek discards the decoder's state.
SEEK_WORTH_FRAMES = 4
#: A frame shown at most this long before may replace an undecodable frame.
MAX_STALE_SECONDS = 0.5


class SequentialReader:
    """Reads frames of ascending index. The decoder gets every packet on the way, so damage appears in its place."""

    def __init__(
        self, path: str, index: VideoIndex, container: InputContainer, stream: VideoStream, count: DecodeCount
    ) -> None:
        self._path, self._index = path, index
        self._container, self._stream, self._count = container, stream, count
        self._decoder: Iterator[av.VideoFrame] = iter(())
        self._shown: av.VideoFrame | None = None
        self._ahead: av.VideoFrame | None = None

    def restart(self) -> None:
        """Forgets the position: the next frame may lie before the last frame."""
        self._shown = self._ahead = None

    def frame(self, frame_index: int) -> av.VideoFrame:
        """Returns the frame, or after damage a frame shown at most MAX_STALE_SECONDS before. Raises VideoError."""
        stamp = int(self._index.stamps[frame_index])
        key = int(np.searchsorted(self._index.keyframes, stamp, side="right")) - 1
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
        if shown is None or shown.pts is None or (stamp - shown.pts) * self._index.time_base > MAX_STALE_SECONDS:
            seconds = float(self._index.seconds([frame_index])[0])
            raise VideoError("decode_failed", f"the frame of {self._path} at {seconds:.3f} s cannot be decoded.")
        return shown

    def _must_seek(self, key: int) -> bool:
        if self._shown is None or self._shown.pts is None:
            return True
        here, at_key = np.searchsorted(self._index.stamps, [self._shown.pts, self._index.keyframes[key]])
        return bool(at_key - here > SEEK_WORTH_FRAMES)

    def _seek(self, key: int) -> None:
        self._container.seek(int(self._index.seek_stamps[key]), stream=self._stream)
        by_order = self._index if self._index.decoder_lag is not None else None
        self._decoder = decoded_frames(self._container, self._stream, by_order, self._count)
        self._shown = self._ahead = None

    def _advance(self, stamp: int) -> None:
        """Decodes until the frame shown at `stamp` is known: a frame starts there, or the next frame starts later."""
        while self._shown is None or self._shown.pts != stamp:
            if self._ahead is None:
                self._ahead = next(self._decoder, None)
                if self._ahead is None:
                    return
            if self._ahead.pts is None or self._ahead.pts > stamp:
                return
            self._shown, self._ahead = self._ahead, None
