"""Forward: O and L of a tile of rows and a head, over the key blocks in the tile's list.

Letters: T tokens, HQ and HKV heads, D head size, BM rows and BN keys a tile; SUB_M and SUB_N tiles a block of the mask.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from videoseek_kernels.block_mask import BlockLists, BlockMask
from videoseek_kernels.impl.triton.launch import Launch, TileConfig, rows_of
from videoseek_kernels.impl.triton.primitives import (
    load_per_token,
    load_rows,
    online_softmax,
    row_tile,
    sees,
    store_rows,
)


@triton.jit(do_not_specialize=["num_tokens", "num_tiles"])
def attn_fwd_kernel(
    q,
    k,
    v,
    out,
    lse,
    key_word,
    visible,
    indices,
    offsets,
    num_full,
    order,
    scale,
    num_tokens,
    num_tiles,
    HQ: tl.constexpr,
    HKV: tl.constexpr,
    D: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
    SUB_M: tl.constexpr,
    SUB_N: tl.constexpr,
    TMA: tl.constexpr,
):
    i_block, i_tile, i_h, i_kv = row_tile(order, num_tiles, HQ, HKV, SUB_M)
    i_m = i_tile * BM
    o_m = i_m + tl.arange(0, BM)
    b_visible = load_per_token(visible, i_m, num_tokens, BM)
    b_q = load_rows(q, i_m, i_h, num_tokens, HQ, D, BM, TMA)  # [BM, D]

    scale_log2 = scale * 1.4426950408889634
    b_max = tl.full([BM], -1.0e30, tl.float32)
    b_sum = tl.zeros([BM], tl.float32)
    b_out = tl.zeros([BM, D], tl.float32)
    i_first = tl.load(offsets + i_block) * SUB_N
    i_last = tl.load(offsets + i_block + 1) * SUB_N
    i_partial = i_first + tl.load(num_full + i_block) * SUB_N
    for i in range(i_first, i_last):
        i_n = (tl.load(indices + i // SUB_N) * SUB_N + i % SUB_N) * BN
        b_k = load_rows(k, i_n, i_kv, num_tokens, HKV, D, BN, TMA)  # [BN, D]
        b_s = tl.dot(b_q, tl.trans(b_k), input_precision="ieee")  # [BM, BN]
        if i >= i_partial:
            o_n = i_n + tl.arange(0, BN)
            b_word = tl.load(key_word + o_n)
            b_s = tl.where(sees(o_m[:, None], b_visible[:, None], o_n[None, :], b_word[None, :]), b_s, float("-inf"))
        b_p, b_max, b_sum, b_decay = online_softmax(b_s, b_max, b_sum, scale_log2)
        b_v = load_rows(v, i_n, i_kv, num_tokens, HKV, D, BN, TMA)  # [BN, D]
        b_out = tl.dot(b_p.to(b_v.dtype), b_v, b_out * b_decay[:, None], input_precision="ieee")

    m_sighted = b_sum > 0
    b_out = b_out / tl.where(m_sighted, b_sum, 1.0)[:, None]
    b_lse = tl.where(m_sighted, b_max + tl.log2(b_sum), float("-inf"))
    store_rows(out, b_out, i_m, i_h, num_tokens, HQ, D, BM, TMA)
    tl.store(lse + i_h.to(tl.int64) * num_tokens + o_m, b_lse, mask=o_m < num_tokens)


def tile_constants(
    q: torch.Tensor, k: torch.Tensor, block_mask: BlockMask, config: TileConfig
) -> dict[str, int | bool]:
    """Returns the constants common to all kernels."""
    return {
        "HQ": q.shape[1],
        "HKV": k.shape[1],
        "D": q.shape[2],
        "BM": config.block_m,
        "BN": config.block_n,
        "SUB_M": block_mask.block_m // config.block_m,
        "SUB_N": block_mask.block_n // config.block_n,
        "TMA": config.tma,
    }


def list_arguments(block_mask: BlockMask, lists: BlockLists, scale: float) -> dict[str, torch.Tensor | float]:
    """Returns the arguments common to all kernels: the mask and the lists of one direction."""
    return {
        "key_word": block_mask.key_word,
        "visible": block_mask.mask.visible,
        "indices": lists.indices,
        "offsets": lists.offsets,
        "num_full": lists.num_full,
        "order": lists.order,
        "scale": scale,
        "num_tokens": len(block_mask),
    }


def forward_launch(
    inputs: tuple[torch.Tensor, torch.Tensor, torch.Tensor],
    outputs: tuple[torch.Tensor, torch.Tensor],
    block_mask: BlockMask,
    scale: float,
    config: TileConfig,
) -> Launch:
    """Returns a launch (q [T, Hq, D], k and v [T, Hkv, D]) -> (O like q, L float32 [Hq, T], log2 units); contiguous."""
    config = config.within(block_mask.block_m, block_mask.block_n)
    (q, k, v), (out, lse) = inputs, outputs
    lists = block_mask.by_query
    num_tiles = lists.order.shape[0] * (block_mask.block_m // config.block_m)
    arguments = {
        "q": rows_of(q, config.block_m, config.tma),
        "k": rows_of(k, config.block_n, config.tma),
        "v": rows_of(v, config.block_n, config.tma),
        "out": rows_of(out, config.block_m, config.tma),
        "lse": lse,
        **list_arguments(block_mask, lists, scale),
        "num_tiles": num_tiles,
    }
    grid = (num_tiles * q.shape[1],)
    return Launch(attn_fwd_kernel, grid, arguments, tile_constants(q, k, block_mask, config), config)
