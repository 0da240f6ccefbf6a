"""SAGE's format (2512.13874): a whole turn as one JSON object between `<json>` tags, tools by name.

The first turn describes the video and the aim of the question; later turns judge whether the question can be answered.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from videoseek.trajectory.formats.windows import WINDOW_FAULTS
from videoseek.trajectory.grammar import CallFormat, read_object, seconds_number
from videoseek.trajectory.wording import FINAL_ANSWER
from videoseek.types import Call, Fault, ParsedTurn, Role, ToolCall

CROP_TOOL = "extract_parts_from_timestamp"
MAX_WINDOW_SECONDS = 300.0
_BLOCK = re.compile(r"<json>(.*?)</json>", re.DOTALL)
_SPACE = re.compile(r"[ \t\r\n]*")


class SageFormat(CallFormat):
    name = "sage"
    call_tag = "json"
    several_calls = True
    names_tools = True
    quota = f"start and end, at most {MAX_WINDOW_SECONDS:g} seconds a call"
    last_turn_notice = FINAL_ANSWER
    faults = WINDOW_FAULTS | {
        "no_think": "Give query_intent, or the reasoning of answerable.",
        "misplaced_text": "Write one JSON object between <json> and </json>, and nothing else.",
        "no_action": "Give final_answer, or tool_calls in recommended_tools.",
        "both_actions": "Give final_answer or tool_calls, not both.",
        "unclosed_action": "Close the object with </json>.",
        "bad_turn_json": "The turn must hold one JSON object between <json> and </json>.",
        "missing_field": "A call of recommended_tools needs a name, and start and end as arguments.",
        "unknown_tool": f"The only tool is {CROP_TOOL}.",
        "window_too_long": f"One call shows at most {MAX_WINDOW_SECONDS:g} seconds; split the window.",
    }
    system = """You answer a question about a video by steps, each one JSON object between <json> and </json>. The \
