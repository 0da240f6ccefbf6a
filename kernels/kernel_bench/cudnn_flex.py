"""cuDNN-frontend's flex attention as a contestant: a mask as intervals of keys, and its own plan."""

from __future__ import annotations

from collections.abc import Callable

import torch
from videoseek_kernels.block_mask import BlockMask
from videoseek_kernels.mask import TokenMask

_ROWS_AT_ONCE = 1024


def interval_ends(mask: TokenMask) -> torch.Tensor:
    """int32 [1, N, T], N odd: row m sees keys [0, F0), [F1, F2), ...; rows with fewer intervals end with T."""
    num_tokens = len(mask)
    found = []
    for rows in torch.arange(num_tokens, device=mask.device).split(_ROWS_AT_ONCE):
        seen = torch.nn.functional.pad(mask.dense(rows), (1, 0), value=True)
        row, end = (seen[:, 1:] != seen[:, :-1]).nonzero(as_tuple=True)
        found.append((rows[row], end))
    row, end = (torch.cat(part) for part in zip(*found, strict=True))
    counts = row.bincount(minlength=num_tokens)
    number = torch.arange(len(row), device=row.device) - (counts.cumsum(0) - counts)[row]
    ends = torch.full((int(counts.max()) // 2 * 2 + 1, num_tokens), num_tokens, dtype=torch.int32, device=mask.device)
    ends[number, row] = end.int()
    return ends[None]


def prepare(
    block_mask: BlockMask, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor
) -> Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]:
    """Returns what computes attention under the mask for tensors like these. Raises where the package is absent."""
    from cudnn.flex_attention import create_mask_plan, flex_attn_func

    theirs = create_mask_plan(interval_ends(block_mask.mask), q[None], k[None], v[None], build_backward=True)

    def run(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        return flex_attn_func(q[None], k[None], v[None], mask_plan=theirs).squeeze(0)

    return run
