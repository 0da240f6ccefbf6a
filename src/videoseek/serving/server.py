"""The loop of a worker: takes turns and weights from trainers, and lets an engine work on all turns together.

A trainer sends, as `op` with its fields and arrays:
    clip    id, frames_per_second; frames uint8 [F, H, W, 3]. Kept until `drop`.
    drop    ids of clips
    turn    id, clips (ids), settings of `Engine.start`; token ids int32, one pad token for each clip
    forget  ids of turns that nobody waits for any more
    tensor  name, type, shape; its bytes uint8. Kept until `load`.
    load    id, version, folder (null: the tensors)
The worker answers `turn` and `load` with the same id: `turn` with stop, version, seconds and three arrays (prompt ids,
sampled ids, log-probs), `load` with version, or `error` with a sentence. `working` comes every second during turns.
"""

from __future__ import annotations

import queue
import socket
import struct
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from threading import Thread
from typing import Any, Protocol

import numpy as np

from videoseek.serving.handshake import RefusedError, challenge
from videoseek.wire import Message, receive, send

#: A tensor's name, type and shape, and its bytes.
Tensor = tuple[str, str, tuple[int, ...], np.ndarray]
#: A turn's id, its facts (`stop`: stop, length or deadline; `version` of the weights; `seconds`), and three arrays.
Outcome = tuple[str, dict[str, Any], list[np.ndarray]]

_PROGRESS_SECONDS = 1.0
#: A peer that reads nothing for so long loses its connection.
_SEND_SECONDS = 60


class Engine(Protocol):
    """What a worker needs from an engine. Raises ValueError for a request that the engine cannot fulfil."""

    info: dict[str, Any]

    @property
    def is_busy(self) -> bool:
        """Returns whether a turn is under way."""

    def add_clip(self, clip_id: str, frames: np.ndarray, frames_per_second: float) -> None:
        """Keeps a clip's pixels, uint8 [F, H, W, 3], for turns that name the clip."""

    def drop_clip(self, clip_id: str) -> None:
        """Forgets a clip."""

    def start(self, turn_id: str, ids: np.ndarray, clip_ids: Sequence[str], settings: dict[str, Any]) -> None:
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
    clips: set[str] = field(default_factory=set)
    tensors: list[Tensor] = field(default_factory=list)
    turns: set[str] = field(default_factory=set)

    def name(self, own_id: str) -> str:
        """Returns the engine's name of a peer's clip or turn: peers may use the same ids."""
        return f"{self.number}.{own_id}"


class Server:
    """Serves an engine to every peer that knows the token. `serve` never returns; an engine's defect ends it."""

    def __init__(self, engine: Engine, token: str) -> None:
        self._engine = engine
        self._token = token
        self._inbox: queue.SimpleQueue[tuple[_Peer, Message | None]] = queue.SimpleQueue()
        self._peers: dict[int, _Peer] = {}
        self._progress_at = 0.0

    def serve(self, listener: socket.socket) -> None:
        """Accepts peers in a thread of their own, and works in this thread."""
        Thread(target=self._accept, args=(listener,), daemon=True).start()
        while True:
            for peer, message in self._arrived():
                self._take(peer, message)
            if self._engine.is_busy:
                for outcome in self._engine.step():
                    self._deliver(outcome)
                self._report_progress()

    def _accept(self, listener: socket.socket) -> None:
        for number in range(sys.maxsize):
            connection, _ = listener.accept()
            Thread(target=self._listen, args=(_Peer(number, connection),), daemon=True).start()

    def _listen(self, peer: _Peer) -> None:
        """Reads one peer's messages. A peer that breaks the protocol loses its connection, and nobody else's."""
        try:
            limit = struct.pack("ll", _SEND_SECONDS, 0)  # not `settimeout`, which would also limit the reading
            peer.connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, limit)
            challenge(peer.connection, self._token)
            send(peer.connection, {"op": "ready", **self._engine.info})
            while True:
                self._inbox.put((peer, receive(peer.connection)))
        except EOFError:
            pass
        except (RefusedError, OSError) as error:
            print(f"videoseek worker: connection {peer.number} is closed: {error}", file=sys.stderr, flush=True)
        self._inbox.put((peer, None))

    def _arrived(self) -> Iterator[tuple[_Peer, Message | None]]:
        if not self._engine.is_busy:
            yield self._inbox.get()
        while not self._inbox.empty():
            yield self._inbox.get()

    def _take(self, peer: _Peer, message: Message | None) -> None:
        if message is None:
            self._part_from(peer)
            return
        header, arrays = message
        try:
            self._do(peer, header, arrays)
        except (ValueError, KeyError, TypeError, IndexError, OSError) as error:
            self._reply(peer, {"op": "error", "id": header.get("id"), "message": f"{type(error).__name__}: {error}"})

    def _do(self, peer: _Peer, header: dict[str, Any], arrays: list[np.ndarray]) -> None:
        operation = header["op"]
        if operation == "clip":
            peer.clips.add(name := peer.name(header["id"]))
            self._engine.add_clip(name, arrays[0], header["frames_per_second"])
        elif operation == "drop":
            self._drop(peer, [peer.name(clip_id) for clip_id in header["ids"]])
        elif operation == "turn":
            name = peer.name(header["id"])
            self._engine.start(name, arrays[0], [peer.name(clip) for clip in header["clips"]], header["settings"])
            peer.turns.add(name)
            self._peers[peer.number] = peer
        elif operation == "forget":
            for name in map(peer.name, header["ids"]):
                if name in peer.turns:
                    peer.turns.remove(name)
                    self._engine.cancel(name)
        elif operation == "tensor":
            peer.tensors.append((header["name"], header["type"], tuple(header["shape"]), arrays[0]))
        elif operation == "load":
            if self._engine.is_busy:
                raise ValueError("weights cannot change while turns are sampled")
            # Weights arrive whole or not at all: a connection that breaks before this point changes nothing.
            tensors, peer.tensors = peer.tensors, []
            self._engine.load(header["folder"], tensors, header["version"])
            self._reply(peer, {"op": "load", "id": header["id"], "version": header["version"]})
        else:
            raise ValueError(f"op {operation!r} is not one of the protocol's")

    def _drop(self, peer: _Peer, clip_ids: Iterable[str]) -> None:
        for clip_id in list(clip_ids):
            peer.clips.discard(clip_id)
            self._engine.drop_clip(clip_id)

    def _part_from(self, peer: _Peer) -> None:
        self._peers.pop(peer.number, None)
        for name in peer.turns:
            self._engine.cancel(name)
        self._drop(peer, peer.clips)
        peer.connection.close()

    def _deliver(self, outcome: Outcome) -> None:
        name, facts, arrays = outcome
        number, _, own_id = name.partition(".")
        peer = self._peers[int(number)]
        peer.turns.remove(name)
        self._reply(peer, {"op": "turn", "id": own_id, **facts}, arrays)

    def _report_progress(self) -> None:
        if time.monotonic() - self._progress_at < _PROGRESS_SECONDS:
            return
        self._progress_at = time.monotonic()
        for peer in list(self._peers.values()):
            if peer.turns:
                self._reply(peer, {"op": "working"})

    def _reply(self, peer: _Peer, header: dict[str, Any], arrays: Sequence[np.ndarray] = ()) -> None:
        try:
            send(peer.connection, header, arrays)
        except OSError:
            with suppress(OSError):
                peer.connection.shutdown(socket.SHUT_RDWR)  # wakes the peer's own thread, which parts from it
