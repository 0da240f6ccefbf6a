"""Keeps decoded overviews on disk: a later epoch or run reads the pixels and decodes nothing.

A file holds four bytes of CRC-32 and the pixels, uint8 [F, height, width, 3]. The name of the file comes from the
film's path, size and time, and from times and size of the frames.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import zlib
from contextlib import suppress
from pathlib import Path
from threading import Lock

import numpy as np

from videoseek.config import UsageError
from videoseek.files import FolderBound, whole_file
from videoseek.types import Clip
from videoseek.video.errors import warn_once
from videoseek.video.reader import source_stamp

logger = logging.getLogger(__name__)

#: A new number makes every stored overview invalid, as a change of the pixels of a decode must.
VERSION = 1
_SUFFIX = ".overview"
_CHECKSUM_BYTES = 4


class OverviewStore:
    """Keeps overviews in `folder`, at most `max_bytes` bytes. Several threads and processes may share a folder."""

    def __init__(self, folder: Path, max_bytes: int) -> None:
        self._folder, self._max_bytes = folder, max_bytes
        self._bound = FolderBound(folder, f"*{_SUFFIX}*", max_bytes)
        self._writing = Lock()
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UsageError(f"video.overview_cache {folder} must be a folder: {error.strerror}") from error

    def reset(self) -> None:
        """Makes a new lock in a forked process: another thread may have held the old lock."""
        self._writing = Lock()

    def file_of(self, clip: Clip) -> Path:
        """Returns the path of a clip's file. The film's size and time are part of the name. Raises VideoError."""
        film = os.path.realpath(clip.video).encode(errors="surrogateescape").hex()
        key = [VERSION, film, *source_stamp(clip.video), clip.frame_seconds, clip.height, clip.width]
        return self._folder / (hashlib.sha256(json.dumps(key).encode()).hexdigest()[:32] + _SUFFIX)

    def load(self, file: Path, clip: Clip) -> np.ndarray | None:
        """Returns the stored pixels of a clip, or None. A damaged file is ignored and logged."""
        pixels = np.empty((len(clip.frame_seconds), clip.height, clip.width, 3), np.uint8)
        try:
            with file.open("rb") as stored:
                checksum = int.from_bytes(stored.read(_CHECKSUM_BYTES))
                if stored.readinto(pixels.data.cast("B")) != pixels.nbytes or stored.read(1):
                    raise ValueError("its length differs")
            if zlib.crc32(pixels.data) != checksum:
                raise ValueError("its checksum differs")
        except FileNotFoundError:
            return None
        except (OSError, ValueError) as error:
            logger.warning("the stored overview %s of %s cannot be used (%s) and is made anew", file, clip.video, error)
            return None
        with suppress(OSError):  # in a folder that is only read, the order of removal has no meaning
            os.utime(file)
        return pixels

    def save(self, file: Path, pixels: np.ndarray) -> None:
        """Stores the pixels of a clip that fits into the bound. A failure to write is logged once."""
        if _CHECKSUM_BYTES + pixels.nbytes > self._max_bytes:
            return
        try:
            # `whole_file` keeps processes apart, the lock keeps threads apart.
            with self._writing, whole_file(file) as partial, partial.open("wb") as stored:
                stored.write(zlib.crc32(pixels.data).to_bytes(_CHECKSUM_BYTES))
                stored.write(pixels.data)
            self._bound.wrote(_CHECKSUM_BYTES + pixels.nbytes)
        except OSError as error:
            warn_once(f"overviews are not kept in {self._folder}: {error.strerror}")
