"""EVA's format (2603.22918): a window, a number of frames, and a factor for their size."""

from __future__ import annotations

import json
from typing import Any

from videoseek.trajectory.formats.windows import WINDOW_FAULTS
from videoseek.trajectory.grammar import CallFormat, seconds_number
from videoseek.trajectory.wording import FINAL_ANSWER
from videoseek.types import Call, Fault, ToolCall

_TOOL = "frame_select"
_DEFAULT_FRAMES, _MAX_FRAMES = 8, 256


class FrameSelectFormat(CallFormat):
    name = "frame_select"
    call_tag = "tool_call"
    quota = f"nframes (at most {_MAX_FRAMES}) and resize, a factor of the frames' sides"
    last_turn_notice = FINAL_ANSWER
    faults = WINDOW_FAULTS | {
        "unknown_tool": f"The only tool is {_TOOL}.",
        "missing_field": "The call needs start_time, end_time, nframes and resize.",
        "bad_frames": f"nframes must be a whole number from 1 to {_MAX_FRAMES}.",
        "bad_resize": "resize must be a number above 0 and at most 1.",
    }
    system = """Plan before you look. Between <think> and </think> say what you must know to answer the question about \
the video and where it may be shown. Then select frames of a stretch: how many, and how large (1 is full size):
{call_example}
Small frames are cheap, so look widely first. With the evidence in hand, answer:
{answer_example}"""

    def write_call(self, call: Call | ToolCall) -> str:
        if isinstance(call, ToolCall):
            raise ValueError(f"prompt.format=frame_select cannot name the tool {call.name}")
        arguments = {
            "start_time": seconds_number(call.start_seconds),
            "end_time": seconds_number(call.end_seconds),
            "nframes": call.num_frames or _DEFAULT_FRAMES,
            "resize": 1.0 if call.scale is None else call.scale,
        }
        return json.dumps({"tool": _TOOL, "arguments": arguments})

    def read_call(self, payload: dict[str, Any]) -> Call | Fault:
        arguments = payload.get("arguments")
        if "tool" not in payload or not isinstance(arguments, dict):
            return self.fault("missing_field")
        if payload["tool"] != _TOOL:
            return self.fault("unknown_tool")
        if {"start_time", "end_time", "nframes", "resize"} - arguments.keys():
            return self.fault("missing_field")
        window = self.read_window(arguments["start_time"], arguments["end_time"])
        if isinstance(window, Fault):
            return window
        num_frames, scale = arguments["nframes"], arguments["resize"]
        if isinstance(num_frames, bool) or not isinstance(num_frames, int) or not 1 <= num_frames <= _MAX_FRAMES:
            return self.fault("bad_frames")
        if isinstance(scale, bool) or not isinstance(scale, (int, float)) or not 0 < scale <= 1:
            return self.fault("bad_resize")
        return Call(*window, num_frames=num_frames, scale=float(scale))
