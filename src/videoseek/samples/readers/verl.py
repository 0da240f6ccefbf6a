"""Reads verl's columns of LongVT and ParaVT: a prompt, videos, a ground truth and, for SFT, turns."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from videoseek.samples.readers.canonical import sample_from_extra
from videoseek.samples.readers.conversation import Facts, Medium, sample_from_conversation
from videoseek.samples.readers.kinds import kind_from_name, loose_window_answer, window_answer
from videoseek.samples.readers.messages import Dialect, read_media, read_messages, record_id, recorded_messages
from videoseek.samples.readers.rows import Convert, SourceFile
from videoseek.samples.schema import RecordError, interval, parse_json
from videoseek.types import Interval, Sample

_DIALECT = Dialect()


def prepare(file: SourceFile) -> Convert:
    """Returns the reader. `extra_info` is an object (verl, LongVT) or JSON text (ParaVT); turns are in `messages`."""

    def convert(record: Any, number: int) -> Sample:
        if not isinstance(record, dict):
            raise RecordError("not_object", f"a record must be a JSON object, got {type(record).__name__}")
        extra = _object("extra_info", record.get("extra_info"))
        column = "messages" if record.get("messages") else "prompt"
        inline: list[Medium] = []
        messages = read_messages(recorded_messages(record, column), _DIALECT, inline)
        if record.get("images"):
            raise RecordError("bad_media", "the record has images; only video is read")
        media = [*read_media(record.get("videos")), *inline]
        if own := extra.get("videoseek"):
            return sample_from_extra(own, messages, media, file)
        answer = _answer(record, extra)
        grounding = extra.get("question_type") == "tvg"
        if grounding and answer is not None:
            answer = loose_window_answer(answer)
        clues = _clues(extra.get("video_segment"))
        question = extra.get("question")
        if question is not None and not isinstance(question, str):
            raise RecordError("wrong_type", f"field 'extra_info.question' must be a string, got {question!r}")
        facts = Facts(
            id=record_id({"id": extra.get("index")} | record, file, number),
            question=question,
            answer=answer,
            kind="temporal_grounding" if grounding else kind_from_name(str(record.get("data_source")), len(clues)),
            clues=clues,
        )
        return sample_from_conversation(messages, media, facts, file)

    return convert


def _object(name: str, value: Any) -> Mapping[str, Any]:
    if isinstance(value, str):
        value = parse_json(value)
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise RecordError("wrong_type", f"field {name!r} must be an object, got {value!r}")
    return value


def _answer(record: Mapping[str, Any], extra: Mapping[str, Any]) -> str | None:
    """Returns the ground truth; two numbers are a window."""
    truth = _object("reward_model", record.get("reward_model")).get("ground_truth")
    value = extra.get("answer") if truth is None else truth
    if isinstance(value, list):
        return window_answer(*interval("ground_truth", value))
    if value is not None and not isinstance(value, str):
        raise RecordError("wrong_type", f"the ground truth must be text or [start, end], got {value!r}")
    return value


def _clues(value: Any) -> tuple[Interval, ...]:
    """Returns the clues: one window, or a list of windows."""
    if not isinstance(value, list) or not value:
        return ()
    return tuple(interval("video_segment", pair) for pair in (value if isinstance(value[0], list) else [value]))
