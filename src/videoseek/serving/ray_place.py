"""Workers on a Ray cluster: Ray finds a free node for each worker and ends the worker with its trainer."""

from __future__ import annotations

import importlib
import logging
import os
import socket
from contextlib import suppress
from pathlib import Path
from typing import Any

from videoseek.config import UsageError
from videoseek.serving.client import WorkerError, WorkerLostError
from videoseek.serving.handshake import connect
from videoseek.serving.launch import LocalPlace

#: Limit for an answer of an actor that runs.
_ANSWER_SECONDS = 20


class RayPlace:
    """A place with a free `device` ("GPU" or "CPU") anywhere in the Ray cluster of this process.

    An actor of Ray starts the worker's process on its node and holds the process: Ray ends the actor when this process
    ends, and the worker ends with the actor. Every start asks for a new actor, on any node that then is free.
    """

    def __init__(
        self, python: str | None, model: Path, options: dict[str, Any], token: str, *, device: str, wait_seconds: float
    ) -> None:
        self._ray = _import_ray()
        # Ray hands arguments to the actor itself: the token is in no command line and in no recorded environment.
        self._arguments = (python, model.resolve(), options, token)
        self._device, self._wait_seconds = device, wait_seconds
        self._actor: Any = None

    def start(self) -> str:
        """Returns the address of a new worker. Raises WorkerLostError without a free node, and WorkerError."""
        self.stop()
        needs = {"num_cpus": 1, "num_gpus": int(self._device == "GPU"), "scheduling_strategy": "SPREAD"}
        self._actor = self._ray.remote(_WorkerHost).options(**needs).remote()
        errors = self._ray.exceptions
        try:
            return self._ray.get(self._actor.start.remote(*self._arguments), timeout=self._wait_seconds)
        except errors.GetTimeoutError as error:
            free = self._ray.available_resources().get(self._device, 0)
            raise WorkerLostError(
                f"Ray placed no worker for {self._wait_seconds:g} s: it needs a node with a free {self._device}, and "
                f"{free:g} of the cluster's {self._device}s are free"
            ) from error
        except errors.RayTaskError as error:
            raise WorkerError(f"the worker that Ray placed cannot start: {error.cause}") from error
        except errors.RayError as error:
            raise WorkerLostError(f"Ray lost a worker at its start: {_first_line(error)}") from error

    def ending(self) -> str | None:
        """Returns how the worker's process or its node ended, or None while the process runs."""
        try:
            return self._ray.get(self._actor.ending.remote(), timeout=_ANSWER_SECONDS)
        except self._ray.exceptions.RayError as error:
            return f"Ray does not reach its node: {_first_line(error)}"

    def stop(self) -> None:
        """Ends the worker and gives its node back."""
        if self._actor is None:
            return
        with suppress(self._ray.exceptions.RayError):  # the node is gone
            self._ray.get(self._actor.stop.remote(), timeout=_ANSWER_SECONDS)
        self._ray.kill(self._actor)
        self._actor = None


class _WorkerHost:
    """The actor: starts and holds a worker's process on the node where Ray has put the actor."""

    def start(self, python: str | None, model: Path, options: dict[str, Any], token: str) -> str:
        context = _import_ray().get_runtime_context()
        host = _import_ray().util.get_node_ip_address()
        if not model.is_dir():
            raise UsageError(f"the model folder {model} is not on {host}; all nodes need it under the same path")
        with socket.create_server((host, 0)) as probe:
            port = probe.getsockname()[1]
        self._where = f"on {host}; its output is in Ray's logs of actor {context.get_actor_id()}"
        self._place = LocalPlace(python, model, options, token, address=f"{host}:{port}")
        return self._place.start()

    def ending(self) -> str | None:
        how = self._place.ending()
        return None if how is None else f"{how} {self._where}"

    def stop(self) -> None:
        self._place.stop()


def connect_to_ray(num_workers: int) -> str:
    """Joins the Ray cluster and returns what a worker takes of it: a GPU, or a CPU in a cluster without GPUs.

    Raises UsageError without Ray, without a cluster, and for a cluster too small for the workers.
    """
    ray = _import_ray()
    if not ray.is_initialized():
        address = os.environ.get("RAY_ADDRESS", "auto")
        try:
            if address[-1:].isdecimal():  # HOST:PORT, which Ray itself would try for minutes
                connect(address, _ANSWER_SECONDS).close()
            ray.init(address=address, logging_level=logging.WARNING, log_to_driver=False)
        except (OSError, RuntimeError, ValueError) as error:
            raise UsageError(
                "rollout.placement=ray reaches no Ray cluster; `ray start --head` starts one on this machine, and "
                f"RAY_ADDRESS names another one ({_first_line(error)})"
            ) from error
    resources = ray.cluster_resources()
    device = "GPU" if resources.get("GPU") else "CPU"
    if resources.get(device, 0) < num_workers:
        raise UsageError(
            f"rollout.placement=ray needs a {device} for each of {num_workers} workers; "
            f"the Ray cluster has {resources.get(device, 0):g}"
        )
    return device


def _import_ray() -> Any:
    try:
        return importlib.import_module("ray")
    except ImportError as error:
        raise UsageError("rollout.placement=ray needs Ray: pip install 'videoseek[ray]'") from error


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
