"""DeepSpeed around the policy: one engine a stage, driven by plain calls from the visible loops.

Losses handed to `backward` are parts of one sum over all micro-batches and ranks; DeepSpeed averages over both, and
the engine undoes that, so that a loss never depends on how a batch was cut.
"""

from __future__ import annotations

import math
import os
import socket
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import deepspeed
import deepspeed.ops
import torch
import torch.distributed as dist

from videoseek.algorithms.losses import Metrics, combine_metrics
from videoseek.batches.token_batch import TokenBatch
from videoseek.distributed import all_max, all_sum, gather
from videoseek.model.policy import Policy, num_projections
from videoseek.ranks import world_size

Row = TypeVar("Row")


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
    ) -> tuple[float, dict[str, float]]:
        """Forward and backward of every row of this rank; returns the loss and the metrics, both over all ranks.

        `loss_of` gives a row's share of the batch's loss, and its metrics. See `pad_to_longest_rank` for `filler`.
        """
        padded = self.pad_to_longest_rank(rows, filler)
        loss_sum, metrics = 0.0, []
        for index, row in enumerate(padded):
            loss, row_metrics = loss_of(row)
            is_own = index < len(rows)
            # The filler must go through the backward pass too: its hooks are collective under ZeRO.
            self.backward(loss * float(is_own), last=index == len(padded) - 1)
            if is_own:
                loss_sum += loss.item()
                metrics.append({name: value.cpu() for name, value in row_metrics.items()})
        (loss_total,) = all_sum([loss_sum], self.policy.device)
        return loss_total, combine_metrics(gather(metrics))

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
        """One optimizer step; returns the gradient norm before clipping."""
        for group in self._base_optimizer().param_groups:
            group["lr"] = rate
        norm = 0.0
        if not self.stage:
            # Without ZeRO, DeepSpeed clips in `step` but keeps the norm to itself.
            gradients = [p.grad for p in self.policy.parameters() if p.grad is not None]
            norm = float(torch.nn.utils.get_total_norm(gradients))
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

    def state(self) -> dict[str, torch.Tensor]:
        """This rank's optimizer state: master weights and moments by name, as flat as the engine keeps them."""
        tensors: dict[str, torch.Tensor] = {}
        optimizer = self._base_optimizer()
        for index, parameter in enumerate(self._masters()):
            tensors[f"{index}.master"] = parameter.detach()
            for name, value in optimizer.state[parameter].items():
                tensors[f"{index}.{name}"] = torch.as_tensor(value)
        return {name: tensor.cpu().contiguous() for name, tensor in tensors.items()}

    @torch.no_grad()
    def load_state(self, tensors: dict[str, torch.Tensor]) -> None:
        """Puts back what `state` returned on this rank. Raises ValueError when it is of another layout."""
        optimizer = self._base_optimizer()
        for index, parameter in enumerate(self._masters()):
            named = {key.split(".", 1)[1]: value for key, value in tensors.items() if key.startswith(f"{index}.")}
            master = named.pop("master", None)
            if master is None or master.shape != parameter.shape:
                raise ValueError("the checkpoint's optimizer state is of another model, ZeRO stage or number of ranks")
            parameter.copy_(master)
            optimizer.state[parameter] = {
                name: value.clone() if name == "step" else value.to(parameter.device, copy=True)
                for name, value in named.items()
            }

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

    def _base_optimizer(self) -> torch.optim.Optimizer:
        return self.engine.optimizer.optimizer if self.stage else self.engine.basic_optimizer

    def _masters(self) -> Sequence[torch.Tensor]:
        if self.stage == 3:
            return self.engine.optimizer.fp32_partitioned_groups_flat
        if self.stage:
            return self.engine.optimizer.single_partition_of_fp32_groups
        return [parameter for group in self._base_optimizer().param_groups for parameter in group["params"]]


def end_distributed() -> None:
    """Leaves the process group, all ranks together: threads of gloo that outlive it can abort a process at its end."""
    if dist.is_initialized():
        dist.barrier()
        dist.destroy_process_group()
