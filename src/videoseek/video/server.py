"""Runs a decode worker: answers one request at a time on a socket. The argument is the number of the socket.

Requests name `path`, `working_folder`, `stall_seconds`, and for pixels `frame_seconds`, `height`, `width`,
`decode_threads`. While there is progress, messages {"state": "progress"} come every fraction of `stall_seconds`.
Replies hold the fields of the index (arrays: stamps, keyframes, seek_stamps), or the pixels as an array, or `error`.
"""

from __future__ import annotations

import os
import signal
import socket
import sys
from typing import Any

import numpy as np

from videoseek.video import watchdog
from videoseek.video.errors import VideoError
from videoseek.video.index_store import ARRAYS, to_fields
from videoseek.video.reader import decode_frames, read_index
from videoseek.wire import receive, send

READY, PROGRESS = {"state": "ready"}, {"state": "progress"}


def answer(request: dict[str, Any]) -> tuple[dict[str, Any], list[np.ndarray]]:
    """Returns the message and the arrays of the reply."""
    path = request["path"]
    try:
        if "frame_seconds" in request:
            names = ("frame_seconds", "height", "width", "decode_threads")
            return {}, [decode_frames(path, **{name: request[name] for name in names})]
        index = read_index(path)
    except VideoError as error:
        return {"error": [error.code, error.message]}, []
    return to_fields(index), [getattr(index, name) for name in ARRAYS]


def main() -> None:
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    with socket.socket(fileno=int(sys.argv[1])) as parent:
        try:
            send(parent, READY)
            while True:
                request, _ = receive(parent)
                os.chdir(request["working_folder"])
                # The kernel's alarm ends a decoder that never returns, even after the parent process is gone.
                watchdog.start(request["stall_seconds"], lambda: send(parent, PROGRESS))
                reply = answer(request)
                watchdog.stop()
                send(parent, *reply)
        except (EOFError, ConnectionError):
            return


if __name__ == "__main__":
    main()
