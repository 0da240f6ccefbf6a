"""VllmSampler: samples turns in workers of vLLM, in processes of their own on this machine or on others.

A sequence stays with one worker, so that the worker's prefix cache holds the sequence's earlier turns. The sampler
keeps the tokens of every sequence itself: a worker that is started again needs nothing of the old one.
"""

from __future__ import annotations

import hashlib
import shutil
from collections import Counter
from collections.abc import Iterable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors.torch import save_file

from videoseek.config import TrainConfig, UsageError
from videoseek.model.adapters import has_adapters, merged_weights
from videoseek.model.load import position_rule
from videoseek.model.policy import Policy
from videoseek.rollout.clip_features import ClipFeatures
from videoseek.rollout.engine import RolloutEngine
from videoseek.rollout.environment import Environment
from videoseek.rollout.native import MAX_TOKENS_PER_PASS
from videoseek.rollout.sampler import SampledTurn, TurnSettings, TurnStop
from videoseek.runtime import rank
from videoseek.serving.client import WorkerError
from videoseek.serving.handshake import FOLDER_VERSION
from videoseek.serving.prompts import first_difference, with_one_pad
from videoseek.serving.remote import RemoteWorker, Weights, rank_workers
from videoseek.trajectory.vocabulary import Vocabulary
from videoseek.types import Clip
from videoseek.wire import Message

_STOPS = {"stop": TurnStop.END, "length": TurnStop.LENGTH, "deadline": TurnStop.DEADLINE}


@dataclass(slots=True)
class _Sequence:
    """All tokens, the same with one pad for each clip (as vLLM takes prompts), and the open turn."""

    worker: int
    ids: list[int] = field(default_factory=list)
    short_ids: list[int] = field(default_factory=list)
    clips: list[Clip] = field(default_factory=list)
    reply: Future[Message] | None = None


