"""Frames and a worker's loop: torn frames, strangers, several trainers, and turns that nobody waits for any more."""

from __future__ import annotations

import fcntl
import queue
import resource
import socket
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import suppress
from pathlib import Path
from threading import Thread
from typing import Any

import numpy as np
import pytest

from videoseek.config import UsageError
from videoseek.serving import client, server
from videoseek.serving.client import Connection, WorkerError
from videoseek.serving.handshake import RefusedError, challenge, connect, listen, prove
from videoseek.serving.launch import LocalPlace, parse_options, shared_token
from videoseek.serving.server import NamedClip, Outcome, Server, Tensor
from videoseek.wire import Message, WireError, receive, send

TOKEN = "a shared secret"


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    one, other = socket.socketpair()
    with one, other:
        yield one, other


def test_a_message_arrives_as_it_was_sent(pair: tuple[socket.socket, socket.socket]) -> None:
    arrays = [np.arange(12, dtype=np.uint8).reshape(2, 1, 2, 3), np.array([], np.int32), np.array([0.5], np.float32)]
    send(pair[0], {"op": "turn", "text": "é"}, arrays)
    header, received = receive(pair[1])
    assert header == {"op": "turn", "text": "é"}
    for sent, got in zip(arrays, received, strict=True):
        np.testing.assert_array_equal(sent, got)
        assert sent.dtype == got.dtype


def frame(text: bytes, rest: bytes = b"") -> bytes:
    return len(text).to_bytes(8) + text + rest


@pytest.mark.parametrize(
    ("sent", "sentence"),
    [
        (b"\0\0\0", "5 bytes before the end"),
        ((2**40).to_bytes(8), "announces a header"),
        ((0).to_bytes(8), "announces a header"),
        (frame(b"[1]"), "not the protocol's JSON"),
        (frame(b"{}"), "not the protocol's JSON"),
        (frame(b'{"arrays": [["|O", [1]]]}'), "array of type '|O'"),
        (frame(b'{"arrays": [["<i4", [-1]]]}'), "shape"),
        (frame(b'{"arrays": [["<i4", [1000000, 1000000]]]}'), "shape"),
        (frame(b'{"arrays": [["<i4", [Infinity]]]}'), "not the protocol's JSON"),
        (frame(b'{"arrays": [["<i4", [0%s]]]}' % (b", 1" * 70)), "shape"),
        (frame(b'{"arrays": [["<i4", [0, 9%s]]]}' % (b"9" * 40)), "shape"),
        (frame(b'{"arrays": [["<i4", [2]]]}', b"\0" * 5), "3 bytes before the end"),
    ],
)
def test_a_bad_frame_is_named(pair: tuple[socket.socket, socket.socket], sent: bytes, sentence: str) -> None:
    pair[0].sendall(sent)
    pair[0].close()
    with pytest.raises(WireError, match=sentence):
        receive(pair[1])


def test_the_token_never_crosses_the_wire(pair: tuple[socket.socket, socket.socket]) -> None:
    heard: list[Message] = []

    def listen_in() -> None:
        send(pair[1], {"op": "challenge", "nonce": "n"})
        heard.append(receive(pair[1]))
        send(pair[1], {"op": "ready"})

    thread = Thread(target=listen_in)
    thread.start()
    prove(pair[0], TOKEN)
    thread.join()
    assert TOKEN not in str(heard) and heard[0][0]["proof"]


@pytest.mark.parametrize("answer", [{"proof": "0" * 64}, {"proof": None}, {"proof": "é"}, {}])
def test_a_wrong_proof_is_refused(pair: tuple[socket.socket, socket.socket], answer: dict[str, Any]) -> None:
    send(pair[0], answer)
    with pytest.raises(RefusedError, match="not the worker's"):
        challenge(pair[1], TOKEN)


