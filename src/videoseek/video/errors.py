"""The one exception of the video floor."""

from __future__ import annotations

CODES = (
    "missing_file",  # no such file, or not a regular one
    "not_video",  # no container that we open, or no video stream in it
    "no_frames",  # a video stream that yields no frame
    "decode_failed",  # a wanted frame cannot be decoded
    "size_unsupported",  # sides so unequal that no legal size exists
    "window_outside",  # a window that does not lie inside the video
    "window_too_short",  # a window below the minimum length
    "timeout",  # a decode past its deadline
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
