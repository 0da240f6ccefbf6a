"""Joins the three kernels into a differentiable operator of torch's library.

A registered operator is opaque: `torch.compile` keeps the operator in a full graph, and policies of activation
checkpointing find the operator by name (`torch.ops.videoseek_kernels.attention`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch.utils.flop_counter import register_flop_formula

from videoseek_kernels.block_mask import BlockMask
from videoseek_kernels.impl.triton.backward import dkdv_launch, dq_launch
from videoseek_kernels.impl.triton.forward import forward_launch
from videoseek_kernels.impl.triton.launch import capability_of, num_processors, tile_config

#: Work on dk/dv is cut into parts below `_WAVES` programs per multiprocessor, into at most `_MAX_SPLITS` parts.
_WAVES, _MAX_SPLITS = 4, 8


def attend(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, block_mask: BlockMask, scale: float, *, hopper: bool = False
) -> tuple[torch.Tensor, torch.Tensor]:
    """Attends q [T, Hq, D] to k and v [T, Hkv, D] -> O [T, Hq, D] and L float32 [T, Hq], both differentiable.

    `hopper` takes the forward of `impl.hopper`. The backward is the same.
    """
    blocks = [block_mask.block_m, block_mask.block_n]
    out, lse_log2 = attention(q, k, v, block_mask.tensors, blocks, float(scale), hopper)
    return out, (lse_log2 * math.log(2)).transpose(0, 1)


@torch.library.custom_op("videoseek_kernels::attention", mutates_args=())
def attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    mask: Sequence[torch.Tensor],
    blocks: Sequence[int],
    scale: float,
    hopper: bool,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns O like q and L float32 [Hq, T] in log2 units. `mask` and `blocks` are the parts of a `BlockMask`."""
    q, k, v = q.contiguous(), k.contiguous(), v.contiguous()
    out = torch.empty_like(q)
    lse_log2 = torch.empty(q.shape[1], q.shape[0], dtype=torch.float32, device=q.device)
    block_mask = BlockMask.of(mask, blocks)
    with torch.cuda.device_of(q):
        if hopper:
            from videoseek_kernels.impl.hopper.forward import hopper_launch

            hopper_launch((q, k, v), (out, lse_log2), block_mask, scale).run()
        else:
            config = tile_config("forward", capability_of(q.device), q.dtype)
            forward_launch((q, k, v), (out, lse_log2), block_mask, scale, config).run()
    return out, lse_log2


@torch.library.custom_op("videoseek_kernels::attention_backward", mutates_args=())
def attention_backward(
    inputs: Sequence[torch.Tensor],
    d_out: torch.Tensor | None,
    d_lse: torch.Tensor | None,
    mask: Sequence[torch.Tensor],
    blocks: Sequence[int],
    scale: float,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Returns dq, dk and dv of `inputs` (q, k, v, O, L) for dO like O and dL [Hq, T] of L in natural units."""
    q, k, v, out, lse = inputs
    q, k, v = q.contiguous(), k.contiguous(), v.contiguous()
    block_mask = BlockMask.of(mask, blocks)
    d_out = torch.zeros_like(out) if d_out is None else d_out.contiguous()
    d_lse = None if d_lse is None else d_lse.contiguous()
    capability = capability_of(q.device)
    with torch.cuda.device_of(q):
        # dq comes first: the dq kernel also writes delta for dk and dv.
        dq, delta = torch.empty_like(q), torch.empty_like(lse)
        config = tile_config("dq", capability, q.dtype)
        dq_launch((q, k, v), (out, lse), (d_out, d_lse), (dq, delta), block_mask, scale, config).run()

        dk, dv = empty_parts(k, block_mask)
        config = tile_config("dkdv", capability, q.dtype)
        dkdv_launch((q, k, v), (d_out, lse, delta), (dk, dv), block_mask, scale, config).run()
    if len(dk) > 1:
        return dq, dk.sum(0).to(k.dtype), dv.sum(0).to(v.dtype)
    return dq, dk[0], dv[0]


@attention.register_fake
def _(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    mask: Sequence[torch.Tensor],
    blocks: Sequence[int],
    scale: float,
    hopper: bool,
) -> tuple[torch.Tensor, torch.Tensor]:
    return q.new_empty(q.shape), q.new_empty(q.shape[1], q.shape[0], dtype=torch.float32)


@attention_backward.register_fake
def _(
    inputs: Sequence[torch.Tensor],
    d_out: torch.Tensor | None,
    d_lse: torch.Tensor | None,
    mask: Sequence[torch.Tensor],
    blocks: Sequence[int],
    scale: float,
) -> tuple[torch.Tensor, ...]:
    return tuple(x.new_empty(x.shape) for x in inputs[:3])


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[torch.Tensor, torch.Tensor]) -> None:
    q, k, v, mask, ctx.blocks, ctx.scale, _ = inputs
    ctx.save_for_backward(q, k, v, *output, *mask)
    ctx.set_materialize_grads(False)


def _backward(ctx: Any, d_out: torch.Tensor | None, d_lse_log2: torch.Tensor | None) -> tuple[Any, ...]:
    saved = ctx.saved_tensors  # once: activation checkpointing recomputes at the first reading, and refuses a second
    inputs, mask = list(saved[:5]), list(saved[5:])
    d_lse = None if d_lse_log2 is None else d_lse_log2 * (1 / math.log(2))
    gradients = attention_backward(inputs, d_out, d_lse, mask, ctx.blocks, ctx.scale)
    return *gradients, [None] * len(mask), None, None, None


attention.register_autograd(_backward, setup_context=_keep)


@register_flop_formula(torch.ops.videoseek_kernels.attention, get_raw=True)
def attention_flops(q: torch.Tensor, *arguments: Any, **_: Any) -> int:
    """Returns the operations of the forward: two products over the causal triangle, an upper bound of every mask.

    The visible pairs are data on the device, and a count must not wait for the device.
    """
    num_tokens, num_heads, head_dim = q.shape
    return 2 * 2 * num_heads * head_dim * (num_tokens * (num_tokens + 1) // 2)


@register_flop_formula(torch.ops.videoseek_kernels.attention_backward, get_raw=True)
def attention_backward_flops(inputs: Sequence[torch.Tensor], *arguments: Any, **_: Any) -> int:
    """Returns the operations of the backward: five products, of which two run twice and count once."""
    return attention_flops(inputs[0]) * 5 // 2


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
