"""The one exception of the video floor, and the account of files that ended in it."""

from __future__ import annotations

import logging
from collections import Counter
from functools import lru_cache

logger = logging.getLogger(__name__)

CODES = (
    "missing_file",  # no such file, or not a regular one
    "not_video",  # no container that we open, or no video stream in it
    "no_frames",  # a video stream, or a folder of images, that yields no frame
    "decode_failed",  # a wanted frame cannot be decoded
    "too_large",  # more pixels, frames or hours than are opened
    "mixed_frames",  # images of a folder that differ in size or share a number
    "outside_folder",  # an image of a folder that is a link to somewhere else
    "size_unsupported",  # sides so unequal that no legal size exists
    "window_outside",  # a window that does not lie inside the video
    "window_too_short",  # a window below the minimum length
    "timeout",  # a file that stalls, or takes too long for its frames
    "crashed",  # a file that the decoder died over
)


class VideoError(Exception):
    """A video that cannot be used as asked. `code` is one of CODES; `message` is one sentence that names the file."""

    def __init__(self, code: str, message: str) -> None:
        if code not in CODES:
            raise ValueError(f"code {code!r} of a video error is not one of {', '.join(CODES)}")
        super().__init__(code, message)
        self.code = code
        self.message = message

    def __str__(self) -> str:
        return self.message


#: Files that could not be read in this process so far, with the code of the last error of each.
BAD_FILES: dict[str, str] = {}


def error_metrics() -> dict[str, float]:
    """Number of bad files so far by code, as `video/errors_CODE`; codes that did not occur are left out."""
    return {f"video/errors_{code}": float(count) for code, count in sorted(Counter(BAD_FILES.values()).items())}


@lru_cache(maxsize=1024)
def warn_once(sentence: str) -> None:
    """Warns the user of a file that the run goes on without, the first time only: many samples may meet it."""
    logger.warning("%s", sentence)
