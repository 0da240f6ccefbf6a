"""DeepSpeed around the policy: one engine per stage, driven by plain calls from the training loops.

Losses for `backward` are parts of one sum over all micro-batches and ranks. DeepSpeed averages over both, and the
engine undoes the averaging: the loss is independent of the cut of a batch.
"""

from __future__ import annotations

import math
import os
import socket
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeVar

import deepspeed
import deepspeed.ops
import torch
import torch.distributed as dist
from safetensors import safe_open

from videoseek.algorithms.losses import Metrics, combine_metrics
from videoseek.batches.token_batch import TokenBatch
from videoseek.distributed import all_max, all_sum, gather
from videoseek.model.policy import Policy, num_projections
from videoseek.runtime import rank, world_size
from videoseek.timing import CLOCK


class HasSamples(Protocol):
    """A packed row with the ids of its samples."""

    @property
    def sample_ids(self) -> list[str]: ...


Row = TypeVar("Row", bound=HasSamples)


@dataclass(frozen=True, slots=True)
class BatchSums:
    """A batch over all ranks: `metrics` including `loss`, and the samples of rows with a non-finite loss."""

    metrics: dict[str, float]
    not_finite: list[str]


@dataclass(frozen=True, slots=True)
class Fragment:
    """A stretch of a trained parameter with fp32 master weights on this rank.

    `start` and `size` count elements of the flattened parameter. The stretch begins at element `offset` of the rank's
    master tensor number `master`.
    """

    name: str
    start: int
    size: int
    master: int
    offset: int


class _SavedState:
    """The optimizer state by parameter, from the files of all saving ranks."""

    def __init__(self, files: Sequence[Any]) -> None:
        self._files = files
        self._parts: dict[str, list[tuple[int, int, int]]] = {}  # name -> (file, start, size)
        for number, file in enumerate(files):
            for key in file.keys():  # noqa: SIM118  (the file is no mapping)
                name, _, kind = key.rpartition("|")
                if kind == "extent":
                    start, size = file.get_tensor(key).tolist()
                    self._parts.setdefault(name, []).append((number, start, size))

    def kinds(self, name: str) -> list[str]:
        """Returns the stored kinds of a parameter: `master`, `step`, `exp_avg`, `exp_avg_sq`. Raises ValueError."""
        if name not in self._parts:
            raise ValueError(f"it holds no state of {name}, so it belongs to another model or other trained weights")
        keys = self._files[self._parts[name][0][0]].keys()
        kinds = [key.removeprefix(f"{name}|") for key in keys if key.startswith(f"{name}|")]
        return [kind for kind in kinds if kind != "extent"]

    def read(self, part: Fragment, kind: str) -> torch.Tensor:
        """Returns the elements of a stretch, joined from all files. Raises ValueError for missing elements."""
        stretches = []
        stop = part.start + part.size
        for number, start, size in sorted(self._parts[part.name], key=lambda saved: saved[1]):
            values = self._files[number].get_slice(f"{part.name}|{kind}")
            if not values.get_shape():
                return self._files[number].get_tensor(f"{part.name}|{kind}")
            first, last = max(part.start, start), min(stop, start + size)
            if first < last:
                stretches.append(values[first - start : last - start])
        whole = torch.cat(stretches) if stretches else torch.zeros(0)
        if len(whole) != part.size:
            raise ValueError(f"it holds {len(whole)} of {part.size} elements of {part.name}, which has another shape")
        return whole


def _drop_non_finite_gradients(optimizer: torch.optim.Optimizer, *_: object) -> None:
    """Drops all gradients of an optimizer step if any gradient is non-finite: AdamW skips parameters without gradient.

    DeepSpeed scaled all gradients by one global norm before: either all ranks drop their gradients, or none.
    """
    parameters = [p for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
    if not all(bool(torch.isfinite(p.grad).all()) for p in parameters if p.grad is not None):
        for parameter in parameters:
            parameter.grad = None


@dataclass(frozen=True, slots=True)
class OptimizerSettings:
    """AdamW with a gradient-norm limit. The learning rate comes with every step."""

    betas: tuple[float, float] = (0.9, 0.999)
    weight_decay: float = 0.0
    grad_clip: float = 1.0


def learning_rate(step: int, steps: int, peak: float, warmup_steps: int, schedule: str) -> float:
    """Returns the rate of optimizer step `step` (from 0): linear warm-up, then constant or a cosine to 0 at `steps`."""
    if step < warmup_steps:
        return peak * (step + 1) / warmup_steps
    if schedule == "constant":
        return peak
    progress = (step - warmup_steps) / max(1, steps - warmup_steps)
    return peak * 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))


