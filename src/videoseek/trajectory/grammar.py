"""The grammar of an assistant's turn: renders turns, and parses any text.

A turn is `<think>..</think>`, a newline, and one action: calls of tools or `<answer>..</answer>`. A format decides
how a call is written, and may have further blocks (`trajectory.formats`). The parser accepts every text, and returns
faults instead of raising exceptions.
"""

from __future__ import annotations

import json
import math
import re
from abc import ABC
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from videoseek.trajectory.wording import (
    STYLES,
    WINDOW_HINT,
    fault_sentence,
    observation_parts,
    question_text,
    system_text,
    text_observation,
    tool_list,
)
from videoseek.types import STRATEGIES, Call, Fault, ParsedTurn, Role, Sample, ToolCall

#: Faults of a turn: stable code -> sentence for the model. A format may add codes and replace sentences.
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
#: Faults that break the structure of a turn. All other faults lie inside a call of a turn with intact structure.
STRUCTURE_FAULTS = frozenset(
    ("no_think", "unclosed_think", "misplaced_text", "no_action", "unclosed_action", "both_actions")
    + ("several_actions", "empty_answer", "bad_mark", "bad_turn_json")
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


def read_arguments(arguments: Mapping[str, Any]) -> Call | Fault:
    """Reads `temporal_segment` and `sampling_strategy`."""
    if "temporal_segment" not in arguments or "sampling_strategy" not in arguments:
        return fault("missing_field")
    segment = read_segment(arguments["temporal_segment"])
    if isinstance(segment, Fault):
        return segment
    strategy = arguments["sampling_strategy"]
    if not isinstance(strategy, str) or strategy not in STRATEGIES:
        return fault("bad_strategy")
    return Call(*segment, strategy)


def call_arguments(call: Call) -> dict[str, Any]:
    """Returns the arguments that `read_arguments` reads."""
    segment = [seconds_number(call.start_seconds), seconds_number(call.end_seconds)]
    return {"temporal_segment": segment, "sampling_strategy": call.strategy}


class CallFormat(ABC):
    """A format. `style` selects the wording around calls (`trajectory.wording`): full or brief.

    A subclass names its tags and overrides `read_call` and `write_call`, or `read_block` for calls other than JSON.
    `tools` are the descriptions of the tools beside the crop tool, by name; only formats with `names_tools` reach them.
    """

    name: ClassVar[str]
    #: Tag of a call ("" for a format without calls), and other spellings that the parser reads too.
    call_tag: ClassVar[str]
    call_aliases: ClassVar[tuple[str, ...]] = ()
    several_calls: ClassVar[bool] = False
    names_tools: ClassVar[bool] = False
    #: Further blocks of a turn and their role, and the order in which `render` writes all blocks.
    further: ClassVar[Mapping[str, Role]] = {}
    layout: ClassVar[tuple[str, ...]] = ("think", "action")
    #: Whether an empty call or answer counts as absent.
    skips_empty: ClassVar[bool] = False
    faults: ClassVar[Mapping[str, str]] = FAULTS
    #: Words of the full style: the system prompt with the holes {call_example} and {answer_example} (None: the
    #: project's), the hint for questions that ask for a window, the rule of a call's frames and tokens, and the end of
    #: the observation before the last turn.
    system: ClassVar[str | None] = None
    window_hint: ClassVar[str] = WINDOW_HINT
    quota: ClassVar[str] = "strategy: coarse, medium or fine"
    last_turn_notice: ClassVar[str] = ""

    def __init__(self, style: str = "full", tools: Mapping[str, str] | None = None) -> None:
        if style not in STYLES:
            raise ValueError(f"style {style!r} is not one of {', '.join(STYLES)}")
        self.style = style
        self.tools = dict(tools or {})
        self.call_tags = tuple(tag for tag in (self.call_tag, *self.call_aliases) if tag)
        self._tags = ("think", *self.call_tags, "answer", *self.further)
        self._opening = re.compile(f"<({'|'.join(self._tags)})>".encode())
        self._action_opening = re.compile(f"<(?:{'|'.join((*self.call_tags, 'answer'))})>".encode())
        self._any_tag = re.compile(f"</?({'|'.join(self._tags)})>")

    def write_call(self, call: Call | ToolCall) -> str:
        """Returns the text between the tags of a call. Raises ValueError for a call that the format cannot express."""
        raise ValueError(f"prompt.format={self.name} has no calls")

    def read_call(self, payload: dict[str, Any]) -> Call | ToolCall | Fault:
        """Reads the JSON object between the tags of a call."""
        raise NotImplementedError(f"{type(self).__name__} reads no JSON calls")

    def read_block(self, inner: str) -> Call | ToolCall | Fault:
        """Reads the text between the tags of a call."""
        payload = read_object(inner)
        return self.fault("bad_json") if payload is None else self.read_call(payload)

    def read_answer(self, inner: str) -> str:
        """Returns the answer of the text between the tags of an answer."""
        return inner.strip()

    def write_answer(self, answer: str) -> str:
        """Returns the text between the tags of an answer."""
        return answer

    def mark_faults(self, think: str, extra: Mapping[str, str]) -> list[Fault]:
        """Returns the faults of marks inside the reasoning, and of further blocks."""
        return []

    def read_window(self, start: object, end: object) -> tuple[float, float] | Fault:
        """Returns the window of two JSON numbers, in seconds."""
        window = read_segment([start, end])
        return self.fault(window.code) if isinstance(window, Fault) else window

    def fault(self, code: str) -> Fault:
        """Returns the fault with the format's sentence. Raises KeyError for an unknown code."""
        return Fault(code, self.faults[code])

    def named_call(self, name: object, arguments: object) -> ToolCall | Fault:
        """Returns the call of a tool beside the crop tool."""
        if not isinstance(name, str) or name not in self.tools:
            known = f"The tools are {', '.join(['crop_video', *self.tools])}." if self.tools else None
            return Fault("unknown_tool", known or self.faults["unknown_tool"])
        return ToolCall(name, arguments) if isinstance(arguments, dict) else self.fault("missing_field")

    def examples(self) -> tuple[str, str]:
        """Returns the turns with a call and with an answer that the system prompt shows."""
        call = Call(12.0, 20.0, "medium", fps=1.0, num_frames=8, scale=1.0)
        looked = self.render_turn("The sign is too small to read.", call, None) if self.call_tags else ""
        return looked, self.render_turn("The sign says Oslo.", None, "B")

    def system_prompt(self) -> str:
        """Returns the text of the system turn, with one example of a call and one of an answer."""
        return system_text(self.style, self.system, *self.examples()) + tool_list(self.tools)

    def prompt_text(self, sample: Sample) -> str:
        """Returns the question and its options, for the first user turn after the video."""
        return question_text(self.style, sample, self.window_hint)

    def observation_text(self, index: int, clip_sentence: str) -> tuple[str, str]:
        """Returns the texts before and after a clip. `index` counts the episode's calls (failed calls too) from 1."""
        return observation_parts(self.style, index, clip_sentence)

    def text_observation(self, index: int, text: str) -> str:
        """Returns the observation of a tool's text. `index` counts as in `observation_text`."""
        return text_observation(self.style, index, text)

    def fault_text(self, faults: Sequence[Fault]) -> str:
        """Returns the observation of a turn without clip and answer. `faults` come from the parser or the tool.

        Raises ValueError for empty `faults`.
        """
        if not faults:
            raise ValueError("fault_text needs at least one fault")
        return fault_sentence(self.style, [item.code for item in faults], [item.message for item in faults])

    def render_turn(self, think: str, call: Call | None, answer: str | None) -> str:
        """Renders an assistant's turn with either a call or an answer. `parse` reads the result without faults.

        Raises ValueError as `render`.
        """
        return self.render(ParsedTurn(think, () if call is None else (call,), answer, ()))

    def render(self, turn: ParsedTurn) -> str:
        """Renders a turn of calls or an answer. `parse` reads the result without faults.

        Raises ValueError unless exactly one of calls and answer is given, for more calls than the format allows, for an
        empty window, and for a text with a tag of the grammar.
        """
        self.check_turn(turn)
        for call in turn.crops:
            if seconds_number(call.start_seconds) >= seconds_number(call.end_seconds):
                raise ValueError(
                    f"call [{call.start_seconds}, {call.end_seconds}] is empty when written to 0.1 seconds"
                )
        return self.assemble(turn, [self.write_call(call) for call in turn.calls])

    def check_turn(self, turn: ParsedTurn) -> None:
        """Raises ValueError for a turn that `render` refuses, whatever the windows of its calls."""
        if (not turn.calls) == (turn.answer is None):
            raise ValueError("a turn holds either a call or an answer")
        if len(turn.calls) > 1 and not self.several_calls:
            raise ValueError(f"prompt.format={self.name} allows one call in a turn, got {len(turn.calls)}")
        for name, text in (("think", turn.think or ""), ("answer", turn.answer or ""), *turn.extra.items()):
            if tag := self._any_tag.search(text):
                raise ValueError(f"{name} holds the tag {tag.group()}, which belongs to the grammar")

    def assemble(self, turn: ParsedTurn, calls: Sequence[str]) -> str:
        """Joins the blocks of a turn. `calls` are the texts between the tags of its calls."""
        blocks = {"think": [f"<think>{turn.think or ''}</think>"]}
        blocks["action"] = [f"<{self.call_tag}>{call}</{self.call_tag}>" for call in calls]
        if turn.answer is not None:
            blocks["action"].append(f"<answer>{self.write_answer(turn.answer)}</answer>")
        blocks |= {tag: [f"<{tag}>{turn.extra[tag]}</{tag}>"] for tag in self.further if tag in turn.extra}
        return "\n".join(block for part in self.layout for block in blocks.get(part, []))

    def blocks(self, data: bytes) -> list[Block]:
        """Returns the tagged spans in order. An open block runs to the end, open reasoning to the next action."""
        last_closing = {tag: data.rfind(f"</{tag}>".encode()) for tag in self._tags}
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
        role_of = {
            "think": Role.THINK,
            "answer": Role.ANSWER,
            **dict.fromkeys(self.call_tags, Role.CALL),
            **self.further,
        }
        return [(b.start, b.end, role_of[b.tag]) for b in self.blocks(data) if not self._is_absent(b, data)]

    def _is_absent(self, block: Block, data: bytes) -> bool:
        is_action = block.tag not in ("think", *self.further)
        return self.skips_empty and is_action and block.closed and not data[block.start : block.end].strip()

    def parse(self, text: str) -> ParsedTurn:
        """Parses an assistant's text without its end-of-turn token. Accepts every text and never raises.

        `calls` are the well-formed calls. `answer` is the last nonempty answer. A turn may have both and faults: a turn
        without reasoning is faulty and still acts. `faults` explains a turn without calls and answer.
        """
        data = text.encode("utf-8", "surrogatepass")
        all_blocks = self.blocks(data)
        blocks = [block for block in all_blocks if not self._is_absent(block, data)]
        content = [data[block.start : block.end].decode("utf-8", "surrogatepass") for block in blocks]
        faults = self._structure_faults(data, all_blocks, blocks)
        calls: list[Call | ToolCall] = []
        bad_calls: list[tuple[int, Fault]] = []
        answer: str | None = None
        for block, inner in zip(blocks, content, strict=True):
            if not block.closed or block.tag not in ("answer", *self.call_tags):
                continue
            if block.tag == "answer":
                answer = self.read_answer(inner) if inner.strip() else answer
                if not inner.strip():
                    faults.append(self.fault("empty_answer"))
                continue
            call = self.read_block(inner)
            if isinstance(call, Fault):
                faults.append(call)
                bad_calls.append((len(calls) + len(bad_calls), call))
            else:
                calls.append(call)
        texts = {block.tag: inner for block, inner in zip(reversed(blocks), reversed(content), strict=True)}
        think = texts.get("think")
        extra = {tag: texts[tag] for tag in self.further if tag in texts}
        faults += self.mark_faults(think or "", extra)
        return ParsedTurn(
            think, tuple(calls), answer, tuple(faults), extra, tuple(bad_calls) if self.several_calls else ()
        )

    def _structure_faults(self, data: bytes, all_blocks: Sequence[Block], blocks: Sequence[Block]) -> list[Fault]:
        codes: list[str] = []
        main = [block for block in blocks if block.tag not in self.further]
        thinks = [block for block in main if block.tag == "think"]
        calls = [block for block in main if block.tag in self.call_tags]
        answers = [block for block in main if block.tag == "answer"]
        if not thinks:
            codes.append("no_think")
        elif not all(block.closed for block in thinks):
            codes.append("unclosed_think")
        edges = [0, *(edge for block in all_blocks for edge in (block.outer_start, block.outer_end)), len(data)]
        stray = any(data[start:end].strip() for start, end in zip(edges[::2], edges[1::2], strict=True))
        repeated = any(sum(block.tag == tag for block in blocks) > 1 for tag in ("think", *self.further))
        if stray or repeated or (thinks and main[0].tag != "think"):
            codes.append("misplaced_text")
        if not calls and not answers:
            codes.append("no_action")
        if any(not block.closed for block in blocks if block.tag != "think"):
            codes.append("unclosed_action")
        if calls and answers:
            codes.append("both_actions")
        if len(answers) > 1 or (len(calls) > 1 and not self.several_calls):
            codes.append("several_actions")
        return [self.fault(code) for code in codes]
