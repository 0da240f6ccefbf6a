"""The XML calls of Qwen3-Coder and Qwen3.5: a function and its parameters as tags, one or more calls a turn."""

from __future__ import annotations

import json
import re
from typing import Any

from videoseek.trajectory.formats.hermes import CROP_TOOL, own_arguments
from videoseek.trajectory.formats.windows import WINDOW_FAULTS
from videoseek.trajectory.grammar import CallFormat, read_arguments, read_object, seconds_number
from videoseek.trajectory.wording import FINAL_ANSWER
from videoseek.types import Call, Fault, ToolCall

_FUNCTION = re.compile(r"<function=([^<>\s]+)>")
_PARAMETER = re.compile(r"\s*<parameter=([^<>\s]+)>(.*?)</parameter>\s*", re.DOTALL)
_END = "</function>"


class QwenXmlFormat(CallFormat):
    name = "qwen_xml"
    call_tag = "tool_call"
    several_calls = True
    names_tools = True
    last_turn_notice = FINAL_ANSWER
    faults = WINDOW_FAULTS | {
        "bad_xml": "The call must be <function=NAME>, a <parameter=NAME>value</parameter> each, and </function>.",
        "missing_field": "The call needs the parameters start_time and end_time.",
    }
    system = """You are asked about a video, of which you first see few and small frames. Reason between <think> and \
</think> in each turn. Whenever detail is missing, call the function crop_video on a stretch, given in seconds. A \
value stands between its tags as plain text:
{call_example}
The frames of the stretch come back to you. When nothing is missing, answer:
{answer_example}"""

    def write_call(self, call: Call | ToolCall) -> str:
        if isinstance(call, ToolCall):
            return _function(call.name, dict(call.arguments))
        window: dict[str, Any] = {"start_time": seconds_number(call.start_seconds)}
        window["end_time"] = seconds_number(call.end_seconds)
        return _function(
            CROP_TOOL, window | ({} if call.strategy == "medium" else {"sampling_strategy": call.strategy})
        )

    def read_block(self, inner: str) -> Call | ToolCall | Fault:
        inner = inner.strip()
        opening = _FUNCTION.match(inner)
        if opening is None or not inner.endswith(_END):
            return self.fault("bad_xml")
        arguments: dict[str, Any] = {}
        position, end = opening.end(), len(inner) - len(_END)
        while parameter := _PARAMETER.match(inner, position, end):
            arguments[parameter[1]] = _value(parameter[2])
            position = parameter.end()
        if inner[position:end].strip():
            return self.fault("bad_xml")
        if opening[1] != CROP_TOOL:
            return self.named_call(opening[1], arguments)
        call = read_arguments(own_arguments(arguments))
        return self.fault(call.code) if isinstance(call, Fault) else call


def _function(name: str, arguments: dict[str, Any]) -> str:
    texts = {key: value if isinstance(value, str) else json.dumps(value) for key, value in arguments.items()}
    if any("<" in key or "</parameter>" in text for key, text in texts.items()):
        raise ValueError(f"the arguments of {name} hold a tag, which XML calls cannot express")
    parameters = "".join(f"<parameter={key}>\n{text}\n</parameter>\n" for key, text in texts.items())
    return f"\n<function={name}>\n{parameters}{_END}\n"


def _value(text: str) -> Any:
    """Reads a number, list or object as JSON, any other value as text. One newline at each end is no part of it."""
    text = text.removeprefix("\n").removesuffix("\n")
    wrapped = read_object(f'{{"value": {text}}}')
    value = wrapped["value"] if wrapped is not None and len(wrapped) == 1 else None
    return text if value is None or isinstance(value, str) else value
