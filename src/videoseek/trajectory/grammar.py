"""The grammar of an assistant's turn: renders turns, and parses any text.

A turn is `<think>..</think>`, a newline, and one action: a call of the crop tool or `<answer>..</answer>`. The two
formats differ in the call alone. The parser accepts every text, and returns faults instead of raising exceptions.
"""

from __future__ import annotations

import json
import math
import re
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar

from videoseek.trajectory.wording import STYLES, fault_sentence, observation_parts, question_text, system_text
from videoseek.types import STRATEGIES, Call, Fault, ParsedTurn, Role, Sample

#: Faults of a turn: stable code -> sentence for the model.
FAULTS = {
    "no_think": "Begin the turn with reasoning between <think> and </think>.",
    "unclosed_think": "Close the reasoning with </think>.",
    "misplaced_text": "Write one block of reasoning, then the action, and nothing else.",
    "no_action": "End the turn with a call or with <answer>..</answer>.",
    "unclosed_action": "Close the tag of the call or answer.",
    "both_actions": "Give a call or an answer in one turn, not both.",
    "several_actions": "Give only one action in a turn.",
    "empty_answer": "Write the answer between <answer> and </answer>.",
    "bad_json": "The call must hold one JSON object.",
    "unknown_tool": "The only tool is crop_video.",
    "missing_field": "The call needs temporal_segment and sampling_strategy.",
    "bad_segment": "temporal_segment must be a list of two numbers.",
    "not_numbers": "The start and end of temporal_segment must be numbers.",
    "not_finite": "The start and end of temporal_segment must be finite.",
    "negative_segment": "temporal_segment must not start before 0 seconds.",
    "reversed_segment": "temporal_segment must start before it ends.",
    "bad_strategy": f"sampling_strategy must be one of {', '.join(STRATEGIES)}.",
}
#: Faults inside a call of a turn with intact structure. All other faults break the structure.
CALL_FAULTS = frozenset(
    ("bad_json", "unknown_tool", "missing_field", "bad_segment", "not_numbers", "not_finite")
    + ("negative_segment", "reversed_segment", "bad_strategy")
)


def fault(code: str) -> Fault:
    """Returns the fault with its sentence. Raises KeyError for an unknown code."""
    return Fault(code, FAULTS[code])


def seconds_number(value: float) -> int | float:
    """Rounds a time for text: whole seconds as an integer, other times to one decimal."""
    rounded = round(value, 1)
    return int(rounded) if rounded == int(rounded) else rounded


@dataclass(frozen=True, slots=True)
class Block:
    """A tagged span of a turn, in bytes: [start, end) is the content, [outer_start, outer_end) includes the tags."""

    tag: str
    outer_start: int
    start: int
    end: int
    outer_end: int
    closed: bool


def _reject_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


def read_object(text: str) -> dict[str, Any] | None:
    """Reads one strict JSON object. Returns None for other values, NaN, broken quotes and too deep nesting."""
    try:
        value = json.loads(text, parse_constant=_reject_constant)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def read_segment(value: object) -> tuple[float, float] | Fault:
    """Reads the two times of a JSON `temporal_segment`, in seconds."""
    if not isinstance(value, list) or len(value) != 2:
        return fault("bad_segment")
    if any(isinstance(number, bool) or not isinstance(number, (int, float)) for number in value):
        return fault("not_numbers")
    try:
        start_seconds, end_seconds = float(value[0]), float(value[1])
    except OverflowError:  # an integer beyond the range of floats
        return fault("not_finite")
    if not (math.isfinite(start_seconds) and math.isfinite(end_seconds)):
        return fault("not_finite")
    if start_seconds < 0:
        return fault("negative_segment")
    if start_seconds >= end_seconds:
        return fault("reversed_segment")
    return start_seconds, end_seconds


def _read_arguments(arguments: dict[str, Any]) -> Call | Fault:
    if "temporal_segment" not in arguments or "sampling_strategy" not in arguments:
        return fault("missing_field")
    segment = read_segment(arguments["temporal_segment"])
    if isinstance(segment, Fault):
        return segment
    strategy = arguments["sampling_strategy"]
    if not isinstance(strategy, str) or strategy not in STRATEGIES:
        return fault("bad_strategy")
    return Call(*segment, strategy)


