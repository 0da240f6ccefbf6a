"""Readers: records of public formats as samples. Facts that a source does not hold are not invented."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from videoseek.config import UsageError
from videoseek.samples.readers import canonical, messages, seeker_rl, verl, video_r1
from videoseek.samples.readers.calls import in_form
from videoseek.samples.readers.parquet import ParquetRows
from videoseek.samples.readers.records import JsonLines, JsonList, RecordFile
from videoseek.samples.readers.rows import Format, Place, Problem, Row, VideoPaths
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
    """One data file in one format: its rows in order, or the sample of one place.

    With a `call_format`, calls of recorded turns are put into that form. Raises DataError when the file is not there or
    its format is unclear, and UsageError for an unknown format.
    """

    def __init__(self, path: Path, fmt: str | None, paths: VideoPaths, call_format: str | None = None) -> None:
        name = detect_format(path) if fmt is None else fmt
        if name not in FORMATS:
            raise UsageError(f"format {name!r} of {path} is not one of {', '.join(FORMATS)}")
        self.path, self.format = path, name
        self.records = open_records(path)
        self._convert = FORMATS[name].prepare(Place(path, paths))
        self._call_format = call_format

    def rows(self, seen: set[str]) -> Iterator[tuple[int, int, Row]]:
        """(place, number, row) of every record. An id that is in `seen` is a problem; new ones are added to it."""
        for record in self.records:
            where = self.where(record.number)
            try:
                sample = self._sample(record.value, record.number)
                if sample.id in seen:
                    raise RecordError("duplicate_id", f"id {sample.id!r} is used twice")
            except RecordError as error:
                yield record.place, record.number, Row(where, None, Problem(error.code, str(error)))
            else:
                seen.add(sample.id)
                yield record.place, record.number, Row(where, sample, None)

    def where(self, number: int) -> str:
        """How a record is named to the user."""
        return f"{self.path}, {self.records.unit} {number}"

    def sample(self, place: int, number: int) -> Sample:
        """The sample that `rows` gave for this place."""
        return self._sample(self.records.at(place), number)

    def _sample(self, value: Any | RecordError, number: int) -> Sample:
        if isinstance(value, RecordError):
            raise value
        sample = self._convert(value, number)
        if self._call_format is None:
            return sample
        turns = in_form(sample.turns, self._call_format)
        return sample if turns is sample.turns else replace(sample, turns=turns)


def read_rows(path: Path, fmt: str | None, paths: VideoPaths) -> Iterator[Row]:
    """Every record of a file, lazily; a bad one is a row with a problem. `fmt` None: as `detect_format` says.

    Raises DataError when the file as a whole cannot be read, and UsageError for an unknown format.
    """
    for _, _, row in Reader(path, fmt, paths).rows(set()):
        yield row


def open_records(path: Path) -> RecordFile:
    """By extension (`.parquet`, `.jsonl`), else by the first character. Raises DataError when there is no such file."""
    if not path.is_file():
        raise DataError(f"data file {str(path)!r} does not exist")
    if path.suffix == ".parquet":
        return ParquetRows(path)
    if path.suffix == ".jsonl":
        return JsonLines(path)
    with path.open("rb") as file:
        start = file.read(4096).lstrip(b"\xef\xbb\xbf \t\r\n")[:1]
    return JsonList(path) if start == b"[" else JsonLines(path)


def detect_format(path: Path) -> str:
    """The format of a file, by its first record that is an object. Raises DataError when that is unclear."""
    records = open_records(path)
    first: str | None = None
    for record in records:
        if isinstance(record.value, Mapping):
            return _format_of(record.value, path)
        if first is None:
            kind = f"a record must be a JSON object, got {type(record.value).__name__}"
            first = f"{path}, {records.unit} {record.number}: "
            first += str(record.value) if isinstance(record.value, RecordError) else kind
    raise DataError(first or f"data file {str(path)!r} holds no samples")


def _format_of(record: Mapping[str, Any], path: Path) -> str:
    """The marks by which each format is known, the most telling first."""
    place = Place(path, VideoPaths())
    if isinstance(record.get("extra_info"), str) or isinstance(record.get("messages"), str):
        return "paravt"
    if "extra_info" in record or "reward_model" in record:
        return "verl"
    if isinstance(record.get("solution"), Mapping):
        return "seeker_rl"
    if "conversations" in record or messages.dataset_entry(place) is not None:
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
    said = [message for message in record["messages"] if isinstance(message, Mapping)]
    swift = any("loss" in message or message.get("role") in ("tool_call", "tool_response") for message in said)
    return "swift" if swift else "trl"
