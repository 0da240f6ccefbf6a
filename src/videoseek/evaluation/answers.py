"""The file of answers: one line a question, appended batch by batch, read again after a kill, merged over shards."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from videoseek.config import UsageError
from videoseek.files import append_json_line, open_json_lines, read_json_lines, write_text

#: An answer: id, film, prompt_hash, text, extracted, reason, status, right, calls, turns, tokens, seconds, windows, ..
Line = dict[str, Any]


def parse_shard(text: str | None) -> tuple[int, int]:
    """Parses INDEX/COUNT of `evaluate.shard`, with an index from 1; None is the whole, 1/1. Raises UsageError."""
    match = re.fullmatch(r"(\d+)/(\d+)", text or "1/1")
    if match is None or not 1 <= int(match[1]) <= int(match[2]):
        raise UsageError(f"evaluate.shard must be INDEX/COUNT with 1 <= INDEX <= COUNT, such as 1/3, got {text!r}")
    return int(match[1]), int(match[2])


def read_answers(folder: Path) -> dict[str, Line]:
    """Returns the lines of all files of answers in a folder, by question."""
    files = sorted(folder.glob("answers*.jsonl"))
    return {line["id"]: line for file in files for line in read_json_lines(file)}


def append_answers(folder: Path, shard: tuple[int, int], lines: Sequence[Line]) -> None:
    """Appends lines to the shard's file. A kill tears the last line at most, and `read_answers` passes over it."""
    folder.mkdir(parents=True, exist_ok=True)
    name = "answers.jsonl" if shard[1] == 1 else f"answers-{shard[0]}of{shard[1]}.jsonl"
    with open_json_lines(folder / name) as file:
        for line in lines:
            append_json_line(file, line)


def merge_answers(folder: Path, ids: Sequence[str]) -> list[Line]:
    """Returns the lines of `ids` in order, and joins the files of shards into answers.jsonl."""
    answers = read_answers(folder)
    lines = [answers[name] for name in ids]
    if parts := list(folder.glob("answers-*of*.jsonl")):
        write_text(folder / "answers.jsonl", "".join(json.dumps(line, allow_nan=False) + "\n" for line in lines))
    for part in parts:
        part.unlink(missing_ok=True)
    return lines


def require_same_prompts(answers: Mapping[str, Line], hashes: Mapping[str, str], folder: Path) -> None:
    """Raises UsageError if an answer in the folder was given to another prompt than today's."""
    for name, prompt_hash in hashes.items():
        if name in answers and (before := answers[name]["prompt_hash"]) not in (prompt_hash, None):
            raise UsageError(
                f"{folder} answers question {name!r} with prompt {before}, and its prompt is now {prompt_hash}: "
                "the questions have changed; give another output_dir"
            )
