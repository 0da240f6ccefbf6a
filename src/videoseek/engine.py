"""DeepSpeed around the policy: one engine a stage, driven by plain calls from the visible loops.

Losses handed to `backward` are parts of one sum over all micro-batches and ranks; DeepSpeed averages over both, and
the engine undoes that, so that a loss never depends on how a batch was cut.
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
    """A packed row that knows the ids of its samples."""

    @property
    def sample_ids(self) -> list[str]: ...


Row = TypeVar("Row", bound=HasSamples)


@dataclass(frozen=True, slots=True)
class BatchSums:
    """A batch over all ranks: `metrics` with its `loss`, and the samples of rows whose loss is not finite."""

    metrics: dict[str, float]
    not_finite: list[str]


@dataclass(frozen=True, slots=True)
class Fragment:
    """A stretch of a trained parameter whose fp32 master weights this rank keeps.

    `start` and `size` count elements of the flattened parameter. The stretch begins at element `offset` of the
    rank's master tensor number `master`.
    """

    name: str
    start: int
    size: int
    master: int
    offset: int


class _SavedState:
    """The optimizer state in the files of all ranks that saved it, by parameter."""

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
        """What is kept of a parameter: `master`, `step`, `exp_avg`, `exp_avg_sq`. Raises ValueError for none."""
        if name not in self._parts:
            raise ValueError(f"it holds no state of {name}, so it belongs to another model or other trained weights")
        keys = self._files[self._parts[name][0][0]].keys()
        kinds = [key.removeprefix(f"{name}|") for key in keys if key.startswith(f"{name}|")]
        return [kind for kind in kinds if kind != "extent"]

    def read(self, part: Fragment, kind: str) -> torch.Tensor:
        """The elements of a stretch, from as many files as hold some of it. Raises ValueError where one is missing."""
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
    """Hides gradients from an optimizer step when one of them is not finite: AdamW passes over what has none.

    DeepSpeed has scaled all gradients by one global norm before, so that all ranks drop theirs, or none does.
    """
    parameters = [p for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
    if not all(bool(torch.isfinite(p.grad).all()) for p in parameters if p.grad is not None):
        for parameter in parameters:
            parameter.grad = None


@dataclass(frozen=True, slots=True)
class OptimizerSettings:
    """AdamW with a gradient-norm limit; the learning rate comes with every step."""

    betas: tuple[float, float] = (0.9, 0.999)
    weight_decay: float = 0.0
    grad_clip: float = 1.0


def learning_rate(step: int, steps: int, peak: float, warmup_steps: int, schedule: str) -> float:
    """The rate of optimizer step `step` (from 0): linear warm-up, then constant or a cosine to zero at `steps`."""
    if step < warmup_steps:
        return peak * (step + 1) / warmup_steps
    if schedule == "constant":
        return peak
    progress = (step - warmup_steps) / max(1, steps - warmup_steps)
    return peak * 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))


def start_distributed(device: torch.device) -> None:
    """Joins the process group that DeepSpeed needs; a process on its own becomes a group of one."""
    if dist.is_initialized():
        return
    if device.type == "cuda":
        # What names no device lands on the current one (collectives of objects, caches); without this, all ranks' on 0.
        torch.cuda.set_device(device)
    if device.type == "cpu":
        # DeepSpeed would compile a shared-memory all-reduce at first use; gloo needs no compiler and is as fast here.
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
                # Sums of bf16 gradients lose 2 % over 128 rows, so rows and ranks are added up in fp32.
                # Stage 0 cannot do so, and runs refuse it for bf16.
                "data_types": {"grad_accum_dtype": "fp32" if stage else None},
                "communication_data_type": "fp32",
                "steps_per_print": 10**9,
            },
        )

    def __call__(
        self, batch: TokenBatch, features: torch.Tensor | None = None, temperature: float = 1.0
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """What `Policy.forward` returns. Every call of a module that holds a share of a weight gathers that weight from
        all ranks; so under ZeRO-3 all make as many calls as the one with the most labels."""
        least = num_projections(len(batch.labels))
        if self.stage == 3:
            least = all_max(least, self.policy.device)
        return self.engine(batch, features, temperature, least)

    def accumulate(
        self, rows: Sequence[Row], loss_of: Callable[[Row], tuple[torch.Tensor, Metrics]], filler: Row | None
    ) -> BatchSums:
        """Runs forward and backward of every row of this rank; returns the sums over all rows of all ranks.

        `loss_of` gives a row's share of the batch's loss, and its metrics. See `pad_to_longest_rank` for `filler`.
        """
        padded = self.pad_to_longest_rank(rows, filler)
        loss_sum, metrics, not_finite = 0.0, [], []
        with CLOCK.phase("train"):
            for index, row in enumerate(padded):
                loss, row_metrics = loss_of(row)
                is_own = index < len(rows)
                # The filler must go through the backward pass too: its hooks are collective under ZeRO.
                self.backward(loss * float(is_own), last=index == len(padded) - 1)
                if is_own:
                    loss_sum += loss.item()
                    metrics.append({name: value.cpu() for name, value in row_metrics.items()})
                    not_finite += [] if math.isfinite(loss.item()) else row.sample_ids
        (loss_total,) = all_sum([loss_sum], self.policy.device)
        values = combine_metrics(gather(metrics)) | {"loss": loss_total}
        return BatchSums(values, gather(list(not_finite)) if not math.isfinite(loss_total) else [])

    def pad_to_longest_rank(self, rows: Sequence[Row], filler: Row | None) -> list[Row]:
        """The rows, followed by `filler` until every rank has as many rows.

        ZeRO gathers weights and reduces gradients in collectives, so all ranks must run as many passes. Raises
        ValueError where a rank needs a filler and has none.
        """
        num_missing = all_max(len(rows), self.policy.device) - len(rows)
        if num_missing and filler is None:
            raise ValueError(f"this rank has {num_missing} rows less than another one, and no filler")
        return [*rows, *[filler for _ in range(num_missing) if filler is not None]]

    def backward(self, loss: torch.Tensor, *, last: bool) -> None:
        """Adds the gradient of one part of the batch's loss; `last` marks the final part before `step`."""
        self.engine.set_gradient_accumulation_boundary(last)
        self.engine.backward(loss * world_size())

    def step(self, rate: float) -> float:
        """Runs one optimizer step and returns the gradient norm before clipping.

        A norm that is not finite (NaN or infinity) leaves weights and optimizer state as they were.
        """
        for group in self._base_optimizer().param_groups:
            group["lr"] = rate
        norm = 0.0
        if not self.stage:
            # Without ZeRO, DeepSpeed clips in `step` but keeps the norm to itself.
            gradients = [p.grad for p in self.policy.parameters() if p.grad is not None]
            norm = float(torch.nn.utils.get_total_norm(gradients))
        with CLOCK.phase("train"):
            self.engine.step()
        return float(self.engine.get_global_grad_norm()) if self.stage else norm

    @contextmanager
    def whole_weights(self) -> Iterator[None]:
        """Under ZeRO-3, gathers all weights on every rank, for rollout and export; nothing to do otherwise."""
        if self.stage < 3:
            yield
            return
        offload = self.engine.optimizer.parameter_offload
        with deepspeed.zero.GatheredParameters(list(self.policy.parameters())):
            # The hooks drop and gather weights around every module, all ranks in step; rollouts differ in length.
            offload.destroy()
            offload.forward_hooks.clear()
            offload.backward_hooks.clear()
            try:
                yield
            finally:
                offload.setup_zero_stage3_hooks()

    @torch.no_grad()
    def state(self) -> dict[str, torch.Tensor]:
        """This rank's part of the optimizer state, by parameter: fp32 master weights, moments and the step count.

        `NAME|extent` says where the part begins in the flattened parameter and how many elements it has. Together the
        ranks' parts cover every parameter, so that another number of ranks can load them.
        """
        optimizer, masters = self._base_optimizer(), self._masters()
        tensors: dict[str, torch.Tensor] = {}
        if self.stage == 0 and rank() > 0:
            return tensors  # without ZeRO every rank holds the same state; rank 0 saves it
        for part in self._fragments():
            tensors[f"{part.name}|extent"] = torch.tensor([part.start, part.size])
            stretch = slice(part.offset, part.offset + part.size)
            master = masters[part.master]
            tensors[f"{part.name}|master"] = master.flatten()[stretch].cpu()
            for kind, value in optimizer.state[master].items():
                whole = torch.as_tensor(value)
                # Adam's step count is one number a group; it is kept with each parameter.
                tensors[f"{part.name}|{kind}"] = (whole.flatten()[stretch] if whole.ndim else whole).cpu()
        return {name: tensor.clone() for name, tensor in tensors.items()}

    @torch.no_grad()
    def load_state(self, files: Sequence[Path]) -> None:
        """Reads this rank's part of the optimizer state from the files of all ranks that saved it.

        Raises ValueError when a parameter is missing there, and OSError or SafetensorError for unreadable files.
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
        """Where the parts of the trained parameters that this rank owns lie in its master weights."""
        names = {id(parameter): name for name, parameter in self.policy.named_parameters()}
        optimizer = self.engine.optimizer
        fragments = []
        if self.stage == 0:
            for index, master in enumerate(self._masters()):
                fragments.append(Fragment(names[id(master)], 0, master.numel(), index, 0))
        elif self.stage == 3:
            # Each parameter is cut into equal parts, the last one padded; a group's parts lie one after the other.
            for index, group in enumerate(optimizer.fp16_groups):
                offset = 0
                for parameter in group:
                    part = parameter.ds_tensor.ds_numel
                    start = part * rank()
                    size = max(0, min(part, parameter.ds_numel - start))
                    fragments.append(Fragment(names[id(parameter)], start, size, index, offset))
                    offset += part
        else:
            # A group's parameters form one flat tensor, which is cut into one stretch for each rank.
            groups = optimizer.bf16_groups if self._accumulates_apart else optimizer.bit16_groups
            for index, group in enumerate(groups):
                for parameter in group:
                    mapping = parameter._hp_mapping
                    if mapping is not None:
                        own, flat = mapping.lp_fragment_address, mapping.hp_fragment_address
                        fragments.append(Fragment(names[id(parameter)], own.start, own.numel, index, flat.start))
        return [fragment for fragment in fragments if fragment.size]

    def release(self) -> None:
        """Gives back the memory of weights, gradients and optimizer state; engine and policy are of no use after.

        DeepSpeed's hooks on the weights and its tables hold on to all of it, however many names for it are deleted.
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
        """Whether DeepSpeed chose its bf16 optimizer, as it does for bf16 weights with fp32 sums under ZeRO-1."""
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
    """Leaves the process group, all ranks together: threads of gloo that outlive it can abort a process at its end."""
    if dist.is_initialized():
        dist.barrier()
        dist.destroy_process_group()
