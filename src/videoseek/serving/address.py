"""Addresses of workers: `host:port`, or the path of a unix socket."""

from __future__ import annotations

import socket


def split_address(address: str) -> tuple[str, int]:
    """Returns host and port of `host:port`. Raises ValueError."""
    host, _, port = address.rpartition(":")
    if not host or not port.isdecimal() or int(port) > 65535:
        raise ValueError(f"address {address!r} is not HOST:PORT")
    return host.strip("[]"), int(port)


def listen(address: str) -> socket.socket:
    """Returns a socket that accepts connections at an address. Raises OSError."""
    if "/" in address:
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(address)
        listener.listen()
        return listener
    return socket.create_server(split_address(address), reuse_port=False)


def connect(address: str, seconds: float) -> socket.socket:
    """Returns a connection. Raises OSError, TimeoutError after `seconds`."""
    if "/" in address:
        connection = socket.socket(socket.AF_UNIX)
        connection.settimeout(seconds)
        connection.connect(address)
        return connection
    connection = socket.create_connection(split_address(address), seconds)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return connection
