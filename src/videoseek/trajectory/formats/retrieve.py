"""Video-MTR's format (2508.20478): the first and the last of 64 frame indices to look at, at most 8 frames a turn."""

from __future__ import annotations

import re

from videoseek.trajectory.formats.windows import WINDOW_FAULTS
from videoseek.trajectory.grammar import CallFormat
from videoseek.trajectory.wording import FINAL_ANSWER
from videoseek.types import Call, Fault, ParsedTurn, ToolCall

NUM_INDICES, NUM_FRAMES = 64, 8
_INDICES = re.compile(r"\s*(\d{1,3})\s*,\s*(\d{1,3})\s*")


class RetrieveFormat(CallFormat):
    name = "retrieve"
    call_tag = "retrieve"
    call_aliases = ("retrive",)  # the released prompt misspells its own tag
    quota = f"{NUM_FRAMES} frames between two of {NUM_INDICES} frame indices"
    last_turn_notice = FINAL_ANSWER
    faults = WINDOW_FAULTS | {
        "bad_indices": f"Give the first and the last frame as two whole numbers from 0 to {NUM_INDICES - 1}.",
    }
    system = f"""A video is cut into {NUM_INDICES} frames, numbered from 0 in the order of time; you see a few of \
them. Reason between <think> and </think>. To see more, give the first and the last number of a run of frames:
{{call_example}}
To end, answer the question:
{{answer_example}}"""

    def examples(self) -> tuple[str, str]:
        window = Call(5.0, 11.0, num_frames=NUM_FRAMES, num_parts=NUM_INDICES)
        looked = self.render(ParsedTurn("The sign is too small to read.", (window,), None, ()))
        return looked, self.render_turn("The sign says Oslo.", None, "B")

    def write_call(self, call: Call | ToolCall) -> str:
        if isinstance(call, ToolCall) or call.num_parts != NUM_INDICES:
            raise ValueError("prompt.format=retrieve writes frame indices, which a call in seconds does not hold")
        return f"{int(call.start_seconds)},{int(call.end_seconds) - 1}"

    def read_block(self, inner: str) -> Call | Fault:
        indices = _INDICES.fullmatch(inner)
        if indices is None:
            return self.fault("bad_indices")
        first, last = int(indices[1]), int(indices[2])
        if first >= NUM_INDICES or last >= NUM_INDICES:
            return self.fault("bad_indices")
        if first > last:
            return self.fault("reversed_segment")
        return Call(float(first), float(last + 1), num_frames=NUM_FRAMES, num_parts=NUM_INDICES)
