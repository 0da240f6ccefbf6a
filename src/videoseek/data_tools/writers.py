"""Writes samples to files of other trainers' formats. The readers restore exactly the same samples.

A further column `videoseek` holds the project's own record as JSON text, for the fields outside a format's columns
(kind, clues, options, window, the question apart from the prompt). The project's readers prefer the column, and other
trainers ignore the column. Observations become user turns with marks for the clips.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from videoseek.config import UsageError
from videoseek.files import whole_file, write_json
from videoseek.samples.readers.calls import form_of, parse_turns
from videoseek.samples.readers.conversation import VIDEO_MARK
from videoseek.samples.readers.messages import DATASET_INFO
from videoseek.samples.schema import DataError, RecordError, relative_video, sample_to_record, write_samples
from videoseek.trajectory.formats import FORMATS
from videoseek.trajectory.grammar import CallFormat, fault
from videoseek.types import Sample

_ROWS_PER_GROUP = 1024
_WHOLE = [-1.0, -1.0]  # the crop of a whole video


def conversation_record(sample: Sample, folder: Path) -> dict[str, Any]:
    """Returns messages and videos as in Seeker-173K SFT.

    Raises DataError for a text with a video's mark, and for turns with two call forms.
    """
    try:
        fmt = FORMATS[form_of(sample.turns) or "grounding"]()
        parsed = parse_turns(sample.turns)
    except RecordError as error:
        raise DataError(f"sample {sample.id!r}: {error}") from error
    video = relative_video(sample.video, folder)
    messages = [_user(_prompt(sample, fmt))]
    videos: list[dict[str, Any]] = [{"url": video, "crop": _WHOLE, "sample": None}]
    num_calls = 0
    for text, turn in zip(sample.turns, parsed, strict=True):
        messages.append({"role": "assistant", "content": text})
        observations = []
        for call in turn.crops:
            num_calls += 1
            before, after = fmt.observation_text(num_calls, "")
            observations.append(f"{before}{VIDEO_MARK}{after}")
            window = [call.start_seconds, call.end_seconds]
            videos.append({"url": video, "crop": window, "sample": call.strategy})
        messages.append(_user("\n".join(observations) or fmt.fault_text(list(turn.faults) or [fault("no_action")])))
    if sample.turns:  # nothing is observed after the last turn
        videos = videos[: len(videos) - len(parsed[-1].crops)]
        messages.pop()
    record = {"id": sample.id, "system": fmt.system_prompt(), "messages": messages, "videos": videos}
    return record | {"videoseek": _own(sample, without=("video", "turns"))}


def verl_record(sample: Sample, index: int, folder: Path) -> dict[str, Any]:
    """Returns verl's columns for a question; a recorded trajectory goes to `extra_info.videoseek`."""
    fmt = FORMATS[prompt_form(sample)]()
    extra = {"index": index, "split": "train", "question": sample.question, "answer": sample.answer}
    own = {"video_segment": [list(clue) for clue in sample.clues], "videoseek": _own(sample, without=("video",))}
    return {
        "data_source": sample.kind,
        "prompt": [{"role": "system", "content": fmt.system_prompt()}, _user(_prompt(sample, fmt))],
        "videos": [{"type": "video", "video": relative_video(sample.video, folder)}],
        "ability": "video",
        "reward_model": {"style": "rule", "ground_truth": sample.answer},
        "extra_info": extra | own,
    }


def prompt_form(sample: Sample) -> str:
    """Returns the call form in a sample's prompt. Raises DataError for turns with two forms."""
    try:
        return form_of(sample.turns) or "grounding"
    except RecordError as error:
        raise DataError(f"sample {sample.id!r}: {error}") from error


def _prompt(sample: Sample, fmt: CallFormat) -> str:
    texts = (sample.question, *sample.options, *sample.turns)
    if any(VIDEO_MARK in text for text in texts):
        raise DataError(f"sample {sample.id!r} holds the mark {VIDEO_MARK} in a text, where it would stand for a video")
    return f"{VIDEO_MARK}\n{fmt.prompt_text(sample)}"


