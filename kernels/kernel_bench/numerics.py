"""Does training notice which implementation computes attention, and would it notice a wrong mask?

The task cannot be learnt without the mask. Each token has an address and a content; a key's content depends on its
address and on its class (text, overview video, crop video). A row that the mask restricts has an address alone, and
must tell the content of that address in the class of video that it may see; a row that sees both cannot know which.

    PYTHONPATH=kernels TRITON_INTERPRET=1 python -m kernel_bench.numerics --output FILE.json    # on a CPU, in float32
"""

from __future__ import annotations

import argparse
import datetime
import math
import platform
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from videoseek_kernels.api import tdam_attention
from videoseek_kernels.block_mask import build_block_mask
from videoseek_kernels.dense import segmented_attention
from videoseek_kernels.mask import TokenMask

from kernel_bench.contestants import Attention
from kernel_bench.recording import run_steps
from kernel_bench.testing import ALL, CROP_VIDEO, GLOBAL_VIDEO, eager_attention, trajectory_mask

#: Largest difference of the loss at any step, as a share of the first loss, that counts as none; a wrong mask must
#: exceed it. A share of the loss itself would be rounding alone once the task is learnt, when that is near zero.
BOUND = 1e-3

History = list[tuple[float, float]]


@dataclass(frozen=True, slots=True)
class SliceShape:
    """Width of a decoder slice; the default is two layers of the 7B model."""

    hidden: int = 3584
    intermediate: int = 18944
    heads: tuple[int, int] = (28, 4)
    num_layers: int = 2
    num_tokens: int = 4096
    num_steps: int = 20
    num_addresses: int = 64


def compare_training(
    shape: SliceShape, device: str, dtype: torch.dtype, kernel: str = "triton"
) -> Iterator[dict[str, Any]]:
    """Yields one row per implementation: its loss and gradient norm, step by step, against SDPA with a dense mask.

    float32 weights under autocast to `dtype`. Rows of ours fail above BOUND. The eager row shows rounding alone. The
    row with a plain causal mask fails below BOUND: then the task does not need the mask, and the others prove nothing.
    """
    mask = trajectory_mask(shape.num_tokens, 3)
    batch = [x.to(device) for x in recall_task(mask, shape.num_addresses)]
    block_mask = build_block_mask(mask).to(device)
    causal = TokenMask.documents([shape.num_tokens], device)
    runs: dict[str, Attention] = {
        kernel: lambda q, k, v: tdam_attention(q, k, v, block_mask, impl=kernel),
        "SDPA segments": lambda q, k, v: segmented_attention(q, k, v, block_mask.segments),
        "eager": _eager(block_mask.mask),
        "SDPA, plain causal mask": _dense_sdpa(causal),
    }
    truth = train(shape, batch, _dense_sdpa(block_mask.mask), dtype)
    for name, attend in runs.items():
        found = train(shape, batch, attend, dtype)
        losses, norms = (_gap(found, truth, which) for which in (0, 1))
        row = {
            "against SDPA, dense mask": name,
            "gap of loss / first loss": float(f"{losses:.2g}"),
            "of gradient norm": float(f"{norms:.2g}"),
            "loss": f"{truth[0][0]:.3f} to {truth[-1][0]:.3f}",
        }
        if "causal" in name and not losses > BOUND:
            row["failed"] = f"a wrong mask is not seen: gap not above {BOUND}"
        if name in (kernel, "SDPA segments") and not losses <= BOUND:
            row["failed"] = f"gap above {BOUND}"
        yield row


def _gap(mine: History, theirs: History, which: int) -> float:
    """Returns the largest gap; infinite for NaN, which would pass every comparison."""
    gap = max(abs(a[which] - b[which]) if a[which] == a[which] else math.inf for a, b in zip(mine, theirs, strict=True))
    return gap / theirs[0][which]


