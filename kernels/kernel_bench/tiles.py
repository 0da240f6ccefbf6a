"""Which tile shape is fastest on this GPU, for each pass; the shipped table is `impl.triton.launch`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from videoseek_kernels.block_mask import build_block_mask
from videoseek_kernels.impl.hopper.forward import CANDIDATES as HOPPER_CANDIDATES
from videoseek_kernels.impl.hopper.forward import hopper_launch
from videoseek_kernels.impl.triton.backward import dkdv_launch, dq_launch
from videoseek_kernels.impl.triton.forward import forward_launch
from videoseek_kernels.impl.triton.launch import CANDIDATES, Launch, TileConfig
from videoseek_kernels.impl.triton.operator import empty_parts

from kernel_bench.measure import interleave
from kernel_bench.testing import random_inputs, trajectory_mask


def sweep(hopper: bool, num_tokens: int = 16384) -> Iterator[dict[str, Any]]:
    """Yields milliseconds of every candidate at the 7B shape under the `turns` mask, launched as it would ship.

    hopper: also the candidates of the Hopper forward.
    """
    q, k, v, d_out = (x.detach() for x in random_inputs(num_tokens, (28, 4), 128, torch.bfloat16, "cuda"))
    block_mask = build_block_mask(trajectory_mask(num_tokens, 4)).to("cuda")
    out, dq = torch.empty_like(q), torch.empty_like(q)
    lse, delta = (torch.empty(q.shape[1], num_tokens, device="cuda") for _ in range(2))
    dk, dv = empty_parts(k, block_mask)
    scale = q.shape[-1] ** -0.5

    def launch(stage: str, config: TileConfig) -> Launch:
        if stage == "forward":
            return forward_launch((q, k, v), (out, lse), block_mask, scale, config)
        if stage in HOPPER_CANDIDATES:
            return hopper_launch((q, k, v), (out, lse), block_mask, scale, config, alternate=stage.endswith("turns"))
        if stage == "dq":
            return dq_launch((q, k, v), (out, lse), (d_out, None), (dq, delta), block_mask, scale, config)
        return dkdv_launch((q, k, v), (d_out, lse, delta), (dk, dv), block_mask, scale, config)

    tma = torch.cuda.get_device_capability() >= (9, 0)
    for stage, candidates in (CANDIDATES | (HOPPER_CANDIDATES if hopper else {})).items():
        launches = {str(tile): launch(stage, TileConfig(*tile, tma=tma)) for tile in candidates}
        timings, faults = interleave({name: launch.run for name, launch in launches.items()})
        for name in launches:
            row: dict[str, Any] = {"pass": stage, "tile (M, N, warps, stages)": name, "parts": len(dk)}
            yield row | ({"not run": faults[name]} if name in faults else {"ms": round(timings[name].median_ms, 4)})
