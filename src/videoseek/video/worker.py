"""Decodes under a limit in worker processes, or without a limit in this process.

FFmpeg cannot be interrupted: a decoder that hangs or crashes over a damaged file ends the whole process. A worker is
therefore a fresh interpreter and inherits only a socket, so threads, CUDA and open files of this process are harmless.
A worker serves one request at a time. An alarm ends a worker with a stalled decoder. The next request starts a new
worker.
"""

from __future__ import annotations

import logging
import os
import queue
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from threading import Lock
from typing import Any, Protocol

import numpy as np

from videoseek.video import watchdog
from videoseek.video.errors import VideoError
from videoseek.video.folder import FrameFolder
from videoseek.video.index import VideoIndex
from videoseek.video.index_store import from_fields, load_stored
from videoseek.video.reader import MAX_INDICES, decode_frames, read_index, source_stamp
from videoseek.video.server import PROGRESS
from videoseek.wire import receive, send

logger = logging.getLogger(__name__)

#: A fresh interpreter takes 0.3 s to import FFmpeg and numpy, and much longer from a cold network disk.
START_SECONDS = 120.0
#: A worker that is silent for this much longer than allowed cannot end itself. The pool then kills the worker.
GRACE_SECONDS = 2.0
#: A killed process that still exists after this time hangs in the kernel, as on a dead network disk, and is left alone.
KILL_SECONDS = 2.0
#: Memory holds all frames of a parallel decode.
MAX_DECODE_THREADS = 8


class Decoder(Protocol):
    """Reads files, `num_workers` at a time. Both methods raise VideoError."""

    num_workers: int

    def index(self, path: str) -> VideoIndex: ...

    def frames(self, path: str, frame_seconds: Sequence[float], height: int, width: int) -> np.ndarray:
        """Returns RGB uint8 [F, height, width, 3]."""
        ...


class LocalDecoder:
    """Reads files in this process, without a limit of time."""

    num_workers = 1

    def index(self, path: str) -> VideoIndex:
        return read_index(path)

    def frames(self, path: str, frame_seconds: Sequence[float], height: int, width: int) -> np.ndarray:
        return decode_frames(path, frame_seconds, height, width)


