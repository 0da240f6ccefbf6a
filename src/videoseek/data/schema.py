"""The project's own JSONL: one `Sample` a line. Every reader of another format ends here."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from videoseek.types import Sample

SCHEMA_VERSION = 1
_FIELDS = {"version", "id", "video", "question", "options", "answer", "kind", "clues", "turns", "window"}


class DataError(Exception):
    """Data that cannot be trained on; the message names the file, the line and the value."""


def sample_to_record(sample: Sample) -> dict[str, Any]:
    """One JSON object; empty fields are left out."""
    record: dict[str, Any] = {"version": SCHEMA_VERSION, "id": sample.id, "video": sample.video}
    record |= {"kind": sample.kind, "question": sample.question, "answer": sample.answer}
    optional = {
        "options": list(sample.options),
        "clues": [list(clue) for clue in sample.clues],
        "turns": list(sample.turns),
        "window": list(sample.window) if sample.window else None,
    }
    return record | {name: value for name, value in optional.items() if value}


def sample_from_record(record: dict[str, Any], video_root: Path) -> Sample:
    """Raises ValueError with one sentence when a field is missing, unknown or of the wrong type."""
    if not isinstance(record, dict):
        raise ValueError(f"a record must be a JSON object, got {type(record).__name__}")
    unknown = sorted(set(record) - _FIELDS)
    if unknown:
        raise ValueError(f"unknown field {unknown[0]!r}; known fields are {', '.join(sorted(_FIELDS))}")
    version = record.get("version", SCHEMA_VERSION)
    if version != SCHEMA_VERSION:
        raise ValueError(f"field 'version' is {version!r}; this release reads version {SCHEMA_VERSION}")
    for name in ("id", "video", "question", "answer", "kind"):
        if not isinstance(record.get(name), str):
            raise ValueError(f"field {name!r} must be a string, got {record.get(name)!r}")
    window = record.get("window")
    return Sample(
        id=record["id"],
        video=str(confined(record["video"], video_root)),
        question=record["question"],
        answer=record["answer"],
        kind=record["kind"],
        options=_strings("options", record.get("options", [])),
        clues=tuple(_interval("clues", clue) for clue in _list("clues", record.get("clues", []))),
        turns=_strings("turns", record.get("turns", [])),
        window=_interval("window", window) if window is not None else None,
    )


def confined(video: str, video_root: Path) -> Path:
    """The path of a record's video, which may not leave `video_root`. Raises ValueError."""
    root = video_root.resolve()
    path = (root / video).resolve()
    if not path.is_relative_to(root):
        raise ValueError(f"video {video!r} lies outside data.video_root {str(root)!r}")
    return path


def read_samples(path: Path, video_root: Path | None = None) -> list[Sample]:
    """All samples of a JSONL file; videos are relative to `video_root`, by default the file's own folder.

    Raises DataError naming the file and line of the first bad record, or when there is none at all.
    """
    if not path.is_file():
        raise DataError(f"data file {str(path)!r} does not exist")
    samples: list[Sample] = []
    seen: set[str] = set()
    with path.open("rb") as lines:
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            try:
                sample = sample_from_record(json.loads(line), video_root or path.parent)
            except (ValueError, OverflowError, RecursionError) as error:
                raise DataError(f"{path}, line {number}: {error}") from error
            if sample.id in seen:
                raise DataError(f"{path}, line {number}: id {sample.id!r} is used twice")
            seen.add(sample.id)
            samples.append(sample)
    if not samples:
        raise DataError(f"data file {str(path)!r} holds no samples")
    return samples


def write_samples(path: Path, samples: Iterable[Sample]) -> None:
    """Writes a JSONL file whole or not at all.

    Videos become relative to its folder where they lie inside it, and absolute elsewhere.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    folder = path.parent.resolve()
    partial = path.with_name(path.name + ".partial")
    with partial.open("w", encoding="utf-8") as out:
        for sample in samples:
            record = sample_to_record(sample)
            video = Path(sample.video).resolve()
            record["video"] = str(video.relative_to(folder) if video.is_relative_to(folder) else video)
            out.write(json.dumps(record, ensure_ascii=False) + "\n")
    partial.replace(path)


def _list(name: str, value: Any) -> list[Any]:
    if not isinstance(value, list):
        raise ValueError(f"field {name!r} must be a list, got {value!r}")
    return value


def _strings(name: str, value: Any) -> tuple[str, ...]:
    if not all(isinstance(item, str) for item in _list(name, value)):
        raise ValueError(f"field {name!r} must be a list of strings, got {value!r}")
    return tuple(value)


def _interval(name: str, value: Any) -> tuple[float, float]:
    if not (isinstance(value, list) and len(value) == 2 and all(type(v) in (int, float) for v in value)):
        raise ValueError(f"field {name!r} wants [start, end] in seconds, got {value!r}")
    return float(value[0]), float(value[1])
