"""Small pictures of a clip's frames, as data that stands in the page itself."""

from __future__ import annotations

import base64
import io
from dataclasses import replace

from PIL import Image

from videoseek.types import Clip
from videoseek.video.decode import decode_clip

_JPEG_QUALITY = 85


def thin_out(clip: Clip, max_frames: int) -> Clip:
    """The clip with at most `max_frames` (even) of its frames, evenly spread."""
    total = len(clip.frame_seconds)
    if total <= max_frames:
        return clip
    kept = tuple(clip.frame_seconds[(2 * i + 1) * total // (2 * max_frames)] for i in range(max_frames))
    return replace(clip, frame_seconds=kept, sample_fps=max_frames / max(clip.end_seconds - clip.start_seconds, 1e-6))


def picture_uris(clip: Clip, max_side: int) -> list[str]:
    """A `data:` URI for each frame as the model saw it, shrunk (never enlarged) to `max_side` px. Raises VideoError."""
    uris = []
    for pixels in decode_clip(clip).numpy():
        picture = Image.fromarray(pixels)
        picture.thumbnail((max_side, max_side))
        file = io.BytesIO()
        picture.save(file, "JPEG", quality=_JPEG_QUALITY, subsampling=0)
        uris.append("data:image/jpeg;base64," + base64.b64encode(file.getvalue()).decode())
    return uris
