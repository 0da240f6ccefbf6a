"""The time of a run is the sum over its attempts, the killed ones too."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from videoseek.attempts import end_attempt, start_attempt


def attempts(output_dir: Path) -> list[dict[str, Any]]:
    return json.loads((output_dir / "env.json").read_text())["attempts"]


def test_attempts_keep_their_commands_and_add_up(tmp_path: Path) -> None:
    start_attempt(tmp_path, {"command": ["train", "a"], "python": "3.11"})
    assert attempts(tmp_path)[0]["wall_seconds"] is None
    # Killed 90 seconds after its start: its newest file is of then.
    started = (tmp_path / "env.json").stat().st_mtime
    (tmp_path / "metrics.jsonl").touch()
    os.utime(tmp_path / "metrics.jsonl", (started + 90, started + 90))
    start_attempt(tmp_path, {"command": ["train", "b"], "python": "3.12"})
    assert attempts(tmp_path)[0]["wall_seconds"] == pytest.approx(90, abs=2)
    assert end_attempt(tmp_path, 30.0) == pytest.approx(120, abs=2)
    # Another attempt of a run that ended keeps the written times.
    start_attempt(tmp_path, {"command": ["train", "c"], "python": "3.12"})
    assert end_attempt(tmp_path, 5.0) == pytest.approx(125, abs=2)
    assert [attempt["command"] for attempt in attempts(tmp_path)] == [["train", name] for name in "abc"]
    assert json.loads((tmp_path / "env.json").read_text())["python"] == "3.12"