first holds video_context (what the video seems to be) and query_intent (what is asked); later ones hold answerable \
with verdict and reasoning. Every step holds final_answer (null while it is open) and recommended_tools. Calls of \
tools look so, times in seconds:
{call_example}
The last step looks so:
{answer_example}"""

    def examples(self) -> tuple[str, str]:
        looked = ParsedTurn("Read the sign.", (Call(12.0, 20.0),), None, (), {"video_context": "A street."})
        return self.render(looked), self.render_turn("The sign says Oslo.", None, "B")

    def write_call(self, call: Call | ToolCall) -> str:
        if isinstance(call, ToolCall):
            return json.dumps({"name": call.name, "arguments": dict(call.arguments)}, ensure_ascii=False)
        arguments = {"start": seconds_number(call.start_seconds), "end": seconds_number(call.end_seconds)}
        return json.dumps({"name": CROP_TOOL, "arguments": arguments})

    def check_turn(self, turn: ParsedTurn) -> None:
        super().check_turn(turn)
        if not (turn.think or "").strip():
            raise ValueError("a turn of prompt.format=sage needs reasoning")

    def assemble(self, turn: ParsedTurn, calls: Sequence[str]) -> str:
        content: dict[str, Any] = {}
        if "video_context" in turn.extra:
            content |= {"video_context": turn.extra["video_context"], "query_intent": turn.think}
        else:
            content["answerable"] = {"verdict": turn.answer is not None, "reasoning": turn.think}
        called = [
            {"rationale": turn.extra.get(f"rationale {i}", "")} | json.loads(call) for i, call in enumerate(calls)
        ]
        content["final_answer"] = turn.answer
        content["recommended_tools"] = {"needed": bool(calls), "why_no_tool": None, "tool_calls": called}
        if not calls:
            content["recommended_tools"]["why_no_tool"] = turn.extra.get("why_no_tool", "")
        return f"<json>{json.dumps(content, ensure_ascii=False)}</json>"

    def content_spans(self, data: bytes) -> list[tuple[int, int, Role]]:
        # One character per byte, so that places in the text are places in the bytes.
        text = data.decode("latin-1")
        start = text.find("<json>")
        return [] if start < 0 else _spans(text, start + len("<json>"))

    def parse(self, text: str) -> ParsedTurn:
        block = _BLOCK.search(text)
        if block is None:
            code = "unclosed_action" if "<json>" in text else "bad_turn_json"
            return ParsedTurn(None, (), None, (self.fault(code),))
        faults = [self.fault("misplaced_text")] if (text[: block.start()] + text[block.end() :]).strip() else []
        content = read_object(block[1])
        if content is None:
            return ParsedTurn(None, (), None, (*faults, self.fault("bad_turn_json")))
        extra = {key: content[key] for key in ("video_context",) if isinstance(content.get(key), str)}
        judged = content.get("answerable")
        think = judged.get("reasoning") if isinstance(judged, dict) else content.get("query_intent")
        think = think if isinstance(think, str) and think.strip() else None
        given = content.get("final_answer")
        answer = given.strip() or None if isinstance(given, str) else None
        tools = content.get("recommended_tools")
        tools = tools if isinstance(tools, dict) else {}
        listed = tools.get("tool_calls")
        listed = listed if isinstance(listed, list) else []
        if not listed and isinstance(reason := tools.get("why_no_tool"), str):
            extra["why_no_tool"] = reason
        calls: list[Call | ToolCall] = []
        bad_calls: list[tuple[int, Fault]] = []
        for place, item in enumerate(listed):
            call = self._listed_call(item)
            if isinstance(call, Fault):
                bad_calls.append((place, call))
                continue
            if isinstance(rationale := item.get("rationale"), str):
                extra[f"rationale {len(calls)}"] = rationale
            calls.append(call)
        codes = [] if think else ["no_think"]
        codes += [] if listed or answer else ["no_action"]
        codes += ["both_actions"] if listed and answer else []
        faults += [*map(self.fault, codes), *(fault for _, fault in bad_calls)]
        return ParsedTurn(think, tuple(calls), answer, tuple(faults), extra, tuple(bad_calls))

    def _listed_call(self, item: object) -> Call | ToolCall | Fault:
        arguments = item.get("arguments") if isinstance(item, dict) else None
        if not isinstance(item, dict) or not isinstance(arguments, dict) or "name" not in item:
            return self.fault("missing_field")
        if item["name"] != CROP_TOOL:
            return self.named_call(item["name"], arguments)
        if "start" not in arguments or "end" not in arguments:
            return self.fault("missing_field")
        window = self.read_window(arguments["start"], arguments["end"])
        if isinstance(window, Fault):
            return window
        return self.fault("window_too_long") if window[1] - window[0] > MAX_WINDOW_SECONDS else Call(*window)


def _spans(text: str, position: int) -> list[tuple[int, int, Role]]:
    """Returns the values of the object that begins at `position`, up to the first place that is no JSON."""
    decoder = json.JSONDecoder(strict=False)
    spans: list[tuple[int, int, Role]] = []
    try:
        position = _after(text, position, "{")
        while True:
            key, position = decoder.raw_decode(text, _skip(text, position))
            start = _skip(text, _after(text, position, ":"))
            value, end = decoder.raw_decode(text, start)
            role = _role(key, value)
            if role is not None:
                inset = int(isinstance(value, str))  # the quotes are no content
                spans.append((start + inset, end - inset, role))
            position = _after(text, end, ",")
    except (ValueError, RecursionError):
        return spans


def _skip(text: str, position: int) -> int:
    space = _SPACE.match(text, position)
    return space.end() if space else position


def _after(text: str, position: int, mark: str) -> int:
    """Returns the place after a mark and the space before it. Raises ValueError for another character."""
    position = _skip(text, position)
    if text[position : position + 1] != mark:
        raise ValueError(f"no {mark} at {position}")
    return position + 1


def _role(key: object, value: object) -> Role | None:
    if key == "final_answer":
        return Role.ANSWER if isinstance(value, str) and value.strip() else None
    if key == "recommended_tools":
        return Role.CALL if isinstance(value, Mapping) and value.get("tool_calls") else None
    return Role.THINK
