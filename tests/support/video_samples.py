"""Small real videos of every kind. Black and white bars in each frame show the number of the frame."""

from __future__ import annotations

import os
import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
from av.video.reformatter import VideoReformatter
from PIL import Image
from support.long_film import repeat_packets

NUM_BITS = 13
TICKS_PER_SECOND = 1000
HEIGHT, WIDTH = 64, 112
LONG_FILM_GOP = 250
FIRST_IMAGE = 97  # of a frame folder: names of two and of three digits

os.environ.setdefault("SVT_LOG", "1")  # the AV1 encoder reports each file it writes otherwise


def numbered_image(number: int, height: int = HEIGHT, width: int = WIDTH) -> np.ndarray:
    """Returns RGB uint8 [height, width, 3]: a vertical bar per bit, the highest bit on the left, white for 1."""
    bits = [(number >> shift) & 1 for shift in reversed(range(NUM_BITS))]
    bar_of_column = np.arange(width) * NUM_BITS // width
    row = np.where(np.array(bits)[bar_of_column] == 1, 235, 20).astype(np.uint8)
    return np.ascontiguousarray(np.broadcast_to(row[None, :, None], (height, width, 3)))


def read_number(image: np.ndarray) -> int:
    """Returns the number drawn by `numbered_image`, at any size of at least 4 pixels a bar."""
    width = image.shape[1]
    centres = ((np.arange(NUM_BITS) + 0.5) * width / NUM_BITS).astype(int)
    bits = np.asarray(image).mean(axis=(0, 2))[centres] > 127
    return int("".join("1" if bit else "0" for bit in bits), 2)


def write_video(
    path: Path,
    times: Sequence[float],
    *,
    codec: str = "libx264",
    size: tuple[int, int] = (HEIGHT, WIDTH),
    pix_fmt: str = "yuv420p",
    options: dict[str, str] | None = None,
    container_options: dict[str, str] | None = None,
    rotation: int = 0,
    sound: bool = False,
) -> Path:
    """Writes frame i (numbered i) at times[i] seconds, rounded to milliseconds; size is (height, width) as stored.

    With `rotation`, a player turns the stored image counter-clockwise by `rotation` degrees.
    """
    height, width = size
    gaps = np.diff(times)
    rate = Fraction(1 / float(np.median(gaps))).limit_denominator(1001) if len(gaps) else Fraction(1)
    with av.open(str(path), "w", container_options=container_options or {}) as container:
        stream = container.add_stream(codec, rate=rate, options=options or {})
        stream.width, stream.height, stream.pix_fmt = width, height, pix_fmt
        # One thread: frames this small cost less than waking others up.
        stream.codec_context.thread_count = 1
        # AVI counts frames, so its clock is the frame rate; so is that of MPEG-1 and 2.
        counts_frames = path.suffix == ".avi" or codec == "mpeg2video"
        clock = 1 / rate if counts_frames else Fraction(1, TICKS_PER_SECOND)
        stream.codec_context.time_base = clock
        if rotation:
            stream.set_display_rotation(rotation)
        if sound:
            _add_tone(container, times[-1])
        for number, seconds in enumerate(times):
            image = av.VideoFrame.from_ndarray(numbered_image(number, height, width), format="rgb24")
            frame = VideoReformatter().reformat(image, format=pix_fmt, threads=1)
            frame.pts, frame.time_base = round(seconds / clock), clock
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def write_long_film(
    path: Path, num_frames: int, fps: int, size: tuple[int, int] = (90, 160), num_groups: int = 8
) -> Path:
    """Writes H.264 with two B-frames and a keyframe every 250 frames; repeats the packets of the first groups.

    Frame i carries i modulo (num_groups * 250).
    """
    cycle = path.with_name(f"cycle_{path.stem}.mp4")
    write_video(cycle, steady(num_groups * LONG_FILM_GOP, fps), size=size, options=x264(LONG_FILM_GOP, 2))
    repeat_packets(cycle, path, num_frames, fps)
    cycle.unlink()
    return path


