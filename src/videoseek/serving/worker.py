"""A worker process of vLLM: `main` with a JSON object of `model`, `address` and `options`, run by vLLM's interpreter.

The worker ends when its standard input closes: the process that started it holds the other end, so that a worker never
outlives a trainer, however the trainer ends.
"""

from __future__ import annotations

import json
import os
from threading import Thread

from videoseek.serving.handshake import TOKEN_VARIABLE, listen
from videoseek.serving.server import Server


def main(argument: str) -> None:
    Thread(target=_end_with_the_parent, daemon=True).start()
    request = json.loads(argument)
    # The token must not be seen in the environment of processes that vLLM starts.
    token = os.environ.pop(TOKEN_VARIABLE)
    with listen(request["address"]) as listener:
        # Imported here: vLLM takes half a minute, and a busy port or a parent that ends must not wait for that.
        from videoseek.serving.vllm_engine import VllmEngine

        Server(VllmEngine(request["model"], request["options"]), token).serve(listener)


def _end_with_the_parent() -> None:
    while os.read(0, 1024):  # not `sys.stdin`, whose lock would abort an exit of the process itself
        pass
    os._exit(0)
