"""Which tile shape is fastest on this GPU, for each pass; the shipped table is `tier1.launch`."""

from __future__ import annotations

from typing import Any

import torch

from videoseek_kernels.benchmark.measure import interleave
from videoseek_kernels.plan import plan
from videoseek_kernels.testing import random_inputs, trajectory_mask
from videoseek_kernels.tier1.backward import dkdv_launch, dq_launch
from videoseek_kernels.tier1.forward import forward_launch
from videoseek_kernels.tier1.launch import Launch, TileConfig

CANDIDATES = {
    "forward": [(128, 128, 8, 2), (128, 64, 8, 3), (128, 64, 8, 2), (64, 64, 4, 3)],
    "dq": [(128, 64, 8, 2), (128, 64, 8, 3), (64, 128, 4, 2), (64, 64, 4, 2)],
    "dkdv": [(32, 128, 8, 2), (64, 64, 8, 2), (64, 128, 8, 1), (64, 128, 8, 2), (32, 64, 4, 2)],
}


def sweep(num_tokens: int = 16384) -> list[dict[str, Any]]:
    """Milliseconds of every candidate at the 7B shape under the `turns` mask, with TMA where the chip has it."""
    q, k, v, d_out = (x.detach() for x in random_inputs(num_tokens, (28, 4), 128, torch.bfloat16, "cuda"))
    ready = plan(trajectory_mask(num_tokens, 4)).to("cuda")
    out, dq = torch.empty_like(q), torch.empty_like(q)
    lse, delta = (torch.empty(q.shape[1], num_tokens, device="cuda") for _ in range(2))
    dk, dv = (torch.empty(1, *k.shape, dtype=k.dtype, device="cuda") for _ in range(2))
    scale = q.shape[-1] ** -0.5

    def launch(stage: str, config: TileConfig) -> Launch:
        if stage == "forward":
            return forward_launch((q, k, v), (out, lse), ready, scale, config)
        if stage == "dq":
            return dq_launch((q, k, v), (out, lse), (d_out, None), (dq, delta), ready, scale, config)
        return dkdv_launch((q, k, v), (d_out, lse, delta), (dk, dv), ready, scale, config)

    tma = torch.cuda.get_device_capability() >= (9, 0)
    rows = []
    for stage, candidates in CANDIDATES.items():
        launches = {str(tile): launch(stage, TileConfig(*tile, tma=tma)) for tile in candidates}
        timings = interleave({name: launch.run for name, launch in launches.items()})
        rows += [
            {"pass": stage, "tile (M, N, warps, stages)": name, "ms": round(timing.median_ms, 4)}
            for name, timing in timings.items()
        ]
    return rows
