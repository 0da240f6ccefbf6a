"""The attempts of a run, in env.json: command, start and wall time of each process that worked on the run."""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from videoseek.files import write_json

#: The files that a run at work renews.
_SIGNS_OF_LIFE = ("env.json", "metrics.jsonl", "trajectories", "evaluation-*.json", "checkpoint-*")


def start_attempt(output_dir: Path, report: Mapping[str, Any]) -> None:
    """Writes env.json: the `environment_report` of this process, and this attempt after the earlier attempts."""
    path = output_dir / "env.json"
    attempts = _read(path).get("attempts", [])
    if attempts and attempts[-1]["wall_seconds"] is None:
        # A killed process wrote no time: its newest file gives the end.
        written = (file.stat().st_mtime for pattern in _SIGNS_OF_LIFE for file in output_dir.glob(pattern))
        started = datetime.fromisoformat(attempts[-1]["started_at"]).timestamp()
        attempts[-1]["wall_seconds"] = max(0.0, max(written) - started)
    started_at = datetime.now(UTC).isoformat(timespec="milliseconds")
    attempt = {"command": report["command"], "started_at": started_at, "wall_seconds": None}
    write_json(path, {**report, "attempts": [*attempts, attempt]})


def end_attempt(output_dir: Path, seconds: float) -> float:
    """Writes the wall time of this process to env.json. Returns the sum over all attempts."""
    path = output_dir / "env.json"
    report = _read(path)
    report["attempts"][-1]["wall_seconds"] = seconds
    write_json(path, report)
    return sum(attempt["wall_seconds"] for attempt in report["attempts"])


def _read(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
