"""The slow reference: attention under a TokenMask, in the equations of the papers.

S = scale * Q K^T,  P = softmax(S) over the visible keys,  O = P V,  L = log sum exp S.
A blind row, a row without visible keys, has O = 0, L = -inf and zero gradients.
"""

from __future__ import annotations

import torch


def masked_attention(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, seen: torch.Tensor, scale: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Attends q [M, Hq, D] to k and v [N, Hkv, D] under seen bool [M, N] -> O [M, Hq, D] in q's type and L [M, Hq].

    The arithmetic and L are float64 if q is float64, otherwise float32. Memory grows with M * N * Hq.
    """
    work = torch.float64 if q.dtype == torch.float64 else torch.float32
    group = q.shape[1] // k.shape[1]
    Q = q.to(work).transpose(0, 1)  # [Hq, M, D]
    K = k.to(work).transpose(0, 1).repeat_interleave(group, 0)  # [Hq, N, D]
    V = v.to(work).transpose(0, 1).repeat_interleave(group, 0)  # [Hq, N, D]
    S = scale * (Q @ K.transpose(1, 2))  # [Hq, M, N]
    # A blind row keeps finite scores, so the softmax has a finite gradient to multiply by the zeros of `seen`.
    sighted = seen.any(1)
    S = S.masked_fill(~seen & sighted[:, None], float("-inf"))
    P = S.softmax(-1) * seen
    L = S.logsumexp(-1).masked_fill(~sighted, float("-inf"))
    return (P @ V).transpose(0, 1).to(q.dtype), L.transpose(0, 1)
