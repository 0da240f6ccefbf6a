"""Starts worker processes of vLLM on this machine, each under vLLM's own interpreter."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from videoseek.config import UsageError
from videoseek.serving.wire import TOKEN_VARIABLE

#: Makes this very package importable under another interpreter, and nothing else that is installed beside it.
_BOOT = """
import sys, types
package = types.ModuleType("videoseek")
package.__path__ = [sys.argv.pop(1)]
sys.modules["videoseek"] = package
from videoseek.serving.worker import main
main(sys.argv[1:])
"""
_KILL_SECONDS = 10


class WorkerProcess:
    """A worker process that listens at `address`, and ends with this process. Its output goes to the file `log`."""

    def __init__(self, python: str, model: Path, address: str, token: str, options: dict[str, Any], log: Path) -> None:
        request = json.dumps({"model": str(model), "address": address, "options": options})
        self.address = address
        self.log = log
        try:
            with log.open("ab") as output:
                self._process = subprocess.Popen(
                    [python, "-c", _BOOT, str(Path(__file__).parents[1]), request],
                    env=_environment(python, token),
                    stdin=subprocess.PIPE,  # its end tells the worker that this process has ended
                    stdout=output,
                    stderr=output,
                    start_new_session=True,  # Ctrl-C reaches the trainer, which ends its workers itself
                )
        except OSError as error:
            raise UsageError(f"rollout.vllm_python={python} cannot be started: {error.strerror}") from error

    @property
    def pid(self) -> int:
        return self._process.pid

    def ending(self) -> str | None:
        """Returns how the process ended, or None while the process runs."""
        status = self._process.poll()
        if status is None:
            return None
        return f"exit status {status}" if status >= 0 else signal.Signals(-status).name

    def wait(self) -> str:
        """Waits for the end of the process, and returns how the process ended."""
        self._process.wait()
        return str(self.ending())

    def kill(self) -> None:
        """Ends the process and what it started at once."""
        if self._process.poll() is None:
            os.killpg(self._process.pid, signal.SIGKILL)
        if self._process.stdin is not None:
            self._process.stdin.close()
        self._process.wait(_KILL_SECONDS)


def _environment(python: str, token: str) -> dict[str, str]:
    """Returns a worker's environment: without this process's packages and without its place in a group of ranks."""
    unwanted = {"PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV", "RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_PORT"}
    kept = {name: value for name, value in os.environ.items() if name not in unwanted}
    library = Path(python).parents[1] / "lib/libiomp5.so"
    # vLLM's CPU build needs Intel's OpenMP, which its environment brings along, loaded before all else.
    preload = {"LD_PRELOAD": str(library)} if library.is_file() else {}
    cpu = {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind"}
    return {**cpu, **kept, **preload, TOKEN_VARIABLE: token}


def parse_options(arguments: Sequence[str]) -> dict[str, Any]:
    """Returns arguments of vLLM from texts `NAME=VALUE`, values as JSON or else as text. Raises UsageError."""
    options: dict[str, Any] = {}
    for argument in arguments:
        name, equals, text = argument.partition("=")
        if not equals or not name.isidentifier():
            raise UsageError(f"vLLM's option {argument!r} is not NAME=VALUE, such as gpu_memory_utilization=0.4")
        try:
            options[name] = json.loads(text)
        except ValueError:
            options[name] = text
    return options
