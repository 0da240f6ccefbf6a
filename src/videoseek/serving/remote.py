"""RemoteWorker: one worker as its trainer sees it, over restarts. Turns asked of a lost worker are asked again."""

from __future__ import annotations

import hashlib
import logging
import secrets
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch

from videoseek.config import RolloutConfig, UsageError
from videoseek.runtime import rank, world_size
from videoseek.serving.client import Connection, WorkerError, WorkerLostError
from videoseek.serving.handshake import split_address
from videoseek.serving.launch import LocalPlace, parse_options, shared_token
from videoseek.serving.ray_place import RayPlace, connect_to_ray
from videoseek.types import Clip
from videoseek.video.decode import read_frames
from videoseek.wire import Message

logger = logging.getLogger(__name__)

_RETRY_SECONDS = 0.2


class Place(Protocol):
    """Where a worker runs: a process of this machine, a server of somebody else, or what a scheduler provides."""

    def start(self) -> str:
        """Starts a worker, unless somebody else does, and returns the worker's address."""

    def ending(self) -> str | None:
        """Returns how the worker ended, in words, or None as far as known."""

    def stop(self) -> None:
        """Ends the worker at once, unless somebody else does."""


@dataclass(frozen=True, slots=True)
class ServerPlace:
    """A worker that runs already, started by `python -m videoseek.serve`."""

    address: str

    def start(self) -> str:
        return self.address

    def ending(self) -> str | None:
        return None

    def stop(self) -> None:
        return None


@dataclass(frozen=True, slots=True)
class Weights:
    """A version of the weights: in a folder that the workers can read, or as tensors by name."""

    version: int
    folder: str | None
    tensors: Sequence[tuple[str, torch.Tensor]] = ()


class RemoteWorker:
    """Sends turns and weights to the worker at `place`. One thread of its own does all talking, one job at a time.

    The first job starts the worker, which may take a minute. A lost worker is started again at most `max_restarts`
    times, with the last weights.
    """

    def __init__(self, place: Place, token: str, silence_seconds: float, max_restarts: int) -> None:
        self._place, self._token = place, token
        self._silence_seconds = silence_seconds
        self._max_restarts, self._num_restarts = max_restarts, 0
        self._lane = ThreadPoolExecutor(1, thread_name_prefix="worker")
        self.connection: Connection | None = None
        self._weights: Weights | None = None
        self._clip_ids: dict[Clip, str] = {}
        self._requests: dict[Future[Message], Future[Message]] = {}
        self._is_closed = False

    def ask(self, ids: Sequence[int], clips: Sequence[Clip], settings: dict[str, Any]) -> Future[Message]:
        """Asks for the turn after `ids`, which hold one pad for each clip.

        The future holds the worker's reply, VideoError for an unreadable clip, or WorkerError.
        """
        reply: Future[Message] = Future()
        self._ask_later(partial(self._ask, ids, clips, settings), reply)
        return reply

    def forget(self, reply: Future[Message]) -> None:
        """Cancels a reply and stops its turn."""
        self._lane.submit(self._forget, reply)

    def drop(self, clip: Clip) -> None:
        """Lets the worker forget a clip's pixels."""
        self._lane.submit(self._drop, clip)

    def load(self, weights: Weights) -> Future[None]:
        """Hands weights to the worker. The future ends when the worker has them."""
        return self._lane.submit(self._load, weights)

    def close(self) -> None:
        """Ends the connection and the worker. Open turns fail."""
        self._is_closed = True
        self._place.stop()
        self._lane.shutdown(wait=True, cancel_futures=True)
        if self.connection is not None:
            self.connection.close()

    def _ask_later(self, ask: Callable[[], Future[Message]], reply: Future[Message]) -> None:
        def send() -> Future[Message]:
            # A turn that was forgotten before it was sent could not be stopped, and would refuse the next weights.
            return Future() if reply.cancelled() else ask()

        def sent(job: Future[Future[Message]]) -> None:
            if reply.cancelled():
                return  # forgotten
            if job.cancelled():
                reply.set_exception(WorkerError("the worker was closed"))
            elif (error := job.exception()) is not None:
                reply.set_exception(error)
            else:
                self._requests[reply] = job.result()
                job.result().add_done_callback(answered)

        def answered(request: Future[Message]) -> None:
            error = request.exception()
            if self._requests.pop(reply, None) is None:
                return  # forgotten
            if isinstance(error, WorkerLostError) and not self._is_closed:
                self._ask_later(ask, reply)
            elif error is not None:
                reply.set_exception(error)
            else:
                reply.set_result(request.result())

        self._lane.submit(send).add_done_callback(sent)

    def _ask(self, ids: Sequence[int], clips: Sequence[Clip], settings: dict[str, Any]) -> Future[Message]:
        connection = self._connected()
        for clip in clips:
            if clip not in self._clip_ids:
                frames = read_frames(clip).numpy()
                # vLLM keeps features by this name: it must differ wherever pixels or times differ.
                clip_id = hashlib.blake2b(repr(clip).encode() + frames.tobytes(), digest_size=16).hexdigest()
                connection.post({"op": "clip", "id": clip_id, "frames_per_second": clip.sample_fps}, [frames])
                self._clip_ids[clip] = clip_id
        header = {"op": "turn", "clips": [self._clip_ids[clip] for clip in clips], "settings": settings}
        return connection.request(header, [np.array(ids, np.int32)])

    def _forget(self, reply: Future[Message]) -> None:
        request = self._requests.pop(reply, None)
        if request is not None and self.connection is not None:
            self.connection.forget(request)
        reply.cancel()

    def _drop(self, clip: Clip) -> None:
        clip_id = self._clip_ids.pop(clip, None)
        if clip_id is not None and self.connection is not None:
            self.connection.post({"op": "drop", "id": clip_id})

    def _load(self, weights: Weights) -> None:
        known, self._weights = self.connection, weights
        connection = self._connected()
        if connection is known:  # a new connection begins with the weights
            try:
                _send_weights(connection, weights)
            except WorkerLostError:
                self._connected()

    def _connected(self) -> Connection:
        """Returns the connection, to a new worker if the last one is lost. Raises WorkerLostError after the last."""
        if self.connection is not None:
            if not self.connection.lost:
                return self.connection
            lost = f"{self.connection.lost}{_in_brackets(self._place.ending())}"
            self._place.stop()
            if self._num_restarts >= self._max_restarts or self._is_closed:
                raise WorkerLostError(f"{lost}; rollout.worker_restarts={self._max_restarts} are used up")
            self._num_restarts += 1
            logger.warning("%s; restart %d of %d", lost, self._num_restarts, self._max_restarts)
        self._clip_ids.clear()
        self.connection = self._connect()
        if self._weights is not None:
            _send_weights(self.connection, self._weights)
        return self.connection

    def _connect(self) -> Connection:
        address, give_up_at = self._place.start(), time.monotonic() + self._silence_seconds
        while True:
            try:
                return Connection(address, self._token, self._silence_seconds)
            except WorkerLostError as error:
                ending = self._place.ending()
                if ending is not None or time.monotonic() > give_up_at or self._is_closed:
                    raise WorkerLostError(f"{error}{_in_brackets(ending)}") from error
            time.sleep(_RETRY_SECONDS)


