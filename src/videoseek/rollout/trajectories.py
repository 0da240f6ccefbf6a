"""The trajectory files of a run."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from videoseek.files import write_text
from videoseek.types import Episode


def write_trajectories(output_dir: Path, name: str, groups: Sequence[Sequence[Episode]]) -> None:
    """One episode a line: text, windows, rewards and ids; never pixels."""
    (output_dir / "trajectories").mkdir(exist_ok=True)
    lines = [json.dumps(e.to_json(), ensure_ascii=False) + "\n" for group in groups for e in group]
    write_text(output_dir / "trajectories" / f"{name}.jsonl", "".join(lines))
