"""No speed without a green gate: error against an exact result on a sample of rows, at the very shape that is timed."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from videoseek_kernels.mask import TokenMask
from videoseek_kernels.reference import masked_attention

from kernel_bench.contestants import Attention
from kernel_bench.testing import eager_attention, excess, gradients

NAMES = ("out", "dq", "dk", "dv")


def sampled_excess(
    run: Attention, inputs: Sequence[torch.Tensor], mask: TokenMask, num_rows: int = 128, *, backward: bool = True
) -> dict[str, float]:
    """Returns error over budget (at most 1 passes) of O, dq, dk, dv for a loss over num_rows random rows.

    inputs are q, k, v and the upstream gradient. With all other rows' gradient zero, dq on those rows and the whole of
    dk and dv follow from these rows alone, so that an exact result fits in memory at any length. Without `backward` it
    runs under no_grad and gives O alone.
    """
    q, k, v, upstream = inputs
    generator = torch.Generator().manual_seed(0)
    rows = torch.randperm(len(mask), generator=generator)[:num_rows].sort().values.to(q.device)
    seen = mask.dense(rows)
    with torch.set_grad_enabled(backward):
        out = run(q, k, v)
    got = [out.detach()[rows]]
    if backward:
        sparse = torch.zeros_like(upstream)
        sparse[rows] = upstream[rows]
        dq, dk, dv = torch.autograd.grad(out, (q, k, v), sparse)
        got += [dq[rows], dk, dv]
    wider = torch.float64 if q.dtype == torch.float32 else torch.float32
    exact = _on_rows([x.to(wider) for x in inputs], rows, seen, eager=False)
    plain = _on_rows([q, k, v, upstream], rows, seen, eager=True)
    return {name: excess(a, b, c) for name, a, b, c in zip(NAMES, got, exact, plain, strict=False)}


def _on_rows(
    tensors: Sequence[torch.Tensor], rows: torch.Tensor, seen: torch.Tensor, eager: bool
) -> list[torch.Tensor]:
    q, k, v = (x.detach().requires_grad_() for x in (tensors[0][rows], tensors[1], tensors[2]))
    scale = q.shape[-1] ** -0.5
    out = eager_attention(q, k, v, seen, scale) if eager else masked_attention(q, k, v, seen, scale)[0]
    return gradients(out, (q, k, v), tensors[3][rows])
