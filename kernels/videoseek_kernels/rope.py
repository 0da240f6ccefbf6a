"""M-RoPE on packed rows: a single launch rotates q and k of all heads, by tables common to all layers.

T tokens, H heads, D head size; a pair is (i, i + D/2), as in Qwen2.5-VL. The first sections[0] of the D/2 frequencies
turn with the time axis of a token's position, the next with the height, the last with the width.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch.autograd.function import once_differentiable

from videoseek_kernels.dispatch import check_triton_inputs

IMPLEMENTATIONS = ("auto", "triton", "reference")


def mrope_tables(
    positions: torch.Tensor, sections: Sequence[int], theta: float, scaling: float = 1.0
) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns cos and sin, float32 [T, D/2], of integer positions [3, T]; sum(sections) is D/2. Call once per batch."""
    if len(sections) != 3 or positions.dim() != 2 or positions.shape[0] != 3:
        raise ValueError(f"wanted positions [3, T] and three sections, got {list(positions.shape)}, {list(sections)}")
    half = sum(sections)
    axis = torch.repeat_interleave(torch.arange(3), torch.tensor(sections)).to(positions.device)  # [D/2]
    exponents = torch.arange(half, dtype=torch.float32, device=positions.device) / half
    angles = positions.float().T[:, axis] * theta**-exponents  # [T, D/2]
    return angles.cos() * scaling, angles.sin() * scaling


def apply_mrope(
    q: torch.Tensor, k: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, *, impl: str = "auto"
) -> tuple[torch.Tensor, torch.Tensor]:
    """Rotates q [T, Hq, D] and k [T, Hkv, D] by tables [T, D/2]; differentiable in q and k.

    Computes in float32 and rounds once. impl: "auto" takes Triton on CUDA and torch elsewhere.
    """
    if q.shape[::2] != k.shape[::2] or cos.shape != sin.shape or cos.shape != (q.shape[0], q.shape[2] // 2):
        raise ValueError(
            "wanted q, k [T, H, D] and tables [T, D/2], "
            f"got q {list(q.shape)}, k {list(k.shape)}, cos {list(cos.shape)}, sin {list(sin.shape)}"
        )
    if impl not in IMPLEMENTATIONS:
        raise ValueError(f"impl {impl!r} is not one of {', '.join(IMPLEMENTATIONS)}")
    if impl == "triton" or impl == "auto" and q.device.type == "cuda":
        check_triton_inputs(q)
        return _Rotation.apply(q, k, cos.contiguous(), sin.contiguous())
    return _rotate(q, cos, sin), _rotate(k, cos, sin)


def _rotate(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    low, high = x.to(torch.promote_types(x.dtype, torch.float32)).chunk(2, -1)
    cos, sin = cos[:, None], sin[:, None]
    return torch.cat([low * cos - high * sin, high * cos + low * sin], -1).to(x.dtype)


class _Rotation(torch.autograd.Function):
    """Rotates q and k. The gradient is the rotation back: the same kernel with the sine's sign turned."""

    @staticmethod
    def forward(
        ctx: Any, q: torch.Tensor, k: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        ctx.save_for_backward(cos, sin)
        from videoseek_kernels.impl.triton.rope import rotate

        return rotate(q, k, cos, sin, 1.0)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dq: torch.Tensor, dk: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, None, None]:
        from videoseek_kernels.impl.triton.rope import rotate

        cos, sin = ctx.saved_tensors
        return *rotate(dq, dk, cos, sin, -1.0), None, None
