"""Forward: O and L of one tile of rows and one head, over the key tiles that its block list names.

Letters: T tokens, HQ and HKV heads, D head size, BM rows and BN keys a tile; SUB_M and SUB_N tiles a block of the plan.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from videoseek_kernels.plan import Plan, TileLists
from videoseek_kernels.tier1.launch import Launch, TileConfig, rows_of
from videoseek_kernels.tier1.primitives import load_per_token, load_rows, row_tile, sees, store_rows


@triton.jit(do_not_specialize=["num_tokens", "num_tiles"])
def attn_fwd_kernel(
    q,
    k,
    v,
    out,
    lse,
    key_word,
    visible,
    tiles,
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

    # The running maximum lives in log2 units and starts finite: a blind row then gives exp2(-inf) = 0, never NaN.
    scale_log2 = scale * 1.4426950408889634
    b_max = tl.full([BM], -1.0e30, tl.float32)
    b_sum = tl.zeros([BM], tl.float32)
    b_out = tl.zeros([BM, D], tl.float32)
    i_first = tl.load(offsets + i_block) * SUB_N
    i_last = tl.load(offsets + i_block + 1) * SUB_N
    i_partial = i_first + tl.load(num_full + i_block) * SUB_N
    for i in range(i_first, i_last):
        i_n = (tl.load(tiles + i // SUB_N) * SUB_N + i % SUB_N) * BN
        b_k = load_rows(k, i_n, i_kv, num_tokens, HKV, D, BN, TMA)  # [BN, D]
        b_s = tl.dot(b_q, tl.trans(b_k), input_precision="ieee")  # [BM, BN]
        if i >= i_partial:
            o_n = i_n + tl.arange(0, BN)
            b_word = tl.load(key_word + o_n)
            b_s = tl.where(sees(o_m[:, None], b_visible[:, None], o_n[None, :], b_word[None, :]), b_s, float("-inf"))
        b_next = tl.maximum(b_max, tl.max(b_s, 1) * scale_log2)
        b_p = tl.exp2(b_s * scale_log2 - b_next[:, None])
        b_decay = tl.exp2(b_max - b_next)
        b_sum = b_sum * b_decay + tl.sum(b_p, 1)
        b_v = load_rows(v, i_n, i_kv, num_tokens, HKV, D, BN, TMA)  # [BN, D]
        b_out = tl.dot(b_p.to(b_v.dtype), b_v, b_out * b_decay[:, None], input_precision="ieee")
        b_max = b_next

    m_sighted = b_sum > 0
    b_out = b_out / tl.where(m_sighted, b_sum, 1.0)[:, None]
    b_lse = tl.where(m_sighted, b_max + tl.log2(b_sum), float("-inf"))
    store_rows(out, b_out, i_m, i_h, num_tokens, HQ, D, BM, TMA)
    tl.store(lse + i_h.to(tl.int64) * num_tokens + o_m, b_lse, mask=o_m < num_tokens)


def tile_constants(q: torch.Tensor, k: torch.Tensor, plan: Plan, config: TileConfig) -> dict[str, int | bool]:
    """The constants that all kernels share."""
    return {
        "HQ": q.shape[1],
        "HKV": k.shape[1],
        "D": q.shape[2],
        "BM": config.block_m,
        "BN": config.block_n,
        "SUB_M": plan.block_m // config.block_m,
        "SUB_N": plan.block_n // config.block_n,
        "TMA": config.tma,
    }


def list_arguments(plan: Plan, lists: TileLists, scale: float, num_tiles: int) -> dict[str, torch.Tensor | float]:
    """The arguments that all kernels share: the mask, one direction of the plan's lists, and how much work there is."""
    return {
        "key_word": plan.key_word,
        "visible": plan.mask.visible,
        "tiles": lists.tiles,
        "offsets": lists.offsets,
        "num_full": lists.num_full,
        "order": lists.order,
        "scale": scale,
        "num_tokens": len(plan),
        "num_tiles": num_tiles,
    }


def forward_launch(
    inputs: tuple[torch.Tensor, torch.Tensor, torch.Tensor],
    outputs: tuple[torch.Tensor, torch.Tensor],
    plan: Plan,
    scale: float,
    config: TileConfig,
) -> Launch:
    """(q [T, Hq, D], k and v [T, Hkv, D]) -> (O like q, L float32 [Hq, T] in log2 units); all contiguous."""
    config = config.within(plan.block_m, plan.block_n)
    (q, k, v), (out, lse) = inputs, outputs
    lists = plan.by_query
    num_tiles = lists.order.shape[0] * (plan.block_m // config.block_m)
    arguments = {
        "q": rows_of(q, config.block_m, config.tma),
        "k": rows_of(k, config.block_n, config.tma),
        "v": rows_of(v, config.block_n, config.tma),
        "out": rows_of(out, config.block_m, config.tma),
        "lse": lse,
        **list_arguments(plan, lists, scale, num_tiles),
    }
    grid = (num_tiles * q.shape[1],)
    return Launch(attn_fwd_kernel, grid, arguments, tile_constants(q, k, plan, config), config)
