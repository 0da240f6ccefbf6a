"""Video-o3's format (2601.23224): one call per turn, arguments between `<grounding>` tags."""

from __future__ import annotations

import json
from typing import Any

from videoseek.trajectory.grammar import CallFormat, call_arguments, read_arguments
from videoseek.types import Call, Fault, ToolCall


class GroundingFormat(CallFormat):
    name = "grounding"
    call_tag = "grounding"

    def write_call(self, call: Call | ToolCall) -> str:
        if isinstance(call, ToolCall):
            raise ValueError(f"prompt.format=grounding cannot name the tool {call.name}")
        return json.dumps(call_arguments(call))

    def read_call(self, payload: dict[str, Any]) -> Call | Fault:
        return read_arguments(payload)
