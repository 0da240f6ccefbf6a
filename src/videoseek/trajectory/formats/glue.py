"""VideoChat-R1's format (2504.06958): reasoning, an answer, and the windows of its evidence between `<glue>` tags."""

from __future__ import annotations

import re
from collections.abc import Mapping

from videoseek.trajectory.formats.windows import WINDOW_FAULTS
from videoseek.trajectory.grammar import CallFormat
from videoseek.types import Fault, Role

_TIME = r"\s*(\d{1,9}(?:\.\d{1,6})?)\s*"
_PAIR = re.compile(rf"\s*[(\[]{_TIME},{_TIME}[)\]]\s*(,|$)")


class GlueFormat(CallFormat):
    name = "glue"
    call_tag = ""
    further = {"glue": Role.ANSWER}
    layout = ("think", "action", "glue")
    quota = "none: the format calls no tool"
    faults = WINDOW_FAULTS | {
        "no_action": "End the turn with <answer>..</answer> and the evidence between <glue> and </glue>.",
        "bad_mark": "The evidence must be a list of windows in seconds, such as [(3.0, 7.5)].",
    }
    system = """Answer the question about the video in one turn: reasoning between <think> and </think>, the answer \
between <answer> and </answer>, and between <glue> and </glue> the list of the windows, in seconds, in which the \
video shows that the answer is right, such as [(3.0, 7.5), (20.0, 24.0)]:
{answer_example}"""

    def mark_faults(self, think: str, extra: Mapping[str, str]) -> list[Fault]:
        windows = evidence_windows(extra["glue"]) if "glue" in extra else []
        return [self.fault("bad_mark")] if windows is None else []


def evidence_windows(text: str) -> list[tuple[float, float]] | None:
    """Returns the windows of `[(s, e), ..]` in seconds, or None for another text or a window that ends too early."""
    text = text.strip()
    if not (text.startswith("[") and text.endswith("]")):
        return None
    windows, position, inner = [], 0, text[1:-1].strip()
    while position < len(inner):
        pair = _PAIR.match(inner, position)
        if pair is None or float(pair[1]) >= float(pair[2]):
            return None
        windows.append((float(pair[1]), float(pair[2])))
        position = pair.end()
    return windows
