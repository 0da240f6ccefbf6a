"""Attention under task-decoupled masks, packing and shared prefixes, from stock PyTorch and Triton."""

from __future__ import annotations

from videoseek_kernels.attention import tdam_attention
from videoseek_kernels.decode import decode_attention
from videoseek_kernels.mask import TokenMask
from videoseek_kernels.plan import plan

__all__ = ["TokenMask", "decode_attention", "plan", "tdam_attention"]
