"""Turns a decoded frame into RGB pixels of a wanted size."""

from __future__ import annotations

from typing import Any

import av
import numpy as np
from av.video.reformatter import Colorspace, VideoReformatter
from PIL import Image

from videoseek.video.index import quarter_turns

#: For a stream without a colour space, players use BT.709 from this many lines on, and BT.601 below.
HD_LINES = 720
_UNSPECIFIED_COLORS = 2  # AVCOL_SPC_UNSPECIFIED
#: A large image is resized in strips of about this size: Pillow copies the input at 4 bytes a pixel.
_STRIP_BYTES = 16 * 2**20


def shown_pixels(frame: av.VideoFrame) -> np.ndarray:
    """Returns a player's picture of a frame after rotation, RGB uint8 [height, width, 3], a non-contiguous view."""
    is_untagged_hd = frame.colorspace == _UNSPECIFIED_COLORS and frame.height >= HD_LINES and not frame.format.is_rgb
    colors = Colorspace.ITU709 if is_untagged_hd else None
    # `VideoFrame.to_ndarray(format=..)` sets up a threaded scaler for each frame: 6 ms instead of 0.05.
    rgb = VideoReformatter().reformat(frame, format="rgb24", src_colorspace=colors, threads=1)
    plane: Any = rgb.planes[0]  # PyAV's annotations hide the buffer protocol
    rows = np.frombuffer(plane, np.uint8).reshape(-1, plane.line_size)[: plane.height, : 3 * plane.width]
    return np.rot90(rows.reshape(plane.height, plane.width, 3), quarter_turns(frame))


def resized(image: np.ndarray, height: int, width: int) -> np.ndarray:
    """Resizes an image to uint8 [height, width, 3], bicubic with antialias."""
    # Pillow resizes rows, rounds, and then resizes columns, so strips of rows give the very same pixels.
    strip_rows = max(1, _STRIP_BYTES // max(image[:1].nbytes, 1))
    strips = [image[start : start + strip_rows] for start in range(0, len(image), strip_rows)]
    if len(strips) > 1:
        image = np.concatenate([_resized_strip(strip, len(strip), width) for strip in strips])
    return _resized_strip(image, height, width)


def _resized_strip(image: np.ndarray, height: int, width: int) -> np.ndarray:
    pixels = Image.fromarray(np.ascontiguousarray(image))
    return np.asarray(pixels.resize((width, height), Image.Resampling.BICUBIC))
