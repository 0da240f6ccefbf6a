"""Tools that read the subtitles beside a film: a search by words, and the lines of a window."""

from __future__ import annotations

import math
import re
from functools import lru_cache
from pathlib import Path

from videoseek.tools.tool import Observation, Tool
from videoseek.types import Fault, ToolCall
from videoseek.video.subtitles import Line, SubtitleError, inside, read_subtitles

_SUFFIXES = (".srt", ".json", ".jsonl")
_MAX_FOUND, _MAX_SHOWN = 8, 60
_WORD = re.compile(r"\w+")


class SubtitleSearch(Tool):
    name = "subtitle_search"
    description = "Finds what is said in the video. Argument: query, a few words. Returns lines with their seconds."

    def plan(self, video: str, call: ToolCall) -> Observation:
        words = set(_WORD.findall(str(call.arguments.get("query", "")).casefold()))
        if not words:
            return Fault("bad_query", "subtitle_search needs a query of at least one word.")
        lines = film_subtitles(video)
        if isinstance(lines, Fault):
            return lines
        hits = [len(words & set(_WORD.findall(line.text.casefold()))) for line in lines]
        best = sorted((i for i, hit in enumerate(hits) if hit), key=lambda i: -hits[i])[:_MAX_FOUND]
        return _shown([lines[i] for i in sorted(best)]) or "No line holds a word of the query."


class SubtitleWindow(Tool):
    name = "subtitle_window"
    description = "Returns what is said in a window of the video. Arguments: start_time and end_time, in seconds."

    def plan(self, video: str, call: ToolCall) -> Observation:
        window = window_of(call)
        if isinstance(window, Fault):
            return window
        lines = film_subtitles(video)
        if isinstance(lines, Fault):
            return lines
        return _shown(inside(lines, window)) or "Nothing is said in this window."


def window_of(call: ToolCall) -> tuple[float, float] | Fault:
    """Returns `start_time` and `end_time` of a call, in seconds, or the fault of a call without a proper window."""
    times = [call.arguments.get(name) for name in ("start_time", "end_time")]
    try:
        start, end = (math.nan if isinstance(time, bool) else float(time) for time in times)  # type: ignore[arg-type]
    except (TypeError, ValueError, OverflowError):
        start = end = math.nan
    if not (math.isfinite(start) and math.isfinite(end) and 0 <= start < end):
        return Fault("bad_window", f"{call.name} needs start_time and end_time in seconds, with 0 <= start < end.")
    return start, end


def film_subtitles(video: str) -> tuple[Line, ...] | Fault:
    """Returns the lines of FILM.srt, FILM.json or FILM.jsonl beside the film, or the fault that the model reads."""
    for suffix in _SUFFIXES:
        path = Path(video).with_suffix(suffix)
        if path.is_file():
            try:
                return _read(path, path.stat().st_mtime_ns)
            except SubtitleError:
                return Fault("subtitles_unreadable", "The subtitles of this video cannot be read.")
    return Fault("no_subtitles", "This video has no subtitles.")


@lru_cache(maxsize=64)
def _read(path: Path, changed_ns: int) -> tuple[Line, ...]:
    return tuple(read_subtitles(path))


def _shown(lines: list[Line]) -> str:
    text = "\n".join(f"[{line.start_seconds:.1f} s] {line.text}" for line in lines[:_MAX_SHOWN])
    rest = len(lines) - _MAX_SHOWN
    return text if rest <= 0 else f"{text}\n({rest} more lines; ask for a shorter window)"
