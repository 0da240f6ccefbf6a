"""A worker without vLLM: scripted peers of the real protocol, one behaviour for each connection."""

from __future__ import annotations

import socket
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from threading import Thread
from typing import Any

import numpy as np

from videoseek.serving.handshake import RefusedError, challenge
from videoseek.wire import Message, receive, send

TOKEN = "a shared secret"
#: What the good worker samples in every turn, and its log-probs.
IDS, LOGPROBS = [7, 8, 9], [-0.5, -0.25, -1.0]


@dataclass
class FakeWorker:
    """Listens at a unix socket. `expand` gives the prompt ids that a worker reports for a turn's ids."""

    expand: Callable[[list[int]], list[int]]
    version: int = -1
    asked: list[dict[str, Any]] = field(default_factory=list)  # every header of every connection, in order

    def welcome(self, peer: socket.socket) -> None:
        challenge(peer, TOKEN)
        send(peer, {"op": "ready"})

    def next_turn(self, peer: socket.socket) -> Message:
        """Does everything that is asked up to the next turn, and returns the turn's message."""
        while True:
            header, arrays = receive(peer)
            self.asked.append(header)
            if header["op"] == "load":
                self.version = header["version"]
                send(peer, {"op": "load", "id": header["id"], "version": self.version})
            if header["op"] == "turn":
                return header, arrays

    def answer(self, peer: socket.socket, message: Message, **changes: Any) -> None:
        header, [ids] = message
        prompt_ids = changes.pop("prompt_ids", None) or self.expand(ids.tolist())
        facts = {"op": "turn", "id": header["id"], "stop": "stop", "version": self.version, "seconds": 0.5} | changes
        send(peer, facts, [np.array(prompt_ids, np.int32), np.array(IDS, np.int32), np.array(LOGPROBS, np.float32)])

    def good(self, peer: socket.socket) -> None:
        self.welcome(peer)
        while True:
            self.answer(peer, self.next_turn(peer))

    def dies(self, peer: socket.socket) -> None:
        """Ends in the middle of a turn."""
        self.welcome(peer)
        self.next_turn(peer)

    def hangs(self, peer: socket.socket) -> None:
        self.welcome(peer)
        self.next_turn(peer)
        time.sleep(60)

    def slow(self, peer: socket.socket) -> None:
        """Works on a turn for longer than the tests' limit of silence, and says so."""
        self.welcome(peer)
        message = self.next_turn(peer)
        for _ in range(8):
            send(peer, {"op": "working"})
            time.sleep(0.2)
        self.answer(peer, message)
        self.next_turn(peer)

    def tears(self, peer: socket.socket) -> None:
        """Ends in the middle of a frame."""
        self.welcome(peer)
        self.next_turn(peer)
        peer.sendall((100).to_bytes(8) + b'{"op": "tu')

    def babbles(self, peer: socket.socket) -> None:
        self.welcome(peer)
        self.next_turn(peer)
        peer.sendall((2**62).to_bytes(8))

    def misreads(self, peer: socket.socket) -> None:
        """Sees another prompt than the trainer."""
        self.welcome(peer)
        self.answer(peer, self.next_turn(peer), prompt_ids=[1, 2])

    def stale(self, peer: socket.socket) -> None:
        """Says that it has loaded weights, and samples with older ones."""
        self.welcome(peer)
        self.answer(peer, self.next_turn(peer), version=3)

    def gives_up(self, peer: socket.socket) -> None:
        self.welcome(peer)
        self.answer(peer, self.next_turn(peer), stop="error")

    def refuses(self, peer: socket.socket) -> None:
        challenge(peer, "another secret")


@dataclass
class ScriptedPlace:
    """A place whose successive workers behave as `script` says."""

    worker: FakeWorker
    script: list[str]
    num_starts: int = 0
    ended: str | None = None

    def start(self) -> str:
        behave = getattr(self.worker, self.script[self.num_starts])
        self.num_starts += 1
        address = f"{tempfile.mkdtemp(prefix='fake-worker-')}/socket"
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(address)
        listener.listen()
        Thread(target=self._serve, args=(listener, behave), daemon=True).start()
        return address

    def _serve(self, listener: socket.socket, behave: Callable[[socket.socket], None]) -> None:
        with listener, listener.accept()[0] as peer:
            try:
                behave(peer)
            except (EOFError, OSError, RefusedError):
                return

    def ending(self) -> str | None:
        return self.ended

    def stop(self) -> None:
        return None
