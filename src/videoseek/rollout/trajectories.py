"""Writes the trajectory files of a run."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from videoseek.files import write_text
from videoseek.trajectory_record import TrajectoryRecord
from videoseek.types import Episode


def write_trajectories(output_dir: Path, name: str, groups: Sequence[Sequence[Episode]]) -> None:
    """Writes `output_dir/trajectories/NAME.jsonl`, one episode a line in the form of `TrajectoryRecord`."""
    (output_dir / "trajectories").mkdir(exist_ok=True)
    records = [TrajectoryRecord.from_episode(episode) for group in groups for episode in group]
    lines = [json.dumps(record.to_json(), ensure_ascii=False) + "\n" for record in records]
    write_text(output_dir / "trajectories" / f"{name}.jsonl", "".join(lines))