class VllmSampler:
    """Implements `Sampler` on `workers`. `weights_dir` takes the weights for `sync=disk`; workers must see it too."""

    def __init__(
        self,
        workers: Sequence[RemoteWorker],
        vocabulary: Vocabulary,
        weights_dir: Path | None = None,
        *,
        copy_weights: bool = False,
    ) -> None:
        """`weights_dir` None sends weights as tensors over the connection. `copy_weights` keeps a copy of them for a
        worker that starts again while the trainer trains.
        """
        self.in_order = False  # turns end in any order
        self._copy_weights = copy_weights
        self._workers = workers
        self._vocabulary = vocabulary
        self.weights_dir = weights_dir
        self._sequences: dict[str, _Sequence] = {}
        #: Sequences that each worker has been given so far.
        self.num_sequences = [0] * len(workers)
        self._clip_users: Counter[tuple[int, Clip]] = Counter()
        self._version = FOLDER_VERSION

    def submit(
        self, sequence_id: str, new_ids: Sequence[int], new_clips: Sequence[Clip], settings: TurnSettings
    ) -> Future[SampledTurn]:
        """Appends tokens to a sequence and asks its worker for the next turn."""
        sequence = self._sequences.get(sequence_id)
        if sequence is None:
            worker = self.num_sequences.index(min(self.num_sequences))
            sequence = self._sequences[sequence_id] = _Sequence(worker)
            self.num_sequences[worker] += 1
        sequence.ids += new_ids
        sequence.short_ids += with_one_pad(new_ids, new_clips, self._vocabulary.video_pad)
        sequence.clips += new_clips
        self._clip_users.update((sequence.worker, clip) for clip in new_clips)
        ids, clips = tuple(sequence.short_ids), tuple(sequence.clips)
        sequence.reply = self._workers[sequence.worker].ask(ids, clips, self._request(settings))
        sampled: Future[SampledTurn] = Future()

        def answered(reply: Future[Message]) -> None:
            try:
                sampled.set_result(self._read(sequence_id, sequence, reply.result()))
            except Exception as error:  # the future carries it to the caller's thread
                sampled.set_exception(error)

        sequence.reply.add_done_callback(answered)
        return sampled

    def work(self) -> bool:
        """Returns False: the workers do the work."""
        return False

    def forget(self, sequence_id: str) -> None:
        """Drops a sequence, and the pixels that no other sequence shows."""
        sequence = self._sequences.pop(sequence_id, None)
        if sequence is None:
            return
        worker = self._workers[sequence.worker]
        if sequence.reply is not None and not sequence.reply.done():
            worker.forget(sequence.reply)
        for clip in sequence.clips:
            self._clip_users[sequence.worker, clip] -= 1
            if not self._clip_users[sequence.worker, clip]:
                del self._clip_users[sequence.worker, clip]
                worker.drop(clip)

    def load(self, weights: Iterable[tuple[str, torch.Tensor]], version: int) -> None:
        """Hands the weights to every worker, and waits until all have them. No turn may be open."""
        # A tied matrix comes under two names; vLLM ties it again by itself.
        tensors = list({tensor.data_ptr(): (name, tensor) for name, tensor in reversed(list(weights))}.values())
        if self._copy_weights and self.weights_dir is None:
            tensors = [(name, tensor.detach().to("cpu", copy=True)) for name, tensor in tensors]
        update = Weights(version, None, tensors)
        if self.weights_dir is not None:
            self.weights_dir.mkdir(parents=True, exist_ok=True)
            contiguous = {name: tensor.detach().contiguous() for name, tensor in tensors}
            save_file(contiguous, self.weights_dir / "model.safetensors")
            update = Weights(version, str(self.weights_dir.resolve()))
        for loading in [worker.load(update) for worker in self._workers]:
            loading.result()
        self._version = version

    def close(self) -> None:
        """Ends the workers that this process has started."""
        for worker in self._workers:
            worker.close()
        if self.weights_dir is not None:
            shutil.rmtree(self.weights_dir, ignore_errors=True)

    def _request(self, settings: TurnSettings) -> dict[str, object]:
        # Each turn has a seed of its own, which depends on the episode and on nothing else in the batch.
        key = f"{settings.stream}/{settings.num_drawn}".encode()
        return {
            "temperature": settings.temperature,
            "top_p": settings.top_p,
            "seed": int.from_bytes(hashlib.blake2b(key, digest_size=4).digest()),
            "max_tokens": settings.max_new_tokens,
            "max_seconds": settings.max_seconds,
            "stop_ids": [self._vocabulary.im_end],
            "banned_ids": list(self._vocabulary.banned),
        }

    def _read(self, sequence_id: str, sequence: _Sequence, message: Message) -> SampledTurn:
        """Returns a worker's reply as a turn. Raises WorkerError for another prompt or other weights than ours."""
        reply, (prompt_ids, ids, logprobs) = message
        if len(ids) and prompt_ids.tolist() != sequence.ids:
            raise WorkerError(f"sequence {sequence_id}: {first_difference(prompt_ids.tolist(), sequence.ids)}")
        if reply["version"] != self._version:
            raise WorkerError(
                f"sequence {sequence_id}: the worker sampled with weights of version {reply['version']}, "
                f"not of version {self._version}, which it was given last"
            )
        if reply["stop"] not in _STOPS:
            raise WorkerError(f"sequence {sequence_id}: vLLM ended the turn for an unknown reason, {reply['stop']!r}")
        sequence.ids += ids.tolist()
        sequence.short_ids += ids.tolist()
        versions = [reply["version"]] * len(ids)
        return SampledTurn(ids.tolist(), logprobs.tolist(), versions, _STOPS[reply["stop"]], reply["seconds"])


def check_vllm(config: TrainConfig, rule: str | None) -> None:
    """Raises UsageError for a position rule or keys that workers of vLLM cannot follow. Starts no worker."""
    if rule not in (None, "max_all"):
        raise UsageError(f"position_rule={rule} is not vLLM's; rollout.engine=vllm works with max_all only")
    rank_workers(config.rollout, config.dtype, Path(), Path())


def vllm_engine(
    policy: Policy, environment: Environment, config: TrainConfig, model: Path, output_dir: Path
) -> RolloutEngine:
    """Returns a rollout engine on this rank's workers of the folder `model`. Raises UsageError or WorkerError."""
    check_vllm(config, position_rule(policy.model.config))
    weights_dir = output_dir / f"weights-rank-{rank():03d}" if config.rollout.sync == "disk" else None

    def weights() -> Iterable[tuple[str, torch.Tensor]]:
        return (merged_weights(policy.model) if has_adapters(policy.model) else policy.model.state_dict()).items()

    workers = rank_workers(config.rollout, config.dtype, model, output_dir)
    sampler = VllmSampler(workers, environment.vocabulary, weights_dir, copy_weights=config.rollout.lag > 0)
    return RolloutEngine(environment, sampler, ClipFeatures(policy, MAX_TOKENS_PER_PASS), weights)
