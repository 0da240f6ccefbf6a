"""M-RoPE on packed rows, against the formula written out and against the model library."""

from __future__ import annotations

import math

import pytest
import torch
from videoseek_kernels.rope import apply_mrope, mrope_tables

SECTIONS = (4, 6, 6)


def inputs(num_tokens: int, device: str = "cpu", dtype: torch.dtype = torch.float32) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    q, k = (torch.randn(num_tokens, h, 32, generator=generator).to(device, dtype).requires_grad_() for h in (7, 1))
    positions = torch.randint(0, 5000, (3, num_tokens), generator=generator).to(device)
    return [q, k, *mrope_tables(positions, SECTIONS, 1e6)]


def test_tables_equal_hand_computed_values() -> None:
    cos, sin = mrope_tables(torch.tensor([[3], [5], [7]]), (1, 1, 2), 10000.0)
    angles = [3.0, 5.0 / 10, 7.0 / 100, 7.0 / 1000]
    assert cos[0].tolist() == pytest.approx([math.cos(a) for a in angles])
    assert sin[0].tolist() == pytest.approx([math.sin(a) for a in angles])


def test_equals_the_published_formula() -> None:
    """x * cos + rotate_half(x) * sin, with tables of width D whose stretches take the three axes in turn."""
    q, k, _, _ = inputs(20)
    positions = torch.arange(60).view(3, 20)
    ours = apply_mrope(q, k, *mrope_tables(positions, SECTIONS, 1e6), impl="reference")
    angles = positions[..., None].float() / 1e6 ** (torch.arange(0, 32, 2).float() / 32)  # [3, T, D / 2]
    stretches = torch.cat([angles, angles], -1).split(SECTIONS * 2, -1)
    angle = torch.cat([stretch[i % 3] for i, stretch in enumerate(stretches)], -1)[:, None]  # [T, 1, D]
    for got, x in zip(ours, (q, k), strict=True):
        half = torch.cat([-x[..., 16:], x[..., :16]], -1)
        torch.testing.assert_close(got, x * angle.cos() + half * angle.sin(), rtol=0, atol=1e-5)


@pytest.mark.parametrize("num_tokens", [1, 63, 65])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=["fp32", "fp16"])
def test_kernel_equals_reference(num_tokens: int, dtype: torch.dtype, device: str) -> None:
    q, k, cos, sin = inputs(num_tokens, device, dtype)
    upstream = [torch.randn_like(q), torch.randn_like(k)]
    results = []
    for impl in ("triton", "reference"):
        rotated = apply_mrope(q, k, cos, sin, impl=impl)
        results.append([*rotated, *torch.autograd.grad(rotated, (q, k), upstream)])
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-6 if dtype == torch.float32 else 2e-3)


def test_gradient_turns_back(device: str) -> None:
    q, k, cos, sin = inputs(9, device)
    rotated = apply_mrope(q, k, cos, sin, impl="triton")
    for x, grad in zip((q, k), torch.autograd.grad(rotated, (q, k), rotated), strict=True):
        torch.testing.assert_close(grad, x, rtol=0, atol=1e-5)


def test_bad_shapes_are_named() -> None:
    q, k, cos, sin = inputs(5)
    with pytest.raises(ValueError, match=r"cos \[4, 16\]"):
        apply_mrope(q, k, cos[:4], sin[:4])
    with pytest.raises(ValueError, match="three sections"):
        mrope_tables(torch.zeros(3, 5), (8, 8), 1e6)
