"""Time-R1's format (2503.13377): reasoning with marked windows, and a window in seconds as the answer."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping

from videoseek.trajectory.formats.windows import WINDOW_FAULTS, plain_number
from videoseek.trajectory.grammar import CallFormat, read_object, read_segment
from videoseek.types import Fault

_MARKS = re.compile(r"<timestep>(.*?)</timestep>", re.DOTALL)


class TimestepFormat(CallFormat):
    name = "timestep"
    call_tag = ""
    quota = "none: the format calls no tool"
    window_hint = "Answer with the stretch in seconds, as START to END."
    faults = WINDOW_FAULTS | {
        "no_action": "End the turn with <answer>START to END</answer>.",
        "bad_mark": "A mark must read <timestep>START to END</timestep>, in seconds.",
    }
    system = """Find out when something happens in a video. Between <think> and </think> go through the stretches that \
may be meant; mark each as <timestep>START to END</timestep>, in seconds. Then answer, for a stretch as START to END \
between <answer> and </answer>:
{answer_example}"""

    def read_answer(self, inner: str) -> str:
        """Returns a window in the project's form, so that rewards and scores read it; any other answer as it is."""
        window = _window(inner)
        return inner.strip() if window is None else json.dumps({"temporal_segment": list(window)})

    def write_answer(self, answer: str) -> str:
        payload = read_object(answer)
        segment = read_segment(payload.get("temporal_segment")) if payload is not None else None
        return f"{segment[0]:.10g} to {segment[1]:.10g}" if isinstance(segment, tuple) else answer

    def mark_faults(self, think: str, extra: Mapping[str, str]) -> list[Fault]:
        marks = _MARKS.findall(think)
        num_tags = think.count("<timestep>") + think.count("</timestep>")
        is_whole = num_tags == 2 * len(marks) and all(_window(mark) is not None for mark in marks)
        return [] if is_whole else [self.fault("bad_mark")]


def _window(text: str) -> tuple[float, float] | None:
    start, found, end = text.partition(" to ")
    numbers = (plain_number(start), plain_number(end)) if found else (None, None)
    segment = read_segment(list(numbers))
    return segment if isinstance(segment, tuple) else None
