"""The run's numbers by step: metrics.jsonl and TensorBoard."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from videoseek.files import write_text
from videoseek.ranks import rank


class RunError(Exception):
    """What the run keeps or finds in its output folder is of no use: one sentence, exit code 1."""


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """Rows of a metrics.jsonl. A last line without its newline was cut off by a kill and is left out."""
    if not path.exists():
        return []
    *lines, _torn = path.read_text(encoding="utf-8", errors="replace").split("\n")
    rows = []
    for number, line in enumerate(lines, start=1):
        try:
            rows.append(json.loads(line))
        except ValueError as error:
            raise RunError(f"{path} line {number} is not JSON: {error}") from error
    return rows


class MetricsLog:
    """One JSON object a step in metrics.jsonl, and the same numbers in tensorboard/STAGE; only rank 0 writes.

    `stages` is the run's order. `resume` is the (stage, step) that a checkpoint stands at: rows beyond it are
    dropped, since they will be made again; without it the log starts empty.
    """

    def __init__(self, output_dir: Path, stages: Sequence[str], resume: tuple[str, int] | None = None) -> None:
        self._output_dir, self._resume = output_dir, resume
        self._writers: dict[str, Any] = {}
        self._enabled = rank() == 0
        if not self._enabled:
            return
        path = output_dir / "metrics.jsonl"
        rows = []
        if resume is not None:
            order = {stage: index for index, stage in enumerate(stages)}
            limit = order[resume[0]], resume[1]
            rows = [row for row in read_metrics(path) if (order.get(row["stage"], -1), row["step"]) <= limit]
        write_text(path, "".join(json.dumps(row) + "\n" for row in rows))
        # Unbuffered: a line reaches the system in one call, so that a killed process can tear only the last one.
        self._file = path.open("ab", buffering=0)

    def write(self, stage: str, step: int, values: Mapping[str, float]) -> None:
        """Log numbers by name. JSON has no NaN and no infinity: they are written as null."""
        if not self._enabled:
            return
        numbers = {name: float(value) for name, value in values.items()}
        finite = {name: value if math.isfinite(value) else None for name, value in numbers.items()}
        self._file.write((json.dumps({"stage": stage, "step": step, **finite}) + "\n").encode())
        writer = self._writer(stage)
        for name, value in numbers.items():
            writer.add_scalar(name, value, step)

    def _writer(self, stage: str) -> Any:
        """One event folder per stage, which hides the events that an interrupted run left beyond the resume step."""
        if stage not in self._writers:
            from torch.utils.tensorboard import SummaryWriter

            first_step = self._resume[1] + 1 if self._resume and self._resume[0] == stage else 0
            folder = self._output_dir / "tensorboard" / stage
            self._writers[stage] = SummaryWriter(str(folder), purge_step=first_step)
        return self._writers[stage]

    def close(self) -> None:
        if self._enabled:
            self._file.close()
        for writer in self._writers.values():
            writer.close()
