"""The mask on FlexAttention of torch: the same block lists, and the three integers of a token as `mask_mod`.

With `backend="FLASH"` torch runs FlashAttention 4 under the mask (Hopper and later, package flash-attn-4), with
"TRITON" torch's own template. Both compile once per shape. Without a GPU FlexAttention runs eagerly, builds
T x T scores and has no backward.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from torch.nn.attention.flex_attention import BlockMask as FlexMask
from torch.nn.attention.flex_attention import flex_attention

from videoseek_kernels.block_mask import BlockLists, BlockMask

BACKENDS = ("FLASH", "TRITON")


def attend(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    block_mask: BlockMask,
    scale: float,
    backend: str = "FLASH",
) -> tuple[torch.Tensor, torch.Tensor]:
    """Attends q [T, Hq, D] to k and v [T, Hkv, D] -> O [T, Hq, D] and L float32 [T, Hq], differentiable."""
    mask = block_mask.forms.get("flex") or flex_mask(block_mask)
    block_mask.forms["flex"] = mask
    query, key, value = (x.transpose(0, 1).unsqueeze(0) for x in (q, k, v))
    grouped, on_gpu = q.shape[1] != k.shape[1], q.device.type == "cuda"
    run: Any = flex_attention
    options: dict[str, Any] = {"block_mask": mask, "scale": scale, "enable_gqa": grouped, "return_lse": True}
    if on_gpu:
        run, options = _compiled(), options | {"kernel_options": {"BACKEND": backend}}
    out, lse = run(query, key, value, **options)
    return out[0].transpose(0, 1), lse[0].transpose(0, 1)


@cache
def _compiled() -> Any:
    return torch.compile(flex_attention, dynamic=False)


def flex_mask(block_mask: BlockMask) -> FlexMask:
    """Returns a mask for FlexAttention with the block lists of `block_mask`."""
    end, key_class, visible = block_mask.mask.end, block_mask.mask.key_class, block_mask.mask.visible

    def sees(_batch: torch.Tensor, _head: torch.Tensor, m: torch.Tensor, n: torch.Tensor) -> torch.Tensor:
        return (n <= m) & (m < end[n]) & ((visible[m] & key_class[n]) != 0)

    num_key_blocks = block_mask.by_key.order.shape[0]
    full, partial = _tables(block_mask.by_query, num_key_blocks)
    return FlexMask.from_kv_blocks(
        *partial,
        *full,
        BLOCK_SIZE=(block_mask.block_m, block_mask.block_n),
        mask_mod=sees,
        seq_lengths=(len(block_mask), len(block_mask)),
    )


def _tables(lists: BlockLists, num_columns: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Returns (counts [1, 1, n], indices [1, 1, n, num_columns]) of the FULL and of the PARTIAL blocks, int32."""
    counts, num_full = lists.offsets.diff(), lists.num_full
    slot = torch.arange(num_columns, device=counts.device)
    tables = []
    for first, number in ((lists.offsets[:-1], num_full), (lists.offsets[:-1] + num_full, counts - num_full)):
        place = (first[:, None] + slot).clamp(max=len(lists.indices) - 1)
        # Slots behind a list hold the other columns in FlexAttention's own masks. No kernel reads these slots.
        indices = torch.where(slot < number[:, None], lists.indices[place], 0)
        tables.append((number[None, None], indices[None, None].int()))
    return tables