class WorkerPool:
    """Reads files in up to `num_workers` processes, each started at first need. Several threads may use a pool.

    A worker without progress for `stall_seconds` is killed. The decodes under way share `num_cores` cores: a lone
    decode runs a thread on every core, and many decodes run a single thread each.
    """

    def __init__(self, stall_seconds: float, num_workers: int, num_cores: int = 1) -> None:
        if not 0 < stall_seconds < float("inf") or num_workers < 1 or num_cores < 1:
            raise ValueError(
                f"{num_workers} workers, {num_cores} cores and a stall limit of {stall_seconds} s must be at least 1, "
                "at least 1, and finite"
            )
        self.stall_seconds = stall_seconds
        self.num_workers = num_workers
        self.num_cores = num_cores
        self._num_busy = 0
        self._workers: set[_Worker] = set()
        self._is_stopped = False
        self._counting = Lock()
        # Last in, first out: the last busy worker still has the index of the file in memory.
        self._idle: queue.LifoQueue[_Worker | None] = queue.LifoQueue()
        for _ in range(num_workers):
            self._idle.put(None)
        self._cached_index = lru_cache(maxsize=MAX_INDICES)(self._index)

    def index(self, path: str) -> VideoIndex:
        return self._cached_index(path, source_stamp(path))

    def frames(self, path: str, frame_seconds: Sequence[float], height: int, width: int) -> np.ndarray:
        _, (pixels,) = self._ask(path, frame_seconds=list(frame_seconds), height=height, width=width)
        return pixels

    def decode_threads(self, num_busy: int) -> int:
        """Returns the threads of a decode while `num_busy` decodes are under way."""
        return min(max(1, self.num_cores // max(num_busy, 1)), MAX_DECODE_THREADS)

    def close(self) -> None:
        """Ends all workers of an idle pool. The pool stays usable."""
        for _ in range(self.num_workers):
            worker = self._idle.get()
            if worker is not None:
                self._ended(worker)
        for _ in range(self.num_workers):
            self._idle.put(None)

    def stop(self) -> None:
        """Kills all workers at once, even busy workers. No worker starts again."""
        with self._counting:
            self._is_stopped = True
            workers = list(self._workers)
        for worker in workers:
            worker.kill()

    def _started(self) -> _Worker:
        worker = _Worker()
        with self._counting:
            self._workers.add(worker)
            is_stopped = self._is_stopped
        if is_stopped:
            self._ended(worker)
            raise RuntimeError("the decode workers of this process were stopped")
        return worker

    def _ended(self, worker: _Worker) -> None:
        with self._counting:
            self._workers.discard(worker)
        worker.kill()

    def _index(self, path: str, stamp: tuple[int, int]) -> VideoIndex:
        # This process reads a stored index itself: the film stays closed, so the read cannot hang.
        stored = None if FrameFolder.parse(path) else load_stored(path, stamp)
        return stored or from_fields(*self._ask(path))

    def _ask(self, path: str, **wanted: Any) -> tuple[dict[str, Any], list[np.ndarray]]:
        request = {"path": path, "working_folder": os.getcwd(), "stall_seconds": self.stall_seconds, **wanted}
        worker, kept = self._idle.get(), None
        try:
            if worker is None or not worker.is_alive():
                worker = self._started()
            with self._busy() as num_busy:
                message, arrays = worker.ask({**request, "decode_threads": self.decode_threads(num_busy)})
            kept = worker
        finally:
            # An exchange cut short, as by Ctrl-C, leaves half a reply in the socket, so the worker must end.
            if kept is None and worker is not None:
                self._ended(worker)
            self._idle.put(kept)
        if "error" in message:
            raise VideoError(*message["error"])
        return message, arrays

    @contextmanager
    def _busy(self) -> Iterator[int]:
        """Counts another decode as under way, and yields the number of decodes under way."""
        with self._counting:
            self._num_busy += 1
            num_busy = self._num_busy
        try:
            yield num_busy
        finally:
            with self._counting:
                self._num_busy -= 1


class _Worker:
    """A worker process and the socket to the process."""

    def __init__(self) -> None:
        self._socket, theirs = socket.socketpair()
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-m", "videoseek.video.server", str(theirs.fileno())],
                pass_fds=[theirs.fileno()],
                env=_environment(),
                stdin=subprocess.DEVNULL,
                process_group=0,  # Ctrl-C is for the run; the worker ends with the socket
            )
        self._socket.settimeout(START_SECONDS)
        try:
            receive(self._socket)
        except (EOFError, OSError) as error:
            self.kill()
            raise RuntimeError(f"a decode worker did not start within {START_SECONDS:g} s, see above") from error

    def is_alive(self) -> bool:
        return self._process.poll() is None

    def ask(self, request: dict[str, Any]) -> tuple[dict[str, Any], list[np.ndarray]]:
        """Returns the reply. Raises VideoError when the reply is missing. The worker is then useless."""
        path, stall_seconds = request["path"], request["stall_seconds"]
        self._socket.settimeout(watchdog.longest_silence(stall_seconds) + GRACE_SECONDS)
        try:
            send(self._socket, request)
            reply = receive(self._socket)
            while reply[0] == PROGRESS:
                reply = receive(self._socket)
            return reply
        except TimeoutError as error:
            cause: Exception = error
        except (EOFError, ConnectionError) as error:
            ending = self._ending()
            if ending != signal.SIGALRM.name:
                raise VideoError("crashed", f"the decoder died over {path} ({ending}).") from error
            cause = error
        raise VideoError("timeout", f"{path} was read for {stall_seconds:g} s without progress.") from cause

    def kill(self) -> None:
        self._socket.close()
        self._process.kill()
        try:
            self._process.wait(KILL_SECONDS)
        except subprocess.TimeoutExpired:
            logger.warning("a decode worker (process %d) does not end when killed", self._process.pid)

    def _ending(self) -> str:
        try:
            status = self._process.wait(KILL_SECONDS)
        except subprocess.TimeoutExpired:
            return "still running"
        return f"exit status {status}" if status >= 0 else signal.Signals(-status).name


def _environment() -> dict[str, str]:
    """Returns the worker's environment: the path of this very package, and a single thread for arithmetic."""
    paths = [str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH", "")]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths)), "OPENBLAS_NUM_THREADS": "1"}


_decoder: Decoder = LocalDecoder()


def decoder() -> Decoder:
    """Returns the reader of files for this process."""
    return _decoder


def use_worker(stall_seconds: float | None, num_workers: int = 1, num_cores: int = 1) -> None:
    """Makes this process read files in worker processes under a stall limit, or in itself for None or 0.

    A process forked later starts workers of its own. The arguments go to `WorkerPool`.
    """
    global _decoder
    if isinstance(_decoder, WorkerPool):
        _decoder.close()
    if stall_seconds:
        _decoder = WorkerPool(stall_seconds, num_workers, num_cores)
        logger.info("videos are read in %d worker(s), killed after %g s without progress", num_workers, stall_seconds)
    else:
        _decoder = LocalDecoder()
        logger.info("videos are read in this process, without a limit")


def stop_workers() -> None:
    """Ends all workers at once, even busy workers. This process reads files itself from then on."""
    global _decoder
    if isinstance(_decoder, WorkerPool):
        _decoder.stop()
    _decoder = LocalDecoder()


def _after_fork() -> None:
    """Gives a forked process an empty pool: two processes that write to a shared socket break the socket."""
    global _decoder
    if isinstance(_decoder, WorkerPool):
        _decoder = WorkerPool(_decoder.stall_seconds, _decoder.num_workers, _decoder.num_cores)


os.register_at_fork(after_in_child=_after_fork)
