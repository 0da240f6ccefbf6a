"""Small real video files whose every frame carries its own number as black and white bars."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

NUM_BITS = 13
TICKS_PER_SECOND = 1000


def numbered_image(number: int, height: int, width: int) -> np.ndarray:
    """RGB uint8 [height, width, 3]: one vertical bar a bit, the highest bit on the left, white for 1."""
    bits = [(number >> shift) & 1 for shift in reversed(range(NUM_BITS))]
    bar_of_column = np.arange(width) * NUM_BITS // width
    row = np.where(np.array(bits)[bar_of_column] == 1, 235, 20).astype(np.uint8)
    return np.ascontiguousarray(np.broadcast_to(row[None, :, None], (height, width, 3)))


def read_number(image: np.ndarray) -> int:
    """The number that `numbered_image` drew, from any size of at least 4 pixels a bar."""
    width = image.shape[1]
    centres = ((np.arange(NUM_BITS) + 0.5) * width / NUM_BITS).astype(int)
    bits = np.asarray(image).mean(axis=(0, 2))[centres] > 127
    return int("".join("1" if bit else "0" for bit in bits), 2)


def write_video(
    path: Path,
    times: Sequence[float],
    *,
    codec: str = "libx264",
    size: tuple[int, int] = (64, 112),
    pix_fmt: str = "yuv420p",
    options: dict[str, str] | None = None,
    rotation: int = 0,
) -> Path:
    """Write frame i (numbered i) at times[i] seconds, rounded to milliseconds; size is (height, width) as stored."""
    height, width = size
    gaps = np.diff(times)
    rate = Fraction(1 / float(np.median(gaps))).limit_denominator(1001) if len(gaps) else Fraction(1)
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=rate, options=options or {})
        stream.width, stream.height, stream.pix_fmt = width, height, pix_fmt
        # AVI counts frames, so its clock is the frame rate.
        clock = 1 / rate if path.suffix == ".avi" else Fraction(1, TICKS_PER_SECOND)
        stream.codec_context.time_base = clock
        if rotation:
            stream.set_display_rotation(rotation)
        for number, seconds in enumerate(times):
            frame = av.VideoFrame.from_ndarray(numbered_image(number, height, width), format="rgb24")
            frame.pts, frame.time_base = round(seconds / clock), clock
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def steady(num_frames: int, fps: float, start_seconds: float = 0.0) -> list[float]:
    return [start_seconds + i / fps for i in range(num_frames)]


def x264(gop: int, bframes: int = 3, **more: str) -> dict[str, str]:
    """Encoder options: fixed keyframe distance, no scene cuts."""
    parameters = ":".join([f"keyint={gop}", f"min-keyint={gop}", "scenecut=0", f"bframes={bframes}", "b-adapt=0"])
    return {"preset": "ultrafast", "x264-params": parameters, **more}