class EchoEngine:
    """Samples the last prompt token again, a token a step, until `max_tokens`. A turn with `hold` never ends."""

    def __init__(self) -> None:
        self.turns: dict[str, tuple[np.ndarray, dict[str, Any], list[int]]] = {}
        self.log: queue.Queue[tuple[str, Any]] = queue.Queue()

    @property
    def is_busy(self) -> bool:
        return bool(self.turns)

    def start(self, turn_id: str, ids: np.ndarray, clips: Sequence[NamedClip], settings: dict[str, Any]) -> None:
        if not len(ids):
            raise ValueError("an empty prompt")
        self.turns[turn_id] = (ids, settings, [])
        self.log.put(("start", [name for name, *_ in clips]))

    def step(self) -> Iterable[Outcome]:
        for turn_id, (ids, settings, sampled) in list(self.turns.items()):
            if not settings["hold"]:
                sampled.append(int(ids[-1]))
            if len(sampled) == settings["max_tokens"]:
                del self.turns[turn_id]
                logprobs = np.zeros(len(sampled), np.float32)
                yield turn_id, {"stop": "length"}, [ids, np.array(sampled, np.int32), logprobs]

    def cancel(self, turn_id: str) -> None:
        del self.turns[turn_id]
        self.log.put(("cancel", turn_id))

    def load(self, folder: str | None, tensors: Sequence[Tensor], version: int) -> None:
        self.log.put(("load", [(name, kind, shape, array.tobytes()) for name, kind, shape, array in tensors]))


@pytest.fixture
def engine() -> EchoEngine:
    return EchoEngine()


@pytest.fixture
def address(engine: EchoEngine, tmp_path: Path) -> str:
    path = f"{tmp_path}/socket"
    Thread(target=Server(engine, TOKEN).serve, args=(listen(path),), daemon=True).start()
    return path


@pytest.fixture
def peer(address: str) -> Iterator[Callable[[], Connection]]:
    yield lambda: Connection(address, TOKEN, 5.0)


def turn(peer: Connection, ids: list[int], *, hold: bool = False, clips: Sequence[str] = ()) -> Future[Message]:
    settings = {"max_tokens": 3, "hold": hold}
    return peer.request({"op": "turn", "clips": list(clips), "settings": settings}, [np.array(ids, np.int32)])


def test_two_trainers_share_a_worker_and_keep_their_names_apart(
    peer: Callable[[], Connection], engine: EchoEngine
) -> None:
    one, other = peer(), peer()
    for connection in (one, other):
        connection.post({"op": "clip", "id": "x", "frames_per_second": 1.0}, [np.zeros((2, 28, 28, 3), np.uint8)])
    replies = [turn(one, [4, 5], clips=["x"]), turn(other, [6, 7], clips=["x"])]
    assert [reply.result(5)[1][1].tolist() for reply in replies] == [[5, 5, 5], [7, 7, 7]]
    assert sorted(engine.log.get() for _ in replies) == [("start", ["0.x"]), ("start", ["1.x"])]
    one.post({"op": "drop", "id": "x"})
    with pytest.raises(WorkerError, match="KeyError: 'x'"):
        turn(one, [4], clips=["x"]).result(5)
    assert turn(other, [4], clips=["x"]).result(5)


def test_a_request_that_fails_leaves_the_worker_at_work(peer: Callable[[], Connection]) -> None:
    connection = peer()
    with pytest.raises(WorkerError, match="ValueError: an empty prompt"):
        turn(connection, []).result(5)
    with pytest.raises(WorkerError, match="op 'dance' is not one of the protocol's"):
        connection.request({"op": "dance"}).result(5)
    assert turn(connection, [1]).result(5)[1][1].tolist() == [1, 1, 1]


def test_weights_wait_for_no_turn_and_come_whole_or_not_at_all(
    peer: Callable[[], Connection], engine: EchoEngine
) -> None:
    one, other = peer(), peer()
    held = turn(one, [1], hold=True)
    assert engine.log.get(timeout=5) == ("start", [])
    other.post({"op": "tensor", "id": "w", "type": "bfloat16", "shape": [2]}, [np.arange(4, dtype=np.uint8)])
    load = {"op": "load", "folder": None, "version": 1}
    with pytest.raises(WorkerError, match="cannot change while turns are sampled"):
        other.request(load).result(5)
    one.forget(held)
    assert engine.log.get(timeout=5) == ("cancel", "0.0")
    other.request(load).result(5)
    assert engine.log.get(timeout=5) == ("load", [("w", "bfloat16", (2,), b"\0\1\2\3")])