def _call_arguments(call: Call) -> dict[str, Any]:
    segment = [seconds_number(call.start_seconds), seconds_number(call.end_seconds)]
    if segment[0] >= segment[1]:
        raise ValueError(f"call [{call.start_seconds}, {call.end_seconds}] is empty when written to 0.1 seconds")
    return {"temporal_segment": segment, "sampling_strategy": call.strategy}


class CallFormat(ABC):
    """A call format. `style` selects the wording around calls (`trajectory.wording`): full or brief."""

    name: ClassVar[str]
    call_tag: ClassVar[str]
    several_calls: ClassVar[bool]

    def __init__(self, style: str = "full") -> None:
        if style not in STYLES:
            raise ValueError(f"style {style!r} is not one of {', '.join(STYLES)}")
        self.style = style
        tags = "|".join(("think", self.call_tag, "answer"))
        self._opening = re.compile(f"<({tags})>".encode())
        self._action_opening = re.compile(f"<(?:{self.call_tag}|answer)>".encode())
        self._any_tag = re.compile(f"</?({tags})>")

    @abstractmethod
    def _write_call(self, call: Call) -> str:
        """Returns the JSON between the tags of a call."""

    @abstractmethod
    def _read_call(self, payload: dict[str, Any]) -> Call | Fault:
        """Reads the JSON object between the tags of a call."""

    def system_prompt(self) -> str:
        """Returns the text of the system turn, with one example of a call and one of an answer."""
        call_example = self.render_turn("The sign is too small to read.", Call(12.0, 20.0, "medium"), None)
        return system_text(self.style, call_example, self.render_turn("The sign says Oslo.", None, "B"))

    def prompt_text(self, sample: Sample) -> str:
        """Returns the question and its options, for the first user turn after the video."""
        return question_text(self.style, sample)

    def observation_text(self, index: int, clip_sentence: str) -> tuple[str, str]:
        """Returns the texts before and after a clip. `index` counts the episode's calls (failed calls too) from 1."""
        return observation_parts(self.style, index, clip_sentence)

    def fault_text(self, faults: list[Fault]) -> str:
        """Returns the observation of a turn without clip and answer. `faults` come from the parser or the tool.

        Raises ValueError for empty `faults`.
        """
        if not faults:
            raise ValueError("fault_text needs at least one fault")
        return fault_sentence(self.style, [item.code for item in faults], [item.message for item in faults])

    def render_turn(self, think: str, call: Call | None, answer: str | None) -> str:
        """Renders an assistant's turn with either a call or an answer. `parse` reads the result without faults.

        Raises ValueError unless exactly one of call and answer is given, and for a text with a tag of the grammar.
        """
        if (call is None) == (answer is None):
            raise ValueError("a turn holds either a call or an answer")
        for name, text in (("think", think), ("answer", answer or "")):
            if tag := self._any_tag.search(text):
                raise ValueError(f"{name} holds the tag {tag.group()}, which belongs to the grammar")
        if call is not None:
            action = f"<{self.call_tag}>{self._write_call(call)}</{self.call_tag}>"
        else:
            action = f"<answer>{answer}</answer>"
        return f"<think>{think}</think>\n{action}"

    def blocks(self, data: bytes) -> list[Block]:
        """Returns the tagged spans in order. An open block runs to the end, open reasoning to the next action."""
        last_closing = {tag: data.rfind(f"</{tag}>".encode()) for tag in ("think", self.call_tag, "answer")}
        blocks: list[Block] = []
        position = 0
        while opening := self._opening.search(data, position):
            tag, start = opening.group(1).decode(), opening.end()
            closed = last_closing[tag] >= start
            if closed:
                closing = f"</{tag}>".encode()
                end = data.index(closing, start)
                position = end + len(closing)
            else:
                next_action = self._action_opening.search(data, start) if tag == "think" else None
                end = position = next_action.start() if next_action else len(data)
            blocks.append(Block(tag, opening.start(), start, end, position, closed))
        return blocks

    def content_spans(self, data: bytes) -> list[tuple[int, int, Role]]:
        """Returns (start, end, role) of reasoning, calls and answers in bytes, without their tags, in order."""
        role_of = {"think": Role.THINK, self.call_tag: Role.CALL, "answer": Role.ANSWER}
        return [(block.start, block.end, role_of[block.tag]) for block in self.blocks(data)]

    def parse(self, text: str) -> ParsedTurn:
        """Parses an assistant's text without its end-of-turn token. Accepts every text and never raises.

        `calls` are the well-formed calls. `answer` is the last nonempty answer. A turn may have both and faults: a turn
        without reasoning is faulty and still acts. `faults` explains a turn without calls and answer.
        """
        data = text.encode("utf-8", "surrogatepass")
        blocks = self.blocks(data)
        content = [data[block.start : block.end].decode("utf-8", "surrogatepass") for block in blocks]
        faults = self._structure_faults(data, blocks)
        calls: list[Call] = []
        answer: str | None = None
        for block, inner in zip(blocks, content, strict=True):
            if block.tag == "think" or not block.closed:
                continue
            if block.tag == "answer":
                answer = inner.strip() or answer
                if not inner.strip():
                    faults.append(fault("empty_answer"))
                continue
            payload = read_object(inner)
            call = fault("bad_json") if payload is None else self._read_call(payload)
            if isinstance(call, Fault):
                faults.append(call)
            else:
                calls.append(call)
        think = next((inner for block, inner in zip(blocks, content, strict=True) if block.tag == "think"), None)
        return ParsedTurn(think, tuple(calls), answer, tuple(faults))

    def _structure_faults(self, data: bytes, blocks: list[Block]) -> list[Fault]:
        codes: list[str] = []
        thinks = [block for block in blocks if block.tag == "think"]
        calls = [block for block in blocks if block.tag == self.call_tag]
        answers = [block for block in blocks if block.tag == "answer"]
        if not thinks:
            codes.append("no_think")
        elif not all(block.closed for block in thinks):
            codes.append("unclosed_think")
        edges = [0, *(edge for block in blocks for edge in (block.outer_start, block.outer_end)), len(data)]
        stray = any(data[start:end].strip() for start, end in zip(edges[::2], edges[1::2], strict=True))
        if stray or len(thinks) > 1 or (thinks and blocks[0].tag != "think"):
            codes.append("misplaced_text")
        if not calls and not answers:
            codes.append("no_action")
        if any(not block.closed for block in calls + answers):
            codes.append("unclosed_action")
        if calls and answers:
            codes.append("both_actions")
        if len(answers) > 1 or (len(calls) > 1 and not self.several_calls):
            codes.append("several_actions")
        return [fault(code) for code in codes]


class GroundingFormat(CallFormat):
    """Video-o3's format (2601.23224): one call per turn, arguments between `<grounding>` tags."""

    name = "grounding"
    call_tag = "grounding"
    several_calls = False

    def _write_call(self, call: Call) -> str:
        return json.dumps(_call_arguments(call))

    def _read_call(self, payload: dict[str, Any]) -> Call | Fault:
        return _read_arguments(payload)


class HermesFormat(CallFormat):
    """The Hermes tool format: name and arguments between `<tool_call>` tags, one or more calls per turn."""

    name = "hermes"
    call_tag = "tool_call"
    several_calls = True

    def _write_call(self, call: Call) -> str:
        return json.dumps({"name": "crop_video", "arguments": _call_arguments(call)})

    def _read_call(self, payload: dict[str, Any]) -> Call | Fault:
        if "name" not in payload or not isinstance(payload.get("arguments"), dict):
            return fault("missing_field")
        if payload["name"] != "crop_video":
            return fault("unknown_tool")
        return _read_arguments(payload["arguments"])


#: Call formats by name. An instance needs a style: `FORMATS["grounding"]("brief")`.
FORMATS: dict[str, type[CallFormat]] = {cls.name: cls for cls in (GroundingFormat, HermesFormat)}
