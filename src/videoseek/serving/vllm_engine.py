"""vLLM behind the interface of a worker: turns in, tokens and log-probs out. Only a worker's interpreter imports it.

Log-probs are of the whole distribution at the sampling temperature, as in the trainer: without banned tokens and top_p.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

# The engine runs in this process: weights then reach the model without a copy of them being pickled.
os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
os.environ["VLLM_USE_V2_MODEL_RUNNER"] = "0"  # its other runner has no sampler that TemperedSampler could refine
os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch
import vllm
from safetensors import safe_open
from vllm import EngineArgs, SamplingParams
from vllm.exceptions import VLLMClientError
from vllm.model_executor.layers.vocab_parallel_embedding import ParallelLMHead
from vllm.model_executor.models.qwen2_5_vl import Qwen2_5_VLForConditionalGeneration
from vllm.sampling_params import RequestOutputKind
from vllm.v1.engine.llm_engine import LLMEngine
from vllm.v1.sample.sampler import Sampler

from videoseek.serving.handshake import FOLDER_VERSION
from videoseek.serving.server import NamedClip, Outcome, Tensor

#: vLLM takes biases from -100 to 100: a banned token is e^100 times less likely.
_BANNED = -100.0
_UNKNOWN_VERSION = -2


_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(slots=True)
class _Turn:
    max_seconds: float
    version: int
    seconds: float = 0.0
    prompt_ids: list[int] = field(default_factory=list)
    ids: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)


class Float32Factor(float):
    """Multiplies grid numbers in float32, as the trainer does: in float64 some products fall below another integer."""

    __array_ufunc__ = None  # numpy leaves the product to this class

    def __rmul__(self, grids: np.ndarray) -> np.ndarray:  # type: ignore[override]
        return grids.astype(np.float32) * np.float32(self)


def grids_of(model: Qwen2_5_VLForConditionalGeneration, features: list[Any]) -> Iterator[tuple[Any, ...]]:
    """Yields what vLLM's own method yields, with the trainer's arithmetic for the time axis."""
    for *facts, factor in _VLLM_GRIDS(model, features):
        yield *facts, Float32Factor(factor)


_VLLM_GRIDS = Qwen2_5_VLForConditionalGeneration.iter_mm_grid_thw


class TemperedSampler(Sampler):
    """vLLM's sampler with raw log-probs at each row's sampling temperature, and at 1 for greedy rows."""

    def forward(self, logits: torch.Tensor, sampling_metadata: Any, *args: Any, **kwargs: Any) -> Any:
        temperature = sampling_metadata.temperature
        self._divisor = None if temperature is None else torch.where(temperature < 1e-5, 1.0, temperature)[:, None]
        return super().forward(logits, sampling_metadata, *args, **kwargs)

    def compute_logprobs(self, logits: torch.Tensor) -> torch.Tensor:
        logits = logits.float()
        return (logits if self._divisor is None else logits / self._divisor).log_softmax(-1)


class VllmEngine:
    """An engine of vLLM. `options` are arguments of vLLM's `EngineArgs`, over the defaults here."""

    def __init__(self, model: str, options: dict[str, Any]) -> None:
        arguments = {
            "enforce_eager": torch.cuda.device_count() == 0,
            "limit_mm_per_prompt": {"video": 64, "image": 0},
            "logprobs_mode": "raw_logprobs",
            "generation_config": "vllm",  # the folder's own may hold a repetition penalty
            "skip_mm_profiling": True,
            "disable_log_stats": True,
            "block_size": 32,
            # Pixels come at their final size.
            "mm_processor_kwargs": {"do_sample_frames": False, "do_resize": False},
        }
        self._engine = LLMEngine.from_engine_args(EngineArgs(model=model, **{**arguments, **options}))
        self._runner = self._engine.model_executor.driver_worker.worker.model_runner
        if type(self._runner.sampler) is not Sampler:
            raise RuntimeError(f"vLLM {vllm.__version__} samples by an unknown class {type(self._runner.sampler)}")
        self._runner.sampler.__class__ = TemperedSampler
        Qwen2_5_VLForConditionalGeneration.iter_mm_grid_thw = grids_of
        self._turns: dict[str, _Turn] = {}
        self._engine.set_weight_version(str(FOLDER_VERSION))

    @property
    def is_busy(self) -> bool:
        return bool(self._turns)

    def start(self, turn_id: str, ids: np.ndarray, clips: Sequence[NamedClip], settings: dict[str, Any]) -> None:
        """Begins a turn after the tokens `ids`, which hold one pad token for each clip. Raises ValueError."""
        videos = []
        for _, frames, rate in clips:
            every = {"fps": rate, "total_num_frames": len(frames), "frames_indices": list(range(len(frames)))}
            videos.append((frames, {**every, "duration": len(frames) / rate, "do_sample_frames": False}))
        prompt: dict[str, Any] = {"prompt_token_ids": ids.tolist()}
        if videos:
            prompt |= {
                "multi_modal_data": {"video": videos},
                "multi_modal_uuids": {"video": [name for name, *_ in clips]},
            }
        try:
            params = SamplingParams(
                temperature=settings["temperature"],
                top_p=settings["top_p"],
                seed=settings["seed"],
                max_tokens=settings["max_tokens"],
                stop_token_ids=settings["stop_ids"],
                logit_bias=dict.fromkeys(settings["banned_ids"], _BANNED),
                ignore_eos=True,
                detokenize=False,
                logprobs=0,
                output_kind=RequestOutputKind.DELTA,
            )
            self._engine.add_request(turn_id, prompt, params)
        except VLLMClientError as error:
            raise ValueError(str(error)) from error
        limit = settings["max_seconds"]
        self._turns[turn_id] = _Turn(math.inf if limit is None else limit, int(self._engine.get_weight_version()))

    def step(self) -> Iterator[Outcome]:
        """Samples a token of each turn, and yields the finished turns."""
        started = time.perf_counter()
        outputs = self._engine.step()
        # Time is shared evenly: vLLM does not tell how many tokens of a step belong to which turn.
        seconds = (time.perf_counter() - started) / len(self._turns)
        for running in self._turns.values():
            running.seconds += seconds
        for output in outputs:
            turn, completion = self._turns.get(output.request_id), output.outputs[0]
            if turn is None:
                continue  # the end of a cancelled turn
            turn.ids += completion.token_ids
            pairs = zip(completion.logprobs, completion.token_ids, strict=True)
            turn.logprobs += [row[token].logprob for row, token in pairs]
            turn.prompt_ids = output.prompt_token_ids
            if output.finished:
                yield self._outcome(output.request_id, completion.finish_reason)
        late = [turn_id for turn_id, turn in self._turns.items() if turn.ids and turn.seconds > turn.max_seconds]
        for turn_id in late:
            self._engine.abort_request([turn_id])
            yield self._outcome(turn_id, "deadline")

    def cancel(self, turn_id: str) -> None:
        """Drops a turn."""
        del self._turns[turn_id]
        self._engine.abort_request([turn_id])

    def _outcome(self, turn_id: str, stop: str) -> Outcome:
        turn = self._turns.pop(turn_id)
        arrays = [np.array(turn.prompt_ids, np.int32), np.array(turn.ids, np.int32)]
        facts = {"stop": stop, "version": turn.version, "seconds": turn.seconds}
        return turn_id, facts, [*arrays, np.array(turn.logprobs, np.float32)]

    def load(self, folder: str | None, tensors: Sequence[Tensor], version: int) -> None:
        """Takes the weights of a folder, or `tensors`, as version `version`, and forgets what the old ones computed."""
        self._engine.set_weight_version(str(_UNKNOWN_VERSION))  # stays after a failure: no trainer expects it
        weights = _from_folder(folder) if folder is not None else map(_as_torch, tensors)
        # Not vLLM's own reading of a folder, which would look for the preprocessor files there from then on.
        self._engine.collective_rpc("reload_weights", kwargs={"weights_iterator": weights})
        for layer in self._runner.get_model().modules():
            if isinstance(layer, ParallelLMHead):  # tied to the embedding, its packed copy on a CPU stays the old one
                layer.quant_method.process_weights_after_loading(layer)
        self._engine.reset_mm_cache()
        self._engine.reset_encoder_cache()
        if not self._engine.reset_prefix_cache():  # a reload leaves keys and values of the old weights there
            raise RuntimeError("vLLM keeps its prefix cache: old keys and values would mix with new ones")
        self._engine.set_weight_version(str(version))


def _from_folder(folder: str) -> Iterator[tuple[str, torch.Tensor]]:
    for path in sorted(Path(folder).glob("*.safetensors")):
        with safe_open(path, "pt") as file:
            for name in file.keys():  # noqa: SIM118 (a safetensors file is no dictionary)
                yield name, file.get_tensor(name)


def _as_torch(tensor: Tensor) -> tuple[str, torch.Tensor]:
    name, kind, shape, array = tensor
    return name, torch.from_numpy(array).view(_DTYPES[kind]).reshape(shape)
