"""AheadLoader: loads the next step while the current step trains."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import Generic, TypeVar

from videoseek.timing import CLOCK

T = TypeVar("T")


class AheadLoader(Generic[T]):
    """Calls `load(step)` in one background thread, in the order of `start`. Serves as a context manager.

    The data order is a pure function of the step: loading ahead changes no batch. `get` raises the errors of `load`.
    """

    def __init__(self, load: Callable[[int], T]) -> None:
        self._load = load
        self._executor = ThreadPoolExecutor(1, thread_name_prefix="load-ahead")
        self._futures: dict[int, Future[T]] = {}

    def start(self, step: int) -> None:
        """Starts to load a step, unless already started. Returns at once."""
        if step not in self._futures:
            self._futures[step] = self._executor.submit(self._load, step)

    def get(self, step: int) -> T:
        """Waits for `load` of a step and returns the result."""
        self.start(step)
        with CLOCK.phase("wait"):
            return self._futures.pop(step).result()

    def __enter__(self) -> AheadLoader[T]:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._executor.shutdown(wait=True, cancel_futures=True)
