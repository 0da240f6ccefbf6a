"""Indexes a video: true duration, presentation times, keyframes. The packets of a file are read once.

Second 0 is the start of a player (the container's start time), so times agree with annotations made in a player.
Headers are not trusted for times, because durations and frame counts in headers may be missing or wrong.
"""

from __future__ import annotations

import os
import stat
from array import array
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction

import av
import numpy as np
from av.container import InputContainer
from av.stream import Discard, Disposition
from av.video.stream import VideoStream

from videoseek.video.errors import VideoError
from videoseek.video.mp4_table import PacketTable, read_table
from videoseek.video.packets import DecodeCount, SparseDecoder, demux_packets

#: Plain containers only: playlists and scripts (HLS, DASH, concat) could make FFmpeg open other files.
CONTAINERS = "mov,matroska,avi,mpegts,mpeg,flv,asf,ogg"
#: Containers whose demuxer takes a seek stamp as a presentation time. All others take a decoding time.
SEEKABLE_BY_PRESENTATION = ("matroska,webm", "ogg", "mov,mp4,m4a,3gp,3g2,mj2", "asf")
#: For thousands of damaged files, many threads of these decoders gave the frames of one thread. HEVC threads can hang.
PARALLEL_DECODERS = ("h264", "vp9", "libdav1d")
#: Slack of time look-ups, below any frame interval: 0.1 + 0.2 still finds the frame at 0.3.
TIME_SLACK_SECONDS = 1e-6
#: Twice the pixels of 8K video. A file of a few kilobytes can ask for a frame of gigabytes.
MAX_PIXELS = 2**26
#: More than a day at 60 fps. The limit bounds the memory of an index (8 bytes a frame) and of a scan.
MAX_FRAMES = 6_000_000
#: Nobody asks about longer videos. A wrapped or damaged time stamp claims years.
MAX_HOURS = 48.0
#: The header's rate replaces a measured rate this close: millisecond time bases blur the measured rate.
RATE_TOLERANCE = 0.005


@dataclass(frozen=True, slots=True)
class VideoInfo:
    """The facts behind the sizes and frame times of a video. Height and width are as shown, after rotation.

    `header_seconds` is the length in the file's header, or None. Nothing is computed from `header_seconds`.
    """

    path: str
    duration_seconds: float
    width: int
    height: int
    average_fps: float
    num_frames: int
    header_seconds: float | None = None


@dataclass(frozen=True, slots=True, eq=False)
class VideoIndex:
    """Presentation stamps of all frames and of the keyframes (int64, ascending, in units of `time_base` seconds).

    A seek to seek_stamps[i] leads to keyframes[i]. keyframes[0] lies at the first frame, or earlier if an edit list
    starts the film in mid-stream. Second 0 is at `start_stamp`. `decoder_lag` serves containers without presentation
    times (None for all others): the decoder outputs frame n at the file's packet n + decoder_lag.
    """

    info: VideoInfo
    stamps: np.ndarray
    keyframes: np.ndarray
    seek_stamps: np.ndarray
    start_stamp: int
    time_base: Fraction
    decoder_lag: int | None

    def seconds(self, frames: np.ndarray | list[int] | slice) -> np.ndarray:
        """Returns the presentation seconds (float64) of the frames with these indices in presentation order."""
        ticks = (self.stamps[frames] - self.start_stamp) * self.time_base.numerator
        return ticks / self.time_base.denominator

    def frame_at(self, seconds: float) -> int:
        """Returns the index of the last frame with presentation time <= seconds (the frame shown), else 0."""
        return max(int(np.searchsorted(self.stamps, self._stamp(seconds + TIME_SLACK_SECONDS), side="right")) - 1, 0)

    def frame_from(self, seconds: float) -> int:
        """Returns the index of the first frame with presentation time >= seconds, else the number of frames."""
        return int(np.searchsorted(self.stamps, self._stamp(seconds - TIME_SLACK_SECONDS), side="left"))

    def _stamp(self, seconds: float) -> float:
        return seconds / float(self.time_base) + self.start_stamp


