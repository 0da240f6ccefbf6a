"""Split-KV decode: partial results over fixed stretches of the caches, then a merge by log-sum-exp.

A tile of rows takes all query heads of a KV head, for all rows of all sequences with a common cache, and reads the
cache once. Stretches have a fixed size, so the result of a sequence is independent of the batch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import triton
import triton.language as tl

from videoseek_kernels.impl.triton.launch import Launch, TileConfig
from videoseek_kernels.impl.triton.primitives import online_softmax

if TYPE_CHECKING:
    from videoseek_kernels.key_values import KeyValues

SPLIT_TOKENS = 512
#: One row per program, block_n parts at a time: few rows still fill the GPU, and many parts take few iterations.
_MERGE_TILE = TileConfig(block_m=1, block_n=32, num_warps=4, num_stages=1)


@triton.jit(do_not_specialize=["scale", "num_slots", "num_rows", "num_all_rows", "first_part"])
def decode_split_kernel(
    q,
    k,
    v,
    lengths,
    key_class,
    visible,
    out,
    lse,
    scale,
    num_slots,
    num_rows,
    num_all_rows,
    first_part,
    R: tl.constexpr,
    HQ: tl.constexpr,
    HKV: tl.constexpr,
    D: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
    SPLIT: tl.constexpr,
    OWN: tl.constexpr,
    CLASSES: tl.constexpr,
):
    """Attends to a stretch of a cache and KV head. num_rows counts the tile rows of a cache: sequences * R * heads."""
    GROUP: tl.constexpr = HQ // HKV
    i_cache = tl.program_id(0) // HKV
    i_kv = tl.program_id(0) % HKV
    i_split = tl.program_id(2)
    o_m = tl.program_id(1) * BM + tl.arange(0, BM)
    m_row = o_m < num_rows
    o_token = i_cache * (num_rows // GROUP) + o_m // GROUP  # index into [B * R]
    o_row = o_token * HQ + i_kv * GROUP + o_m % GROUP  # index into [B * R * HQ]
    o_d = tl.arange(0, D)
    b_q = tl.load(q + o_row.to(tl.int64)[:, None] * D + o_d[None, :], mask=m_row[:, None], other=0.0)  # [BM, D]
    b_visible = tl.load(visible + o_token, mask=m_row, other=0)
    length = tl.minimum(tl.load(lengths + i_cache), num_slots)
    b_limit = tl.where(m_row, length, 0)
    if OWN:
        b_limit = tl.where(m_row, length - R + 1 + o_token % R, 0)

    scale_log2 = scale * 1.4426950408889634
    b_max = tl.full([BM], -1.0e30, tl.float32)
    b_sum = tl.zeros([BM], tl.float32)
    b_out = tl.zeros([BM, D], tl.float32)
    i_slot = i_cache.to(tl.int64) * num_slots
    for i_n in range(i_split * SPLIT, tl.minimum((i_split + 1) * SPLIT, length), BN):
        o_n = i_n + tl.arange(0, BN)
        m_seen = o_n[None, :] < b_limit[:, None]  # [BM, BN]
        if CLASSES:
            b_class = tl.load(key_class + i_slot + o_n, mask=o_n < length, other=0)
            m_seen = m_seen & ((b_visible[:, None] & b_class[None, :]) != 0)
        # The mask is the skip list: a slot hidden from all rows costs no memory traffic.
        m_key = tl.max(m_seen.to(tl.int32), 0) != 0
        p_kv = ((i_slot + o_n) * HKV + i_kv)[:, None] * D + o_d[None, :]
        b_k = tl.load(k + p_kv, mask=m_key[:, None], other=0.0)  # [BN, D]
        b_v = tl.load(v + p_kv, mask=m_key[:, None], other=0.0)  # [BN, D]
        b_s = tl.dot(b_q, tl.trans(b_k), input_precision="ieee")
        b_s = tl.where(m_seen, b_s, float("-inf"))
        b_p, b_max, b_sum, b_decay = online_softmax(b_s, b_max, b_sum, scale_log2)
        b_out = tl.dot(b_p.to(b_v.dtype), b_v, b_out * b_decay[:, None], input_precision="ieee")

    m_sighted = b_sum > 0
    b_out = b_out / tl.where(m_sighted, b_sum, 1.0)[:, None]
    b_lse = tl.where(m_sighted, b_max + tl.log2(b_sum), float("-inf"))
    o_part = (first_part + i_split).to(tl.int64) * num_all_rows + o_row
    tl.store(out + o_part[:, None] * D + o_d[None, :], b_out, mask=m_row[:, None])
    tl.store(lse + o_part, b_lse, mask=m_row)


@triton.jit(do_not_specialize=["num_parts", "num_all_rows"])
def decode_merge_kernel(parts, lse, out, num_parts, num_all_rows, D: tl.constexpr, BP: tl.constexpr):
    """Averages a row's parts [num_parts, rows, D] with weights exp2(lse), lse in log2 units. A blind row gives 0."""
    i_row = tl.program_id(0).to(tl.int64)
    o_d = tl.arange(0, D)
    b_max = -1.0e30
    b_sum = 0.0
    b_out = tl.zeros([D], tl.float32)
    for i_first in range(0, num_parts, BP):
        o_part = i_first + tl.arange(0, BP)
        m_part = o_part < num_parts
        p_part = o_part.to(tl.int64) * num_all_rows + i_row
        b_lse = tl.load(lse + p_part, mask=m_part, other=float("-inf"))
        b_part = tl.load(parts + p_part[:, None] * D + o_d[None, :], mask=m_part[:, None], other=0.0)  # [BP, D]
        b_next = tl.maximum(b_max, tl.max(b_lse, 0))
        b_weight = tl.exp2(b_lse - b_next)
        b_decay = tl.exp2(b_max - b_next)
        b_sum = b_sum * b_decay + tl.sum(b_weight, 0)
        b_out = b_out * b_decay + tl.sum(b_part * b_weight[:, None], 0)
        b_max = b_next
    b_out = b_out / tl.where(b_sum > 0, b_sum, 1.0)
    tl.store(out + i_row * D + o_d, b_out.to(out.dtype.element_ty))


