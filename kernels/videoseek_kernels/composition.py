"""TDAM out of calls that every PyTorch has: causal attention for the runs, then the special rows again.

Exact under autograd: the overwrite cuts the first result's gradient off those rows, so it adds nothing to dq, dk or dv.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.attention.bias import causal_lower_right

from videoseek_kernels.pieces import Piece

#: Which of torch's kernels serve on CUDA, the first that can. cuDNN's is faster on Hopper at a length it has met, but
#: plans anew for each new length, which takes longer than many calls.
FLASH_FIRST = [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]
CUDNN_FIRST = [SDPBackend.CUDNN_ATTENTION, *FLASH_FIRST]


def compose(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    pieces: list[Piece],
    scale: float,
    backends: list[SDPBackend] = FLASH_FIRST,
) -> torch.Tensor:
    """q [T, Hq, D], k and v [T, Hkv, D], pieces in the order of `find_pieces` -> [T, Hq, D]; differentiable."""
    base = [piece for piece in pieces if not piece.override]
    special = [piece for piece in pieces if piece.override]
    parts: list[torch.Tensor] = []
    filled = 0
    with _prefer(backends, q.device):
        for piece in base:
            if filled < piece.start:
                parts.append(torch.zeros_like(q[filled : piece.start]))
            parts.append(_attend(q, k, v, piece, scale))
            filled = piece.stop
        if filled < len(q):
            parts.append(torch.zeros_like(q[filled:]))
        out = torch.cat(parts)
        if not special:
            return out
        rows = torch.cat([torch.arange(piece.start, piece.stop, device=q.device) for piece in special])
        return out.index_copy(0, rows, torch.cat([_attend(q, k, v, piece, scale) for piece in special]))


def _attend(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, piece: Piece, scale: float) -> torch.Tensor:
    rows = slice(piece.start, piece.stop)
    if not piece.num_pairs:
        return torch.zeros_like(q[rows])
    keys, values = (
        torch.cat([x.index_select(0, piece.context), x[rows]] if piece.tail else [x.index_select(0, piece.context)])
        if len(piece.context)
        else x[rows]
        for x in (k, v)
    )
    alone = not len(piece.context)
    bias = causal_lower_right(len(q[rows]), len(keys)) if piece.tail and not alone else None
    # [1, H, L, D]: the layout of torch's flash kernels, as a view.
    query, key, value = (x.transpose(0, 1).unsqueeze(0) for x in (q[rows], keys, values))
    grouped = q.shape[1] != k.shape[1]
    out = F.scaled_dot_product_attention(
        query, key, value, attn_mask=bias, is_causal=alone, scale=scale, enable_gqa=grouped
    )
    return out.squeeze(0).transpose(0, 1)


def _prefer(backends: list[SDPBackend], device: torch.device) -> AbstractContextManager[None]:
    return sdpa_kernel(backends, set_priority=True) if device.type == "cuda" else nullcontext()
