"""A video that opens, and whose second half does not decode: what a disk or an interrupted copy leaves behind."""

from __future__ import annotations

from pathlib import Path

from video_samples import steady, write_video, x264

#: The last second that shows a picture, and the length that the file still claims.
READABLE_SECONDS, DURATION_SECONDS = 12.0, 32.0


def damaged_video(path: Path) -> str:
    write_video(path, steady(128, 4), size=(240, 320), options=x264(16))
    data = bytearray(path.read_bytes())
    first, last = data.index(b"mdat"), data.index(b"moov") - 4
    middle = (first + last) // 2
    data[middle:last] = bytes(last - middle)
    path.write_bytes(data)
    return str(path)
