"""Measures the time of a training step by phase.

`decode` sums over all threads and may exceed the step. The other phases are parts of the training thread's time: `wait`
for video, `encode` in the vision tower, `generate`, `tools` and `train`. An inner phase interrupts the outer phase:
each second counts once.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from threading import Lock, local

PHASES = ("decode", "wait", "encode", "generate", "tools", "train")


class StepClock:
    """Seconds by phase since the last `take`. Safe for several threads; each thread nests its own phases."""

    def __init__(self) -> None:
        self._seconds = dict.fromkeys(PHASES, 0.0)
        self._lock = Lock()
        self._thread = local()

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Counts the time inside the block, less the time of inner phases. Phases of other threads are independent."""
        stack: list[float] = self._thread.__dict__.setdefault("inner", [])
        stack.append(0.0)
        started = time.perf_counter()
        try:
            yield
        finally:
            seconds = time.perf_counter() - started
            inner = stack.pop()
            if stack:
                stack[-1] += seconds
            if not self._thread.__dict__.get("is_left_out"):
                self.add(name, seconds - inner)

    def leave_out_this_thread(self) -> None:
        """Counts no phase of the calling thread from now on: the thread works beside the training thread."""
        self._thread.__dict__["is_left_out"] = True

    def add(self, name: str, seconds: float) -> None:
        """Adds time to a phase without interrupting the current phase."""
        with self._lock:
            self._seconds[name] += seconds

    def take(self) -> dict[str, float]:
        """Returns the seconds of every phase as metrics `time/PHASE_s`, and restarts from zero."""
        with self._lock:
            seconds, self._seconds = self._seconds, dict.fromkeys(PHASES, 0.0)
        return {f"time/{name}_s": value for name, value in seconds.items()}


#: The clock of this process.
CLOCK = StepClock()
