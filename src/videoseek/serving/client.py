"""A trainer's connection to one worker: requests go out, futures resolve, and every way to fail has a name."""

from __future__ import annotations

import itertools
import math
import select
import socket
import struct
import time
from collections.abc import Sequence
from concurrent.futures import Future
from contextlib import suppress
from threading import Lock, Thread
from typing import Any

import numpy as np

from videoseek.serving.handshake import RefusedError, connect, prove
from videoseek.wire import Message, receive, send


class WorkerError(Exception):
    """A worker failed. The message names the worker and what happened."""


class WorkerLostError(WorkerError):
    """The worker has died, hangs, or broke the protocol: another worker can do its turns again."""


class Connection:
    """A connection to the worker at `address`. Raises WorkerLostError or WorkerError.

    A thread of its own reads the replies and resolves the futures. The worker is lost when the connection ends, when a
    frame breaks the protocol, or when nothing comes for `silence_seconds` while a request is open.
    """

    def __init__(self, address: str, token: str, silence_seconds: float) -> None:
        self.address = address
        self._silence_seconds = silence_seconds
        self._numbers = itertools.count()
        self._open: dict[str, Future[Message]] = {}
        self._open_lock, self._send_lock = Lock(), Lock()
        self._lost: WorkerLostError | None = None
        self._heard_at = time.monotonic()
        try:
            self._socket = connect(address, silence_seconds)
            self._socket.settimeout(silence_seconds)
            prove(self._socket, token)
            self._socket.settimeout(None)
            limit = struct.pack("ll", math.ceil(silence_seconds), 0)  # a worker that hangs reads nothing either
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, limit)
        except RefusedError as error:
            raise WorkerError(f"worker {address}: {error}") from error
        except (OSError, EOFError) as error:
            raise WorkerLostError(f"worker {address} cannot be reached: {_text(error)}") from error
        Thread(target=self._listen, daemon=True).start()

    def post(self, header: dict[str, Any], arrays: Sequence[np.ndarray] = ()) -> None:
        """Sends a message that has no reply. A lost worker shows at the next request."""
        with self._send_lock:
            try:
                send(self._socket, header, arrays)
            except OSError:
                self.close()  # half a frame may have left: nothing can follow it

    def request(self, header: dict[str, Any], arrays: Sequence[np.ndarray] = ()) -> Future[Message]:
        """Sends a message with a reply. The future holds the reply, WorkerLostError or WorkerError."""
        future: Future[Message] = Future()
        number = str(next(self._numbers))
        with self._open_lock:
            lost = self._lost
            if lost is None:
                if not self._open:
                    self._heard_at = time.monotonic()
                self._open[number] = future
        if lost is not None:
            future.set_exception(lost)
            return future
        self.post({**header, "id": number}, arrays)
        return future

    @property
    def lost(self) -> WorkerLostError | None:
        """Returns the reason when the worker is lost, else None."""
        return self._lost

    def forget(self, future: Future[Message]) -> None:
        """Stops the work for a turn. Its future never resolves."""
        with self._open_lock:
            numbers = [number for number, waiting in self._open.items() if waiting is future]
            for number in numbers:
                del self._open[number]
        for number in numbers:
            self.post({"op": "forget", "id": number})

    def close(self) -> None:
        """Ends the connection. Open requests fail."""
        with suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)

    def _listen(self) -> None:
        try:
            while True:
                self._wait()
                self._resolve(*receive(self._socket))
                self._heard_at = time.monotonic()
        except (EOFError, OSError, KeyError, TypeError) as error:
            lost = WorkerLostError(f"worker {self.address} is lost: {_text(error)}")
            with self._open_lock:
                self._lost = lost
                futures, self._open = list(self._open.values()), {}
            self._socket.close()
            for future in futures:
                future.set_exception(lost)

    def _wait(self) -> None:
        """Waits for bytes. Raises TimeoutError for a worker that is silent over an open request."""
        poller = select.poll()  # not `select.select`, which refuses descriptors beyond 1,023
        poller.register(self._socket, select.POLLIN)
        while not poller.poll(1000 * min(1.0, self._silence_seconds / 4)):
            silent_seconds = time.monotonic() - self._heard_at
            if self._open and silent_seconds > self._silence_seconds:
                raise TimeoutError(f"it has been silent for {silent_seconds:.0f} s over {len(self._open)} requests")

    def _resolve(self, header: dict[str, Any], arrays: list[np.ndarray]) -> None:
        if header["op"] == "working":
            return
        with self._open_lock:
            future = self._open.pop(header["id"], None)
        if future is None:
            return  # forgotten, or an error about a message without a reply
        if header["op"] == "error":
            future.set_exception(WorkerError(f"worker {self.address} refuses a request: {header['message']}"))
        else:
            future.set_result((header, arrays))


def _text(error: BaseException) -> str:
    return str(error) or type(error).__name__