def test_a_trainer_that_goes_takes_its_turns_along(peer: Callable[[], Connection], engine: EchoEngine) -> None:
    one, other = peer(), peer()
    turn(one, [1], hold=True)
    assert turn(other, [2]).result(5)
    one.close()
    logged = [engine.log.get(timeout=5) for _ in range(3)]
    assert logged == [("start", []), ("start", []), ("cancel", "0.0")]
    assert turn(other, [3]).result(5)


@pytest.mark.parametrize(
    "sent",
    [
        b"GET / HTTP/1.1\r\n\r\n",
        frame(b'{"proof": "0", "arrays": []}'),
        frame(b'{"arrays": [["<f4", [9000]]]}'),
        frame(b'{"arrays": [["<f4", [0, 9%s]]]}' % (b"9" * 40)),
        frame(b'{"proof": "\\ud800", "arrays": []}'),
        b"",
    ],
    ids=["http", "wrong", "large", "huge", "surrogate", "nothing"],
)
def test_strangers_disturb_nobody(
    address: str, peer: Callable[[], Connection], sent: bytes, capfd: pytest.CaptureFixture[str]
) -> None:
    connection = peer()
    with connect(address, 5) as stranger:
        stranger.sendall(sent)
        stranger.shutdown(socket.SHUT_WR)
        with suppress(ConnectionResetError):
            while stranger.recv(1000):
                pass  # until the worker has closed the connection
    assert turn(connection, [1]).result(5)
    assert TOKEN not in capfd.readouterr().err


def test_a_stranger_that_says_nothing_is_sent_away(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "_PATIENCE_SECONDS", 1)
    with connect(address, 10) as stranger:
        assert receive(stranger)[0]["op"] == "challenge"
        assert stranger.recv(1) == b"", "the worker has closed the connection"


def test_a_trainer_may_have_many_open_files(peer: Callable[[], Connection], monkeypatch: pytest.MonkeyPatch) -> None:
    """`select` cannot wait for a descriptor beyond 1,023."""
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(limits[0], min(2048, limits[1])), limits[1]))

    def connect_high(address: str, seconds: float) -> socket.socket:
        with connect(address, seconds) as low:
            return socket.socket(fileno=fcntl.fcntl(low.fileno(), fcntl.F_DUPFD_CLOEXEC, 1500))

    monkeypatch.setattr(client, "connect", connect_high)
    try:
        assert turn(peer(), [1]).result(5)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)


def test_a_worker_without_vllm_ends_and_says_where_its_output_is(tmp_path: Path) -> None:
    """A real process of this interpreter, which has no vLLM. Its output holds the reason and no token."""
    place = LocalPlace(None, tmp_path, {}, TOKEN, log=tmp_path / "worker.log")
    place.start()
    place.wait()
    assert place.ending() == f"exit status 1; its output is in {tmp_path / 'worker.log'}"
    said = (tmp_path / "worker.log").read_text()
    assert "No module named 'vllm'" in said and TOKEN not in said


def test_arguments_and_token_are_checked(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert parse_options(["a=0.5", "b=x", 'c={"video": 2}']) == {"a": 0.5, "b": "x", "c": {"video": 2}}
    with pytest.raises(UsageError, match="'gpu' is not NAME=VALUE"):
        parse_options(["gpu"])
    with pytest.raises(UsageError, match="no-such-python is not a program"):
        LocalPlace("no-such-python", tmp_path, {}, TOKEN)
    monkeypatch.delenv("VIDEOSEEK_WORKER_TOKEN", raising=False)
    with pytest.raises(UsageError, match="VIDEOSEEK_WORKER_TOKEN is not set"):
        shared_token()
    with pytest.raises(ValueError, match="'host' is not HOST:PORT"):
        connect("host", 1.0)