@contextmanager
def open_video(path: str, decode_threads: int = 1) -> Iterator[tuple[InputContainer, VideoStream]]:
    """Opens the default video stream of a local regular file, and closes the file at the end of the `with` block.

    `decode_threads` threads decode consecutive frames in parallel if the codec allows. A single thread conceals damage.
    Several threads report damage, because concealed pixels depend on the number of threads. Raises VideoError, also in
    place of FFmpeg's errors inside the `with` block.
    """
    file_stamp(path)
    try:
        # "file:" keeps FFmpeg from reading a name such as "a:b.mp4" as a protocol.
        container = av.open(
            f"file:{path}",
            metadata_errors="replace",
            options={"max_pixels": str(MAX_PIXELS)},
            container_options={"protocol_whitelist": "file", "format_whitelist": CONTAINERS},
        )
    except (av.FFmpegError, ValueError) as error:
        raise VideoError("not_video", f"{path} is not a video file that can be opened.") from error
    with container:
        stream = _default_stream(container)
        if stream is None:
            raise VideoError("not_video", f"{path} has no video stream.")
        if stream.codec_context is None:
            raise VideoError("not_video", f"{path} has a video stream of an unknown codec.")
        for other in container.streams:
            if other.index != stream.index:
                other.discard = Discard.all  # FFmpeg then skips the bytes
        # Headers can be wrong, so the decoder itself must refuse frames that are too large.
        in_parallel = decode_threads > 1 and stream.codec_context.name in PARALLEL_DECODERS
        strictness = {"err_detect": "explode"} if in_parallel else {}
        stream.codec_context.options = {"max_pixels": str(MAX_PIXELS), **strictness}
        stream.codec_context.thread_count = decode_threads if in_parallel else 1
        stream.thread_type = "FRAME" if in_parallel else "NONE"
        try:
            yield container, stream
        except av.FFmpegError as error:
            raise VideoError("decode_failed", f"{path} cannot be decoded.") from error


def _default_stream(container: InputContainer) -> VideoStream | None:
    """Returns the stream that a player shows. Attached pictures, such as covers, are ignored."""
    streams = [s for s in container.streams.video if Disposition.attached_pic not in s.disposition]
    best = container.streams.best("video")
    return next((s for s in streams if best is not None and s.index == best.index), streams[0] if streams else None)


def file_stamp(path: str) -> tuple[int, int]:
    """Returns the modification time in nanoseconds and the number of bytes of a regular file. Raises VideoError."""
    try:
        status = os.stat(path)
    except (OSError, ValueError) as error:
        raise VideoError("missing_file", f"{path!r} does not exist or cannot be reached.") from error
    if not stat.S_ISREG(status.st_mode):
        raise VideoError("missing_file", f"{path!r} is not a regular file.")
    return status.st_mtime_ns, status.st_size


def scan_file(path: str) -> VideoIndex:
    """Builds the index of a file from all packets and the first frame. Raises VideoError."""
    with open_video(path) as (container, stream):
        check_pixels(path, stream.width, stream.height)
        stamps, keyframes, seek_stamps, last_duration = _scan(path, container, stream)
        time_base = stream.time_base
        if not len(stamps) or time_base is None:
            raise VideoError("no_frames", f"{path} has a video stream without frames.")
        stamps = stamps[stamps >= keyframes[0]]  # a recording cut in mid-stream starts with useless frames
        first = _first_frame(container, stream, int(keyframes[0]), int(seek_stamps[0]))
        if first is None:
            raise VideoError("decode_failed", f"no frame of {path} can be decoded.")
        upright = quarter_turns(first) % 2 == 0
        width, height = (first.width, first.height) if upright else (first.height, first.width)
        decoder_lag = None
        if _lacks_presentation_times(container):
            decoder_lag = 0 if first.dts is None else int(np.searchsorted(stamps, first.dts))
        start_stamp = round(Fraction(container.start_time or 0, av.time_base) / time_base)
        header_rate, header_seconds = stream.average_rate, _header_seconds(container, stream)
    if last_duration <= 0:
        last_duration = int(np.median(np.diff(stamps))) if len(stamps) > 1 else round(1 / time_base)
    duration = float((int(stamps[-1]) + last_duration - start_stamp) * time_base)
    check_extent(path, len(stamps), duration)
    fps = len(stamps) / float((int(stamps[-1]) + last_duration - int(stamps[0])) * time_base)
    if header_rate and abs(float(header_rate) / fps - 1) < RATE_TOLERANCE:
        fps = float(header_rate)
    info = VideoInfo(path, duration, width, height, fps, len(stamps), header_seconds)
    return VideoIndex(info, stamps, keyframes, seek_stamps, start_stamp, time_base, decoder_lag)


def check_pixels(path: str, width: int, height: int) -> None:
    """Raises VideoError for frames above MAX_PIXELS."""
    if width * height > MAX_PIXELS:
        raise VideoError(
            "too_large", f"{path} has frames of {width} x {height} pixels; at most {MAX_PIXELS} are opened."
        )


def check_extent(path: str, num_frames: int, duration_seconds: float) -> None:
    """Raises VideoError for more than MAX_FRAMES or MAX_HOURS."""
    if num_frames > MAX_FRAMES:
        raise VideoError("too_large", f"{path} has more than the {MAX_FRAMES} frames that are opened.")
    if not 0 < duration_seconds <= MAX_HOURS * 3600:
        hours = f"{duration_seconds / 3600:.6g} hours"
        raise VideoError("too_large", f"{path} claims to last {hours}; it must be above 0 and at most {MAX_HOURS:g}.")


