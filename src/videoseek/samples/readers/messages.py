"""Reads formats of message lists: Seeker-173K SFT, LLaMA-Factory sharegpt, ms-swift, TRL."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from videoseek.samples.readers.calls import call_block
from videoseek.samples.readers.canonical import sample_from_extra
from videoseek.samples.readers.conversation import VIDEO_MARK, Facts, Medium, Message, sample_from_conversation
from videoseek.samples.readers.kinds import kind_from_name
from videoseek.samples.readers.rows import Convert, SourceFile
from videoseek.samples.schema import DataError, RecordError, interval, parse_json, strings
from videoseek.types import Sample

#: The name of a role -> the project's role. A call is part of the assistant's turn, a tool's result is a user turn.
_ROLES = {
    "system": "system",
    "user": "user",
    "assistant": "assistant",
    "tool": "user",
    "tool_response": "user",
    "tool_call": "call",
    "function_call": "call",
}
_PATHS = ("url", "video", "path")
DATASET_INFO = "dataset_info.json"
_ANSWERS = ("answer", "solution", "ground_truth")


@dataclass(frozen=True, slots=True)
class Dialect:
    """The columns and roles of a format.

    With `implicit_mark`, the mark of a single video is optional. With `kind_in_name`, the file's name tells the kind.
    """

    messages: str = "messages"
    videos: str = "videos"
    images: str = "images"
    role: str = "role"
    content: str = "content"
    roles: Mapping[str, str] = field(default_factory=lambda: _ROLES)
    implicit_mark: bool = False
    kind_in_name: bool = False


def prepare_seeker_sft(file: SourceFile) -> Convert:
    """Returns the reader of Seeker-173K SFT. The file names tell the kind."""
    return _converter(Dialect(kind_in_name=True), file)


def prepare_messages(file: SourceFile) -> Convert:
    """Returns the reader of ms-swift and TRL."""
    return _converter(Dialect(implicit_mark=True), file)


def prepare_sharegpt(file: SourceFile) -> Convert:
    """Returns the reader of sharegpt, with the columns and tags of an existing `dataset_info.json`."""
    return _converter(sharegpt_dialect(dataset_entry(file)), file)


def dataset_entry(file: SourceFile) -> Mapping[str, Any] | None:
    """Returns the entry of a file in the `dataset_info.json` of the same folder, or None. Raises DataError."""
    path = file.path.with_name(DATASET_INFO)
    if not path.is_file():
        return None
    try:
        entries = parse_json(path.read_bytes())
    except RecordError as error:
        raise DataError(f"{path}: {error}") from error
    if not isinstance(entries, dict) or not all(isinstance(entry, dict) for entry in entries.values()):
        raise DataError(f"{path} must be an object of data sets by name")
    return next((entry for entry in entries.values() if entry.get("file_name") == file.path.name), None)


def sharegpt_dialect(entry: Mapping[str, Any] | None) -> Dialect:
    """Returns the columns and tags of an entry of `dataset_info.json`, with LLaMA-Factory's defaults.

    Raises DataError for an entry of records other than conversations.
    """
    entry = entry or {"formatting": "sharegpt", "columns": {"videos": "videos", "images": "images"}}
    if entry.get("formatting") != "sharegpt" or entry.get("ranking"):
        raise DataError(f"dataset_info.json: {entry.get('file_name')} must have formatting sharegpt and no ranking")
    columns, tags = entry.get("columns", {}), entry.get("tags", {})
    roles = {
        tags.get("user_tag", "human"): "user",
        tags.get("assistant_tag", "gpt"): "assistant",
        tags.get("observation_tag", "observation"): "user",
        tags.get("function_tag", "function_call"): "call",
        tags.get("system_tag", "system"): "system",
    }
    return Dialect(
        messages=columns.get("messages", "conversations"),
        videos=columns.get("videos", "videos"),
        images=columns.get("images", "images"),
        role=tags.get("role_tag", "from"),
        content=tags.get("content_tag", "value"),
        roles=roles,
    )


def _converter(dialect: Dialect, file: SourceFile) -> Convert:
    def convert(record: Any, number: int) -> Sample:
        if not isinstance(record, dict):
            raise RecordError("not_object", f"a record must be a JSON object, got {type(record).__name__}")
        inline: list[Medium] = []
        messages = read_messages(recorded_messages(record, dialect.messages), dialect, inline)
        if record.get(dialect.images):
            raise RecordError("bad_media", "the record has images; only video is read")
        media = [*read_media(record.get(dialect.videos)), *inline]
        if extra := record.get("videoseek"):
            return sample_from_extra(extra, messages, media, file)
        facts = Facts(
            id=record_id(record, file, number),
            answer=_answer(record),
            kind=kind_from_name(file.path.stem, 0) if dialect.kind_in_name else None,
        )
        return sample_from_conversation(messages, media, facts, file, implicit_mark=dialect.implicit_mark)

    return convert


def recorded_messages(record: Mapping[str, Any], column: str) -> list[Any]:
    """Returns a record's messages: a list, a list as JSON text, or TRL's prompt and completion. Raises RecordError."""
    value = record.get(column)
    if value is None and "prompt" in record:
        halves = zip(("prompt", "completion"), ("user", "assistant"), strict=True)
        return [message for name, role in halves for message in _half(record.get(name), name, role)]
    if isinstance(value, str):
        value = parse_json(value)
    if not isinstance(value, list):
        code = "wrong_type" if column in record else "missing_field"
        raise RecordError(code, f"field {column!r} must be a list of messages, got {value!r}")
    return value


def _half(value: Any, name: str, role: str) -> list[Any]:
    if value is None:
        return []
    if isinstance(value, str):
        return [{"role": role, "content": value}]
    if not isinstance(value, list):
        raise RecordError("wrong_type", f"field {name!r} must be text or a list of messages, got {value!r}")
    return value


def read_messages(values: list[Any], dialect: Dialect, inline: list[Medium]) -> list[Message]:
    """Joins messages to the alternating turns of user and assistant. Raises RecordError.

    Appends the media inside messages to `inline`.
    """
    messages: list[Message] = []
    for number, value in enumerate(values, 1):
        role, text = _read_message(value, number, dialect, inline)
        last = messages[-1] if messages else None
        if role == "call":
            role, text = "assistant", _read_call(text, number)
            if last is not None and last.role == "assistant":
                messages[-1] = Message("assistant", f"{last.text}\n{text}")
                continue
        if last is None or last.role != role:
            messages.append(Message(role, text))
        elif role == "user":  # each result of a turn's calls may be a separate message
            messages[-1] = Message("user", f"{last.text}\n{text}")
        elif role == "assistant":
            raise RecordError("bad_turn", f"message {number} is the assistant's, like the one before it")
    return [message for message in messages if message.role != "system"]


def _read_message(value: Any, number: int, dialect: Dialect, inline: list[Medium]) -> tuple[str, str]:
    if not isinstance(value, dict):
        raise RecordError("wrong_type", f"message {number} must be an object, got {value!r}")
    name = value.get(dialect.role)
    if not isinstance(name, str) or name not in dialect.roles:
        raise RecordError("wrong_type", f"the role of message {number}, {name!r}, is not one of {list(dialect.roles)}")
    role = dialect.roles[name]
    if role in ("assistant", "call") and value.get("loss") in (False, 0):
        raise RecordError("bad_turn", f"message {number} has loss=false, but every assistant turn is trained")
    text = _read_content(value.get(dialect.content), number, inline)
    for call in value.get("tool_calls") or []:
        if not isinstance(call, dict) or not isinstance(call.get("function"), dict):
            raise RecordError("wrong_type", f"a tool call of message {number} must hold a function, got {call!r}")
        text = f"{text}\n{call_block({key: call['function'].get(key) for key in ('name', 'arguments')})}"
    return role, text


def _read_content(content: Any, number: int, inline: list[Medium]) -> str:
    """Returns plain text unchanged, and joins parts. A video part becomes a mark."""
    if content is None or isinstance(content, str):
        return content or ""
    if not isinstance(content, list) or not all(isinstance(part, dict) for part in content):
        raise RecordError("wrong_type", f"the content of message {number} must be text or parts, got {content!r}")
    texts = []
    for part in content:
        if part.get("type") == "text" and isinstance(part.get("text"), str):
            texts.append(part["text"])
        elif part.get("type") in ("video", "video_url"):
            texts.append(VIDEO_MARK)
            source = part.get("video_url") if part["type"] == "video_url" else part
            if isinstance(source, dict) and any(source.get(name) for name in _PATHS):
                inline.append(_read_medium(source))
        else:
            raise RecordError("bad_media", f"message {number} has a part of type {part.get('type')!r}")
    return "".join(texts)


def _read_call(text: str, number: int) -> str:
    """Returns the blocks of a message of calls: an object for one call, or a list of several calls."""
    try:
        value = parse_json(text)
    except RecordError as error:
        raise RecordError("bad_turn", f"the call in message {number} is broken: {error}") from error
    calls = value if isinstance(value, list) else [value]
    if not all(isinstance(call, dict) for call in calls):
        raise RecordError("bad_turn", f"the call in message {number} must be an object, got {text}")
    return "\n".join(map(call_block, calls))


def read_media(value: Any) -> Iterator[Medium]:
    """Returns the entries of a `videos` column: paths, or objects with a path and perhaps the window shown."""
    entries = [] if value is None else value if isinstance(value, list) else [value]
    return map(_read_medium, entries)


def _read_medium(entry: Any) -> Medium:
    if isinstance(entry, str):
        return Medium(entry)
    video = next((entry[name] for name in _PATHS if entry.get(name)), None) if isinstance(entry, dict) else None
    if not isinstance(video, str):
        raise RecordError("bad_media", f"a video is named by its path (frames: by their folder), got {entry!r}")
    crop = entry.get("crop")
    window = interval("crop", crop) if crop is not None else None
    return Medium(video, None if window == (-1, -1) else window)


def record_id(record: Mapping[str, Any], file: SourceFile, number: int) -> str:
    """Returns an id unique over all files: the stem of the file's name, and the record's id or number."""
    own = next((record[name] for name in ("id", "doc_id") if record.get(name) is not None), number)
    if not isinstance(own, (str, int)):
        raise RecordError("wrong_type", f"field 'id' must be text or a number, got {own!r}")
    return f"{file.path.stem}/{own}"


def _answer(record: Mapping[str, Any]) -> str | None:
    value = next((record[name] for name in _ANSWERS if record.get(name) is not None), None)
    return None if value is None else strings("answer", [value])[0]
