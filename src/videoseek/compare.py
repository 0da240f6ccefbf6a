"""`python -m videoseek.compare RUN_FOLDER [RUN_FOLDER ...]`: prints the scores of finished runs as a Markdown table.

Runs with equal keys except seed and folder form a row with mean and spread. Differing keys name the rows.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from videoseek.command import parse_folders, run_command
from videoseek.config import UsageError

USAGE = "python -m videoseek.compare RUN_FOLDER [RUN_FOLDER ...]"
#: Keys ignored by the comparison: time and place of a run, not its recipe.
_NOT_COMPARED = ("seed", "output_dir", "resume", "save_every_steps", "save_every_minutes", "save_in_background")
_NOT_COMPARED += ("keep_checkpoints", "evaluate.every_steps", "evaluate.num_questions_inside")
_COLUMNS = ("accuracy_tool", "accuracy_greedy_tool", "clue_iou", "calls_per_episode", "format")


@dataclass(frozen=True, slots=True)
class FinishedRun:
    """A run's configuration by dotted key, and its scores."""

    settings: dict[str, str]
    summary: dict[str, Any]

    @classmethod
    def read(cls, folder: Path) -> FinishedRun:
        """Reads a run folder. Raises UsageError for a folder without a finished run."""
        for name in ("config.yaml", "summary.json"):
            if not (folder / name).is_file():
                raise UsageError(f"{folder} holds no finished run (no {name})")
        config = yaml.safe_load((folder / "config.yaml").read_text(encoding="utf-8"))
        flat = {key: str(value) for key, value in _flatten(config).items() if key not in _NOT_COMPARED}
        return cls(flat, json.loads((folder / "summary.json").read_text(encoding="utf-8")))


def _flatten(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        flat |= _flatten(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
    return flat


def table(runs: Sequence[FinishedRun]) -> str:
    """Returns a Markdown table: a row per setting and model, a column per score as `mean ± deviation`."""
    keys = sorted({key for run in runs for key in run.settings if len({r.settings.get(key) for r in runs}) > 1})
    rows: dict[tuple[str, ...], list[FinishedRun]] = {}
    for run in runs:
        rows.setdefault(tuple(run.settings.get(key, "") for key in keys), []).append(run)
    head = [*keys, "model", "runs", *_COLUMNS]
    lines = [f"| {' | '.join(head)} |", f"|{'---|' * len(head)}"]
    for values, members in sorted(rows.items()):
        models = [name.split("/")[1] for name in members[0].summary if name.startswith("accuracy/")]
        for model in models:
            cells = [_spread([run.summary[f"{column}/{model}"] for run in members]) for column in _COLUMNS]
            lines.append(f"| {' | '.join([*values, model, str(len(members)), *cells])} |")
    return "\n".join(lines)


def _spread(values: list[float]) -> str:
    mean = f"{statistics.mean(values):.3f}"
    return f"{mean} ± {statistics.stdev(values):.3f}" if len(values) > 1 else mean


def main(arguments: list[str]) -> None:
    print(table([FinishedRun.read(folder) for folder in parse_folders(arguments, USAGE)]))


if __name__ == "__main__":
    raise SystemExit(run_command(main))
