"""Defines a kernel launch and the shipped tile shapes.

A run on a GPU and the off-line compile gate build a `Launch` in the same way, so the gate compiles exactly the launched
kernels.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from triton.runtime.jit import JITFunction
from triton.tools.tensor_descriptor import TensorDescriptor


@dataclass(frozen=True, slots=True)
class TileConfig:
    """Rows and keys of a program, warps, pipeline stages, and the use of TMA descriptors."""

    block_m: int
    block_n: int
    num_warps: int
    num_stages: int
    tma: bool = False

    def within(self, block_m: int, block_n: int) -> TileConfig:
        """Returns the same configuration with tiles cut to a block mask's blocks."""
        return TileConfig(
            min(self.block_m, block_m), min(self.block_n, block_n), self.num_warps, self.num_stages, self.tma
        )


@dataclass(frozen=True, slots=True)
class Launch:
    """A kernel with run-time arguments and constants by name, a grid and compile options."""

    kernel: JITFunction
    grid: tuple[int, ...]
    arguments: dict[str, Any]
    constants: dict[str, Any]
    config: TileConfig

    @property
    def options(self) -> dict[str, int | bool]:
        """Returns the compile options. Multiply-add fusion is explicit: the default changes with Triton 3.10."""
        return {
            "num_warps": self.config.num_warps,
            "num_stages": self.config.num_stages,
            "enable_fp_fusion": True,
        }

    def run(self) -> None:
        self.kernel[self.grid](**self.arguments, **self.constants, **self.options)


#: (pass, kind) -> tile, found off-line for head size 128: the widest tile without spills on every supported Triton.
_TILES = {
    ("forward", "sm_90"): TileConfig(128, 128, 8, 2, tma=True),
    ("dq", "sm_90"): TileConfig(128, 64, 8, 2, tma=True),
    ("dkdv", "sm_90"): TileConfig(32, 128, 8, 2, tma=True),
    ("forward", "sm_80"): TileConfig(128, 64, 8, 2),
    ("dq", "sm_80"): TileConfig(64, 64, 4, 2),
    ("dkdv", "sm_80"): TileConfig(32, 64, 8, 2),
    # float32 runs on the plain FMA units, and serves only tests and tiny models.
    ("forward", "float32"): TileConfig(32, 16, 4, 2),
    ("dq", "float32"): TileConfig(32, 16, 4, 2),
    ("dkdv", "float32"): TileConfig(16, 16, 4, 2),
    # The interpreter takes equally long for small and large tiles.
    ("forward", "interpreter"): TileConfig(64, 64, 4, 1),
    ("dq", "interpreter"): TileConfig(64, 64, 4, 1),
    ("dkdv", "interpreter"): TileConfig(64, 64, 4, 1),
}


#: Pass -> tiles (M, N, warps, stages) that may be faster on sm_90 in 16 bits, without spills on any supported Triton.
CANDIDATES = {
    "forward": [(128, 128, 8, 2), (128, 128, 8, 3), (128, 64, 8, 3), (128, 64, 8, 2), (64, 64, 4, 3)],
    "dq": [(128, 64, 8, 2), (128, 64, 8, 3), (128, 128, 8, 2), (64, 64, 4, 2)],
    "dkdv": [
        (32, 128, 8, 2),
        (32, 128, 8, 3),
        (64, 64, 8, 2),
        (64, 64, 8, 3),
        (64, 64, 4, 1),
        (64, 128, 8, 1),
        (32, 64, 4, 2),
    ],
}


def tile_config(stage: str, capability: int, dtype: torch.dtype) -> TileConfig:
    """Returns the shipped tile of a pass (forward, dq, dkdv); capability as from `capability_of`."""
    if capability == 0:
        return _TILES[stage, "interpreter"]
    if dtype == torch.float32:
        return _TILES[stage, "float32"]
    # Later consumer chips have TMA but half of Hopper's shared memory.
    return _TILES[stage, "sm_90" if 90 <= capability < 110 else "sm_80"]


@cache
def capability_of(device: torch.device) -> int:
    """Returns 10 * major + minor of a GPU, 0 for the CPU."""
    if device.type != "cuda":
        return 0
    major, minor = torch.cuda.get_device_capability(device)
    return 10 * major + minor


@cache
def num_processors(device: torch.device) -> int:
    """Returns the number of multiprocessors of a GPU, 1 for the CPU."""
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 1


def rows_of(x: torch.Tensor, block: int, tma: bool) -> torch.Tensor | TensorDescriptor:
    """Returns a contiguous [T, H, D] tensor as a kernel argument for `load_rows` and `store_rows`."""
    num_tokens, num_heads, head_dim = x.shape
    if not tma:
        return x
    width = num_heads * head_dim
    return TensorDescriptor(x, [num_tokens, width], [width, 1], [block, head_dim])
