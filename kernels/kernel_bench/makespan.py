"""How well a kernel's programs fill a GPU: list scheduling of the real block lists on a number of multiprocessors.

A GPU starts programs in the order of the grid, each on the multiprocessor that is free first. The time of a program is
its number of tiles. `makespan` compares the end of the last program with the ideal: all work divided evenly.
"""

from __future__ import annotations

import heapq

import torch
from videoseek_kernels.block_mask import BlockLists, BlockMask
from videoseek_kernels.impl.triton.launch import TileConfig, tile_config
from videoseek_kernels.impl.triton.primitives import key_program, row_program

#: Multiprocessors of an H100 or H200. Each holds one program of the shipped tiles: registers and memory are full.
NUM_PROCESSORS = 132
#: A PARTIAL tile takes this much longer than a FULL tile: integer and select instructions, counted in machine code.
PARTIAL_COST = 1.4


def makespan(stage: str, block_mask: BlockMask, heads: tuple[int, int], config: TileConfig | None = None) -> float:
    """Returns the time of a pass (forward, dq, dkdv) over the ideal time, at least 1; heads: (query, key/value)."""
    config = config or tile_config(stage, 90, torch.bfloat16)
    costs = _row_costs if stage in ("forward", "dq") else _key_costs
    times = costs(block_mask, heads, config)
    free = [0.0] * NUM_PROCESSORS
    for seconds in times:
        heapq.heapreplace(free, free[0] + seconds)
    ideal = max(sum(times) / NUM_PROCESSORS, max(times))
    return max(free) / ideal


def _row_costs(block_mask: BlockMask, heads: tuple[int, int], config: TileConfig) -> list[float]:
    """Returns the work of each program of the forward and of dq, in the order of the grid."""
    lists, (num_heads, num_kv_heads) = block_mask.by_query, heads
    sub_rows = block_mask.block_m // config.block_m
    per_block = [cost / sub_rows for cost in _block_costs(lists)]
    num_tiles = len(per_block) * sub_rows
    order = lists.order.tolist()
    ranks = (row_program.fn(i, num_tiles, num_heads // num_kv_heads)[0] for i in range(num_tiles * num_heads))
    return [per_block[order[rank // sub_rows]] for rank in ranks]


def _key_costs(block_mask: BlockMask, heads: tuple[int, int], config: TileConfig) -> list[float]:
    """Returns the work of each program of dk/dv, in the order of the grid, for a batch that is not cut into parts."""
    lists, (num_heads, num_kv_heads) = block_mask.by_key, heads
    sub_keys = block_mask.block_n // config.block_n
    per_block = [cost * (num_heads // num_kv_heads) / sub_keys for cost in _block_costs(lists)]
    order = lists.order.tolist()
    ranks = (key_program.fn(i, 1, num_kv_heads)[0] for i in range(len(per_block) * sub_keys * num_kv_heads))
    return [per_block[order[rank // sub_keys]] for rank in ranks]


def _block_costs(lists: BlockLists) -> list[float]:
    num_blocks = lists.offsets.diff()
    return (lists.num_full + PARTIAL_COST * (num_blocks - lists.num_full)).tolist()
