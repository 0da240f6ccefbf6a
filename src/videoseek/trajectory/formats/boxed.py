"""LOVE-R1's format (2509.24786): free reasoning, then a boxed answer, or a boxed window of whole seconds."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence

from videoseek.trajectory.formats.windows import WINDOW_FAULTS
from videoseek.trajectory.grammar import CallFormat
from videoseek.trajectory.wording import FINAL_ANSWER
from videoseek.types import Call, Fault, ParsedTurn, Role, ToolCall

_BOX = re.compile(r"\\boxed\{((?:[^{}]|\{[^{}]*\})*)\}")
_BYTE_BOX = re.compile(_BOX.pattern.encode())
_WINDOW = re.compile(r"\s*\[\s*(\d{1,6})\s*,\s*(\d{1,6})\s*\]\s*")
_LIST = re.compile(r"\s*\[.*\]\s*", re.DOTALL)
_ZOOM = "I need to zoom in."


class BoxedFormat(CallFormat):
    name = "boxed"
    call_tag = ""
    quota = "whole seconds, at strategy fine"
    last_turn_notice = FINAL_ANSWER
    faults = WINDOW_FAULTS | {
        "no_think": "Begin the turn with reasoning.",
        "misplaced_text": "Write reasoning and one box, and nothing after the box.",
        "no_action": "End the turn with \\boxed{answer}, or with \\boxed{[START, END]} to zoom in.",
        "unclosed_action": "Close the box.",
        "empty_answer": "Write the answer into the box.",
        "bad_segment": "The box of a zoom must hold two whole numbers of seconds, [START, END].",
    }
    system = """You saw a video quickly and at low resolution. Reason in plain words about the question. If a stretch \
must be seen more sharply, say so and box its whole seconds:
{call_example}
Otherwise box the answer:
{answer_example}"""

    def examples(self) -> tuple[str, str]:
        looked = self.render_turn("The sign is too small to read.", Call(12.0, 20.0, "fine"), None)
        return looked, self.render_turn("The sign says Oslo.", None, "B")

    def write_call(self, call: Call | ToolCall) -> str:
        if isinstance(call, ToolCall):
            raise ValueError(f"prompt.format=boxed cannot name the tool {call.name}")
        return f"[{math.floor(call.start_seconds)}, {math.ceil(call.end_seconds)}]"

    def check_turn(self, turn: ParsedTurn) -> None:
        super().check_turn(turn)
        answer = turn.answer or ""
        if "\\boxed" in (turn.think or "") or (answer and _BOX.fullmatch(f"\\boxed{{{answer}}}") is None):
            raise ValueError("think or answer holds a box or single brackets, which belong to the grammar")
        if _LIST.fullmatch(answer):
            raise ValueError(f"answer {answer} would be read as a window")

    def assemble(self, turn: ParsedTurn, calls: Sequence[str]) -> str:
        box = f"\\boxed{{{calls[0] if calls else turn.answer}}}"
        return "\n".join([turn.think or "", *([_ZOOM] if calls else []), box])

    def content_spans(self, data: bytes) -> list[tuple[int, int, Role]]:
        box = _BYTE_BOX.search(data)
        if box is None:
            return [(0, len(data), Role.THINK)] if data else []
        role = Role.CALL if _LIST.fullmatch(box[1].decode("utf-8", "replace")) else Role.ANSWER
        thought = [(0, box.start(), Role.THINK)] if box.start() else []
        return [*thought, (box.start(1), box.end(1), role)]

    def parse(self, text: str) -> ParsedTurn:
        boxes = list(_BOX.finditer(text))
        think = text[: boxes[0].start()] if boxes else text
        think = think.strip().removesuffix(_ZOOM).rstrip()
        codes = [] if think else ["no_think"]
        if not boxes:
            codes.append("unclosed_action" if "\\boxed{" in text else "no_action")
            return ParsedTurn(think, (), None, tuple(map(self.fault, codes)))
        inner = boxes[0][1]
        if len(boxes) > 1:
            codes.append("several_actions")
        elif text[boxes[0].end() :].strip():
            codes.append("misplaced_text")
        faults = [self.fault(code) for code in codes]
        if not inner.strip():
            return ParsedTurn(think, (), None, (*faults, self.fault("empty_answer")))
        if not _LIST.fullmatch(inner):
            return ParsedTurn(think, (), inner.strip(), tuple(faults))
        call = self.read_block(inner)
        if isinstance(call, Fault):
            return ParsedTurn(think, (), None, (*faults, call))
        return ParsedTurn(think, (call,), None, tuple(faults))

    def read_block(self, inner: str) -> Call | Fault:
        numbers = _WINDOW.fullmatch(inner)
        if numbers is None:
            return self.fault("bad_segment")
        window = self.read_window(float(numbers[1]), float(numbers[2]))
        return window if isinstance(window, Fault) else Call(*window, "fine")