def split_launch(
    q: torch.Tensor,
    cache: KeyValues,
    visible: torch.Tensor,
    partials: tuple[torch.Tensor, torch.Tensor],
    first_part: int,
    own: bool,
    scale: float,
) -> Launch:
    """Returns a cache set's launch into float32 [parts, B * R * Hq, D] and [parts, B * R * Hq] from first_part on."""
    (num_sequences, rows_each, num_heads, head_dim), (parts, lse) = q.shape, partials
    num_caches, num_slots, num_kv_heads, _ = cache.k.shape
    num_rows = num_sequences // num_caches * rows_each * num_heads // num_kv_heads
    wide, block_m = q.element_size() > 2, min(64, max(16, triton.next_power_of_2(num_rows)))
    tile = TileConfig(block_m, 32 if wide else 64, num_warps=8 if block_m == 64 else 4, num_stages=2 if wide else 3)
    arguments = {
        "q": q,
        "k": cache.k,
        "v": cache.v,
        "lengths": cache.lengths,
        "key_class": cache.lengths if cache.key_class is None else cache.key_class,
        "visible": visible,
        "out": parts,
        "lse": lse,
        "scale": scale,
        "num_slots": num_slots,
        "num_rows": num_rows,
        "num_all_rows": lse.shape[1],
        "first_part": first_part,
    }
    constants = {
        "R": rows_each,
        "HQ": num_heads,
        "HKV": num_kv_heads,
        "D": head_dim,
        "BM": tile.block_m,
        "BN": tile.block_n,
        "SPLIT": SPLIT_TOKENS,
        "OWN": own,
        "CLASSES": cache.key_class is not None,
    }
    grid = (num_caches * num_kv_heads, triton.cdiv(num_rows, tile.block_m), triton.cdiv(num_slots, SPLIT_TOKENS))
    return Launch(decode_split_kernel, grid, arguments, constants, tile)


def merge_launch(parts: torch.Tensor, lse: torch.Tensor, out: torch.Tensor) -> Launch:
    """Returns a launch (parts [parts, rows, D], lse [parts, rows] in log2 units, both float32) -> out, rows of [D]."""
    num_parts, num_all_rows, head_dim = parts.shape
    arguments = {
        "parts": parts,
        "lse": lse,
        "out": out,
        "num_parts": num_parts,
        "num_all_rows": num_all_rows,
    }
    constants = {"D": head_dim, "BP": _MERGE_TILE.block_n}
    return Launch(decode_merge_kernel, (num_all_rows,), arguments, constants, _MERGE_TILE)


def decode(
    q: torch.Tensor, cache: KeyValues, prefix: KeyValues | None, visible: torch.Tensor, scale: float
) -> torch.Tensor:
    """Runs split and merge: q [B, R, Hq, D], visible int32 [B, R] -> [B, R, Hq, D]."""
    q, visible = q.contiguous(), visible.contiguous()
    sets = [(cache, True)] if prefix is None else [(prefix, False), (cache, True)]
    counts = [triton.cdiv(held.k.shape[1], SPLIT_TOKENS) for held, _ in sets]
    num_rows = q.shape[0] * q.shape[1] * q.shape[2]
    parts = torch.empty(sum(counts), num_rows, q.shape[3], dtype=torch.float32, device=q.device)
    lse = torch.empty(sum(counts), num_rows, dtype=torch.float32, device=q.device)
    out = torch.empty_like(q)
    with torch.cuda.device_of(q):
        for index, (held, own) in enumerate(sets):
            split_launch(q, held, visible, (parts, lse), sum(counts[:index]), own, scale).run()
        merge_launch(parts, lse, out).run()
    return out