def _in_brackets(ending: str | None) -> str:
    return "" if ending is None else f" ({ending})"


def _send_weights(connection: Connection, weights: Weights) -> None:
    """Sends weights and waits until the worker has them. Raises WorkerError."""
    for name, tensor in weights.tensors:
        array = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
        kind = str(tensor.dtype).removeprefix("torch.")
        connection.post({"op": "tensor", "id": name, "type": kind, "shape": tuple(tensor.shape)}, [array])
    request = connection.request({"op": "load", "folder": weights.folder, "version": weights.version})
    version = request.result()[0].get("version")
    if version != weights.version:
        raise WorkerError(
            f"worker {connection.address} loaded weights of version {version}, not of version {weights.version}"
        )


def rank_workers(rollout: RolloutConfig, dtype: str, model: Path, log_dir: Path) -> list[RemoteWorker]:
    """Returns this rank's workers, not yet open: its share of the servers or of Ray's workers, or one to start here.

    Raises UsageError.
    """
    if rollout.temperature > 2:
        raise UsageError(f"rollout.temperature={rollout.temperature:g} is above 2, the limit of rollout.engine=vllm")
    options = {"max_model_len": rollout.max_context_tokens, "dtype": dtype} | parse_options(rollout.vllm_options)
    if rollout.servers:
        if rollout.placement == "ray":
            raise UsageError(f"rollout.placement=ray starts workers; rollout.servers={rollout.servers} run already")
        try:
            for address in rollout.servers:
                split_address(address)
        except ValueError as error:
            raise UsageError(f"rollout.servers: {error}") from error
        if len(rollout.servers) < world_size():  # on every rank: a rank that went on would wait for the others
            raise UsageError(f"rollout.servers names {len(rollout.servers)} for {world_size()} ranks; each needs one")
        places: list[Place] = [ServerPlace(address) for address in rollout.servers[rank() :: world_size()]]
        token = shared_token()
    elif rollout.placement == "ray":
        token, num_workers = secrets.token_hex(32), rollout.workers or world_size()
        if num_workers < world_size():
            raise UsageError(f"rollout.workers={num_workers} is below the number of ranks, {world_size()}")
        device = connect_to_ray(num_workers)
        places = [
            RayPlace(
                rollout.vllm_python, model, options, token, device=device, wait_seconds=rollout.worker_silence_seconds
            )
            for _ in range(rank(), num_workers, world_size())
        ]
    else:
        token = secrets.token_hex(32)
        log = log_dir / f"vllm-rank-{rank():03d}.log"
        places = [LocalPlace(rollout.vllm_python, model, options, token, log=log)]
    return [RemoteWorker(place, token, rollout.worker_silence_seconds, rollout.worker_restarts) for place in places]
