"""Rotates q and k by M-RoPE tables, with a program per stretch of tokens and head."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from videoseek_kernels.impl.triton.launch import Launch, TileConfig

_TILE = TileConfig(block_m=64, block_n=0, num_warps=4, num_stages=1)


@triton.jit(do_not_specialize=["num_tokens"])
def mrope_kernel(
    q,
    k,
    q_out,
    k_out,
    cos,
    sin,
    sign,
    num_tokens,
    HQ: tl.constexpr,
    HKV: tl.constexpr,
    D: tl.constexpr,
    BM: tl.constexpr,
):
    HALF: tl.constexpr = D // 2
    i_h = tl.program_id(1)
    o_m = tl.program_id(0) * BM + tl.arange(0, BM)
    o_d = tl.arange(0, HALF)
    m_row = (o_m < num_tokens)[:, None]
    p_table = o_m[:, None] * HALF + o_d[None, :]
    b_cos = tl.load(cos + p_table, mask=m_row, other=0.0)  # [BM, D / 2]
    b_sin = tl.load(sin + p_table, mask=m_row, other=0.0) * sign
    if i_h < HQ:
        p_row = o_m.to(tl.int64)[:, None] * (HQ * D) + i_h * D + o_d[None, :]
        rotate_row(q + p_row, q_out + p_row, b_cos, b_sin, m_row, HALF)
    else:
        p_row = o_m.to(tl.int64)[:, None] * (HKV * D) + (i_h - HQ) * D + o_d[None, :]
        rotate_row(k + p_row, k_out + p_row, b_cos, b_sin, m_row, HALF)


@triton.jit
def rotate_row(p_in, p_out, b_cos, b_sin, m_row, HALF: tl.constexpr):
    b_low = tl.load(p_in, mask=m_row, other=0.0).to(tl.float32)
    b_high = tl.load(p_in + HALF, mask=m_row, other=0.0).to(tl.float32)
    tl.store(p_out, (b_low * b_cos - b_high * b_sin).to(p_out.dtype.element_ty), mask=m_row)
    tl.store(p_out + HALF, (b_high * b_cos + b_low * b_sin).to(p_out.dtype.element_ty), mask=m_row)


def rotate_launch(
    inputs: tuple[torch.Tensor, torch.Tensor],
    outputs: tuple[torch.Tensor, torch.Tensor],
    tables: tuple[torch.Tensor, torch.Tensor],
    sign: float,
) -> Launch:
    """Returns a launch (q [T, Hq, D], k [T, Hkv, D]) -> q, k rotated by sign times the tables' angle; contiguous."""
    (q, k), (q_out, k_out), (cos, sin) = inputs, outputs, tables
    num_tokens, num_heads, head_dim = q.shape
    arguments = {
        "q": q,
        "k": k,
        "q_out": q_out,
        "k_out": k_out,
        "cos": cos,
        "sin": sin,
        "sign": sign,
        "num_tokens": num_tokens,
    }
    constants = {"HQ": num_heads, "HKV": k.shape[1], "D": head_dim, "BM": _TILE.block_m}
    grid = (triton.cdiv(num_tokens, _TILE.block_m), num_heads + k.shape[1])
    return Launch(mrope_kernel, grid, arguments, constants, _TILE)


def rotate(
    q: torch.Tensor, k: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, sign: float
) -> tuple[torch.Tensor, torch.Tensor]:
    q, k = q.contiguous(), k.contiguous()
    outputs = torch.empty_like(q), torch.empty_like(k)
    with torch.cuda.device_of(q):
        rotate_launch((q, k), outputs, (cos, sin), sign).run()
    return outputs