def recall_task(mask: TokenMask, num_addresses: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Returns address and content of each token, int64 [T], and the label, -100 where nothing is asked.

    Contents of text, overview and crop are [0, A), [A, 2A) and [2A, 3A), shuffled within each; 3A is none.
    """
    generator = torch.Generator().manual_seed(1)
    contents = torch.stack([torch.randperm(num_addresses, generator=generator) + c * num_addresses for c in range(3)])
    address = torch.randint(num_addresses, (len(mask),), generator=generator)
    of_video = (mask.key_class == GLOBAL_VIDEO).long() + 2 * (mask.key_class == CROP_VIDEO).long()
    asked = (mask.visible != ALL) & (mask.key_class != GLOBAL_VIDEO) & (mask.key_class != CROP_VIDEO)
    wanted = torch.where(mask.visible & CROP_VIDEO == 0, 1, 2)
    content = contents[of_video, address].masked_fill(asked, 3 * num_addresses)
    return address, content, contents[wanted, address].masked_fill(~asked, -100)


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


class _Slice(nn.Module):
    """Embeddings of address and content, decoder layers, a head of its own; weights of the order of 1 / sqrt(width)."""

    def __init__(self, shape: SliceShape) -> None:
        super().__init__()
        num_contents = 3 * shape.num_addresses
        self.address = nn.Embedding(shape.num_addresses, shape.hidden)
        self.content = nn.Embedding(num_contents + 1, shape.hidden)
        self.layers = nn.ModuleList(_Layer(shape) for _ in range(shape.num_layers))
        self.norm = nn.RMSNorm(shape.hidden)
        self.head = nn.Linear(shape.hidden, num_contents, bias=False)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, std=module.in_features**-0.5)

    def forward(self, address: torch.Tensor, content: torch.Tensor, attend: Attention) -> torch.Tensor:
        x = self.address(address) + self.content(content)
        for layer in self.layers:
            x = layer(x, attend)
        return self.head(self.norm(x))


def train(
    shape: SliceShape, batch: list[torch.Tensor], attend: Callable[..., torch.Tensor], dtype: torch.dtype
) -> History:
    """Trains on one batch from a fixed seed; returns (loss, gradient norm) of each step."""
    address, content, label = batch
    torch.manual_seed(0)
    with torch.device(label.device):
        model = _Slice(shape)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    history = []
    for _ in range(shape.num_steps):
        with torch.autocast(label.device.type, dtype, enabled=dtype != torch.float32):
            logits = model(address, content, attend)
        loss = F.cross_entropy(logits.float(), label)
        optimizer.zero_grad()
        loss.backward()
        norm = nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        history.append((loss.item(), norm.item()))
    return history


def _dense_sdpa(mask: TokenMask) -> Attention:
    seen = mask.dense()

    def run(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        group = q.shape[1] // k.shape[1]
        query, key, value = (
            x.transpose(0, 1)[None] for x in (q, k.repeat_interleave(group, 1), v.repeat_interleave(group, 1))
        )
        return F.scaled_dot_product_attention(query, key, value, attn_mask=seen)[0].transpose(0, 1)

    return run


def _eager(mask: TokenMask) -> Attention:
    seen = mask.dense()
    return lambda q, k, v: eager_attention(q, k, v, seen, q.shape[-1] ** -0.5)


def main() -> int:
    parser = argparse.ArgumentParser(description="Training with the interpreted kernel against SDPA, on a CPU.")
    parser.add_argument("--tokens", type=int, default=256, help="tokens of the row")
    parser.add_argument("--output", type=Path, help="where the rows are kept")
    arguments = parser.parse_args()
    shape = SliceShape(num_tokens=arguments.tokens)
    about = {
        "device": f"{platform.machine()}, Triton's interpreter, float32",
        "torch": torch.__version__,
        "triton": version("triton"),
        "python": platform.python_version(),
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "slice": str(shape),
    }
    steps = {"numerics, interpreted": lambda: compare_training(shape, "cpu", torch.float32)}
    return int(not run_steps(steps, about, arguments.output))


if __name__ == "__main__":
    sys.exit(main())