def _user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


def _own(sample: Sample, without: tuple[str, ...]) -> str:
    record = {name: value for name, value in sample_to_record(sample).items() if name not in without}
    return json.dumps(record, ensure_ascii=False)


def write_sharegpt(path: Path, samples: Iterable[Sample]) -> None:
    """Writes a JSON list (or JSONL, by the ending), and the file's entry in the folder's `dataset_info.json`.

    Raises DataError if the entry's name belongs to another file.
    """
    folder = path.parent.resolve()
    info = path.with_name(DATASET_INFO)
    entries = json.loads(info.read_bytes()) if info.is_file() else {}
    if entries.get(path.stem, {}).get("file_name", path.name) != path.name:
        raise DataError(f"{info} has an entry {path.stem!r} for another file; give {path.name} another name")
    start, between, end = ("[\n", ",\n", "\n]\n") if path.suffix == ".json" else ("", "\n", "\n")
    with whole_file(path) as partial, partial.open("w", encoding="utf-8") as out:
        out.write(start)
        for number, sample in enumerate(samples):
            text = json.dumps(conversation_record(sample, folder), ensure_ascii=False)
            out.write((between if number else "") + text)
        out.write(end)
    tags = {"role_tag": "role", "content_tag": "content", "user_tag": "user", "assistant_tag": "assistant"}
    entry = {
        "file_name": path.name,
        "formatting": "sharegpt",
        "columns": {"messages": "messages", "videos": "videos", "system": "system"},
        "tags": tags | {"system_tag": "system"},
    }
    write_json(info, entries | {path.stem: entry})


def write_verl(path: Path, samples: Iterable[Sample]) -> None:
    """Writes Parquet with verl's columns, row group by row group. Raises DataError without pyarrow."""
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError as error:
        raise DataError(f"{path} needs pyarrow to be written; pip install 'videoseek[data]'") from error
    folder = path.parent.resolve()
    text, number = pyarrow.string(), pyarrow.int64()
    messages = pyarrow.list_(pyarrow.struct({"role": text, "content": text}))
    windows = pyarrow.list_(pyarrow.list_(pyarrow.float64()))
    extra = {"index": number, "split": text, "question": text, "answer": text}
    schema = pyarrow.schema(
        {
            "data_source": text,
            "prompt": messages,
            "videos": pyarrow.list_(pyarrow.struct({"type": text, "video": text})),
            "ability": text,
            "reward_model": pyarrow.struct({"style": text, "ground_truth": text}),
            "extra_info": pyarrow.struct(extra | {"video_segment": windows, "videoseek": text}),
        }
    )
    rows = (verl_record(sample, index, folder) for index, sample in enumerate(samples))
    with whole_file(path) as partial, parquet.ParquetWriter(partial, schema) as out:
        for group in _groups(rows):
            out.write_table(pyarrow.Table.from_pylist(group, schema=schema))


def _groups(rows: Iterator[dict[str, Any]]) -> Iterator[list[dict[str, Any]]]:
    while group := list(islice(rows, _ROWS_PER_GROUP)):
        yield group


@dataclass(frozen=True, slots=True)
class Writer:
    """A format of output files: the writing function, and the endings of files."""

    write: Callable[[Path, Iterable[Sample]], None]
    suffixes: tuple[str, ...]

    def check_name(self, path: Path) -> None:
        """Raises UsageError for an ending outside the reader's endings."""
        if path.suffix not in self.suffixes:
            raise UsageError(f"a file of this format ends in {' or '.join(self.suffixes)}, got {path.name}")


WRITERS = {
    "videoseek": Writer(write_samples, (".jsonl",)),
    "sharegpt": Writer(write_sharegpt, (".json", ".jsonl")),
    "verl": Writer(write_verl, (".parquet",)),
}
