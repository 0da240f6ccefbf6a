"""The tools by the name under which a model calls them."""

from __future__ import annotations

from collections.abc import Callable

from videoseek.tools.crop import VideoCrop
from videoseek.video.quotas import VideoLimits

TOOLS: dict[str, Callable[[VideoLimits], VideoCrop]] = {"crop_video": VideoCrop}


def make_tool(name: str, limits: VideoLimits) -> VideoCrop:
    """The tool called `name`, under these limits; ValueError for an unknown name."""
    if name not in TOOLS:
        raise ValueError(f"tool {name!r} is not one of {', '.join(sorted(TOOLS))}")
    return TOOLS[name](limits)
