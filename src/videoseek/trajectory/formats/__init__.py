"""The formats of an assistant's turn by name, one file each: the project's own two, and those of other projects."""

from __future__ import annotations

from collections.abc import Mapping

from videoseek.config import FORMAT_NAMES, UsageError
from videoseek.trajectory.formats.boxed import BoxedFormat
from videoseek.trajectory.formats.conan import ConanFormat
from videoseek.trajectory.formats.crop_video import CropVideoFormat
from videoseek.trajectory.formats.frame_select import FrameSelectFormat
from videoseek.trajectory.formats.glue import GlueFormat
from videoseek.trajectory.formats.grounding import GroundingFormat
from videoseek.trajectory.formats.hermes import HermesFormat
from videoseek.trajectory.formats.qwen_xml import QwenXmlFormat
from videoseek.trajectory.formats.retrieve import RetrieveFormat
from videoseek.trajectory.formats.sage import SageFormat
from videoseek.trajectory.formats.time_caption import TimeCaptionFormat
from videoseek.trajectory.formats.timestep import TimestepFormat
from videoseek.trajectory.formats.tool_code import ToolCodeFormat
from videoseek.trajectory.formats.video_zoom import VideoZoomFormat
from videoseek.trajectory.grammar import CallFormat
from videoseek.user_code import load_member

_CLASSES: tuple[type[CallFormat], ...] = (
    *(GroundingFormat, HermesFormat, CropVideoFormat, QwenXmlFormat, ToolCodeFormat, VideoZoomFormat, ConanFormat),
    *(SageFormat, BoxedFormat, RetrieveFormat, GlueFormat, TimestepFormat, TimeCaptionFormat, FrameSelectFormat),
)
#: Formats by name. An instance needs a style: `FORMATS["grounding"]("brief")`.
FORMATS: dict[str, type[CallFormat]] = dict(zip(FORMAT_NAMES, _CLASSES, strict=True))


def load_format(spec: str, style: str = "full", tools: Mapping[str, str] | None = None) -> CallFormat:
    """Returns the format of a name or of `FILE.py:NAME`, the user's own subclass of CallFormat.

    `tools` are the descriptions of the tools beside the crop tool, by name. Raises UsageError.
    """
    cls = FORMATS[spec] if spec in FORMATS else load_member(spec, "prompt.format")
    if not (isinstance(cls, type) and issubclass(cls, CallFormat)):
        raise UsageError(f"prompt.format {spec} is no subclass of videoseek.trajectory.grammar.CallFormat")
    if tools and not cls.names_tools:
        named = ", ".join(name for name, known in FORMATS.items() if known.names_tools)
        raise UsageError(f"prompt.format={spec} cannot name the tools {', '.join(tools)}; {named} can")
    return cls(style, tools)
