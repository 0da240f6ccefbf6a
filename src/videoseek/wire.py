"""Messages between processes: a JSON object and raw arrays, over a socket. Nothing is unpickled.

A frame is the length of a JSON object (8 bytes), the object, and the bytes of the arrays that the object describes.
Interpreters without this package's dependencies run the module too: it needs numpy only.
"""

from __future__ import annotations

import json
import math
import socket
from collections.abc import Sequence
from typing import Any

import numpy as np

_LENGTH_BYTES = 8
_MAX_HEADER_BYTES = 16 * 2**20
_MAX_ARRAY_BYTES = 64 * 2**30
#: What an array of bytes, of ids, of log-probs, of time stamps or of flags is.
_DTYPES = ("|u1", "<i4", "<f4", "<i8", "<f8", "|b1")

Message = tuple[dict[str, Any], list[np.ndarray]]


class WireError(ConnectionError):
    """A frame that breaks the protocol, or ends in the middle."""


def send(peer: socket.socket, header: dict[str, Any], arrays: Sequence[np.ndarray] = ()) -> None:
    """Sends a message with arrays. Raises OSError when the peer is gone."""
    text = json.dumps({**header, "arrays": [(array.dtype.str, array.shape) for array in arrays]}).encode()
    peer.sendall(len(text).to_bytes(_LENGTH_BYTES) + text)
    for array in arrays:
        if array.size:
            peer.sendall(np.ascontiguousarray(array).reshape(-1).data.cast("B"))


def receive(peer: socket.socket, *, from_stranger: bool = False) -> Message:
    """Receives a message. Raises EOFError at the end of the stream, WireError for a bad frame, or OSError.

    A message from a stranger holds no arrays and little text, so that a stranger cannot fill the memory.
    """
    max_header_bytes, max_array_bytes = (1024, 0) if from_stranger else (_MAX_HEADER_BYTES, _MAX_ARRAY_BYTES)
    length = int.from_bytes(_read(peer, _LENGTH_BYTES, at_start=True))
    if not 2 <= length <= max_header_bytes:
        raise WireError(f"a frame announces a header of {length} bytes; 2 to {max_header_bytes} are allowed")
    try:
        header = json.loads(_read(peer, length))
        shapes = [(dtype, tuple(map(int, shape))) for dtype, shape in header.pop("arrays")]
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError) as error:
        raise WireError(f"the header of a frame is not the protocol's JSON: {error}") from error
    arrays = []
    for dtype, shape in shapes:
        if dtype not in _DTYPES or min(shape, default=0) < 0 or math.prod(shape) * 8 > max_array_bytes:
            raise WireError(f"a frame announces an array of type {dtype!r} and shape {shape}")
        try:
            array = np.empty(shape, dtype)
        except (ValueError, OverflowError, MemoryError) as error:
            raise WireError(f"a frame announces an array of type {dtype!r} and shape {shape}: {error}") from error
        if array.size:
            _fill(peer, array.reshape(-1).data.cast("B"))
        arrays.append(array)
    return header, arrays


def _read(peer: socket.socket, num_bytes: int, *, at_start: bool = False) -> bytearray:
    buffer = bytearray(num_bytes)
    _fill(peer, memoryview(buffer), at_start)
    return buffer


def _fill(peer: socket.socket, rest: memoryview, at_start: bool = False) -> None:
    while rest:
        num_bytes = peer.recv_into(rest)
        if not num_bytes and at_start:
            raise EOFError("the other side has closed the connection")
        if not num_bytes:
            raise WireError(f"the connection ended inside a frame, {len(rest)} bytes before the end of a part")
        rest, at_start = rest[num_bytes:], False
