"""The metrics of a run by step: metrics.jsonl, and the same numbers for trackers."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from videoseek.files import append_json_line, open_json_lines, read_json_lines, write_text
from videoseek.runtime import rank
from videoseek.trackers import Tracker


class RunError(Exception):
    """The contents of the output folder are missing or invalid: one sentence, exit code 1."""


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """Returns the rows of a metrics.jsonl by `read_json_lines`. Raises RunError for a broken line."""
    try:
        return read_json_lines(path)
    except ValueError as error:
        raise RunError(str(error)) from error


class MetricsLog:
    """Writes one JSON object per step to metrics.jsonl, and the same numbers to `trackers`, on rank 0 only.

    `stages` is the run's order. `resume` is the (stage, step) of a checkpoint: the log drops later rows, for the run to
    repeat. Without `resume` the log starts empty.
    """

    def __init__(
        self,
        output_dir: Path,
        stages: Sequence[str],
        resume: tuple[str, int] | None = None,
        trackers: Sequence[Tracker] = (),
    ) -> None:
        self._enabled = rank() == 0
        self._trackers = trackers
        if not self._enabled:
            return
        path = output_dir / "metrics.jsonl"
        rows = []
        if resume is not None:
            order = {stage: index for index, stage in enumerate(stages)}
            limit = order[resume[0]], resume[1]
            rows = [row for row in read_metrics(path) if (order.get(row["stage"], -1), row["step"]) <= limit]
        write_text(path, "".join(json.dumps(row) + "\n" for row in rows))
        self._file = open_json_lines(path)

    def write(self, stage: str, step: int, values: Mapping[str, float]) -> None:
        """Logs numbers by name. NaN and infinity (absent in JSON) become null in metrics.jsonl."""
        if not self._enabled:
            return
        numbers = {name: float(value) for name, value in values.items()}
        finite = {name: value if math.isfinite(value) else None for name, value in numbers.items()}
        append_json_line(self._file, {"stage": stage, "step": step, **finite})
        for tracker in self._trackers:
            tracker.log(stage, step, numbers)

    def close(self) -> None:
        """Closes the file and all trackers."""
        if self._enabled:
            self._file.close()
        for tracker in self._trackers:
            tracker.close()
