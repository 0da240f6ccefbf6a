"""The file of answers: one line a question, appended batch by batch, read again after a kill, merged over shards."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from videoseek.config import UsageError
from videoseek.files import append_json_line, open_json_lines, read_json_lines, write_text

#: An answer: id, film, prompt_hash, text, extracted, reason, right, error, calls, turns, tokens, seconds, windows, ..
Line = dict[str, Any]
WHOLE = "answers.jsonl"


@dataclass(frozen=True, slots=True)
class Shard:
    """Part `index` (from 1) of `count` parts of the films."""

    index: int = 1
    count: int = 1

    @classmethod
    def parse(cls, text: str | None) -> Shard:
        """Parses INDEX/COUNT; None is the whole. Raises UsageError."""
        match = re.fullmatch(r"(\d+)/(\d+)", text or "1/1")
        if match is None or not 1 <= int(match[1]) <= int(match[2]):
            raise UsageError(f"evaluate.shard must be INDEX/COUNT with 1 <= INDEX <= COUNT, such as 1/3, got {text!r}")
        return cls(int(match[1]), int(match[2]))

    @property
    def file_name(self) -> str:
        return WHOLE if self.count == 1 else f"answers-{self.index}of{self.count}.jsonl"

    def takes(self, film_number: int) -> bool:
        """Returns whether the part holds a film: all questions about a film stay together."""
        return film_number % self.count == self.index - 1


def read_answers(folder: Path) -> dict[str, Line]:
    """Returns the lines of all files of answers in a folder, by question."""
    files = sorted(folder.glob("answers*.jsonl"))
    return {line["id"]: line for file in files for line in read_json_lines(file)}


def append_answers(folder: Path, shard: Shard, lines: Iterable[Line]) -> None:
    """Appends lines to the shard's file. A kill tears the last line at most, and `read_answers` passes over it."""
    folder.mkdir(parents=True, exist_ok=True)
    with open_json_lines(folder / shard.file_name) as file:
        for line in lines:
            append_json_line(file, line)


def merge_answers(folder: Path, ids: Sequence[str]) -> list[Line]:
    """Returns the lines of `ids` in order. Joins the files of shards into one file when all questions are answered."""
    answers = read_answers(folder)
    lines = [answers[name] for name in ids]
    parts = list(folder.glob("answers-*of*.jsonl"))
    if parts:
        write_text(folder / WHOLE, "".join(json.dumps(line, allow_nan=False) + "\n" for line in lines))
    for part in parts:
        part.unlink(missing_ok=True)
    return lines


def require_same_prompts(answers: dict[str, Line], hashes: dict[str, str], folder: Path) -> None:
    """Raises UsageError if an answer in the folder was given to another prompt than today's."""
    for name, prompt_hash in hashes.items():
        if name in answers and answers[name]["prompt_hash"] != prompt_hash:
            raise UsageError(
                f"{folder} answers question {name!r} with prompt {answers[name]['prompt_hash']}, and its prompt is now "
                f"{prompt_hash}: the questions have changed; give another output_dir"
            )
