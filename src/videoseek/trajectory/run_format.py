"""The format of a run, with the names of its tools."""

from __future__ import annotations

from collections.abc import Sequence

from videoseek.config import TrainConfig, VideoConfig
from videoseek.tools.table import load_tools
from videoseek.trajectory.formats import load_format
from videoseek.trajectory.grammar import CallFormat


def run_format(config: TrainConfig) -> CallFormat:
    """Returns the format of a configuration. Raises UsageError."""
    return format_with_tools(config.prompt.format, config.prompt.style, config.tools, config.video)


def format_with_tools(spec: str, style: str, tools: Sequence[str], limits: VideoConfig) -> CallFormat:
    """Returns a format that names tools beside the crop tool. Raises UsageError."""
    descriptions = {name: tool.description for name, tool in load_tools(tools, limits).items()}
    return load_format(spec, style, descriptions)
