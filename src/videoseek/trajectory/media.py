"""Encodes clips for an endpoint as `data:` URLs, JPEG pictures with times or an MP4, and identifies clips."""

from __future__ import annotations

import base64
import hashlib
import io
import os
from dataclasses import asdict
from fractions import Fraction
from functools import lru_cache
from pathlib import Path
from typing import Any

import av
import numpy as np
from av.video.reformatter import VideoReformatter
from PIL import Image

from videoseek.trajectory.wording import time_sentence
from videoseek.types import Clip
from videoseek.video.decode import read_frames
from videoseek.video.errors import VideoError
from videoseek.video.folder import FrameFolder

#: Increase this number whenever the encoded bytes of a clip change: cached replies describe the old bytes.
ENCODING_VERSION = 1
_JPEG_QUALITY = 90
_MP4_OPTIONS = {"crf": "18", "preset": "veryfast", "threads": "1"}


def clip_parts(clip: Clip, media: str) -> list[dict[str, Any]]:
    """Returns the content parts of a chat message: a sentence on the clip's times, then the frames.

    `media` is "frames" or "video". Raises VideoError.
    """
    if media == "video":
        pixels = read_frames(clip).numpy()
        url = _data_url("video/mp4", _mp4(pixels, clip.sample_fps))
        sentence = f"{time_sentence(clip)} Its first frame is at {clip.frame_seconds[0]:.1f} seconds."
        return [text_part(sentence), {"type": "video_url", "video_url": {"url": url}}]
    return [text_part(time_sentence(clip)), *frame_parts(clip)]


def frame_parts(clip: Clip, **options: str) -> list[dict[str, Any]]:
    """Returns a time and a picture for each frame. `options` go beside each picture's URL. Raises VideoError."""
    parts = []
    for seconds, picture in zip(clip.frame_seconds, read_frames(clip).numpy(), strict=True):
        url = _data_url("image/jpeg", _jpeg(picture))
        parts += [text_part(f"{seconds:.1f} s:"), {"type": "image_url", "image_url": {"url": url, **options}}]
    return parts


def clip_identity(clip: Clip) -> dict[str, Any]:
    """Returns the facts behind a clip's pixels without decoding: the file's content, the frames and the size."""
    return asdict(clip) | {"video": video_digest(clip.video), "encoding": ENCODING_VERSION}


def video_digest(video: str) -> str:
    """Returns the SHA-256 of the content of a video file, or of all files of a frame folder.

    The digest is cached until the size or the modification time changes. Raises VideoError.
    """
    folder = FrameFolder.parse(video)
    path = Path(video if folder is None else folder.folder)
    rate = "" if folder is None else f"fps={folder.fps}"
    try:
        status = os.stat(path)
        return _digest(path, rate, status.st_size, status.st_mtime_ns)
    except OSError as error:
        raise VideoError("missing_file", f"{video!r} cannot be read: {error.strerror}.") from error


@lru_cache(maxsize=4096)
def _digest(path: Path, rate: str, num_bytes: int, modified_ns: int) -> str:
    """Returns the SHA-256 of a file or folder. `num_bytes` and `modified_ns` serve the cache key only."""
    if not rate:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    folder_digest = hashlib.sha256(rate.encode())
    for image in sorted(entry for entry in path.iterdir() if entry.is_file()):
        folder_digest.update(os.fsencode(image.name) + b"\0" + hashlib.sha256(image.read_bytes()).digest())
    return folder_digest.hexdigest()


def text_part(text: str) -> dict[str, Any]:
    """Returns a text as a content part of a chat message."""
    return {"type": "text", "text": text}


def _data_url(media_type: str, data: bytes) -> str:
    return f"data:{media_type};base64,{base64.b64encode(data).decode()}"


def _jpeg(pixels: np.ndarray) -> bytes:
    """Encodes a frame, uint8 [H, W, 3], as JPEG."""
    file = io.BytesIO()
    # 4:4:4: halved colour resolution would blur text of the same brightness as the background.
    Image.fromarray(pixels).save(file, "JPEG", quality=_JPEG_QUALITY, subsampling=0)
    return file.getvalue()


def _mp4(pixels: np.ndarray, fps: float) -> bytes:
    """Encodes frames, uint8 [F, H, W, 3], as H.264 at the sampling rate of the frames."""
    file = io.BytesIO()
    with av.open(file, "w", format="mp4") as container:
        rate = Fraction(fps).limit_denominator(1000)
        stream = container.add_stream("libx264", rate=rate, options=_MP4_OPTIONS)
        stream.height, stream.width = pixels.shape[1:3]
        stream.pix_fmt = "yuv420p"
        for picture in pixels:
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            container.mux(stream.encode(VideoReformatter().reformat(frame, format="yuv420p", threads=1)))
        container.mux(stream.encode(None))
    return file.getvalue()
