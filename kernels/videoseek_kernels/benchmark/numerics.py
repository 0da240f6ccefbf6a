"""Does training notice which implementation computes attention? The same slice of a model, twice, step by step."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn

from videoseek_kernels.attention import tdam_attention
from videoseek_kernels.benchmark.contestants import Attention
from videoseek_kernels.mask import TokenMask
from videoseek_kernels.plan import plan
from videoseek_kernels.testing import trajectory_mask


@dataclass(frozen=True, slots=True)
class SliceShape:
    """Width of a decoder slice; the default is two layers of the 7B model."""

    hidden: int = 3584
    intermediate: int = 18944
    heads: tuple[int, int] = (28, 4)
    num_layers: int = 2
    num_tokens: int = 4096
    num_steps: int = 20
    vocabulary: int = 4096


class _Layer(nn.Module):
    def __init__(self, shape: SliceShape) -> None:
        super().__init__()
        self.heads, head_dim = shape.heads, shape.hidden // shape.heads[0]
        self.qkv = nn.Linear(shape.hidden, (shape.heads[0] + 2 * shape.heads[1]) * head_dim)
        self.out = nn.Linear(shape.hidden, shape.hidden, bias=False)
        self.up = nn.Linear(shape.hidden, 2 * shape.intermediate, bias=False)
        self.down = nn.Linear(shape.intermediate, shape.hidden, bias=False)
        self.norms = nn.ModuleList(nn.RMSNorm(shape.hidden) for _ in range(2))

    def forward(self, x: torch.Tensor, attend: Attention) -> torch.Tensor:
        num_heads, num_kv_heads = self.heads
        qkv = self.qkv(self.norms[0](x)).unflatten(-1, (num_heads + 2 * num_kv_heads, -1))
        x = x + self.out(attend(*qkv.split((num_heads, num_kv_heads, num_kv_heads), 1)).flatten(1))
        gate, up = self.up(self.norms[1](x)).chunk(2, -1)
        return x + self.down(F.silu(gate) * up)


def loss_gap(shape: SliceShape, impl: str, device: str, dtype: torch.dtype) -> dict[str, float]:
    """Largest relative difference of loss and gradient norm over the steps, against SDPA with a dense mask."""
    ready = plan(trajectory_mask(shape.num_tokens, 3)).to(device)
    ours = _train(shape, lambda q, k, v: tdam_attention(q, k, v, ready, impl=impl), device, dtype)
    theirs = _train(shape, _dense_sdpa(ready.mask), device, dtype)
    gaps = [[abs(a - b) / abs(b) for a, b in zip(x, y, strict=True)] for x, y in zip(ours, theirs, strict=True)]
    return {"loss": max(gap[0] for gap in gaps), "gradient norm": max(gap[1] for gap in gaps)}


def _dense_sdpa(mask: TokenMask) -> Attention:
    seen = mask.dense()

    def run(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        group = q.shape[1] // k.shape[1]
        query, key, value = (
            x.transpose(0, 1)[None] for x in (q, k.repeat_interleave(group, 1), v.repeat_interleave(group, 1))
        )
        return F.scaled_dot_product_attention(query, key, value, attn_mask=seen)[0].transpose(0, 1)

    return run


def _train(
    shape: SliceShape, attend: Callable[..., torch.Tensor], device: str, dtype: torch.dtype
) -> list[tuple[float, float]]:
    """(loss, gradient norm) of each step, from the same seed, data and order."""
    torch.manual_seed(0)
    layers = nn.ModuleList(_Layer(shape) for _ in range(shape.num_layers)).to(device, dtype)
    embedding = nn.Embedding(shape.vocabulary, shape.hidden).to(device, dtype)
    parameters = [*layers.parameters(), *embedding.parameters()]
    optimizer = torch.optim.SGD(parameters, lr=0.01)
    generator = torch.Generator().manual_seed(1)
    history = []
    for _ in range(shape.num_steps):
        tokens = torch.randint(shape.vocabulary, (shape.num_tokens,), generator=generator).to(device)
        x = embedding(tokens)
        for layer in layers:
            x = layer(x, attend)
        logits = F.rms_norm(x, (shape.hidden,)) @ embedding.weight.T
        loss = F.cross_entropy(logits[:-1].float(), tokens[1:])
        optimizer.zero_grad()
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        history.append((loss.item(), norm.item()))
    return history
