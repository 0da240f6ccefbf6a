"""Joins the three kernels into a differentiable operation."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch.autograd.function import once_differentiable

from videoseek_kernels.block_mask import BlockMask
from videoseek_kernels.impl.triton.backward import dkdv_launch, dq_launch
from videoseek_kernels.impl.triton.forward import forward_launch
from videoseek_kernels.impl.triton.launch import Launch, capability_of, num_processors, tile_config

#: Work on dk/dv is cut into parts below `_WAVES` programs per multiprocessor, into at most `_MAX_SPLITS` parts.
_WAVES, _MAX_SPLITS = 4, 8


Inputs = tuple[torch.Tensor, torch.Tensor, torch.Tensor]
Outputs = tuple[torch.Tensor, torch.Tensor]
#: (q, k, v), (O, L), block mask, scale -> the launch.
ForwardLaunch = Callable[[Inputs, Outputs, BlockMask, float], Launch]


def attend(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    block_mask: BlockMask,
    scale: float,
    forward: ForwardLaunch | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Attends q [T, Hq, D] to k and v [T, Hkv, D] -> O [T, Hq, D] and L float32 [T, Hq], both differentiable.

    `forward` replaces the forward of `impl.triton`. The backward is the same.
    """
    with torch.cuda.device_of(q):
        out, lse = _Attention.apply(q, k, v, block_mask, scale, forward or shipped_forward)
    return out, lse.transpose(0, 1)


def shipped_forward(inputs: Inputs, outputs: Outputs, block_mask: BlockMask, scale: float) -> Launch:
    """Returns the launch of the Triton forward, with the shipped tile for this device and type."""
    q = inputs[0]
    return forward_launch(inputs, outputs, block_mask, scale, tile_config("forward", capability_of(q.device), q.dtype))


class _Attention(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        block_mask: BlockMask,
        scale: float,
        forward: ForwardLaunch,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        q, k, v = q.contiguous(), k.contiguous(), v.contiguous()
        out = torch.empty_like(q)
        lse_log2 = torch.empty(q.shape[1], q.shape[0], dtype=torch.float32, device=q.device)
        forward((q, k, v), (out, lse_log2), block_mask, scale).run()
        ctx.save_for_backward(q, k, v, out, lse_log2)
        ctx.block_mask, ctx.scale = block_mask, scale
        ctx.set_materialize_grads(False)
        return out, lse_log2 * math.log(2)

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any, d_out: torch.Tensor | None, d_lse: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, None, None, None]:
        q, k, v, out, lse = ctx.saved_tensors
        d_out = torch.zeros_like(out) if d_out is None else d_out.contiguous()
        d_lse = None if d_lse is None else d_lse.contiguous()
        capability = capability_of(q.device)
        # dq comes first: the dq kernel also writes delta for dk and dv.
        dq, delta = torch.empty_like(q), torch.empty_like(lse)
        config = tile_config("dq", capability, q.dtype)
        dq_launch((q, k, v), (out, lse), (d_out, d_lse), (dq, delta), ctx.block_mask, ctx.scale, config).run()

        dk, dv = empty_parts(k, ctx.block_mask)
        config = tile_config("dkdv", capability, q.dtype)
        dkdv_launch((q, k, v), (d_out, lse, delta), (dk, dv), ctx.block_mask, ctx.scale, config).run()
        if len(dk) > 1:
            return dq, dk.sum(0).to(k.dtype), dv.sum(0).to(v.dtype), None, None, None
        return dq, dk[0], dv[0], None, None, None


def empty_parts(k: torch.Tensor, block_mask: BlockMask) -> list[torch.Tensor]:
    """Returns empty dk and dv [parts, T, Hkv, D] for the kernel: one part in k's type, several parts in float32."""
    num_splits = _num_splits(k, block_mask)
    dtype = torch.float32 if num_splits > 1 else k.dtype
    return [torch.empty(num_splits, *k.shape, dtype=dtype, device=k.device) for _ in range(2)]


def _num_splits(k: torch.Tensor, block_mask: BlockMask) -> int:
    """Returns the number of parts of the work on dk and dv."""
    # Short batches have too few key tiles to fill a GPU: parts give every multiprocessor several programs.
    programs = block_mask.by_key.order.shape[0] * k.shape[1]
    return max(1, min(_MAX_SPLITS, _WAVES * num_processors(k.device) // programs))
