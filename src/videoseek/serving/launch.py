"""Starts workers of vLLM on this machine, each a process under vLLM's own interpreter."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from videoseek.config import UsageError
from videoseek.serving.handshake import TOKEN_VARIABLE

#: Makes this very package importable under another interpreter, and nothing else that is installed beside it.
_BOOT = """
import sys, types
package = types.ModuleType("videoseek")
package.__path__ = [sys.argv.pop(1)]
sys.modules["videoseek"] = package
from videoseek.serving.worker import main
main(sys.argv[1])
"""
_KILL_SECONDS = 10


class LocalPlace:
    """A worker process of this machine. It ends with this process, however this process ends.

    `python` is the interpreter of vLLM (None: this one), `address` HOST:PORT or None for a private unix socket, and
    `log` the file that gets the worker's output (None: stderr).
    """

    def __init__(
        self,
        python: str | None,
        model: Path,
        options: dict[str, Any],
        token: str,
        *,
        address: str | None = None,
        log: Path | None = None,
    ) -> None:
        found = shutil.which(python or sys.executable)
        if found is None:
            raise UsageError(f"vllm_python={python} is not a program that can be started")
        self._python = found
        self._request = {"model": str(model.resolve()), "options": options}
        self._token = token
        self._address, self._log = address, log
        self._process: subprocess.Popen[bytes] | None = None
        self._socket_dir: str | None = None

    def start(self) -> str:
        """Starts a process, and returns its address. The worker listens at once, and answers when vLLM is ready."""
        self.stop()
        if self._address is None:
            self._socket_dir = tempfile.mkdtemp(prefix="videoseek-worker-")
        address = self._address or f"{self._socket_dir}/socket"
        output = None if self._log is None else self._log.open("ab")
        request = json.dumps(self._request | {"address": address})
        self._process = subprocess.Popen(
            [self._python, "-P", "-c", _BOOT, str(Path(__file__).parents[1]), request],
            env=_environment(self._python, self._token),
            stdin=subprocess.PIPE,  # its end tells the worker that this process has ended
            stdout=output or sys.stderr,
            stderr=output,
            start_new_session=True,  # Ctrl-C reaches the trainer, which ends its workers itself
        )
        if output is not None:
            output.close()
        return address

    @property
    def pid(self) -> int | None:
        """Returns the number of the running process."""
        return None if self._process is None else self._process.pid

    def wait(self) -> None:
        """Waits for the end of the process."""
        if self._process is not None:
            self._process.wait()

    def ending(self) -> str | None:
        """Returns how the process ended and where its output is, or None while the process runs."""
        status = None if self._process is None else self._process.poll()
        if status is None:
            return None
        how = f"exit status {status}" if status >= 0 else signal.Signals(-status).name
        return f"{how}; its output is in {self._log}" if self._log is not None else how

    def stop(self) -> None:
        """Ends the process, and what the process has started, at once."""
        if self._process is None or self._process.stdin is None:
            return
        if self._process.poll() is None:
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.stdin.close()
        if self._socket_dir is not None:
            shutil.rmtree(self._socket_dir, ignore_errors=True)
        self._process.wait(_KILL_SECONDS)


def _environment(python: str, token: str) -> dict[str, str]:
    """Returns a worker's environment: without this process's packages, and without its place in a group of ranks."""
    unwanted = ("PYTHONPATH", "PYTHONHOME", "RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
    kept = {name: value for name, value in os.environ.items() if name not in unwanted}
    cpu = {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind"}
    # vLLM's CPU build needs Intel's OpenMP loaded before all else. Its environment brings the library along.
    openmp = Path(python).parents[1] / "lib/libiomp5.so"
    preload = {"LD_PRELOAD": str(openmp)} if openmp.is_file() else {}
    return {**cpu, **kept, **preload, TOKEN_VARIABLE: token}


def shared_token() -> str:
    """Returns the token of servers, from the environment. Raises UsageError."""
    token = os.environ.get(TOKEN_VARIABLE, "")
    if not token:
        raise UsageError(f"{TOKEN_VARIABLE} is not set; it holds the token that a worker and its trainers share")
    return token


def parse_options(texts: Sequence[str]) -> dict[str, Any]:
    """Returns vLLM's arguments from texts NAME=VALUE, with values as in YAML. Raises UsageError."""
    for text in texts:
        if not text.partition("=")[0].isidentifier() or "=" not in text:
            raise UsageError(f"vLLM's option {text!r} is not NAME=VALUE, such as gpu_memory_utilization=0.4")
    return {text.partition("=")[0]: yaml.safe_load(text.partition("=")[2]) for text in texts}
