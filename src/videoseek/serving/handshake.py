"""How a trainer reaches a worker: an address (HOST:PORT, or the path of a unix socket), and a token that both know."""

from __future__ import annotations

import hmac
import os
import socket

from videoseek.wire import receive, send

#: The environment variable with the token.
TOKEN_VARIABLE = "VIDEOSEEK_WORKER_TOKEN"
#: The version of a worker's weights before the first `load`: those of its model folder.
FOLDER_VERSION = -1


class RefusedError(Exception):
    """The token of one side is not the token of the other side."""


def listen(address: str) -> socket.socket:
    """Returns a socket that accepts connections at an address. Raises OSError or ValueError."""
    if "/" not in address:
        return socket.create_server(split_address(address))
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(address)
    listener.listen()
    return listener


def connect(address: str, seconds: float) -> socket.socket:
    """Returns a connection under a limit of `seconds`. Raises OSError or ValueError."""
    if "/" not in address:
        return socket.create_connection(split_address(address), seconds)
    connection = socket.socket(socket.AF_UNIX)
    connection.settimeout(seconds)
    connection.connect(address)
    return connection


def split_address(address: str) -> tuple[str, int]:
    """Returns host and port. Raises ValueError."""
    host, _, port = address.rpartition(":")
    if not host or not port.isdecimal() or int(port) > 65535:
        raise ValueError(f"address {address!r} is not HOST:PORT")
    return host, int(port)


def challenge(peer: socket.socket, token: str) -> None:
    """Lets a new peer prove that it knows `token`, which never crosses the wire. Raises RefusedError."""
    nonce = os.urandom(32).hex()
    send(peer, {"op": "challenge", "nonce": nonce})
    answer, _ = receive(peer, from_stranger=True)
    if not hmac.compare_digest(str(answer.get("proof")).encode(errors="replace"), _proof(token, nonce).encode()):
        send(peer, {"op": "refused"})
        raise RefusedError("a peer was refused: its token is not the worker's")


def prove(peer: socket.socket, token: str) -> None:
    """Answers the challenge of a worker, which answers when its engine is ready. Raises RefusedError."""
    question, _ = receive(peer, from_stranger=True)
    send(peer, {"op": "proof", "proof": _proof(token, str(question.get("nonce")))})
    reply, _ = receive(peer, from_stranger=True)
    if reply.get("op") != "ready":
        raise RefusedError(f"the worker refused the token; {TOKEN_VARIABLE} must hold the same token on both sides")


def _proof(token: str, nonce: str) -> str:
    return hmac.new(token.encode(), nonce.encode(), "sha256").hexdigest()