def _add_tone(container: Any, num_seconds: float) -> None:
    rate = 16000
    stream = container.add_stream("aac", rate=rate)
    samples = np.zeros((1, round(num_seconds * rate)), np.float32)
    frame = av.AudioFrame.from_ndarray(samples, format="fltp", layout="mono")
    frame.rate, frame.pts, frame.time_base = rate, 0, Fraction(1, rate)
    container.mux(stream.encode(frame))
    container.mux(stream.encode(None))


def write_folder(folder: Path, numbers: Sequence[int], suffix: str = ".jpg", size: tuple[int, int] = (64, 112)) -> Path:
    """Writes images with `numbers` in the names and pictures; size is (height, width)."""
    folder.mkdir()
    for number in numbers:
        Image.fromarray(numbered_image(number, *size)).save(folder / f"frame_{number}{suffix}", quality=90)
    return folder


def steady(num_frames: int, fps: float, start_seconds: float = 0.0) -> list[float]:
    return [start_seconds + i / fps for i in range(num_frames)]


def x264(gop: int, bframes: int = 3, **more: str) -> dict[str, str]:
    """Returns encoder options: fixed keyframe distance, no scene cuts."""
    parameters = ":".join([f"keyint={gop}", f"min-keyint={gop}", "scenecut=0", f"bframes={bframes}", "b-adapt=0"])
    return {"preset": "ultrafast", "x264-params": parameters, **more}


def x265(gop: int, more: str = "") -> dict[str, str]:
    return {"preset": "ultrafast", "x265-params": f"log-level=none:pools=none:keyint={gop}{more}"}


def _overstate_duration(path: Path) -> None:
    """Changes the movie header of an MP4 to a claim of 9999 seconds."""
    data = bytearray(path.read_bytes())
    at = data.index(b"mvhd") + 4 + 4 + 8  # version and flags, two times
    (scale,) = struct.unpack_from(">I", data, at)
    struct.pack_into(">I", data, at + 4, scale * 9999)
    path.write_bytes(data)


