"""The calls of LongVT (2511.20785) and ParaVT: Hermes text with `start_time` and `end_time`, several calls a turn."""

from __future__ import annotations

import json
from typing import Any

from videoseek.trajectory.formats.hermes import CROP_TOOL, HermesFormat
from videoseek.trajectory.formats.windows import WINDOW_FAULTS
from videoseek.trajectory.grammar import seconds_number
from videoseek.trajectory.wording import FINAL_ANSWER
from videoseek.types import Call, Fault, ToolCall


class CropVideoFormat(HermesFormat):
    name = "crop_video"
    faults = WINDOW_FAULTS | {"missing_field": "The call needs a name, and start_time and end_time as arguments."}
    last_turn_notice = FINAL_ANSWER
    system = """Answer the question about the video. Think first, between <think> and </think>. If the frames that you \
have do not settle the question, call crop_video on the stretches that you need, in seconds; write one block for each:
{call_example}
Its frames come back in the order of the calls. As soon as you know, answer:
{answer_example}"""

    def write_call(self, call: Call | ToolCall) -> str:
        if isinstance(call, ToolCall):
            return super().write_call(call)
        arguments: dict[str, Any] = {
            "start_time": seconds_number(call.start_seconds),
            "end_time": seconds_number(call.end_seconds),
        }
        if call.strategy != "medium":
            arguments["sampling_strategy"] = call.strategy
        return json.dumps({"name": CROP_TOOL, "arguments": arguments})

    def read_call(self, payload: dict[str, Any]) -> Call | ToolCall | Fault:
        call = super().read_call(payload)
        return self.fault(call.code) if isinstance(call, Fault) and call.code != "unknown_tool" else call
