"""Makes a video that opens but fails to decode in the second half, as after a disk error or an interrupted copy."""

from __future__ import annotations

from pathlib import Path


def damaged_copy(video: str, path: Path) -> str:
    """Writes an MP4 file without the last pictures, under the index of all pictures."""
    data = bytearray(Path(video).read_bytes())
    first, last = data.index(b"mdat"), data.index(b"moov") - 4
    middle = (first + last) // 2
    data[middle:last] = bytes(last - middle)
    path.write_bytes(data)
    return str(path)
