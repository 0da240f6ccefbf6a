"""Reads the items of a run: a folder of videos, or JSONL lines with optional captions or a question."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from videoseek.config import UsageError
from videoseek.samples.schema import DataError, RecordError, confined
from videoseek.synthesis.items import Caption, Item, Question
from videoseek.types import letter_options

VIDEO_SUFFIXES = (".avi", ".flv", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".ogv", ".ts", ".webm", ".wmv")

_FIELDS = {"id", "video", "captions", "question", "options", "answer"}
_GENERATED_ID = re.compile(r"(.+)-q\d\d+")
_LETTER = re.compile(r"[A-Z]")


def read_items(path: Path, video_root: Path | None) -> list[Item]:
    """Returns one item per video of a folder, in the order of their paths, or one item per line of a JSONL file.

    Videos must lie in `video_root`, by default the folder itself or the folder of the file. Raises UsageError for any
    other path, and DataError naming the line of a bad record.
    """
    if path.is_dir():
        items = _folder_items(path, video_root or path)
    elif path.is_file():
        items = _file_items(path, video_root or path.parent)
    else:
        raise UsageError(f"{str(path)!r} is neither a folder of videos nor a JSONL file")
    _check_ids(path, items)
    return items


def _folder_items(folder: Path, video_root: Path) -> list[Item]:
    """Follows links inside `video_root`. Raises DataError."""
    paths = sorted(path for path in folder.rglob("*") if path.suffix.lower() in VIDEO_SUFFIXES and path.is_file())
    if not paths:
        raise DataError(f"folder {str(folder)!r} holds no video ({' '.join(VIDEO_SUFFIXES)})")
    names = [path.relative_to(folder).as_posix() for path in paths]
    try:
        videos = [str(confined(str(path.absolute()), video_root)) for path in paths]
    except RecordError as error:
        raise DataError(f"folder {str(folder)!r}: {error}") from error
    return [Item(name, name, video) for name, video in zip(names, videos, strict=True)]


def _file_items(path: Path, video_root: Path) -> list[Item]:
    items = []
    with path.open("rb") as lines:
        for number, line in enumerate(lines, 1):
            if line.strip():
                try:
                    items.append(_item(json.loads(line), video_root))
                except (ValueError, RecursionError) as error:
                    raise DataError(f"{path}, line {number}: {error}") from error
    if not items:
        raise DataError(f"{str(path)!r} holds no line")
    return items


def _item(record: Any, video_root: Path) -> Item:
    """Returns the item of a record. Raises ValueError with a sentence."""
    if not isinstance(record, dict):
        raise ValueError(f"a line must be a JSON object, got {type(record).__name__}")
    unknown = sorted(set(record) - _FIELDS)
    if unknown:
        raise ValueError(f"unknown field {unknown[0]!r}; known fields are {', '.join(sorted(_FIELDS))}")
    video = _text(record, "video")
    name = _text(record, "id") if "id" in record else video
    captions = tuple(_caption(caption) for caption in _list(record, "captions"))
    question = _question(record) if "question" in record else None
    if question is None and ("options" in record or "answer" in record):
        raise ValueError("fields 'options' and 'answer' need a 'question'")
    return Item(name, name, str(confined(video, video_root)), captions, question)


def _question(record: dict[str, Any]) -> Question:
    options = tuple(_list(record, "options"))
    if not all(isinstance(option, str) for option in options):
        raise ValueError(f"field 'options' must be a list of strings, got {list(options)!r}")
    answer = _text(record, "answer").strip()
    if options and not (_LETTER.fullmatch(answer) and answer in dict(letter_options(options))):
        raise ValueError(f"field 'answer' must be the letter of one of {len(options)} options, got {answer!r}")
    return Question(_text(record, "question"), options, answer)


def _caption(caption: Any) -> Caption:
    if not isinstance(caption, dict) or set(caption) != {"start", "end", "text"}:
        raise ValueError(f"a caption must be an object of start, end and text, got {caption!r}")
    start, end = caption["start"], caption["end"]
    if not (type(start) in (int, float) and type(end) in (int, float) and 0 <= start < end):
        raise ValueError(f"a caption must satisfy 0 <= start < end (seconds), got start {start!r} and end {end!r}")
    return Caption(float(start), float(end), _text(caption, "text"))


def _text(record: dict[str, Any], name: str) -> str:
    value = record.get(name)
    if not isinstance(value, str) or not value.strip():
        raise ValueError(f"field {name!r} must be a text that is not empty, got {value!r}")
    return value


def _list(record: dict[str, Any], name: str) -> list[Any]:
    value = record.get(name, [])
    if not isinstance(value, list):
        raise ValueError(f"field {name!r} must be a list, got {value!r}")
    return value


def _check_ids(path: Path, items: Sequence[Item]) -> None:
    """Checks that ids are unique and differ from the ids of generated questions of other items."""
    ids: set[str] = set()
    for item in items:
        if item.id in ids:
            raise DataError(f"{path}: id {item.id!r} is used twice; give the lines an 'id'")
        ids.add(item.id)
    for item in items:
        match = _GENERATED_ID.fullmatch(item.id)
        if match and match.group(1) in ids:
            raise DataError(f"{path}: id {item.id!r} may clash with a question made for {match.group(1)!r}; rename it")


def generated_id(source: str, number: int) -> str:
    """Returns the id of the `number`-th generated question (counted from 1) of a source."""
    return f"{source}-q{number:02d}"