def start_distributed(device: torch.device) -> None:
    """Joins DeepSpeed's process group. A single process becomes a group of one."""
    if dist.is_initialized():
        return
    if device.type == "cuda":
        # Sets the default device: otherwise unplaced data (collectives of objects, caches) of all ranks lands on GPU 0.
        torch.cuda.set_device(device)
    if device.type == "cpu":
        # DeepSpeed would compile a shared-memory all-reduce at first use. gloo needs no compiler and is as fast here.
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    if "RANK" not in os.environ:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        alone = {
            "RANK": "0",
            "LOCAL_RANK": "0",
            "WORLD_SIZE": "1",
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(port),
        }
        os.environ.update(alone)
    deepspeed.init_distributed(dist_backend="gloo" if device.type == "cpu" else "nccl", verbose=False)


class TrainEngine:
    """A policy under training. Every rank must call its methods in the same order."""

    def __init__(self, policy: Policy, settings: OptimizerSettings, *, stage: int, offload: bool = False) -> None:
        start_distributed(policy.device)
        bf16 = next(policy.parameters()).dtype == torch.bfloat16
        zero: dict[str, Any] = {"stage": stage}
        if offload:
            zero["offload_optimizer"] = {"device": "cpu"}
        trained = [parameter for parameter in policy.parameters() if parameter.requires_grad]
        optimizer = torch.optim.AdamW(trained, lr=0.0, betas=settings.betas, weight_decay=settings.weight_decay)
        optimizer.register_step_pre_hook(_drop_non_finite_gradients)
        self.stage = stage
        self.policy = policy
        self.engine, *_ = deepspeed.initialize(
            model=policy,
            optimizer=optimizer,
            config={
                "train_micro_batch_size_per_gpu": 1,
                "gradient_accumulation_steps": 1,
                "gradient_clipping": settings.grad_clip,
                "zero_optimization": zero,
                "zero_allow_untested_optimizer": True,
                "zero_force_ds_cpu_optimizer": False,
                "bf16": {"enabled": bf16},
                # Sums of bf16 gradients lose 2 % over 128 rows: fp32 adds up rows and ranks. Stage 0 cannot sum in
                # fp32, and runs refuse stage 0 for bf16.
                "data_types": {"grad_accum_dtype": "fp32" if stage else None},
                "communication_data_type": "fp32",
                "steps_per_print": 10**9,
            },
        )

    def __call__(
        self, batch: TokenBatch, features: torch.Tensor | None = None, temperature: float = 1.0
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Runs `Policy.forward`. Under ZeRO-3 all ranks run equally many vocabulary projections (collective calls)."""
        least = num_projections(len(batch.labels))
        if self.stage == 3:
            least = all_max(least, self.policy.device)
        return self.engine(batch, features, temperature, least)

    def accumulate(
        self, rows: Sequence[Row], loss_of: Callable[[Row], tuple[torch.Tensor, Metrics]], filler: Row | None
    ) -> BatchSums:
        """Runs forward and backward of every row of this rank. Returns the sums over all rows of all ranks.

        `loss_of` gives a row's share of the batch's loss, and the metrics. See `pad_to_longest_rank` for `filler`.
        """
        padded = self.pad_to_longest_rank(rows, filler)
        loss_sum, metrics, not_finite = 0.0, [], []
        with CLOCK.phase("train"):
            for index, row in enumerate(padded):
                loss, row_metrics = loss_of(row)
                is_own = index < len(rows)
                # The filler must go through the backward pass too: the backward hooks are collective under ZeRO.
                self.backward(loss * float(is_own), last=index == len(padded) - 1)
                if is_own:
                    loss_sum += loss.item()
                    metrics.append({name: value.cpu() for name, value in row_metrics.items()})
                    not_finite += [] if math.isfinite(loss.item()) else row.sample_ids
        (loss_total,) = all_sum([loss_sum], self.policy.device)
        values = combine_metrics(gather(metrics)) | {"loss": loss_total}
        return BatchSums(values, gather(list(not_finite)) if not math.isfinite(loss_total) else [])

    def pad_to_longest_rank(self, rows: Sequence[Row], filler: Row | None) -> list[Row]:
        """Returns the rows, followed by `filler` up to the row count of the longest rank.

        ZeRO gathers weights and reduces gradients in collectives: all ranks must run equally many passes. Raises
        ValueError for a missing filler.
        """
        num_missing = all_max(len(rows), self.policy.device) - len(rows)
        if num_missing and filler is None:
            raise ValueError(f"this rank has {num_missing} rows less than another one, and no filler")
        return [*rows, *[filler for _ in range(num_missing) if filler is not None]]

    def backward(self, loss: torch.Tensor, *, last: bool) -> None:
        """Adds the gradient of a part of the batch's loss. `last` marks the final part before `step`."""
        self.engine.set_gradient_accumulation_boundary(last)
        self.engine.backward(loss * world_size())

    def step(self, rate: float) -> float:
        """Runs an optimizer step and returns the gradient norm before clipping.

        A non-finite norm (NaN or infinity) leaves weights and optimizer state unchanged.
        """
        for group in self._base_optimizer().param_groups:
            group["lr"] = rate
        norm = 0.0
        if not self.stage:
            # Without ZeRO, DeepSpeed clips in `step` and hides the norm.
            gradients = [p.grad for p in self.policy.parameters() if p.grad is not None]
            norm = float(torch.nn.utils.get_total_norm(gradients))
        with CLOCK.phase("train"):
            self.engine.step()
        return float(self.engine.get_global_grad_norm()) if self.stage else norm

    @contextmanager
    def whole_weights(self) -> Iterator[None]:
        """Gathers all weights on every rank under ZeRO-3, for rollout and export. Does nothing in other stages."""
        if self.stage < 3:
            yield
            return
        offload = self.engine.optimizer.parameter_offload
        with deepspeed.zero.GatheredParameters(list(self.policy.parameters())):
            # The hooks drop and gather weights around every module, all ranks in step. Rollouts differ in length.
            offload.destroy()
            offload.forward_hooks.clear()
            offload.backward_hooks.clear()
            try:
                yield
            finally:
                offload.setup_zero_stage3_hooks()

    @torch.no_grad()
    def state(self) -> dict[str, torch.Tensor]:
        """Returns this rank's optimizer state by parameter: fp32 master weights, moments and step count.

        `NAME|extent` holds the first element and the number of elements of the part in the flattened parameter. The
        parts of all ranks cover every parameter: any number of ranks can load the parts.
        """
        optimizer, masters = self._base_optimizer(), self._masters()
        tensors: dict[str, torch.Tensor] = {}
        if self.stage == 0 and rank() > 0:
            return tensors  # without ZeRO every rank holds the same state; rank 0 saves
        for part in self._fragments():
            tensors[f"{part.name}|extent"] = torch.tensor([part.start, part.size])
            stretch = slice(part.offset, part.offset + part.size)
            master = masters[part.master]
            tensors[f"{part.name}|master"] = master.flatten()[stretch].cpu()
            for kind, value in optimizer.state[master].items():
                whole = torch.as_tensor(value)
                # Adam's step count is one number per group, stored with each parameter.
                tensors[f"{part.name}|{kind}"] = (whole.flatten()[stretch] if whole.ndim else whole).cpu()
        return {name: tensor.clone() for name, tensor in tensors.items()}

    @torch.no_grad()
    def load_state(self, files: Sequence[Path]) -> None:
        """Loads this rank's part of the optimizer state from the files of all saving ranks.

        Raises ValueError for a missing parameter, and OSError or SafetensorError for unreadable files.
        """
        optimizer, masters = self._base_optimizer(), self._masters()
        with ExitStack() as stack:
            saved = _SavedState([stack.enter_context(safe_open(file, framework="pt")) for file in files])
            for part in self._fragments():
                master = masters[part.master]
                stretch = slice(part.offset, part.offset + part.size)
                for kind in saved.kinds(part.name):
                    value = saved.read(part, kind)
                    if kind == "master":
                        master.view(-1)[stretch] = value.to(master.device)
                    elif value.ndim == 0:
                        optimizer.state[master][kind] = value.clone()
                    else:
                        whole = optimizer.state[master].setdefault(kind, torch.zeros_like(master))
                        whole.view(-1)[stretch] = value.to(whole.device)

    def _fragments(self) -> list[Fragment]:
        """Returns the places of this rank's trained stretches in the rank's master weights."""
        names = {id(parameter): name for name, parameter in self.policy.named_parameters()}
        optimizer = self.engine.optimizer
        fragments = []
        if self.stage == 0:
            for index, master in enumerate(self._masters()):
                fragments.append(Fragment(names[id(master)], 0, master.numel(), index, 0))
        elif self.stage == 3:
            # Each parameter is cut into equal parts, the last part padded. The parts of a group lie in sequence.
            for index, group in enumerate(optimizer.fp16_groups):
                offset = 0
                for parameter in group:
                    part = parameter.ds_tensor.ds_numel
                    start = part * rank()
                    size = max(0, min(part, parameter.ds_numel - start))
                    fragments.append(Fragment(names[id(parameter)], start, size, index, offset))
                    offset += part
        else:
            # A group's parameters form one flat tensor, cut into one stretch per rank.
            groups = optimizer.bf16_groups if self._accumulates_apart else optimizer.bit16_groups
            for index, group in enumerate(groups):
                for parameter in group:
                    mapping = parameter._hp_mapping
                    if mapping is not None:
                        own, flat = mapping.lp_fragment_address, mapping.hp_fragment_address
                        fragments.append(Fragment(names[id(parameter)], own.start, own.numel, index, flat.start))
        return [fragment for fragment in fragments if fragment.size]

    def release(self) -> None:
        """Frees the memory of weights, gradients and optimizer state. Engine and policy are unusable afterwards.

        DeepSpeed's hooks and tables keep references to all tensors, even after `del` of every other name.
        """
        self.engine.destroy()
        held: list[torch.Tensor] = [*self._masters()]
        for parameter in self.policy.parameters():
            parameter.grad = None
            held.append(parameter)
            if self.stage == 3:
                held.append(parameter.ds_tensor)  # type: ignore[attr-defined]
        self._base_optimizer().state.clear()
        vars(self.engine.optimizer).clear()  # the flat buffers
        for tensor in held:
            tensor.data = tensor.new_empty(0)

    @property
    def _accumulates_apart(self) -> bool:
        """Returns whether DeepSpeed chose its bf16 optimizer, as for bf16 weights with fp32 sums under ZeRO-1."""
        return hasattr(self.engine.optimizer, "fp32_groups_flat_partition")

    def _base_optimizer(self) -> torch.optim.Optimizer:
        return self.engine.optimizer.optimizer if self.stage else self.engine.basic_optimizer

    def _masters(self) -> Sequence[torch.Tensor]:
        if self.stage == 3:
            return self.engine.optimizer.fp32_partitioned_groups_flat
        if self._accumulates_apart:
            return self.engine.optimizer.fp32_groups_flat_partition
        if self.stage:
            return self.engine.optimizer.single_partition_of_fp32_groups
        return [parameter for group in self._base_optimizer().param_groups for parameter in group["params"]]


def end_distributed() -> None:
    """Leaves the process group, all ranks together. Surviving gloo threads can abort a process at its end."""
    if dist.is_initialized():
        dist.barrier()
        dist.destroy_process_group()
