"""Names the places that a run passes, and kills the run at one of the places.

A place is a kind of work, an event and a count, such as `sft | after step | 2`. The same run passes the same places: a
kill at a place can be repeated, unlike a kill after some seconds.
"""

from __future__ import annotations

import os
import signal
import threading
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from videoseek import checkpoint, metrics
from videoseek.engine import TrainEngine
from videoseek.rollout.native import NativeSampler
from videoseek.stages import pipeline, stage_run
from videoseek.stages.stage_run import StageRun

#: The kinds of work: training by stage, evaluation within a stage and of a finished stage, and checkpoints.
KINDS = ("sft", "grpo", "evaluation inside", "final evaluation", "checkpoint")


class Places:
    """Appends each passed place to the file `log`, and kills the process at the place `fatal`."""

    def __init__(self, log: Path, fatal: str | None) -> None:
        self.log, self.fatal = log, fatal
        self.kind = "start"
        self._counts: Counter[str] = Counter()
        self._lock = threading.Lock()

    def reach(self, event: str) -> bool:
        """Passes the next place of an event in this thread's kind of work. Returns whether the place is fatal."""
        in_writer = threading.current_thread().name.startswith("checkpoint")
        with self._lock:
            name = f"{'checkpoint' if in_writer else self.kind} | {event}"
            self._counts[name] += 1
            place = f"{name} | {self._counts[name]}"
            with self.log.open("a") as file:
                file.write(place + "\n")
        return place == self.fatal

    def note(self, event: str) -> None:
        if self.reach(event):
            os.kill(os.getpid(), signal.SIGKILL)

    def around(self, owner: Any, name: str, event: str, kind: str | None = None) -> None:
        """Makes the beginning and the end of a function places, and its body a kind of work of its own."""
        function = getattr(owner, name)

        def noted(*arguments: Any, **named: Any) -> Any:
            before = self.kind
            self.kind = kind or before
            self.note(f"before {event}")
            result = function(*arguments, **named)
            self.note(f"after {event}")
            self.kind = before
            return result

        setattr(owner, name, noted)


def watch(log: str, fatal: str | None) -> None:
    """Watches the run of this process."""
    places = Places(Path(log), fatal)
    places.around(TrainEngine, "step", "step")
    places.around(stage_run, "score_policy", "evaluation", "evaluation inside")
    places.around(pipeline, "score_stage", "evaluation", "final evaluation")
    places.around(NativeSampler, "work", "turn")
    places.around(checkpoint, "save_file", "state file")
    places.around(checkpoint, "save_pretrained", "weights")
    _name_stages(places)
    _name_renames(places)
    _tear_rows(places)


def _name_stages(places: Places) -> None:
    open_stage = StageRun.open

    def opened(context: Any, name: str, *arguments: Any) -> StageRun:
        places.kind = name
        return open_stage(context, name, *arguments)

    StageRun.open = opened  # type: ignore[method-assign, assignment]


def _name_renames(places: Places) -> None:
    """Every file, link and folder of a run gets its final name by `Path.replace`."""
    replace: Callable[[Path, Path], Path] = Path.replace

    def renamed(self: Path, target: Path) -> Path:
        places.note(f"before renaming to {target.name}")
        result = replace(self, target)
        places.note(f"after renaming to {target.name}")
        return result

    Path.replace = renamed  # type: ignore[method-assign, assignment]


def _tear_rows(places: Places) -> None:
    """Kills within a row of metrics.jsonl: half of the row is written."""
    append = metrics.append_json_line

    def torn(file: Any, value: Any) -> None:
        if places.reach("within a row"):
            file.write(b'{"stage": "sft", "st')
            os.kill(os.getpid(), signal.SIGKILL)
        append(file, value)

    metrics.append_json_line = torn
