"""Reads subtitles: SubRip files (.srt), the two JSON lists of LongVideoBench, and the JSON lines of Video-MME-v2."""

from __future__ import annotations

import html
import json
import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from videoseek.types import Interval

#: Video-MME-v2 has a row for each word; a line with its time for each word would cost ten times the tokens.
WORDS_PER_LINE = 12
_TIME = re.compile(r"\s*(?:(\d+):)?(\d{1,2}):(\d{1,2}(?:[.,]\d+)?)\s*")
#: Marks of fonts and of places on the screen: `<font color="white">`, `</i>`, `{\an8}`.
_MARKUP = re.compile(r"</?[a-zA-Z][^>]*>|\{\\[^}]*\}")


class SubtitleError(ValueError):
    """A file that holds no subtitles; the message names the file."""


@dataclass(frozen=True, slots=True)
class Line:
    """A line of subtitles, shown in [start, end) of the file's clock. The end of an open line is infinite."""

    start_seconds: float
    end_seconds: float
    text: str


def read_subtitles(path: Path) -> list[Line]:
    """Returns the lines in order of time, without markup; lines without text are left out.

    Raises SubtitleError for a missing file and for a file of another form.
    """
    try:
        text = path.read_text(encoding="utf-8-sig", errors="replace")
        if path.suffix == ".jsonl":
            rows = _joined(_timed(json.loads(line)) for line in text.split("\n") if line.strip())
        elif path.suffix == ".json":
            rows = [_timed(row) for row in json.loads(text)]
        else:
            rows = _subrip(text)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise SubtitleError(f"subtitles {path} cannot be read: {error!r}") from error
    lines = [Line(start, end, " ".join(html.unescape(_MARKUP.sub(" ", said)).split())) for start, end, said in rows]
    return sorted((line for line in lines if line.text), key=lambda line: line.start_seconds)


def parse_time(text: str) -> float:
    """Returns the seconds of `H:MM:SS.mmm`, `HH:MM:SS,mmm` or `MM:SS`. Raises ValueError."""
    match = _TIME.fullmatch(text)
    if match is None:
        raise ValueError(f"{text!r} is no time such as 00:01:02.5")
    hours, minutes, seconds = match.groups()
    return int(hours or 0) * 3600 + int(minutes) * 60 + float(seconds.replace(",", "."))


def shifted(lines: Sequence[Line], seconds: float) -> list[Line]:
    """Returns the lines `seconds` later, for a film that begins at another time of the subtitles' clock."""
    return [Line(line.start_seconds + seconds, line.end_seconds + seconds, line.text) for line in lines]


def covering_frames(lines: Sequence[Line], frame_seconds: Sequence[float], least_seconds: float = 0.0) -> list[Line]:
    """Returns the lines that are on screen at one of the frames, each once.

    A line shorter than `least_seconds` counts as one of that length around its middle (LongVideoBench: 1 second).
    """
    kept = []
    for line in lines:
        start, end = line.start_seconds, line.end_seconds
        if end - start < least_seconds:
            middle = (start + end) / 2
            start, end = middle - least_seconds / 2, middle + least_seconds / 2
        if any(start <= seconds < end for seconds in frame_seconds):
            kept.append(line)
    return kept


def inside(lines: Sequence[Line], window: Interval) -> list[Line]:
    """Returns the lines that are on screen during a window, in seconds."""
    return [line for line in lines if line.start_seconds < window[1] and line.end_seconds > window[0]]


def _subrip(text: str) -> list[tuple[float, float, str]]:
    rows = []
    for block in re.split(r"\n\s*\n", text.replace("\r\n", "\n")):
        head, arrow, rest = block.partition("-->")
        if not arrow:
            continue
        end, _, said = rest.partition("\n")
        rows.append((parse_time(head.strip().split("\n")[-1]), parse_time(end), said))
    if not rows and text.strip():
        raise ValueError("no line holds a time such as 00:00:01,000 --> 00:00:02,000")
    return rows


def _joined(words: Iterable[tuple[float, float, str]]) -> list[tuple[float, float, str]]:
    """Joins words into lines of at most WORDS_PER_LINE words without a pause of a second."""
    lines: list[tuple[float, float, str]] = []
    for start, end, word in words:
        if lines and start - lines[-1][1] < 1 and len(lines[-1][2].split()) < WORDS_PER_LINE:
            lines[-1] = (lines[-1][0], end, f"{lines[-1][2]} {word}")
        else:
            lines.append((start, end, word))
    return lines


def _timed(row: dict[str, Any]) -> tuple[float, float, str]:
    """Reads {timestamp: [s, e], text}, {start: "H:M:S", end, line} or {start_time: s, end_time, text}."""
    if "timestamp" in row:
        start, end = row["timestamp"]
        return float(start), math.inf if end is None else float(end), row["text"]
    if "line" in row:
        return parse_time(row["start"]), parse_time(row["end"]), row["line"]
    return float(row["start_time"]), float(row["end_time"]), row["text"]
