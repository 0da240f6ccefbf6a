"""Writes the trajectory files of a run."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from videoseek.files import write_text
from videoseek.types import Episode


def write_trajectories(output_dir: Path, name: str, groups: Sequence[Sequence[Episode]]) -> None:
    """Writes `trajectories/NAME.jsonl`, one episode per line: text, windows, rewards and token ids, without pixels."""
    (output_dir / "trajectories").mkdir(exist_ok=True)
    episodes = [episode for group in groups for episode in group]
    lines = [json.dumps(episode.to_json(), ensure_ascii=False) + "\n" for episode in episodes]
    write_text(output_dir / "trajectories" / f"{name}.jsonl", "".join(lines))
