"""Decodes from a keyframe on: the decoder gets the fewest packets for the wanted frames, and is then drained.

Every packet sent to a decoder is counted, so the cost of a read is known exactly.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import av
from av.container import InputContainer
from av.video.codeccontext import VideoCodecContext
from av.video.stream import VideoStream

from videoseek.video import watchdog

_H264_SLICES = range(1, 6)
#: NAL units without effect on other pictures: enhancement information, delimiters, end marks, filler.
_H264_PASSING = frozenset((6, 9, 10, 11, 12))
_HEVC_FIRST_NON_SLICE = 32
_HEVC_FIRST_KEYFRAME_SLICE = 16
#: A first byte of a NAL unit whose type (31 in H.264, 63 in HEVC) neither standard gives a meaning.
_UNREADABLE = 0xFF
#: Access unit delimiter, end marks, filler, enhancement information.
_HEVC_PASSING = frozenset((35, 36, 37, 38, 39, 40))
_START_CODE = b"\0\0\1"


class DisposableTest:
    """Tells from a packet's bytes if the picture is disposable: other pictures do not refer to a disposable picture.

    H.264 marks disposable pictures by `nal_ref_idc` 0 (ITU-T H.264, 7.4.1). HEVC uses an even NAL unit type below 16,
    exact only in a stream of a single temporal layer (ITU-T H.265, 7.4.2.2). All other streams give False.
    """

    def __init__(self, context: VideoCodecContext) -> None:
        header = bytes(context.extradata or b"")
        # A first byte of 1 marks the configuration record of MP4 and Matroska, with a length before each NAL unit.
        in_record = header[:1] == b"\1"
        self._codec = ""
        self._length_bytes = 0
        if context.name == "h264":
            self._codec = "h264"
            if in_record and len(header) > 4:
                self._length_bytes = (header[4] & 3) + 1
        elif context.name == "hevc" and in_record and len(header) > 21:
            num_temporal_layers = (header[21] >> 3) & 7
            self._codec = "hevc" if num_temporal_layers == 1 else ""
            self._length_bytes = (header[21] & 3) + 1

    def __call__(self, packet: av.Packet[VideoStream]) -> bool:
        if not self._codec or packet.is_keyframe:
            return False
        is_disposable = self._h264 if self._codec == "h264" else self._hevc
        num_slices = 0
        for head in self._nal_heads(bytes(packet)):
            verdict = is_disposable(head)
            if verdict is False:
                return False
            num_slices += verdict is True
        return num_slices > 0

    @staticmethod
    def _h264(head: int) -> bool | None:
        """Returns True for a slice of a disposable picture, None for a passing unit, False for any other unit."""
        kind = head & 31
        if kind in _H264_SLICES:
            return head & 0x60 == 0
        return None if kind in _H264_PASSING else False

    @staticmethod
    def _hevc(head: int) -> bool | None:
        kind = head >> 1 & 63
        if kind < _HEVC_FIRST_NON_SLICE:
            return kind < _HEVC_FIRST_KEYFRAME_SLICE and kind % 2 == 0
        return None if kind in _HEVC_PASSING else False

    def _nal_heads(self, data: bytes) -> Iterator[int]:
        """Yields the first byte of each NAL unit. An unreadable length ends the list with `_UNREADABLE`."""
        if not self._length_bytes:
            at = data.find(_START_CODE)
            while 0 <= at < len(data) - len(_START_CODE):
                yield data[at + len(_START_CODE)]
                at = data.find(_START_CODE, at + len(_START_CODE))
            return
        at = 0
        while at + self._length_bytes < len(data):
            yield data[at + self._length_bytes]
            at += self._length_bytes + int.from_bytes(data[at : at + self._length_bytes])
        if at != len(data):
            yield _UNREADABLE


def demux_packets(container: InputContainer, stream: VideoStream) -> Iterator[av.Packet[VideoStream]]:
    """Yields packets up to the end or to the first unreadable byte. The last packet is the empty flush packet."""
    try:
        for packet in container.demux(stream):
            watchdog.progress()
            yield packet
    except (av.InvalidDataError, av.EOFError):
        return
    except IndexError:  # PyAV at the end of a recording with a second, later stream; the video is flushed by then
        return


@dataclass(slots=True)
class DecodeCount:
    """Counts the packets sent to a decoder."""

    num_packets: int = 0


class SparseDecoder:
    """Decodes chosen frames of an open stream, and gives up at the first inexact frame."""

    def __init__(self, container: InputContainer, stream: VideoStream, count: DecodeCount) -> None:
        self._container, self._stream, self._count = container, stream, count
        self._is_disposable = DisposableTest(stream.codec_context)

    def frames(self, seek_stamp: int, key_stamp: int, stamps: list[int]) -> Iterator[av.VideoFrame]:
        """Yields the frames with these ascending presentation stamps, decoded from the keyframe at `key_stamp` on.

        The iterator stops at the first fault: a seek lands behind the keyframe, a packet or a picture is damaged, or
        two packets may share a picture (interlaced).
        """
        self._container.seek(seek_stamp, stream=self._stream)
        frames = self._decoded(key_stamp, set(stamps))
        for stamp in stamps:
            shown = self._next_sound(frames)
            while shown is not None and shown[0] < stamp:
                shown = self._next_sound(frames)
            if shown is None or shown[0] != stamp:
                return
            yield shown[1]

    @staticmethod
    def _next_sound(frames: Iterator[av.VideoFrame]) -> tuple[int, av.VideoFrame] | None:
        """Returns stamp and frame, or None at the end and for a damaged, interlaced or unstamped frame."""
        try:
            frame = next(frames, None)
        except av.InvalidDataError:
            return None
        if frame is None or frame.pts is None or frame.is_corrupt or frame.interlaced_frame:
            return None
        return frame.pts, frame

    def _decoded(self, key_stamp: int, missing: set[int]) -> Iterator[av.VideoFrame]:
        """Yields the frames of the packets from the keyframe to the last missing stamp, and then drains the decoder."""
        at_key = False
        for packet in demux_packets(self._container, self._stream):
            if not packet.size:  # the end of the file
                break
            if not at_key:
                # Packets in front of the keyframe are skipped: a seek may land a group too early.
                if not packet.is_keyframe or packet.pts is None or packet.pts < key_stamp:
                    continue
                if packet.pts > key_stamp:
                    return
                at_key = True
            if packet.pts not in missing and self._is_disposable(packet):
                continue
            missing.discard(packet.pts)
            self._count.num_packets += 1
            yield from packet.decode()
            if not missing:
                break
        # The decoder holds frames back for reordering. A drain brings the frames out without another packet.
        yield from self._stream.decode(None)
