"""Backward in two deterministic kernels without atomics: dq keeps rows in place, dk and dv keep keys in place.

With P = exp(S - L), dP = dO V^T, delta = rowsum(dO * O) - dL:  dS = P * (dP - delta),
dQ = scale * dS K,  dK = scale * dS^T Q,  dV = P^T dO.  The README derives dS. Letters as in `forward.py`.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from videoseek_kernels.block_mask import BlockMask
from videoseek_kernels.impl.triton.forward import list_arguments, tile_constants
from videoseek_kernels.impl.triton.launch import Launch, TileConfig, rows_of
from videoseek_kernels.impl.triton.primitives import key_program, load_per_token, load_rows, row_tile, sees, store_rows


@triton.jit(do_not_specialize=["num_tokens", "num_tiles"])
def attn_bwd_kernel_dq(
    q,
    k,
    v,
    out,
    d_out,
    lse,
    d_lse,
    dq,
    delta,
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
    HAS_D_LSE: tl.constexpr,
):
    i_block, i_tile, i_h, i_kv = row_tile(order, num_tiles, HQ, HKV, SUB_M)
    i_m = i_tile * BM
    o_m = i_m + tl.arange(0, BM)
    i_vector = i_h.to(tl.int64) * num_tokens
    b_visible = load_per_token(visible, i_m, num_tokens, BM)
    b_d_out = load_rows(d_out, i_m, i_h, num_tokens, HQ, D, BM, TMA)  # [BM, D]
    b_out = load_rows(out, i_m, i_h, num_tokens, HQ, D, BM, TMA)  # [BM, D]
    b_delta = tl.sum(b_d_out.to(tl.float32) * b_out.to(tl.float32), 1)
    if HAS_D_LSE:
        b_delta -= load_per_token(d_lse + i_vector, i_m, num_tokens, BM)
    tl.store(delta + i_vector + o_m, b_delta, mask=o_m < num_tokens)
    b_lse = load_per_token(lse + i_vector, i_m, num_tokens, BM)
    b_q = load_rows(q, i_m, i_h, num_tokens, HQ, D, BM, TMA)  # [BM, D]

    scale_log2 = scale * 1.4426950408889634
    b_dq = tl.zeros([BM, D], tl.float32)
    i_first = tl.load(offsets + i_block) * SUB_N
    i_last = tl.load(offsets + i_block + 1) * SUB_N
    i_partial = i_first + tl.load(num_full + i_block) * SUB_N
    for i in range(i_first, i_last):
        i_n = (tl.load(indices + i // SUB_N) * SUB_N + i % SUB_N) * BN
        b_k = load_rows(k, i_n, i_kv, num_tokens, HKV, D, BN, TMA)  # [BN, D]
        b_v = load_rows(v, i_n, i_kv, num_tokens, HKV, D, BN, TMA)  # [BN, D]
        b_s = tl.dot(b_q, tl.trans(b_k), input_precision="ieee")  # [BM, BN]
        b_p = tl.exp2(b_s * scale_log2 - b_lse[:, None])
        if i >= i_partial:
            # A select instead of a product: a blind row has L = -inf, and so P = inf before the select.
            o_n = i_n + tl.arange(0, BN)
            b_word = tl.load(key_word + o_n)
            b_p = tl.where(sees(o_m[:, None], b_visible[:, None], o_n[None, :], b_word[None, :]), b_p, 0.0)
        b_dp = tl.dot(b_d_out, tl.trans(b_v), input_precision="ieee")  # [BM, BN]
        b_ds = b_p * (b_dp - b_delta[:, None])
        b_dq = tl.dot(b_ds.to(b_k.dtype), b_k, b_dq, input_precision="ieee")
    store_rows(dq, b_dq * scale, i_m, i_h, num_tokens, HQ, D, BM, TMA)


@triton.jit(do_not_specialize=["num_tokens", "num_splits"])
def attn_bwd_kernel_dkdv(
    q,
    k,
    v,
    d_out,
    lse,
    delta,
    dk,
    dv,
    key_word,
    visible,
    indices,
    offsets,
    num_full,
    order,
    scale,
    num_tokens,
    num_splits,
    HQ: tl.constexpr,
    HKV: tl.constexpr,
    D: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
    SUB_M: tl.constexpr,
    SUB_N: tl.constexpr,
    TMA: tl.constexpr,
):
    """Computes a key tile of a KV head against one of num_splits shares of the tile's (query head, row tile) pairs."""
    GROUP: tl.constexpr = HQ // HKV
    i_rank, i_kv, i_split = key_program(tl.program_id(0), num_splits, HKV)
    i_block = tl.load(order + i_rank // SUB_N)
    i_n = (i_block * SUB_N + i_rank % SUB_N) * BN
    o_n = i_n + tl.arange(0, BN)
    b_word = tl.load(key_word + o_n)
    b_k = load_rows(k, i_n, i_kv, num_tokens, HKV, D, BN, TMA)  # [BN, D]
    b_v = load_rows(v, i_n, i_kv, num_tokens, HKV, D, BN, TMA)  # [BN, D]

    scale_log2 = scale * 1.4426950408889634
    b_dk = tl.zeros([BN, D], tl.float32)
    b_dv = tl.zeros([BN, D], tl.float32)
    p_indices = indices + tl.load(offsets + i_block)
    num_rows = (tl.load(offsets + i_block + 1) - tl.load(offsets + i_block)) * SUB_M
    num_unmasked = tl.load(num_full + i_block) * SUB_M
    num_work = num_rows * GROUP
    i_first = (num_work.to(tl.int64) * i_split // num_splits).to(tl.int32)
    i_last = (num_work.to(tl.int64) * (i_split + 1) // num_splits).to(tl.int32)
    for i in range(i_first, i_last):
        i_row = i % num_rows
        i_h = i_kv * GROUP + i // num_rows
        i_m = (tl.load(p_indices + i_row // SUB_M) * SUB_M + i_row % SUB_M) * BM
        i_vector = i_h.to(tl.int64) * num_tokens
        b_q = load_rows(q, i_m, i_h, num_tokens, HQ, D, BM, TMA)  # [BM, D]
        b_d_out = load_rows(d_out, i_m, i_h, num_tokens, HQ, D, BM, TMA)  # [BM, D]
        b_lse = load_per_token(lse + i_vector, i_m, num_tokens, BM)
        b_delta = load_per_token(delta + i_vector, i_m, num_tokens, BM)
        b_st = tl.dot(b_k, tl.trans(b_q), input_precision="ieee")  # [BN, BM]
        b_pt = tl.exp2(b_st * scale_log2 - b_lse[None, :])
        if i_row >= num_unmasked:
            b_visible = load_per_token(visible, i_m, num_tokens, BM)
            o_m = i_m + tl.arange(0, BM)
            b_pt = tl.where(sees(o_m[None, :], b_visible[None, :], o_n[:, None], b_word[:, None]), b_pt, 0.0)
        b_dv = tl.dot(b_pt.to(b_d_out.dtype), b_d_out, b_dv, input_precision="ieee")
        b_dpt = tl.dot(b_v, tl.trans(b_d_out), input_precision="ieee")  # [BN, BM]
        b_dst = b_pt * (b_dpt - b_delta[None, :])
        b_dk = tl.dot(b_dst.to(b_q.dtype), b_q, b_dk, input_precision="ieee")

    # The parts are concatenated: [split, T, HKV, D].
    o_part = i_split.to(tl.int64) * num_tokens + o_n
    p_part = o_part[:, None] * (HKV * D) + i_kv * D + tl.arange(0, D)[None, :]
    m_row = (o_n < num_tokens)[:, None]
    tl.store(dk + p_part, (b_dk * scale).to(dk.dtype.element_ty), mask=m_row)
    tl.store(dv + p_part, b_dv.to(dv.dtype.element_ty), mask=m_row)


def dq_launch(
    inputs: tuple[torch.Tensor, torch.Tensor, torch.Tensor],
    results: tuple[torch.Tensor, torch.Tensor],
    upstream: tuple[torch.Tensor, torch.Tensor | None],
    outputs: tuple[torch.Tensor, torch.Tensor],
    block_mask: BlockMask,
    scale: float,
    config: TileConfig,
) -> Launch:
    """Returns the launch of (q, k, v), (O, L), (dO, dL or None) -> (dq like q, delta); all contiguous.

    L, dL and delta are float32 [Hq, T], L in log2 units.
    """
    config = config.within(block_mask.block_m, block_mask.block_n)
    (q, k, v), (out, lse), (d_out, d_lse), (dq, delta) = inputs, results, upstream, outputs
    lists = block_mask.by_query
    num_tiles = lists.order.shape[0] * (block_mask.block_m // config.block_m)
    arguments = {
        "q": rows_of(q, config.block_m, config.tma),
        "k": rows_of(k, config.block_n, config.tma),
        "v": rows_of(v, config.block_n, config.tma),
        "out": rows_of(out, config.block_m, config.tma),
        "d_out": rows_of(d_out, config.block_m, config.tma),
        "lse": lse,
        "d_lse": lse if d_lse is None else d_lse,
        "dq": rows_of(dq, config.block_m, config.tma),
        "delta": delta,
        **list_arguments(block_mask, lists, scale),
        "num_tiles": num_tiles,
    }
    constants = tile_constants(q, k, block_mask, config) | {"HAS_D_LSE": d_lse is not None}
    return Launch(attn_bwd_kernel_dq, (num_tiles * q.shape[1],), arguments, constants, config)


def dkdv_launch(
    inputs: tuple[torch.Tensor, torch.Tensor, torch.Tensor],
    upstream: tuple[torch.Tensor, torch.Tensor, torch.Tensor],
    outputs: tuple[torch.Tensor, torch.Tensor],
    block_mask: BlockMask,
    scale: float,
    config: TileConfig,
) -> Launch:
    """Returns the launch of (q, k, v), (dO, L, delta) -> (dk, dv), each [num_splits, T, Hkv, D]; sum the first axis."""
    config = config.within(block_mask.block_m, block_mask.block_n)
    (q, k, v), (d_out, lse, delta), (dk, dv) = inputs, upstream, outputs
    lists = block_mask.by_key
    num_splits = dk.shape[0]
    num_tiles = lists.order.shape[0] * (block_mask.block_n // config.block_n)
    arguments = {
        "q": rows_of(q, config.block_m, config.tma),
        "k": rows_of(k, config.block_n, config.tma),
        "v": rows_of(v, config.block_n, config.tma),
        "d_out": rows_of(d_out, config.block_m, config.tma),
        "lse": lse,
        "delta": delta,
        "dk": dk,
        "dv": dv,
        **list_arguments(block_mask, lists, scale),
        "num_splits": num_splits,
    }
    grid = (num_tiles * k.shape[1] * num_splits,)
    return Launch(attn_bwd_kernel_dkdv, grid, arguments, tile_constants(q, k, block_mask, config), config)
