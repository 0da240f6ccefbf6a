"""Readers turn records of public formats into samples. A reader adds no fact to a record."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from videoseek.config import UsageError
from videoseek.samples.readers import canonical, messages, seeker_rl, verl, video_r1
from videoseek.samples.readers.calls import in_form
from videoseek.samples.readers.parquet import ParquetRows
from videoseek.samples.readers.records import JsonLines, JsonList, RecordFile, begins_with_list
from videoseek.samples.readers.rows import Format, Problem, Row, SourceFile, VideoPaths
from videoseek.samples.schema import DataError, RecordError
from videoseek.types import Sample

FORMATS: dict[str, Format] = {
    "videoseek": Format("the project's own JSONL", canonical.prepare),
    "seeker_sft": Format("Seeker-173K SFT: messages, and videos with url, crop, sample", messages.prepare_seeker_sft),
    "seeker_rl": Format("Seeker-173K RL: question, options, solution with answer and clues", seeker_rl.prepare),
    "sharegpt": Format("LLaMA-Factory sharegpt, by dataset_info.json where there is one", messages.prepare_sharegpt),
    "swift": Format("ms-swift: messages with tool_call and tool_response", messages.prepare_messages),
    "verl": Format("verl and LongVT: prompt, videos, reward_model, extra_info", verl.prepare),
    "paravt": Format("ParaVT: prompt, videos, extra_info as JSON text; or messages as JSON text", verl.prepare),
    "video_r1": Format("Video-R1: problem, options, path, solution, and process for SFT", video_r1.prepare),
    "trl": Format("TRL: messages, or prompt and completion", messages.prepare_messages),
}


class Reader:
    """Reads a data file of one format: all rows in order, or a sample by offset.

    `fmt` None detects the format from the file. With a `call_format`, the reader rewrites the calls of recorded turns
    in the form. Raises DataError for a missing file or an unclear format, and UsageError for an unknown format.
    """

    def __init__(self, path: Path, fmt: str | None, paths: VideoPaths, call_format: str | None = None) -> None:
        name = detect_format(path) if fmt is None else fmt
        if name not in FORMATS:
            raise UsageError(f"format {name!r} of {path} is not one of {', '.join(FORMATS)}")
        self.path, self.format = path, name
        self.records = open_records(path)
        self._convert = FORMATS[name].prepare(SourceFile(path, paths))
        self._call_format = call_format

    def rows(self, ids: set[str]) -> Iterator[Row]:
        """Yields a row for every record. `ids` holds the ids of earlier records: a repeated id is a problem.

        Adds the ids of the file to `ids`.
        """
        hint = self.records.hint
        for record in self.records:
            where = self.where(record.number)
            try:
                sample = self._sample(record.value, record.number)
                if sample.id in ids:
                    raise RecordError("duplicate_id", f"id {sample.id!r} is used twice")
            except RecordError as error:
                yield Row(record.offset, record.number, where, None, Problem(error.code, f"{error}{hint}"))
            else:
                ids.add(sample.id)
                yield Row(record.offset, record.number, where, sample, None)
            hint = ""

    def where(self, number: int) -> str:
        """Returns the name of a record in messages."""
        return f"{self.path}, {self.records.unit} {number}"

    def sample(self, offset: int, number: int) -> Sample:
        """Returns the sample of the row with the offset and number."""
        return self._sample(self.records.at(offset), number)

    def _sample(self, value: Any | RecordError, number: int) -> Sample:
        if isinstance(value, RecordError):
            raise value
        sample = self._convert(value, number)
        if self._call_format is None:
            return sample
        turns = in_form(sample.turns, self._call_format)
        return sample if turns is sample.turns else replace(sample, turns=turns)


def open_records(path: Path) -> RecordFile:
    """Opens a file by the ending (`.parquet`, `.jsonl`), else by the first character.

    Raises DataError for a missing file.
    """
    if not path.is_file():
        raise DataError(f"data file {str(path)!r} does not exist")
    if path.suffix == ".parquet":
        return ParquetRows(path)
    if path.suffix == ".jsonl":
        return JsonLines(path)
    with path.open("rb") as file:
        return JsonList(path) if begins_with_list(file.read(4096)) else JsonLines(path)


def detect_format(path: Path) -> str:
    """Returns the format of a file from the first record of type object. Raises DataError for an unclear format."""
    records = open_records(path)
    first_fault: str | None = None
    for record in records:
        if isinstance(record.value, Mapping):
            return _format_of(record.value, path)
        if first_fault is None:
            wrong_type = f"a record must be a JSON object, got {type(record.value).__name__}"
            reason = str(record.value) if isinstance(record.value, RecordError) else wrong_type
            first_fault = f"{path}, {records.unit} {record.number}: {reason}{records.hint}"
    raise DataError(first_fault or f"data file {str(path)!r} holds no samples")


def _format_of(record: Mapping[str, Any], path: Path) -> str:
    """Returns the format from a record's fields, the most specific fields first."""
    file = SourceFile(path, VideoPaths())
    if isinstance(record.get("extra_info"), str) or isinstance(record.get("messages"), str):
        return "paravt"
    if "extra_info" in record or "reward_model" in record:
        return "verl"
    if isinstance(record.get("solution"), Mapping):
        return "seeker_rl"
    if "conversations" in record or messages.dataset_entry(file) is not None:
        return "sharegpt"
    if isinstance(record.get("messages"), list):
        return _messages_format(record)
    if "problem" in record:
        return "video_r1"
    if "prompt" in record:
        return "trl"
    if "video" in record or "question" in record:
        return "videoseek"
    raise DataError(f"{path}: no format is known by the fields {', '.join(record)}; name one: {', '.join(FORMATS)}")


def _messages_format(record: Mapping[str, Any]) -> str:
    videos = record.get("videos")
    if isinstance(videos, list) and any(isinstance(video, Mapping) and "url" in video for video in videos):
        return "seeker_sft"
    turns = [message for message in record["messages"] if isinstance(message, Mapping)]
    swift = any("loss" in message or message.get("role") in ("tool_call", "tool_response") for message in turns)
    return "swift" if swift else "trl"
