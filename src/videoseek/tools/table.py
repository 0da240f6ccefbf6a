"""The table of a run's tools beside the crop tool, by name."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from videoseek.config import UsageError, VideoConfig
from videoseek.tools.frame_grid import FrameGrid
from videoseek.tools.subtitles import SubtitleSearch, SubtitleWindow
from videoseek.tools.tool import Tool
from videoseek.user_code import load_member

TOOLS: dict[str, Callable[[VideoConfig], Tool]] = {
    "subtitle_search": lambda limits: SubtitleSearch(),
    "subtitle_window": lambda limits: SubtitleWindow(),
    "frame_grid": FrameGrid,
}


def load_tools(specs: Sequence[str], limits: VideoConfig) -> dict[str, Tool]:
    """Returns the tools of names and of `FILE.py:NAME`, by name, in order. Raises UsageError."""
    tools: dict[str, Tool] = {}
    for spec in specs:
        tool = TOOLS[spec](limits) if spec in TOOLS else load_member(spec, "tools")
        if not isinstance(tool, Tool):
            raise UsageError(f"tools {spec} is a {type(tool).__name__}, no instance of videoseek.tools.tool.Tool")
        if tool.name in ("crop_video", *tools):
            raise UsageError(f"tools {spec}: there is a tool {tool.name!r} already")
        tools[tool.name] = tool
    return tools
