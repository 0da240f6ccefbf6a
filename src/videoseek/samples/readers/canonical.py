"""Reads the project's own records (`data/schema/sample.schema.json`), alone or inside records of another format."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from videoseek.samples.readers.calls import parse_turns
from videoseek.samples.readers.conversation import Medium, Message, check_media, check_windows, split_rounds
from videoseek.samples.readers.rows import Convert, SourceFile
from videoseek.samples.schema import RecordError, parse_json, sample_from_record
from videoseek.types import Sample


def prepare(file: SourceFile) -> Convert:
    """Returns the reader of the project's own JSONL."""

    def convert(record: Any, number: int) -> Sample:
        return sample_from_record(record, file.locate)

    return convert


def sample_from_extra(extra: Any, messages: Sequence[Message], media: Sequence[Medium], file: SourceFile) -> Sample:
    """Restores exactly a sample that `data convert` wrote in another format.

    Video and turns come from the conversation, all else from `extra`: the project's record, as an object or as JSON
    text. Raises RecordError.
    """
    if isinstance(extra, str):
        extra = parse_json(extra)
    if not isinstance(extra, dict):
        raise RecordError("not_object", f"field 'videoseek' must be a JSON object, got {type(extra).__name__}")
    question, rounds = split_rounds(messages)
    check_media(question, rounds, media, implicit_mark=False)
    turns = tuple(turn for turn, _ in rounds)
    check_windows(parse_turns(turns), [observation for _, observation in rounds], media)
    own = {"video": media[0].video} | ({"turns": list(turns)} if turns else {})
    return sample_from_record(extra | own, file.locate)
