"""The loop of a worker: takes turns and weights from trainers, and lets an engine work on all turns together.

A trainer sends, as `op` and `id` with further fields and arrays:
    clip    frames_per_second; frames uint8 [F, H, W, 3]. Kept until `drop`.
    drop    a clip
    turn    clips (ids), settings of `Engine.start`; token ids int32, one pad token for each clip
    forget  a turn that nobody waits for any more
    tensor  type, shape; its bytes uint8. Kept until `load`.
    load    version, folder (null: the tensors)
The worker answers `turn` and `load` with the same id: `turn` with stop, version, seconds and three arrays (prompt ids,
sampled ids, log-probs), `load` with version, or `error` with a sentence. `working` comes every second during turns.
"""

from __future__ import annotations

import queue
import socket
import struct
import sys
import time
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from threading import Thread
from typing import Any, Protocol

import numpy as np

from videoseek.serving.handshake import RefusedError, challenge
from videoseek.wire import Message, receive, send

#: A clip's name, its pixels uint8 [F, H, W, 3], and its frames per second.
NamedClip = tuple[str, np.ndarray, float]
#: A tensor's name, type and shape, and its bytes.
Tensor = tuple[str, str, tuple[int, ...], np.ndarray]
#: A turn's id, its facts (`stop`: stop, length or deadline; `version` of the weights; `seconds`), and three arrays.
Outcome = tuple[str, dict[str, Any], list[np.ndarray]]

_PROGRESS_SECONDS = 1.0
#: A peer that reads nothing for so long loses its connection, and so does a stranger that says nothing.
_PATIENCE_SECONDS = 60


class Engine(Protocol):
    """What a worker needs from an engine. Raises ValueError for a request that the engine cannot fulfil."""

    @property
    def is_busy(self) -> bool:
        """Returns whether a turn is under way."""

    def start(self, turn_id: str, ids: np.ndarray, clips: Sequence[NamedClip], settings: dict[str, Any]) -> None:
        """Begins a turn after the tokens `ids` int32, with one pad token for each clip.

        Settings: temperature (0: greedy), top_p, seed, max_tokens, max_seconds (None: no limit), stop_ids, banned_ids.
        """

    def step(self) -> Iterable[Outcome]:
        """Samples a token of each turn, and returns the finished turns."""

    def cancel(self, turn_id: str) -> None:
        """Drops a turn."""

    def load(self, folder: str | None, tensors: Sequence[Tensor], version: int) -> None:
        """Takes the weights of a folder, or `tensors`, as version `version`."""


@dataclass(eq=False)
class _Peer:
    number: int
    connection: socket.socket
    clips: dict[str, NamedClip] = field(default_factory=dict)
    tensors: list[Tensor] = field(default_factory=list)

    def name(self, own_id: str) -> str:
        """Returns the engine's name of a peer's clip or turn: peers may use the same ids."""
        return f"{self.number}.{own_id}"


class Server:
    """Serves an engine to every peer that knows the token. `serve` never returns; an engine's defect ends it."""

    def __init__(self, engine: Engine, token: str) -> None:
        self._engine = engine
        self._token = token
        self._inbox: queue.SimpleQueue[tuple[_Peer, Message | None]] = queue.SimpleQueue()
        self._turns: dict[str, _Peer] = {}
        self._progress_at = 0.0

    def serve(self, listener: socket.socket) -> None:
        """Accepts peers in a thread of their own, and works in this thread."""
        Thread(target=self._accept, args=(listener,), daemon=True).start()
        while True:
            while not (self._engine.is_busy and self._inbox.empty()):
                self._take(*self._inbox.get())
            for name, facts, arrays in self._engine.step():
                reply = {"op": "turn", "id": name.partition(".")[2], **facts}
                self._reply(self._turns.pop(name), reply, arrays)
            if time.monotonic() - self._progress_at > _PROGRESS_SECONDS:
                self._progress_at = time.monotonic()
                for peer in set(self._turns.values()):
                    self._reply(peer, {"op": "working"})

    def _accept(self, listener: socket.socket) -> None:
        for number in range(sys.maxsize):
            connection, _ = listener.accept()
            Thread(target=self._listen, args=(_Peer(number, connection),), daemon=True).start()

    def _listen(self, peer: _Peer) -> None:
        """Reads one peer's messages. A peer that breaks the protocol loses its connection, and nobody else's."""
        try:
            peer.connection.settimeout(_PATIENCE_SECONDS)
            challenge(peer.connection, self._token)
            peer.connection.settimeout(None)
            limit = struct.pack("ll", _PATIENCE_SECONDS, 0)  # not `settimeout`, which would also limit the reading
            peer.connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, limit)
            send(peer.connection, {"op": "ready"})
            while True:
                self._inbox.put((peer, receive(peer.connection)))
        except EOFError:
            pass
        except (RefusedError, OSError) as error:
            print(f"videoseek worker: connection {peer.number} is closed: {error}", file=sys.stderr, flush=True)
        self._inbox.put((peer, None))

    def _take(self, peer: _Peer, message: Message | None) -> None:
        if message is None:
            for name in [name for name, owner in self._turns.items() if owner is peer]:
                self._cancel(name)
            peer.connection.close()
            return
        header, arrays = message
        try:
            self._do(peer, header, arrays)
        except (ValueError, KeyError, TypeError, IndexError, OSError) as error:
            self._reply(peer, {"op": "error", "id": header.get("id"), "message": f"{type(error).__name__}: {error}"})

    def _do(self, peer: _Peer, header: dict[str, Any], arrays: list[np.ndarray]) -> None:
        operation, name = header["op"], peer.name(header["id"])
        if operation == "clip":
            peer.clips[header["id"]] = name, arrays[0], header["frames_per_second"]
        elif operation == "drop":
            peer.clips.pop(header["id"], None)
        elif operation == "turn":
            self._engine.start(name, arrays[0], [peer.clips[clip] for clip in header["clips"]], header["settings"])
            self._turns[name] = peer
        elif operation == "forget":
            self._cancel(name)
        elif operation == "tensor":
            peer.tensors.append((header["id"], header["type"], tuple(header["shape"]), arrays[0]))
        elif operation == "load":
            if self._engine.is_busy:
                raise ValueError("weights cannot change while turns are sampled")
            # Weights arrive whole or not at all: a connection that breaks before this point changes nothing.
            tensors, peer.tensors = peer.tensors, []
            self._engine.load(header["folder"], tensors, header["version"])
            self._reply(peer, {"op": "load", "id": header["id"], "version": header["version"]})
        else:
            raise ValueError(f"op {operation!r} is not one of the protocol's")

    def _cancel(self, name: str) -> None:
        if self._turns.pop(name, None) is not None:
            self._engine.cancel(name)

    def _reply(self, peer: _Peer, header: dict[str, Any], arrays: Sequence[np.ndarray] = ()) -> None:
        try:
            send(peer.connection, header, arrays)
        except OSError:
            with suppress(OSError):
                peer.connection.shutdown(socket.SHUT_RDWR)  # wakes the peer's own thread, which parts from it
