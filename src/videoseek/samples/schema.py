"""The project's own JSONL: one `Sample` a line. Every reader of another format ends here."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any

from videoseek.files import whole_file
from videoseek.types import KINDS, Interval, Sample

SCHEMA_VERSION = 1
#: The limit of a text: the tokens of a text of fifty million characters took more than 7 GB of memory.
MAX_TEXT_CHARACTERS = 1_000_000
_FIELDS = {"version", "id", "video", "question", "options", "answer", "kind", "clues", "turns", "window"}


class DataError(Exception):
    """The data forbid training; the message names the file, the line and the value."""


class RecordError(ValueError):
    """A fault of one record: a stable code for counting, and a sentence."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


def sample_to_record(sample: Sample) -> dict[str, Any]:
    """Returns the filled fields of the sample as a JSON object."""
    record: dict[str, Any] = {"version": SCHEMA_VERSION, "id": sample.id, "video": sample.video}
    record |= {"kind": sample.kind, "question": sample.question, "answer": sample.answer}
    optional = {
        "options": list(sample.options),
        "clues": [list(clue) for clue in sample.clues],
        "turns": list(sample.turns),
        "window": list(sample.window) if sample.window else None,
    }
    return record | {name: value for name, value in optional.items() if value}


def sample_from_record(record: Any, locate: Callable[[str], str]) -> Sample:
    """Returns the sample of a JSON object; `locate` turns the video's name into a path. Raises RecordError."""
    if not isinstance(record, dict):
        raise RecordError("not_object", f"a record must be a JSON object, got {type(record).__name__}")
    unknown = sorted(set(record) - _FIELDS)
    if unknown:
        field_names = ", ".join(sorted(_FIELDS))
        raise RecordError("unknown_field", f"unknown field {unknown[0]!r}; known fields are {field_names}")
    version = record.get("version", SCHEMA_VERSION)
    if type(version) is not int or version != SCHEMA_VERSION:
        raise RecordError("wrong_type", f"field 'version' is {version!r}; this release reads version {SCHEMA_VERSION}")
    for name in ("id", "video", "question", "answer", "kind"):
        if not isinstance(record.get(name), str):
            code = "wrong_type" if name in record else "missing_field"
            raise RecordError(code, f"field {name!r} must be a string, got {record.get(name)!r}")
    window = record.get("window")
    return checked_sample(
        id=record["id"],
        video=locate(record["video"]),
        question=record["question"],
        answer=record["answer"],
        kind=record["kind"],
        options=strings("options", record.get("options", [])),
        clues=tuple(interval("clues", clue) for clue in _list("clues", record.get("clues", []))),
        turns=strings("turns", record.get("turns", [])),
        window=interval("window", window) if window is not None else None,
    )


def checked_sample(**values: Any) -> Sample:
    """Builds a `Sample` from values of the right types. Raises RecordError with the sentence of `Sample`."""
    try:
        return Sample(**values)
    except ValueError as error:
        code = "bad_interval"
        if values["kind"] not in KINDS:
            code = "bad_kind"
        elif not values["answer"].strip():
            code = "no_answer"
        raise RecordError(code, str(error)) from error


def confined(video: str, video_root: Path) -> Path:
    """Returns the path of a record's video, links followed. A folder of frames keeps its rate: `DIR#fps=4`.

    Raises RecordError for a path outside `video_root`.
    """
    root = video_root.resolve()
    frames, mark, rate = video.rpartition("#fps=")
    try:
        if mark and (root / frames).is_dir() and not (root / video).is_dir():
            path = Path(f"{(root / frames).resolve()}{mark}{rate}")
        else:
            path = (root / video).resolve()
    except (ValueError, OSError, RuntimeError) as error:  # a NUL, a name too long, a link to itself
        raise RecordError("wrong_type", f"video {video!r} is no path: {error}") from error
    if not path.is_relative_to(root):
        raise RecordError("outside_root", f"video {video!r} lies outside video_root {str(root)!r}")
    return path


