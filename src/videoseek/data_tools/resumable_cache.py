"""Stores results of earlier runs, a JSON line each, so an interrupted run continues at the same place."""

from __future__ import annotations

import json
from io import FileIO
from pathlib import Path
from threading import Lock
from types import TracebackType
from typing import Any

from videoseek.config import UsageError
from videoseek.files import append_json_line, open_json_lines, read_json_lines

_HEADER = {"videoseek": "journal", "version": 1}


class ResumableCache:
    """Maps text keys to JSON values, in an append-only file, or in memory without a path."""

    def __init__(self, path: Path | None) -> None:
        self._values: dict[str, Any] = {}
        self._lock = Lock()
        self._file: FileIO | None = None
        if path is None:
            return
        header = json.dumps(_HEADER).encode() + b"\n"
        # A kill can tear the header too, so the command accepts a beginning of the header, and refuses any other file.
        start = path.read_bytes()[: len(header)] if path.exists() else b""
        if not header.startswith(start):
            raise UsageError(f"cache={path} is not a file of this command; name one that does not exist yet")
        try:
            entries = read_json_lines(path)
            self._values = {key: value for key, value in entries[1:]}
        except (ValueError, TypeError) as error:
            raise UsageError(f"cache={path} is damaged: {error}; remove it") from error
        self._file = open_json_lines(path)
        if not entries:
            append_json_line(self._file, _HEADER)

    def __contains__(self, key: str) -> bool:
        return key in self._values

    def __getitem__(self, key: str) -> Any:
        return self._values[key]

    def put(self, key: str, value: Any) -> None:
        """Keeps a value; safe to call from several threads."""
        with self._lock:
            self._values[key] = value
            if self._file is not None:
                append_json_line(self._file, [key, value])

    def __enter__(self) -> ResumableCache:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        if self._file is not None:
            self._file.close()
