"""Conan's format (2510.20470): scores of the frames seen, reasoning, and either a clip on the clock or an answer."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence

from videoseek.trajectory.formats.windows import WINDOW_FAULTS
from videoseek.trajectory.grammar import CallFormat
from videoseek.trajectory.wording import FINAL_ANSWER
from videoseek.types import Call, Fault, ParsedTurn, Role, ToolCall

NUM_FRAMES = 8
_TIME = r"(\d{1,4}):(\d{1,2}):(\d{1,2}(?:\.\d{1,3})?)"
_CLIP = re.compile(rf"\s*{_TIME}\s*-\s*{_TIME}\s*")
_SCORES = re.compile(r"\s*[1-5](?:[\s,;]+[1-5])*\s*")


class ConanFormat(CallFormat):
    name = "conan"
    call_tag = "clip"
    further = {"score": Role.THINK}
    layout = ("score", "think", "action")
    skips_empty = True
    quota = f"{NUM_FRAMES} frames of each clip"
    last_turn_notice = FINAL_ANSWER
    faults = WINDOW_FAULTS | {
        "no_action": "Fill exactly one of <clip> and <answer>.",
        "both_actions": "Fill only one of <clip> and <answer>.",
        "bad_clock": "The clip must read HH:MM:SS-HH:MM:SS.",
        "bad_mark": "The scores must be whole numbers from 1 to 5.",
    }
    system = """You find out the answer to a question about a video in several rounds. A round begins with a score \
from 1 (of no use) to 5 (decisive) for each frame or clip just shown, between <score> and </score>. Your reasoning \
follows between <think> and </think>. Then fill one of two tags and leave the other empty. Ask for a clip by the clock:
{call_example}
Or give the answer:
{answer_example}"""

    def write_call(self, call: Call | ToolCall) -> str:
        if isinstance(call, ToolCall):
            raise ValueError(f"prompt.format=conan cannot name the tool {call.name}")
        return f"{_clock(math.floor(call.start_seconds))}-{_clock(math.ceil(call.end_seconds))}"

    def assemble(self, turn: ParsedTurn, calls: Sequence[str]) -> str:
        text = super().assemble(turn, calls)
        return f"{text}\n<answer></answer>" if calls else text.replace("<answer>", "<clip></clip>\n<answer>", 1)

    def read_block(self, inner: str) -> Call | Fault:
        clip = _CLIP.fullmatch(inner)
        if clip is None:
            return self.fault("bad_clock")
        numbers = [float(number) for number in clip.groups()]
        start, end = (hours * 3600 + minutes * 60 + seconds for hours, minutes, seconds in (numbers[:3], numbers[3:]))
        window = self.read_window(start, end)
        return window if isinstance(window, Fault) else Call(*window, num_frames=NUM_FRAMES)

    def mark_faults(self, think: str, extra: Mapping[str, str]) -> list[Fault]:
        scores = extra.get("score")
        return [] if scores is None or _SCORES.fullmatch(scores) else [self.fault("bad_mark")]


def _clock(seconds: int) -> str:
    return f"{seconds // 3600:02}:{seconds // 60 % 60:02}:{seconds % 60:02}"
