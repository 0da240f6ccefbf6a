"""The rank of the process within its run, and messages to the user on stderr.

The environment of torchrun, the deepspeed launcher or SLURM's wrapper holds the rank.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Mapping
from types import TracebackType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import rich.progress


def rank() -> int:
    """Returns the index of this process in the run, or 0 for a single process."""
    return int(os.environ.get("RANK", "0"))


def local_rank() -> int:
    """Returns the index of this process on its machine."""
    return int(os.environ.get("LOCAL_RANK", "0"))


def num_local_ranks() -> int:
    """Returns the number of processes on this machine: LOCAL_WORLD_SIZE of torchrun, LOCAL_SIZE of deepspeed."""
    return int(os.environ.get("LOCAL_WORLD_SIZE") or os.environ.get("LOCAL_SIZE") or world_size())


def world_size() -> int:
    """Returns the number of processes of the run."""
    return int(os.environ.get("WORLD_SIZE", "1"))


class Progress:
    """Shows the progress of one stage on stderr, on rank 0 only: a bar on a terminal, else a line every few seconds.

    Shows stage, step of total, the given numbers and the time left, estimated from the steps since `first_step`.
    """

    def __init__(self, stage: str, total: int, first_step: int = 0, every_seconds: float = 5.0) -> None:
        self._stage, self._total, self._first_step = stage, total, first_step
        self._every_seconds = every_seconds
        self._enabled = rank() == 0
        self._started = self._shown = time.monotonic()
        self._bar: rich.progress.Progress | None = None

    def __enter__(self) -> Progress:
        if self._enabled:
            self._bar = _start_bar()
        if self._bar is not None:
            self._bar.add_task(self._stage, total=self._total, completed=self._first_step, numbers="")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()

    def track(self, done: int, total: int) -> None:
        """Shows that `done` of `total` units are done, for work with a late total."""
        self._total = total
        if self._bar is not None:
            self._bar.update(self._bar.task_ids[0], total=total)
        self.update(done, {})

    def update(self, step: int, values: Mapping[str, float]) -> None:
        """Shows that `step` steps are done, with `values` beside it."""
        numbers = "  ".join(f"{name} {value:.4g}" for name, value in values.items())
        if self._bar is not None:
            self._bar.update(self._bar.task_ids[0], completed=step, numbers=numbers)
            return
        now = time.monotonic()
        due = step >= self._total or step == self._first_step + 1 or now - self._shown >= self._every_seconds
        if self._enabled and due:
            self._shown = now
            left = (now - self._started) / max(step - self._first_step, 1) * (self._total - step)
            minutes, seconds = divmod(round(left), 60)
            line = f"{self._stage} {step}/{self._total}  {numbers}  {minutes}:{seconds:02d} left"
            print(line, file=sys.stderr, flush=True)


def _start_bar() -> rich.progress.Progress | None:
    """Starts an empty bar on a terminal. Imports `rich` here: most commands show no progress."""
    import rich.progress
    from rich.console import Console

    console = Console(stderr=True, highlight=False)
    if not console.is_terminal:
        return None
    bar = rich.progress.Progress(
        "{task.description}",
        rich.progress.BarColumn(),
        rich.progress.MofNCompleteColumn(),
        "{task.fields[numbers]}",
        rich.progress.TimeRemainingColumn(elapsed_when_finished=True),
        console=console,
    )
    bar.start()
    return bar


def say(text: str) -> None:
    """Prints one line to stderr, on rank 0 only."""
    if rank() == 0:
        print(text, file=sys.stderr, flush=True)
