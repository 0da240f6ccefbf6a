"""Reads raw records of a text file, JSONL or a JSON list, in order or by offset. Memory holds one record at a time."""

from __future__ import annotations

import mmap
import re
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from videoseek.samples.schema import (
    MAX_TEXT_CHARACTERS,
    RecordError,
    check_text_lengths,
    parse_json,
    repeated_key,
)

#: The tokens that decide the end of a list's element: strings (perhaps with brackets), brackets and commas.
_STRUCTURE = re.compile(rb'"[^"\\]*(?:\\.[^"\\]*)*"|[\[\]{},]', re.DOTALL)


@dataclass(frozen=True, slots=True)
class RawRecord:
    """A record: the number from 1 in units of `RecordFile.unit`, the offset for `RecordFile.at`, and the value."""

    number: int
    offset: int
    value: Any | RecordError


class RecordFile(ABC):
    """A file of records, in order or by offset; offsets run from 0 to `size`."""

    unit: ClassVar[str]
    size: int
    #: Appended to the message about a bad first record.
    hint: str = ""

    @abstractmethod
    def __iter__(self) -> Iterator[RawRecord]:
        """Yields all records in order; an undecodable record has a RecordError as the value."""

    @abstractmethod
    def at(self, offset: int) -> Any:
        """Returns the value of the record at an offset from iteration.

        Raises RecordError when the file has changed.
        """

    def repeated_key(self, offset: int) -> str | None:
        """Returns a key that an object of the record holds twice, or None. Formats without keys return None."""
        return None


class _TextFile(RecordFile):
    """A text file; offsets are in bytes.

    Memory maps the file: forked processes share the map, and each process has its own position.
    """

    def __init__(self, path: Path) -> None:
        self.size = path.stat().st_size
        self._text: mmap.mmap | bytes = b""
        if self.size:  # an empty file cannot be mapped
            with path.open("rb") as file:
                self._text = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)

    @abstractmethod
    def _spans(self, start: int) -> Iterator[tuple[int, int]]:
        """Yields (start, end) in bytes of each record from `start` on; a span may be blank."""

    def __iter__(self) -> Iterator[RawRecord]:
        for number, (start, end) in enumerate(self._spans(self._first), 1):
            text = self._text[start:end]
            if not text.strip():
                continue
            try:
                yield RawRecord(number, start, _parse_record(text))
            except RecordError as error:
                yield RawRecord(number, start, error)

    @property
    def _first(self) -> int:
        return 0

    def at(self, offset: int) -> Any:
        start, end = next(self._spans(offset))
        return _parse_record(self._text[start:end])

    def repeated_key(self, offset: int) -> str | None:
        start, end = next(self._spans(offset))
        return repeated_key(self._text[start:end])


def _parse_record(text: bytes) -> Any:
    value = parse_json(text)
    if len(text) > MAX_TEXT_CHARACTERS:  # a short record holds only short texts
        check_text_lengths(value)
    return value


def begins_with_list(start: bytes) -> bool:
    """Returns whether the first bytes of a text file begin a JSON list."""
    return start.lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"[")


class JsonLines(_TextFile):
    """One JSON value per line; blank lines are skipped."""

    unit = "line"

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        if begins_with_list(self._text[:4096]):
            self.hint = "; the file begins a JSON list, which is read from a file that ends in .json"

    def _spans(self, start: int) -> Iterator[tuple[int, int]]:
        while start < self.size:
            end = self._text.find(b"\n", start) + 1 or self.size
            yield start, end
            start = end


class JsonList(_TextFile):
    """A JSON list. The last element of a truncated list is broken."""

    unit = "record"

    @property
    def _first(self) -> int:
        return self._text.find(b"[") + 1

    def _spans(self, start: int) -> Iterator[tuple[int, int]]:
        depth = 0
        for match in _STRUCTURE.finditer(self._text, start):
            mark = match.group()
            if depth == 0 and mark in (b",", b"]"):
                yield start, match.start()
                start = match.end()
                if mark == b"]":
                    break
            elif mark in (b"{", b"["):
                depth += 1
            elif mark in (b"}", b"]"):
                depth -= 1
        yield start, self.size
