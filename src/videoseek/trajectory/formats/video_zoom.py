"""VideoZoomer's format (zsgvivo/VideoZoomer): a window and a frame rate, at most 16 frames a call."""

from __future__ import annotations

import json
import math
from typing import Any

from videoseek.trajectory.formats.windows import WINDOW_FAULTS
from videoseek.trajectory.grammar import CallFormat, seconds_number
from videoseek.trajectory.wording import FINAL_ANSWER
from videoseek.types import Call, Fault, ToolCall

MAX_FRAMES = 16
_DEFAULT_FPS = 2.0


class VideoZoomFormat(CallFormat):
    name = "video_zoom"
    call_tag = "video_zoom"
    quota = f"fps, and (end - start) * fps of at most {MAX_FRAMES} frames"
    last_turn_notice = FINAL_ANSWER
    faults = WINDOW_FAULTS | {
        "missing_field": "The call needs segment and fps.",
        "bad_fps": "fps must be a number above 0.",
        "too_many_frames": f"The window times fps must give at most {MAX_FRAMES} frames; shorten it or lower fps.",
    }
    system = f"""You see some frames of a video and a question about it. Write your reasoning between <think> and \
</think>. If it ends in doubt, zoom: name a segment in seconds and the frames per second to see it at, at most \
{MAX_FRAMES} frames in all:
{{call_example}}
If it ends in certainty, answer:
{{answer_example}}"""

    def write_call(self, call: Call | ToolCall) -> str:
        if isinstance(call, ToolCall):
            raise ValueError(f"prompt.format=video_zoom cannot name the tool {call.name}")
        segment = [seconds_number(call.start_seconds), seconds_number(call.end_seconds)]
        fps = call.fps
        if fps is None:
            length = max(segment[1] - segment[0], 0.1)
            fps = min(_DEFAULT_FPS, math.floor(MAX_FRAMES / length * 1000) / 1000)
            if fps == 0:
                raise ValueError(f"a window of {length:g} seconds cannot be zoomed into with {MAX_FRAMES} frames")
        return json.dumps({"segment": segment, "fps": int(fps) if fps == int(fps) else fps})

    def read_call(self, payload: dict[str, Any]) -> Call | Fault:
        if "segment" not in payload or "fps" not in payload:
            return self.fault("missing_field")
        segment, fps = payload["segment"], payload["fps"]
        if not isinstance(segment, list) or len(segment) != 2:
            return self.fault("bad_segment")
        window = self.read_window(*segment)
        if isinstance(window, Fault):
            return window
        if isinstance(fps, bool) or not isinstance(fps, (int, float)) or not 0 < fps <= 1000:
            return self.fault("bad_fps")
        if (window[1] - window[0]) * fps > MAX_FRAMES + 1e-6:
            return self.fault("too_many_frames")
        return Call(*window, fps=float(fps))