def quarter_turns(frame: av.VideoFrame) -> int:
    """Returns the counter-clockwise quarter turns (0-3) from a decoded frame to an upright frame."""
    return round(frame.rotation / 90) % 4


def decoded_frames(
    container: InputContainer,
    stream: VideoStream,
    index: VideoIndex | None = None,
    count: DecodeCount | None = None,
) -> Iterator[av.VideoFrame]:
    """Yields frames from the current position on, in presentation order, and skips damaged packets and frames.

    `index` serves containers without presentation times: `index` turns the packet at a frame's output into the place
    of the frame. `count` counts every packet sent to the decoder.
    """
    place = -1
    for packet in demux_packets(container, stream):
        if place < 0 and index is not None:  # one before the first packet, in case all frames come at the end
            place = int(np.searchsorted(index.stamps, packet.dts or 0)) - 1
        if count is not None and packet.size:
            count.num_packets += 1
        try:
            frames = [frame for frame in packet.decode() if isinstance(frame, av.VideoFrame)]
        except av.InvalidDataError:
            continue
        for frame in frames:
            if index is not None and index.decoder_lag is not None:
                # The decoder drops a frame in front of a keyframe if a reference precedes the seek. A count from the
                # keyframe would then shift all later frames. The last frames come without a packet.
                upon = None if frame.dts is None else int(np.searchsorted(index.stamps, frame.dts))
                place = place + 1 if upon is None else upon - index.decoder_lag
                frame.pts = int(index.stamps[min(max(place, 0), len(index.stamps) - 1)])
            if frame.pts is not None and not frame.is_corrupt:
                yield frame


def _scan(path: str, container: InputContainer, stream: VideoStream) -> tuple[np.ndarray, np.ndarray, np.ndarray, int]:
    """Returns the stamps of all frames, the stamps and seek stamps of keyframes, the duration of the last frame."""
    by_presentation = container.format.name in SEEKABLE_BY_PRESENTATION
    table = read_table(path, container, stream, MAX_FRAMES)
    if table is None:
        table = _read_packets(container, stream)
    # A film cut without encoding starts with pictures for the decoder only. The first keyframe is among them.
    stamps = np.unique(table.presentation[~table.is_discard])
    keys, key_rows = np.unique(table.presentation[table.is_keyframe], return_index=True)
    if not len(keys):
        return stamps, stamps[:1], stamps[:1], table.last_duration
    seek_stamps = keys if by_presentation else table.decoding[table.is_keyframe][key_rows]
    return stamps, keys, seek_stamps, table.last_duration


def _read_packets(container: InputContainer, stream: VideoStream) -> PacketTable:
    """Builds the table from all packets, up to a broken tail or up to the first frame beyond MAX_FRAMES."""
    presentation, decoding = array("q"), array("q")
    is_keyframe, is_discard = bytearray(), bytearray()
    last_stamp, last_duration = -1, 0
    for packet in demux_packets(container, stream):
        stamp = packet.dts if _lacks_presentation_times(container) else packet.pts
        if stamp is None:
            continue
        presentation.append(stamp)
        decoding.append(stamp if packet.dts is None else packet.dts)
        is_keyframe.append(packet.is_keyframe)
        is_discard.append(packet.is_discard)
        if len(presentation) > MAX_FRAMES:
            break
        if stamp >= last_stamp and not packet.is_discard:
            last_stamp, last_duration = stamp, packet.duration or 0
    times = [np.array(column, np.int64) for column in (presentation, decoding)]
    marks = [np.array(column, np.bool_) for column in (is_keyframe, is_discard)]
    return PacketTable(times[0], times[1], marks[0], marks[1], last_duration)


def _first_frame(
    container: InputContainer, stream: VideoStream, key_stamp: int, seek_stamp: int
) -> av.VideoFrame | None:
    """Decodes the first sound frame, from the first keyframe alone if possible: memory then holds a single picture."""
    if not _lacks_presentation_times(container):
        for frame in SparseDecoder(container, stream, DecodeCount()).frames(seek_stamp, key_stamp, [key_stamp]):
            return frame
    container.seek(0)
    return next(decoded_frames(container, stream), None)


def _header_seconds(container: InputContainer, stream: VideoStream) -> float | None:
    """Returns the header's seconds of the video stream, else of the longest stream, else None."""
    if stream.duration is not None and stream.time_base is not None:
        return float(stream.duration * stream.time_base)
    return container.duration / av.time_base if container.duration is not None else None


def _lacks_presentation_times(container: InputContainer) -> bool:
    """Returns True for AVI: AVI numbers packets in decoding order, so every presentation time is a guess."""
    return container.format.name == "avi"
