"""Keeps indices of files on disk between processes: reading an index takes a millisecond, scanning a film minutes.

The folder is `video_index/` in the folder of the environment variable VIDEOSEEK_CACHE (default ~/.cache/videoseek; an
empty value switches the store off). The resolved path of a film gives the name of the film's file. The first line is
the SHA-256 of the rest. The rest is JSON with arrays as differences, packed by zlib, written in base64.
"""

from __future__ import annotations

import base64
import hashlib
import json
import logging
import os
import zlib
from dataclasses import asdict, replace
from fractions import Fraction
from functools import lru_cache
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np

from videoseek.files import FolderBound, whole_file
from videoseek.video.errors import warn_once
from videoseek.video.index import MAX_FRAMES, VideoIndex, VideoInfo

logger = logging.getLogger(__name__)

#: A new number makes every stored index invalid. The next read writes a new file.
VERSION = 1
#: The index of a film takes some kilobytes. The oldest indices are removed beyond this bound.
MAX_STORED_BYTES = 2**30
ARRAYS = ("stamps", "keyframes", "seek_stamps")
_NUMBER_BYTES = 8
_writing = Lock()


def index_folder() -> Path | None:
    """Returns the folder of stored indices, or None for an empty VIDEOSEEK_CACHE."""
    named = os.environ.get("VIDEOSEEK_CACHE")
    if named == "":
        return None
    return Path(named or "~/.cache/videoseek").expanduser() / "video_index"


def load_stored(path: str, stamp: tuple[int, int]) -> VideoIndex | None:
    """Returns the stored index of a file with the same `file_stamp`, or None. A damaged file is ignored and logged."""
    stored = _stored_at(path)
    if stored is None:
        return None
    try:
        checksum, _, text = stored.read_bytes().partition(b"\n")
        if hashlib.sha256(text).hexdigest().encode() != checksum:
            raise ValueError("its checksum differs")
        fields = json.loads(text)
        if fields["version"] != VERSION or fields["file"] != _identity(path, stamp):
            return None
        return replace_path(from_fields(fields, [_unpacked(fields[name]) for name in ARRAYS]), path)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError, KeyError, TypeError, zlib.error) as error:
        logger.warning("the stored index %s of %s cannot be used (%s) and is made anew", stored, path, error)
        return None


def store(index: VideoIndex, stamp: tuple[int, int]) -> None:
    """Stores the index of a file with this `file_stamp`. A failure to write is logged once."""
    stored = _stored_at(index.info.path)
    if stored is None:
        return
    fields = {"version": VERSION, "file": _identity(index.info.path, stamp), **to_fields(index)}
    fields |= {name: _packed(getattr(index, name)) for name in ARRAYS}
    text = json.dumps(fields).encode()
    try:
        # `whole_file` keeps processes apart, the lock keeps threads apart.
        with _writing, whole_file(stored) as partial:
            partial.write_bytes(hashlib.sha256(text).hexdigest().encode() + b"\n" + text)
        _bound_of(stored.parents[1], MAX_STORED_BYTES).wrote(len(text))
    except OSError as error:
        warn_once(f"indices of videos are not kept in {index_folder()}: {error.strerror}")


@lru_cache
def _bound_of(folder: Path, max_bytes: int) -> FolderBound:
    return FolderBound(folder, "*.json*", max_bytes)


def to_fields(index: VideoIndex) -> dict[str, Any]:
    """Returns all of an index except the arrays, as JSON values."""
    return {
        "info": asdict(index.info),
        "start_stamp": index.start_stamp,
        "time_base": str(index.time_base),
        "decoder_lag": index.decoder_lag,
    }


def from_fields(fields: dict[str, Any], arrays: list[np.ndarray]) -> VideoIndex:
    """Builds an index from the result of `to_fields` and the arrays in the order of ARRAYS."""
    stamps, keyframes, seek_stamps = arrays
    return VideoIndex(
        info=VideoInfo(**fields["info"]),
        stamps=stamps,
        keyframes=keyframes,
        seek_stamps=seek_stamps,
        start_stamp=fields["start_stamp"],
        time_base=Fraction(fields["time_base"]),
        decoder_lag=fields["decoder_lag"],
    )


def replace_path(index: VideoIndex, path: str) -> VideoIndex:
    """Returns the same index under the requested name of the file."""
    return replace(index, info=replace(index.info, path=path))


def _stored_at(path: str) -> Path | None:
    folder = index_folder()
    if folder is None:
        return None
    name = hashlib.sha256(os.path.realpath(path).encode(errors="surrogateescape")).hexdigest()[:32]
    return folder / name[:2] / f"{name}.json"


def _identity(path: str, stamp: tuple[int, int]) -> list[Any]:
    mtime_ns, num_bytes = stamp
    return [os.path.realpath(path).encode(errors="surrogateescape").hex(), num_bytes, mtime_ns]


def _packed(numbers: np.ndarray) -> str:
    """Packs the differences: most frames lie equally far apart, so nearly all differences are equal."""
    return base64.b64encode(zlib.compress(np.diff(numbers, prepend=0).astype("<i8").tobytes(), 1)).decode()


def _unpacked(text: str) -> np.ndarray:
    unpacker = zlib.decompressobj()
    data = unpacker.decompress(base64.b64decode(text, validate=True), (MAX_FRAMES + 1) * _NUMBER_BYTES)
    if not unpacker.eof:
        raise ValueError("an array in it is cut short or too long")
    return np.cumsum(np.frombuffer(data, "<i8")).astype(np.int64)
