"""VideoError, the only exception of the video floor, and warnings about bad files."""

from __future__ import annotations

import logging
from functools import lru_cache

logger = logging.getLogger(__name__)

CODES = (
    "missing_file",  # the file is missing, or is not a regular file
    "not_video",  # the container is of another kind than CONTAINERS, or has no video stream
    "no_frames",  # a video stream or a folder of images yields no frame
    "decode_failed",  # a wanted frame cannot be decoded
    "too_large",  # the video exceeds the limit of pixels, frames or hours
    "mixed_frames",  # images of a folder differ in size or share a number
    "outside_folder",  # an image of a folder links to a file elsewhere
    "size_unsupported",  # the sides are too unequal for any legal size
    "window_outside",  # the window reaches outside the video
    "window_too_short",  # the window is below the minimum length
    "timeout",  # the file stalls, or takes too long for its frames
    "crashed",  # the decoder died over the file
)


class VideoError(Exception):
    """Refuses a request for a video. `code` comes from CODES; `message` is a sentence with the file's name."""

    def __init__(self, code: str, message: str) -> None:
        if code not in CODES:
            raise ValueError(f"code {code!r} of a video error is not one of {', '.join(CODES)}")
        super().__init__(code, message)
        self.code = code
        self.message = message

    def __str__(self) -> str:
        return self.message


@lru_cache(maxsize=1024)
def warn_once(sentence: str) -> None:
    """Warns the user once per sentence: many samples may meet the same bad file."""
    logger.warning("%s", sentence)
