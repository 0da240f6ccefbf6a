"""Answers the calls of a turn side by side."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from threading import Thread

from videoseek.timing import CLOCK
from videoseek.tools.tool import Observation
from videoseek.types import Fault


def side_by_side(jobs: Sequence[Callable[[], Observation]], deadline_seconds: float | None = None) -> list[Observation]:
    """Runs jobs at once, each in a thread of its own, and returns their results in order.

    A job that takes longer than the deadline gets a fault, and its thread is left behind: no thread can be stopped.
    Raises the exception of the first job that raised one.
    """
    if len(jobs) == 1 and deadline_seconds is None:
        return [jobs[0]()]
    futures: list[Future[Observation]] = [Future() for _ in jobs]
    end = None if deadline_seconds is None else time.monotonic() + deadline_seconds
    for job, future in zip(jobs, futures, strict=True):
        Thread(target=_fill, args=(job, future), daemon=True, name="tool").start()
    results: list[Observation] = []
    for future in futures:
        try:
            results.append(future.result(None if end is None else max(0.0, end - time.monotonic())))
        except TimeoutError:
            late = f"The tool gave no result within {deadline_seconds:g} seconds; try another call or answer now."
            results.append(Fault("tool_timeout", late))
    return results


def _fill(job: Callable[[], Observation], future: Future[Observation]) -> None:
    CLOCK.leave_out_this_thread()
    try:
        future.set_result(job())
    except BaseException as error:  # noqa: BLE001 (the thread that waits raises it)
        future.set_exception(error)
