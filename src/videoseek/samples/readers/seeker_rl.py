"""Reads Seeker-173K RL: questions with a key and clues, one JSON list per file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from videoseek.samples.readers.kinds import kind_from_evidence, kind_from_name, window_answer
from videoseek.samples.readers.messages import record_id
from videoseek.samples.readers.rows import Convert, SourceFile
from videoseek.samples.schema import RecordError, checked_sample, interval, strings
from videoseek.types import Interval, Sample


def prepare(file: SourceFile) -> Convert:
    """Returns the reader of Seeker-173K RL."""

    def convert(record: Any, number: int) -> Sample:
        if not isinstance(record, dict):
            raise RecordError("not_object", f"a record must be a JSON object, got {type(record).__name__}")
        solution = record.get("solution")
        if not isinstance(solution, dict):
            raise RecordError("wrong_type", f"field 'solution' must be an object, got {solution!r}")
        clues = _clues(solution.get("clue"))
        source = record.get("data_source")
        kind = kind_from_name(str(source), len(clues)) or kind_from_name(file.path.stem, len(clues))
        answer = solution.get("answer")
        if kind == "temporal_grounding" and clues:
            answer = window_answer(*clues[0])
        if answer is None:
            raise RecordError("no_answer", "field 'solution' holds neither an answer nor, for grounding, a clue")
        (answer,) = strings("solution.answer", [answer])
        return checked_sample(
            id=record_id(record, file, number),
            video=_video(record, file),
            question=_question(record),
            options=strings("options", record.get("options") or []),
            answer=answer,
            kind=kind or kind_from_evidence(answer, clues, ()),
            clues=clues,
        )

    return convert


def _question(record: dict[str, Any]) -> str:
    """Returns the question; grounding records name the event in `problem`."""
    text = record.get("question", record.get("problem"))
    if not isinstance(text, str):
        raise RecordError("missing_field", f"field 'question' must be a string, got {text!r}")
    return text


def _clues(value: Any) -> tuple[Interval, ...]:
    clues = value or []
    if not isinstance(clues, list) or not all(isinstance(clue, dict) for clue in clues):
        raise RecordError("wrong_type", f"field 'solution.clue' must be a list of objects, got {value!r}")
    return tuple(interval("timestamp", clue.get("timestamp")) for clue in clues)


def _video(record: dict[str, Any], file: SourceFile) -> str:
    """Returns the path of a file, or the path of a frame folder with the rate `frame_fps` in frames per second."""
    video = record.get("video")
    if not isinstance(video, str):
        raise RecordError("missing_field", f"field 'video' must be a string, got {video!r}")
    path, rate = file.locate(video), record.get("frame_fps")
    if rate is None or not Path(path).is_dir():
        return path
    if type(rate) not in (int, float) or not 0 < rate < float("inf"):
        raise RecordError("wrong_type", f"field 'frame_fps' must be frames per second, got {rate!r}")
    return f"{path}#fps={rate:g}"
