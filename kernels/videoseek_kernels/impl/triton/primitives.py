"""Parts of all attention kernels: a program's tile, loads and stores of rows, the mask, and the online softmax."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def row_tile(order, num_tiles, HQ: tl.constexpr, HKV: tl.constexpr, SUB_M: tl.constexpr):
    """Returns this program's mask block, row tile, head and KV head: heads of a KV head in turn, long lists first."""
    i_rank, i_h, i_kv = row_program(tl.program_id(0), num_tiles, HQ // HKV)
    i_block = tl.load(order + i_rank // SUB_M)
    return i_block, i_block * SUB_M + i_rank % SUB_M, i_h, i_kv


@triton.jit
def row_program(i_program, num_tiles, GROUP):
    """Returns a program's rank in the order of row tiles, head and KV head; also on Python's integers."""
    i_kv = i_program // (num_tiles * GROUP)
    i_rank = i_program % (num_tiles * GROUP) // GROUP
    return i_rank, i_kv * GROUP + i_program % GROUP, i_kv


@triton.jit
def key_program(i_program, num_splits, HKV):
    """Returns a program's rank in the order of key tiles, KV head and part; also on Python's integers.

    Heads vary before ranks: all heads of the longest tile start first, and short tiles fill the last wave.
    """
    return i_program // num_splits // HKV, i_program // num_splits % HKV, i_program % num_splits


@triton.jit
def load_rows(x, i_row, i_head, num_tokens, H: tl.constexpr, D: tl.constexpr, BLOCK: tl.constexpr, TMA: tl.constexpr):
    """Loads rows [i_row, i_row + BLOCK) of a head of x [T, H, D]; rows past the end read as zero."""
    if TMA:
        b_x = x.load([i_row, i_head * D])
    else:
        o_row = i_row + tl.arange(0, BLOCK)
        p_x = x + o_row.to(tl.int64)[:, None] * (H * D) + i_head * D + tl.arange(0, D)[None, :]
        b_x = tl.load(p_x, mask=(o_row < num_tokens)[:, None], other=0.0)
    return b_x


@triton.jit
def store_rows(
    x, b_x, i_row, i_head, num_tokens, H: tl.constexpr, D: tl.constexpr, BLOCK: tl.constexpr, TMA: tl.constexpr
):
    """Stores rows as `load_rows` loads rows; rows past the end are dropped."""
    if TMA:
        x.store([i_row, i_head * D], b_x.to(x.dtype))
    else:
        o_row = i_row + tl.arange(0, BLOCK)
        p_x = x + o_row.to(tl.int64)[:, None] * (H * D) + i_head * D + tl.arange(0, D)[None, :]
        tl.store(p_x, b_x.to(x.dtype.element_ty), mask=(o_row < num_tokens)[:, None])


@triton.jit
def load_per_token(x, i_row, num_tokens, BLOCK: tl.constexpr):
    """Loads x[i_row : i_row + BLOCK] of a vector [T], zero past the end: zero is the empty set of visible classes."""
    o_row = i_row + tl.arange(0, BLOCK)
    return tl.load(x + o_row, mask=o_row < num_tokens, other=0)


@triton.jit
def sees(o_m, b_visible, o_n, b_word):
    """Returns visible(m, n), broadcast: row index and class set along m, key index and `end << 5 | class` along n."""
    return (o_n <= o_m) & (o_m < (b_word >> 5)) & (((b_visible >> (b_word & 31)) & 1) != 0)


@triton.jit
def online_softmax(b_s, b_max, b_sum, scale_log2):
    """Adds scores [M, N] to a softmax with the running maximum b_max [M] and sum b_sum [M] (arXiv 1805.02867).

    Returns probabilities [M, N] under the new maximum, the new maximum and sum, and the decay factor [M] for sums under
    the old maximum. The maximum is in log2 units and starts at a finite -1e30: a row before the first visible key then
    gives exp2(-inf) = 0, never NaN.
    """
    b_next = tl.maximum(b_max, tl.max(b_s, 1) * scale_log2)
    b_p = tl.exp2(b_s * scale_log2 - b_next[:, None])
    b_decay = tl.exp2(b_max - b_next)
    return b_p, b_next, b_sum * b_decay + tl.sum(b_p, 1), b_decay
