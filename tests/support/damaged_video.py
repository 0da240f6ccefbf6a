"""A video that opens, and whose second half does not decode: what a disk or an interrupted copy leaves behind."""

from __future__ import annotations

from pathlib import Path


def damaged_copy(video: str, path: Path) -> str:
    """An MP4 file without its last pictures, under the index of all of them."""
    data = bytearray(Path(video).read_bytes())
    first, last = data.index(b"mdat"), data.index(b"moov") - 4
    middle = (first + last) // 2
    data[middle:last] = bytes(last - middle)
    path.write_bytes(data)
    return str(path)
