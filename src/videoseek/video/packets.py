"""Decoding from a keyframe on with the fewest packets: the decoder is given what the wanted frames need, then drained.

Every packet that is sent to a decoder is counted, so the cost of a read is known exactly.
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
#: NAL units that no other picture depends on: enhancement information, delimiters, end marks, filler.
_H264_PASSING = frozenset((6, 9, 10, 11, 12))
_HEVC_FIRST_NON_SLICE = 32
_HEVC_FIRST_KEYFRAME_SLICE = 16
#: Access unit delimiter, end marks, filler, enhancement information.
_HEVC_PASSING = frozenset((35, 36, 37, 38, 39, 40))
_START_CODE = b"\0\0\1"


class DisposableTest:
    """Tells from a packet's bytes whether no other picture refers to its picture (H.264 and HEVC only).

    H.264 marks such pictures by `nal_ref_idc` 0 (ITU-T H.264, 7.4.1). HEVC marks them by an even NAL unit type below
    16, which is exact only in a stream of one temporal layer (ITU-T H.265, 7.4.2.2). All other streams answer False.
    """

    def __init__(self, context: VideoCodecContext) -> None:
        header = bytes(context.extradata or b"")
        # A header that begins with 1 is the configuration record of MP4 and Matroska: lengths stand before NAL units.
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
        """True for a slice of a disposable picture, None for a unit of no consequence, False for all else."""
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
        """The first byte of each NAL unit; an unreadable length ends with a unit that is never disposable."""
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
            yield 0


def demux_packets(container: InputContainer, stream: VideoStream) -> Iterator[av.Packet[VideoStream]]:
    """Packets up to the end of the file, or to its first unreadable byte; the last is the empty flush packet."""
    try:
        for packet in container.demux(stream):
            watchdog.progress()
            yield packet
    except (av.InvalidDataError, av.EOFError):
        return
    except IndexError:  # PyAV at the end of a recording in which another stream began later; ours is flushed by then
        return


@dataclass(slots=True)
class DecodeCount:
    """The number of packets that were sent to a decoder."""

    num_packets: int = 0


class SparseDecoder:
    """Decodes chosen frames of an open stream; gives up where a frame does not come out exactly as asked for."""

    def __init__(self, container: InputContainer, stream: VideoStream, count: DecodeCount) -> None:
        self._container, self._stream, self._count = container, stream, count
        self._is_disposable = DisposableTest(stream.codec_context)

    def frames(self, seek_stamp: int, key_stamp: int, stamps: list[int]) -> Iterator[av.VideoFrame]:
        """The frames with these ascending presentation stamps, decoded from the keyframe at `key_stamp` on.

        Yields the leading part of `stamps` that decodes without any fault. It ends early where the seek lands behind
        the keyframe, where a packet or a picture is damaged, and where two packets may share a picture (interlaced).
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
        """Stamp and frame, or None at the end and where a frame is damaged, interlaced or without a stamp."""
        try:
            frame = next(frames, None)
        except av.InvalidDataError:
            return None
        if frame is None or frame.pts is None or frame.is_corrupt or frame.interlaced_frame:
            return None
        return frame.pts, frame

    def _decoded(self, key_stamp: int, missing: set[int]) -> Iterator[av.VideoFrame]:
        """What the decoder puts out for the packets from the keyframe to the last missing one, and then for the end."""
        at_key = False
        for packet in demux_packets(self._container, self._stream):
            if not packet.size:  # the end of the file
                break
            if not at_key:
                # Packets in front of the keyframe are read and not decoded: a seek may land a group too early.
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
        # The decoder holds frames back to reorder them. Draining brings them out without another packet.
        yield from self._stream.decode(None)
