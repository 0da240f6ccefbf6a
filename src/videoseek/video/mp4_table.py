"""Reads the times of all frames of an MP4 or MOV file from the sample tables, and skips the samples.

FFmpeg's index of a track (`stream.index_entries`) holds decoding times, sizes and keyframes after edit lists, but lacks
presentation times. A presentation time is the decoding time plus the sample's composition offset (box `ctts`, ISO/IEC
14496-12, 8.6.1.3) plus a shift common to the whole track. The rule is checked on packets of the beginning, of several
places in the middle and of the whole last group. A single different packet rejects the table.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from typing import BinaryIO

import av
import numpy as np
from av.container import InputContainer
from av.video.stream import VideoStream

from videoseek.video.packets import demux_packets

#: AVINDEX_KEYFRAME and AVINDEX_DISCARD_FRAME of FFmpeg.
_KEYFRAME, _DISCARD = 1, 2
_NUM_CHECKED_PLACES = 4
_NUM_CHECKED_PACKETS = 16
_MAX_BOXES = 10_000


@dataclass(frozen=True, slots=True, eq=False)
class PacketTable:
    """A row per packet, in decoding order, in units of the time base. `last_duration` is of the last shown frame."""

    presentation: np.ndarray
    decoding: np.ndarray
    is_keyframe: np.ndarray
    is_discard: np.ndarray
    last_duration: int


def read_table(path: str, container: InputContainer, stream: VideoStream, max_frames: int) -> PacketTable | None:
    """Returns the table of an open file's stream, or None for an incomplete, fragmented or rejected table.

    After None, the container is at the start.
    """
    if not container.format.name.startswith("mov,"):
        return None
    entries = stream.index_entries
    if not 0 < len(entries) <= max_frames:
        return None
    offsets = _composition_offsets(path, stream.id, len(entries))
    if offsets is None:
        return None
    columns = [(entry.timestamp, entry.flags, entry.pos, entry.size) for entry in entries[:]]
    decoding, flags, positions, sizes = np.array(columns, np.int64).T
    if sizes.min() <= 0 or (positions + sizes).max() > os.stat(path).st_size:
        return None
    check = _TableCheck(container, stream, decoding, decoding + offsets, flags, sizes)
    last_duration = check.run()
    if last_duration is None or check.shift is None:
        container.seek(0)
        return None
    return PacketTable(
        check.presentation + check.shift, decoding, flags & _KEYFRAME != 0, flags & _DISCARD != 0, last_duration
    )


class _TableCheck:
    """Compares rows of the table with packets. `shift` is the first packet's time minus the first row's time."""

    def __init__(
        self,
        container: InputContainer,
        stream: VideoStream,
        decoding: np.ndarray,
        presentation: np.ndarray,
        flags: np.ndarray,
        sizes: np.ndarray,
    ) -> None:
        self.shift: int | None = None
        self.presentation = presentation
        self._container, self._stream = container, stream
        self._decoding, self._flags, self._sizes = decoding, flags, sizes

    def run(self) -> int | None:
        """Returns the duration of the last shown frame, or None when a packet differs from the row."""
        if self._is_right(0, _NUM_CHECKED_PACKETS) is None:
            return None
        keys = np.flatnonzero(self._flags & _KEYFRAME)
        if not len(keys):
            return None
        for key in keys[:: -(-len(keys) // _NUM_CHECKED_PLACES)].tolist():
            if self._seek_and_check(key, _NUM_CHECKED_PACKETS) is None:
                return None
        return self._seek_and_check(int(keys[-1]), len(self._sizes))

    def _seek_and_check(self, row: int, num_packets: int) -> int | None:
        self._container.seek(int(self.presentation[row]) + (self.shift or 0), stream=self._stream)
        return self._is_right(row, num_packets)

    def _is_right(self, row: int, num_packets: int) -> int | None:
        """Compares up to `num_packets` packets from this row on. Returns the duration of the last shown packet."""
        rows = len(self._sizes) - row
        last_stamp, last_duration, num_seen = -1, 0, 0
        for packet in islice(self._from_row(row), min(num_packets, rows)):
            if packet.pts is None or packet.dts is None:
                return None
            if self.shift is None:
                self.shift = packet.pts - int(self.presentation[row])
            is_right = (
                packet.pts == self.presentation[row] + self.shift
                and packet.dts == self._decoding[row]
                and packet.size == self._sizes[row]
                and packet.is_keyframe == bool(self._flags[row] & _KEYFRAME)
                and packet.is_discard == bool(self._flags[row] & _DISCARD)
            )
            if not is_right:
                return None
            if packet.pts >= last_stamp and not packet.is_discard:
                last_stamp, last_duration = packet.pts, packet.duration or 0
            row, num_seen = row + 1, num_seen + 1
        return last_duration if num_seen == min(num_packets, rows) else None

    def _from_row(self, row: int) -> Iterator[av.Packet[VideoStream]]:
        """Yields packets from this row's decoding time on: a seek may land on an earlier keyframe."""
        for packet in demux_packets(self._container, self._stream):
            if packet.dts is None or packet.dts >= self._decoding[row]:
                yield packet


