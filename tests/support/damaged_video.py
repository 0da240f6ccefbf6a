"""Makes a video that opens but fails to decode in a part, as after a disk error or an interrupted copy."""

from __future__ import annotations

from pathlib import Path


def damaged_copy(video: str, path: Path, begin: float = 1 / 2, end: float = 1.0) -> str:
    """Writes an MP4 file with zeros in a part of the pictures (shares of their bytes), under the index of all."""
    data = bytearray(Path(video).read_bytes())
    first, last = data.index(b"mdat"), data.index(b"moov") - 4
    zeros = slice(round(first + begin * (last - first)), round(first + end * (last - first)))
    data[zeros] = bytes(zeros.stop - zeros.start)
    path.write_bytes(data)
    return str(path)
