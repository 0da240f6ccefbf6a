"""Where the time of a training step goes, by phase.

`decode` sums over all threads and may exceed the step. The other phases are parts of the training thread's time: `wait`
for video, `encode` in the vision tower, `generate`, `tools` and `train`. A phase inside another one is not counted
twice: the inner phase interrupts the outer one.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from threading import Lock, local

PHASES = ("decode", "wait", "encode", "generate", "tools", "train")


class StepClock:
    """Seconds by phase since the last `take`. Safe to use from several threads; each thread nests its own phases."""

    def __init__(self) -> None:
        self._seconds = dict.fromkeys(PHASES, 0.0)
        self._lock = Lock()
        self._thread = local()

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Counts the time inside the block, less the phases inside it. Phases of other threads are not nested."""
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
            self.add(name, seconds - inner)

    def add(self, name: str, seconds: float) -> None:
        """Adds time to a phase without interrupting another one."""
        with self._lock:
            self._seconds[name] += seconds

    def take(self) -> dict[str, float]:
        """Returns the seconds of every phase as metrics `time/PHASE_s`, and starts again from zero."""
        with self._lock:
            seconds, self._seconds = self._seconds, dict.fromkeys(PHASES, 0.0)
        return {f"time/{name}_s": value for name, value in seconds.items()}


#: The clock of this process.
CLOCK = StepClock()