def _composition_offsets(path: str, track_id: int, num_samples: int) -> np.ndarray | None:
    """Returns presentation time minus decoding time of each sample, or None for fragmented or inconsistent boxes."""
    with open(path, "rb") as file:
        for kind, start, end in _boxes(file, 0, os.fstat(file.fileno()).st_size):
            if kind != b"moov":
                continue
            tracks = list(_boxes(file, start, end))
            if any(kind == b"mvex" for kind, _, _ in tracks):
                return None
            for kind, track_start, track_end in tracks:
                if kind == b"trak" and _track_id(file, track_start, track_end) == track_id:
                    return _offsets_of_track(file, track_start, track_end, num_samples)
            return None
    return None


def _offsets_of_track(file: BinaryIO, start: int, end: int, num_samples: int) -> np.ndarray | None:
    for name in (b"mdia", b"minf", b"stbl"):
        inner = _find(file, start, end, name)
        if inner is None:
            return None
        start, end = inner
    sizes = _find(file, start, end, b"stsz")
    if sizes is None or _numbers(file, sizes, at=8, count=1) != [num_samples]:
        return None  # an edit list repeated samples or left some out
    table = _find(file, start, end, b"ctts")
    if table is None:
        return np.zeros(num_samples, np.int64)
    file.seek(table[0] + 8)
    payload = file.read(table[1] - table[0] - 8)
    runs = np.frombuffer(payload[: len(payload) // 8 * 8], ">i4").reshape(-1, 2).astype(np.int64)
    (num_runs,) = _numbers(file, table, at=4, count=1) or [-1]
    runs = runs[:num_runs]
    if len(runs) != num_runs or not len(runs) or runs[:, 0].min() < 0 or runs[:, 0].sum() != num_samples:
        return None
    return np.repeat(runs[:, 1], runs[:, 0])


def _track_id(file: BinaryIO, start: int, end: int) -> int | None:
    """Returns the track's number. FFmpeg calls the number `stream.id`."""
    header = _find(file, start, end, b"tkhd")
    if header is None:
        return None
    file.seek(header[0])
    version = file.read(1)
    numbers = _numbers(file, header, at=20 if version == b"\1" else 12, count=1)
    return numbers[0] if numbers else None


def _find(file: BinaryIO, start: int, end: int, name: bytes) -> tuple[int, int] | None:
    return next(((inner, last) for kind, inner, last in _boxes(file, start, end) if kind == name), None)


def _boxes(file: BinaryIO, start: int, end: int) -> Iterator[tuple[bytes, int, int]]:
    """Yields name, start and end of the contents of each box between two positions (ISO/IEC 14496-12, 4.2)."""
    for _ in range(_MAX_BOXES):
        file.seek(start)
        head = file.read(16)
        if start + 8 > end or len(head) < 8:
            return
        size, name, inner = int.from_bytes(head[:4]), head[4:8], start + 8
        if size == 1:
            size, inner = int.from_bytes(head[8:16]), start + 16
        stop = end if size == 0 else start + size
        if stop < inner or stop > end:
            return
        yield name, inner, stop
        start = stop


def _numbers(file: BinaryIO, box: tuple[int, int], at: int, count: int) -> list[int] | None:
    """Reads unsigned 32-bit numbers at an offset of a box's contents."""
    file.seek(box[0] + at)
    data = file.read(4 * count)
    if box[0] + at + 4 * count > box[1] or len(data) < 4 * count:
        return None
    return np.frombuffer(data, ">u4").tolist()
