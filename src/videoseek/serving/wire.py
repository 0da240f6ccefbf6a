"""Messages between a trainer and a worker: a JSON object and raw arrays, over a socket. Nothing is unpickled.

A frame is the length of a JSON object (8 bytes), the object, and the bytes of the arrays that the object describes.
Imports nothing beyond the standard library and numpy: a worker's own interpreter runs the module too.
"""

from __future__ import annotations

import hmac
import json
import math
import os
import socket
from collections.abc import Sequence
from typing import Any

import numpy as np

#: The environment variable with the token that a trainer and its workers share.
TOKEN_VARIABLE = "VIDEOSEEK_WORKER_TOKEN"
#: The version of a worker's weights before the first `load`: those of its model folder.
FOLDER_VERSION = -1
_LENGTH_BYTES = 8
_MAX_HEADER_BYTES = 16 * 2**20
#: 64 GiB: more than the pixels of a clip, or a bucket of weights.
_MAX_ARRAY_BYTES = 64 * 2**30
_DTYPES = ("|u1", "<i4", "<f4")

Message = tuple[dict[str, Any], list[np.ndarray]]


class WireError(Exception):
    """A frame that breaks the protocol, or ends in the middle."""


class RefusedError(Exception):
    """The token of one side is not the token of the other side."""


def send(peer: socket.socket, header: dict[str, Any], arrays: Sequence[np.ndarray] = ()) -> None:
    """Sends a message with uint8, int32 or float32 arrays. Raises OSError when the peer is gone."""
    for array in arrays:
        if array.dtype.str not in _DTYPES:
            raise ValueError(f"array is of type {array.dtype.str}; a message holds {', '.join(_DTYPES)}")
    text = json.dumps({**header, "arrays": [(array.dtype.str, array.shape) for array in arrays]}).encode()
    peer.sendall(len(text).to_bytes(_LENGTH_BYTES) + text)
    for array in arrays:
        if array.size:
            peer.sendall(np.ascontiguousarray(array).reshape(-1).data.cast("B"))


def receive(peer: socket.socket, *, from_stranger: bool = False) -> Message:
    """Receives a message. Raises EOFError at the end of the stream, WireError for a bad frame, or OSError."""
    # A stranger must not fill the memory.
    max_header_bytes, max_array_bytes = (1024, 0) if from_stranger else (_MAX_HEADER_BYTES, _MAX_ARRAY_BYTES)
    length = int.from_bytes(_read(peer, _LENGTH_BYTES, at_start=True))
    if not 2 <= length <= max_header_bytes:
        raise WireError(f"a frame announces a header of {length} bytes; 2 to {max_header_bytes} are allowed")
    try:
        header = json.loads(_read(peer, length))
        shapes = [(dtype, tuple(map(int, shape))) for dtype, shape in header.pop("arrays")]
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise WireError(f"the header of a frame is not the protocol's JSON: {error}") from error
    arrays = []
    for dtype, shape in shapes:
        if dtype not in _DTYPES or min(shape, default=0) < 0 or math.prod(shape) * 4 > max_array_bytes:
            raise WireError(f"a frame announces an array of type {dtype!r} and shape {shape}")
        array = np.empty(shape, dtype)
        if array.size:
            _fill(peer, array.reshape(-1).data.cast("B"), at_start=False)
        arrays.append(array)
    return header, arrays


def _read(peer: socket.socket, num_bytes: int, *, at_start: bool = False) -> bytearray:
    buffer = bytearray(num_bytes)
    _fill(peer, memoryview(buffer), at_start)
    return buffer


def _fill(peer: socket.socket, rest: memoryview, at_start: bool) -> None:
    while rest:
        num_bytes = peer.recv_into(rest)
        if not num_bytes and at_start:
            raise EOFError("the other side has closed the connection")
        if not num_bytes:
            raise WireError(f"the connection ended inside a frame, {len(rest)} bytes before the end of a part")
        rest, at_start = rest[num_bytes:], False


def challenge(peer: socket.socket, token: str) -> None:
    """Lets a new peer prove that it knows `token`, which never crosses the wire. Raises RefusedError."""
    nonce = os.urandom(32).hex()
    send(peer, {"op": "challenge", "nonce": nonce})
    answer, _ = receive(peer, from_stranger=True)
    if not hmac.compare_digest(str(answer.get("proof")).encode(), _proof(token, nonce).encode()):
        send(peer, {"op": "refused"})
        raise RefusedError("a peer was refused: its token is not the worker's")


def prove(peer: socket.socket, token: str) -> dict[str, Any]:
    """Answers the challenge of a worker, and returns what the worker says about itself. Raises RefusedError."""
    question, _ = receive(peer, from_stranger=True)
    send(peer, {"op": "proof", "proof": _proof(token, str(question.get("nonce")))})
    reply, _ = receive(peer)
    if reply.get("op") != "ready":
        raise RefusedError(f"the worker refused the token; {TOKEN_VARIABLE} must hold the same token on both sides")
    return reply


def _proof(token: str, nonce: str) -> str:
    return hmac.new(token.encode(), nonce.encode(), "sha256").hexdigest()
