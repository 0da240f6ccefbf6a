"""The Hermes tool format: name and arguments between `<tool_call>` tags, one or more calls per turn."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from videoseek.trajectory.grammar import CallFormat, call_arguments, read_arguments
from videoseek.types import Call, Fault, ToolCall

CROP_TOOL = "crop_video"
#: Other tools' names of a window's two times.
BOUNDS = (("start_time", "end_time"), ("start", "end"))


def own_arguments(arguments: Mapping[str, Any]) -> Mapping[str, Any]:
    """Returns the arguments of a crop call with the window as `temporal_segment`, at strategy medium by default."""
    for start, end in BOUNDS:
        if start in arguments and end in arguments:
            segment = [arguments[start], arguments[end]]
            return {"temporal_segment": segment, "sampling_strategy": arguments.get("sampling_strategy", "medium")}
    return arguments


class HermesFormat(CallFormat):
    name = "hermes"
    call_tag = "tool_call"
    several_calls = True
    names_tools = True

    def write_call(self, call: Call | ToolCall) -> str:
        if isinstance(call, ToolCall):
            return json.dumps({"name": call.name, "arguments": dict(call.arguments)}, ensure_ascii=False)
        return json.dumps({"name": CROP_TOOL, "arguments": call_arguments(call)})

    def read_call(self, payload: dict[str, Any]) -> Call | ToolCall | Fault:
        arguments = payload.get("arguments")
        if "name" not in payload or not isinstance(arguments, dict):
            return self.fault("missing_field")
        if payload["name"] != CROP_TOOL:
            return self.named_call(payload["name"], arguments)
        return read_arguments(own_arguments(arguments))
