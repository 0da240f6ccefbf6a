"""Attention under task-decoupled masks, packing and shared prefixes, from stock PyTorch and Triton."""

from __future__ import annotations

from videoseek_kernels.api import tdam_attention
from videoseek_kernels.block_mask import build_block_mask
from videoseek_kernels.decode import decode_attention
from videoseek_kernels.mask import TokenMask

__all__ = ["TokenMask", "build_block_mask", "decode_attention", "tdam_attention"]