def _cut_in_half(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


@dataclass(frozen=True)
class Kind:
    """A recipe for a video: frame i is shown from times[i]; `spoil` then damages or falsifies the file.

    A name like `frames#fps=8` makes a frame folder; each image shows the number in the image's name.
    """

    name: str
    times: Sequence[float]
    how: dict[str, Any] = field(default_factory=dict)
    spoil: Callable[[Path], None] | None = None

    @property
    def folder_fps(self) -> float:
        """Returns the rate of a frame folder; 0 for a file."""
        return float(self.name.partition("#fps=")[2] or 0)

    def write(self, folder: Path) -> str:
        """Writes the video, and returns the path for the video module."""
        if self.folder_fps:
            numbers = [FIRST_IMAGE + round(t * self.folder_fps) for t in self.times]
            write_folder(folder / self.name.partition("#")[0], numbers, **self.how)
            return str(folder / self.name)
        path = write_video(folder / self.name, self.times, **self.how)
        if self.spoil is not None:
            self.spoil(path)
        return str(path)

    def number_at(self, seconds: float) -> int:
        """Returns the number in the frame on screen at a second."""
        last = max(int(np.searchsorted(self.times, seconds, side="right")) - 1, 0)
        return FIRST_IMAGE + round(self.times[last] * self.folder_fps) if self.folder_fps else last


IRREGULAR = [0.0, 0.04, 0.08, 0.5, 0.54, 1.5, 1.51, 1.52, 3.0, 3.033, 3.9, 4.0, 4.1, 4.11, 6.0, 6.5, 6.52, 7.0]
GAPS = [t for i, t in enumerate(steady(60, 8)) if i % 7 not in (2, 3) and not 20 < i < 40]
HDR = ":colorprim=bt2020:transfer=smpte2084:colormatrix=bt2020nc:range=limited"

KINDS = {
    "b_frames": Kind("v.mp4", steady(120, 10), {"options": x264(40)}),
    "one_keyframe": Kind("v.mp4", steady(120, 10), {"options": x264(1000)}),
    "all_keyframes": Kind("v.mp4", steady(60, 10), {"options": x264(1, 0)}),
    "tiny_gop": Kind("v.mp4", steady(60, 10), {"options": x264(2, 1)}),
    "open_gop": Kind("v.mp4", steady(120, 10), {"options": x264(20, 3, flags="-cgop", x264opts="open-gop")}),
    "matroska": Kind("v.mkv", steady(120, 30), {"options": x264(25)}),
    "transport_stream": Kind("v.ts", steady(120, 25), {"options": x264(25)}),
    "avi_mpeg4": Kind("v.avi", steady(60, 10), {"codec": "mpeg4", "options": {"g": "12"}}),
    "avi_mpeg4_b_frames": Kind("v.avi", steady(60, 10), {"codec": "mpeg4", "options": {"g": "12", "bf": "2"}}),
    "avi_h264": Kind("v.avi", steady(60, 10), {"options": x264(12)}),
    "webm_vp9": Kind("v.webm", steady(30, 10), {"codec": "libvpx-vp9", "options": {"cpu-used": "8", "g": "10"}}),
    "webm_av1": Kind("v.webm", steady(30, 10), {"codec": "libsvtav1", "options": {"preset": "12", "g": "10"}}),
    "hevc": Kind("v.mp4", steady(40, 10), {"codec": "libx265", "options": x265(15)}),
    "hevc_hdr": Kind("v.mkv", steady(40, 10), {"codec": "libx265", "pix_fmt": "yuv420p10le", "options": x265(15, HDR)}),
    "mpeg2_transport_stream": Kind(
        "v.ts", steady(75, 25), {"codec": "mpeg2video", "options": {"g": "12", "bf": "2", "b": "2M"}}
    ),
    "mpeg4_b_frames": Kind("v.mkv", steady(60, 25), {"codec": "mpeg4", "options": {"bf": "2", "g": "12"}}),
    "flash": Kind("v.flv", steady(60, 10), {"options": x264(12)}),
    "windows_media": Kind("v.asf", steady(60, 10), {"codec": "wmv2", "options": {"g": "12", "b": "1M"}}),
    "ten_bit": Kind("v.mp4", steady(40, 10), {"pix_fmt": "yuv420p10le", "options": x264(10)}),
    "odd_size": Kind("v.mp4", steady(40, 10), {"size": (63, 113), "pix_fmt": "yuv444p", "options": x264(10)}),
    "with_sound": Kind("v.mp4", steady(60, 10), {"options": x264(20), "sound": True}),
    "variable_rate_mp4": Kind("v.mp4", IRREGULAR, {"options": x264(5, 2)}),
    "variable_rate_mkv": Kind("v.mkv", IRREGULAR, {"options": x264(5, 2)}),
    "one_frame_per_second": Kind("v.mp4", steady(20, 1), {"options": x264(250)}),
    "120_frames_per_second": Kind("v.mp4", steady(240, 120), {"options": x264(60)}),
    "single_frame": Kind("v.mp4", [0.0], {"options": x264(1)}),
    "four_hours": Kind("v.mp4", steady(3600, 0.25), {"options": x264(100)}),
    "upside_down": Kind("v.mp4", steady(40, 10), {"options": x264(10), "rotation": 180}),
    "overstated_duration": Kind("v.mp4", steady(60, 10), {"options": x264(20)}, _overstate_duration),
    "no_duration": Kind("v.mkv", steady(60, 10), {"options": x264(20), "container_options": {"live": "1"}}),
    "fragmented": Kind(
        "v.mp4",
        steady(60, 10),
        {"options": x264(20), "container_options": {"movflags": "frag_keyframe+empty_moov"}},
    ),
    "truncated_tail": Kind("v.mkv", steady(60, 10), {"options": x264(10, 0)}, _cut_in_half),
    "frame_folder": Kind("frames#fps=8", GAPS),
}