def parse_json(text: bytes | str, object_pairs_hook: Callable[[list[tuple[str, Any]]], Any] | None = None) -> Any:
    """Parses a JSON value; `json.loads` receives `object_pairs_hook`. Raises RecordError."""
    try:
        # `json` takes bytes with many zeros for UTF-32, for example a video named instead of a data file.
        decoded = text if isinstance(text, str) else text.decode("utf-8-sig")
        return json.loads(decoded, object_pairs_hook=object_pairs_hook)
    except UnicodeDecodeError as error:
        raise RecordError(
            "bad_json", f"no text in UTF-8: byte {error.start + 1} is {error.object[error.start]:#04x}"
        ) from error
    except json.JSONDecodeError as error:  # the error's own line and column count within the record
        raise RecordError("bad_json", f"no valid JSON: {error.msg} at character {error.pos + 1}") from error
    except (ValueError, RecursionError) as error:
        raise RecordError("bad_json", f"no valid JSON: {error}") from error


def repeated_key(text: bytes) -> str | None:
    """Returns a key that an object in a JSON value holds twice, or None. JSON readers keep the key's last value."""
    repeated: list[str] = []

    def find_repeated(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        if len(dict(pairs)) < len(pairs):
            keys = [key for key, _ in pairs]
            repeated.append(next(key for key in keys if keys.count(key) > 1))
        return {}

    try:
        parse_json(text, find_repeated)
    except RecordError:
        return None
    return repeated[0] if repeated else None


def check_text_lengths(value: Any) -> None:
    """Raises RecordError if a JSON value holds a text of more than MAX_TEXT_CHARACTERS characters."""
    values = [value]
    while values:
        item = values.pop()
        if isinstance(item, dict):
            values += [*item, *item.values()]
        elif isinstance(item, list):
            values += item
        elif isinstance(item, str) and len(item) > MAX_TEXT_CHARACTERS:
            raise RecordError(
                "too_long_text",
                f"a text that begins {item[:40]!r} has {len(item)} characters; at most {MAX_TEXT_CHARACTERS} are read",
            )


def read_samples(path: Path, video_root: Path | None = None) -> list[Sample]:
    """Returns all samples of a small JSONL file; videos are relative to `video_root`, by default the file's folder.

    Raises DataError, with file and line, for the first bad record, and for a file without records.
    """
    if not path.is_file():
        raise DataError(f"data file {str(path)!r} does not exist")
    locate = partial(_located, video_root=video_root or path.parent)
    samples: dict[str, Sample] = {}
    with path.open("rb") as lines:
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            try:
                sample = sample_from_record(parse_json(line), locate)
            except RecordError as error:
                raise DataError(f"{path}, line {number}: {error}") from error
            if sample.id in samples:
                raise DataError(f"{path}, line {number}: id {sample.id!r} is used twice")
            samples[sample.id] = sample
    if not samples:
        raise DataError(f"data file {str(path)!r} holds no samples")
    return list(samples.values())


def _located(video: str, video_root: Path) -> str:
    return str(confined(video, video_root))


def write_samples(path: Path, samples: Iterable[Sample]) -> None:
    """Writes a JSONL file whole or not at all.

    Paths of videos inside the file's folder become relative to the folder; all other paths become absolute.
    """
    folder = path.parent.resolve()
    with whole_file(path) as partial_file, partial_file.open("w", encoding="utf-8") as out:
        for sample in samples:
            record = sample_to_record(sample) | {"video": relative_video(sample.video, folder)}
            out.write(json.dumps(record, ensure_ascii=False) + "\n")


def relative_video(video: str, folder: Path) -> str:
    """Returns a video's path relative to a resolved `folder` for a video inside, else the absolute path."""
    path = Path(video).resolve()
    return str(path.relative_to(folder) if path.is_relative_to(folder) else path)


def _list(name: str, value: Any) -> list[Any]:
    if not isinstance(value, list):
        raise RecordError("wrong_type", f"field {name!r} must be a list, got {value!r}")
    return value


def strings(name: str, value: Any) -> tuple[str, ...]:
    """Returns a list of strings as a tuple. Raises RecordError for any other value."""
    if not all(isinstance(item, str) for item in _list(name, value)):
        raise RecordError("wrong_type", f"field {name!r} must be a list of strings, got {value!r}")
    return tuple(value)


def interval(name: str, value: Any) -> Interval:
    """Returns [start, end], in seconds, as a tuple. Raises RecordError for any other value."""
    if not (isinstance(value, list) and len(value) == 2 and all(type(v) in (int, float) for v in value)):
        raise RecordError("wrong_type", f"field {name!r} wants [start, end] in seconds, got {value!r}")
    try:
        return float(value[0]), float(value[1])
    except OverflowError as error:  # an integer beyond the range of floats
        raise RecordError("bad_interval", f"field {name!r}: {error}") from error
