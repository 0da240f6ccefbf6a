"""The Python calls that Qwen3-VL writes between `<tool_code>` tags: `crop_video(start_time=12, end_time=20)`."""

from __future__ import annotations

import json
import re
from typing import Any

from videoseek.trajectory.formats.hermes import CROP_TOOL, own_arguments
from videoseek.trajectory.formats.windows import WINDOW_FAULTS
from videoseek.trajectory.grammar import CallFormat, read_arguments, seconds_number
from videoseek.trajectory.wording import FINAL_ANSWER
from videoseek.types import Call, Fault, ToolCall

_HEAD = re.compile(r"(print\()?\s*(\w+)\(")
#: Everything here is ended by another character than the one it repeats: no text makes the search slow.
_ARGUMENT = re.compile(
    r"""\s*(?:(\w+)\s*=\s*)?("(?:[^"\\\n]|\\.)*"|'(?:[^'\\\n]|\\.)*'|[-+]?\d{1,15}(?:\.\d{0,9})?)\s*(,|(?=\)))"""
)


class ToolCodeFormat(CallFormat):
    name = "tool_code"
    call_tag = "tool_code"
    several_calls = True
    names_tools = True
    last_turn_notice = FINAL_ANSWER
    faults = WINDOW_FAULTS | {
        "bad_python": "The call must be one Python call such as crop_video(start_time=12, end_time=20).",
        "missing_field": "The call needs start_time and end_time.",
    }
    system = """A question about a video follows a coarse view of it. In each turn reason between <think> and \
</think>, then do one of two things. To see a stretch in detail, call the function crop_video in Python, in seconds:
{call_example}
To finish, answer:
{answer_example}"""

    def write_call(self, call: Call | ToolCall) -> str:
        if isinstance(call, ToolCall):
            return _call_text(call.name, dict(call.arguments))
        window: dict[str, Any] = {"start_time": seconds_number(call.start_seconds)}
        window["end_time"] = seconds_number(call.end_seconds)
        if call.strategy != "medium":
            window["sampling_strategy"] = call.strategy
        return _call_text(CROP_TOOL, window)

    def read_block(self, inner: str) -> Call | ToolCall | Fault:
        inner = inner.strip()
        head = _HEAD.match(inner)
        if head is None:
            return self.fault("bad_python")
        named: dict[str, Any] = {}
        positional: list[Any] = []
        position = head.end()
        while argument := _ARGUMENT.match(inner, position):
            position = argument.end()
            if argument[1] is None:
                positional.append(_literal(argument[2]))
            else:
                named[argument[1]] = _literal(argument[2])
        if inner[position:].replace(" ", "") != ("))" if head[1] else ")"):
            return self.fault("bad_python")
        if head[2] != CROP_TOOL:
            return self.fault("bad_python") if positional else self.named_call(head[2], named)
        # ParaVT's first argument is the path of the video, which is always the sample's.
        times = positional[1:] if positional and isinstance(positional[0], str) else positional
        if len(times) > 2:
            return self.fault("bad_python")
        named |= dict(zip(("start_time", "end_time"), times, strict=False))
        call = read_arguments(own_arguments(named))
        return self.fault(call.code) if isinstance(call, Fault) else call


def _call_text(name: str, arguments: dict[str, Any]) -> str:
    if any(not isinstance(value, (str, int, float)) or isinstance(value, bool) for value in arguments.values()):
        raise ValueError(f"an argument of {name} is neither text nor a number, which tool_code cannot express")
    return f"{name}({', '.join(f'{key}={json.dumps(value, ensure_ascii=False)}' for key, value in arguments.items())})"


def _literal(text: str) -> str | float:
    if text[0] not in "\"'":
        return float(text) if "." in text else int(text)
    try:
        return str(json.loads(text, strict=False))
    except ValueError:  # single quotes, or an escape of Python's that JSON lacks
        return re.sub(r"\\(.)", r"\1", text[1:-1])
