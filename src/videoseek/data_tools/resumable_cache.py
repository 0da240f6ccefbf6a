"""What earlier runs found out, one JSON line each, so that an interrupted run goes on where it stopped."""

from __future__ import annotations

import json
from pathlib import Path
from threading import Lock
from types import TracebackType
from typing import Any

from videoseek.config import UsageError

_HEADER = {"videoseek": "journal", "version": 1}


class ResumableCache:
    """Text key -> JSON value, kept in a file that only grows; without a path, in memory alone.

    A line reaches the system in one call, so a killed process can tear only the last one, which is then left out.
    """

    def __init__(self, path: Path | None) -> None:
        self._values: dict[str, Any] = {}
        self._lock = Lock()
        self._file = None
        if path is None:
            return
        lines = path.read_bytes().split(b"\n") if path.exists() else []
        if any(lines) and _entry(lines[0]) != _HEADER:
            raise UsageError(f"cache={path} is not a file of this command; name one that does not exist yet")
        for line in lines[1:]:
            entry = _entry(line)
            if isinstance(entry, list):
                self._values[entry[0]] = entry[1]
        self._file = path.open("ab", buffering=0)
        if not any(lines):
            self._write(_HEADER)
        elif lines[-1]:  # torn: the next line must not join it
            self._file.write(b"\n")

    def __contains__(self, key: str) -> bool:
        return key in self._values

    def __getitem__(self, key: str) -> Any:
        return self._values[key]

    def put(self, key: str, value: Any) -> None:
        with self._lock:
            self._values[key] = value
            self._write([key, value])

    def __enter__(self) -> ResumableCache:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        if self._file is not None:
            self._file.close()

    def _write(self, entry: Any) -> None:
        if self._file is not None:
            self._file.write(json.dumps(entry, allow_nan=False).encode() + b"\n")


def _entry(line: bytes) -> Any:
    try:
        return json.loads(line)
    except ValueError:  # torn by a kill
        return None
