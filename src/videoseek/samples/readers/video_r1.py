"""Reads records of Video-R1 and of many later sets: a problem, options, and a solution between answer tags."""

from __future__ import annotations

from typing import Any

from videoseek.samples.readers.calls import parse_turns
from videoseek.samples.readers.conversation import split_options, without_media
from videoseek.samples.readers.kinds import kind_from_evidence, kind_from_name
from videoseek.samples.readers.messages import read_media, record_id
from videoseek.samples.readers.rows import Convert, SourceFile
from videoseek.samples.schema import RecordError, checked_sample, strings
from videoseek.types import Sample


def prepare(file: SourceFile) -> Convert:
    """Returns the reader. A record with reasoning (`process`) has one turn: the reasoning and the solution."""

    def convert(record: Any, number: int) -> Sample:
        if not isinstance(record, dict):
            raise RecordError("not_object", f"a record must be a JSON object, got {type(record).__name__}")
        problem, solution = _text(record, "problem"), _solution(record)
        question, options = split_options(without_media(problem))
        turns = _turns(record, solution)
        parsed = parse_turns(turns)
        answer = parse_turns((solution,))[0].answer or solution
        return checked_sample(
            id=record_id({"id": record.get("problem_id")} | record, file, number),
            video=file.locate(_video(record)),
            question=question,
            options=strings("options", record.get("options") or []) or options,
            answer=answer,
            kind=kind_from_name(str(record.get("data_source")), 0) or kind_from_evidence(answer, (), parsed),
            turns=turns,
        )

    return convert


def _solution(record: dict[str, Any]) -> str:
    return _text(record, "solution" if "solution" in record else "answer")


def _turns(record: dict[str, Any], solution: str) -> tuple[str, ...]:
    if record.get("process") is None:
        return ()
    process = _text(record, "process")
    return (f"{process}\n{solution}",) if process else ()  # some files write "" for no reasoning


def _text(record: dict[str, Any], name: str) -> str:
    value = record.get(name)
    if not isinstance(value, str):
        code = "wrong_type" if name in record else "missing_field"
        raise RecordError(code, f"field {name!r} must be a string, got {value!r}")
    return value.strip()


def _video(record: dict[str, Any]) -> str:
    """Returns the single video of a record from the first filled field of three."""
    if record.get("data_type", "video") != "video":
        raise RecordError("bad_media", f"field 'data_type' is {record['data_type']!r}; only video is read")
    name = next((name for name in ("path", "video", "videos") if record.get(name)), None)
    media = list(read_media(record[name])) if name is not None else []
    if len(media) != 1:
        raise RecordError("bad_media", f"one video a record, but this has {len(media)}")
    return media[0].video
