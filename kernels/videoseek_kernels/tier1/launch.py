"""What a kernel launch is, and which tile shapes are shipped.

A `Launch` is built the same way for a run on a GPU and for the off-line compile gate, so that the gate compiles
exactly what is launched.
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
    """Rows and keys a program holds, warps, pipeline stages, and whether tiles move by TMA descriptors."""

    block_m: int
    block_n: int
    num_warps: int
    num_stages: int
    tma: bool = False

    def within(self, block_m: int, block_n: int) -> TileConfig:
        """The same with tiles no larger than a plan's blocks."""
        return TileConfig(
            min(self.block_m, block_m), min(self.block_n, block_n), self.num_warps, self.num_stages, self.tma
        )


@dataclass(frozen=True, slots=True)
class Launch:
    """A kernel with its run-time arguments and constants by name, its grid and its compile options."""

    kernel: JITFunction
    grid: tuple[int, ...]
    arguments: dict[str, Any]
    constants: dict[str, Any]
    config: TileConfig

    @property
    def options(self) -> dict[str, int | bool]:
        """Compile options; multiply-add fusion is said, because its default changes with Triton 3.10."""
        return {
            "num_warps": self.config.num_warps,
            "num_stages": self.config.num_stages,
            "enable_fp_fusion": True,
        }

    def run(self) -> None:
        self.kernel[self.grid](**self.arguments, **self.constants, **self.options)


#: (pass, compute capability, wide type) -> tile for head size 128; found by registers and shared memory, off-line.
_TILES = {
    ("forward", 90, False): TileConfig(128, 128, 8, 2, tma=True),
    ("dq", 90, False): TileConfig(128, 64, 8, 2, tma=True),
    ("dkdv", 90, False): TileConfig(64, 128, 8, 2, tma=True),
    ("forward", 80, False): TileConfig(128, 64, 8, 2),
    ("dq", 80, False): TileConfig(64, 64, 4, 2),
    ("dkdv", 80, False): TileConfig(64, 64, 8, 2),
    # float32 runs on the plain FMA units: it is for tests and tiny models, not for speed.
    ("forward", 80, True): TileConfig(32, 32, 8, 2),
    ("dq", 80, True): TileConfig(32, 32, 8, 2),
    ("dkdv", 80, True): TileConfig(32, 32, 8, 2),
}


def tile_config(stage: str, capability: int, dtype: torch.dtype) -> TileConfig:
    """The shipped tile of a pass (forward, dq, dkdv); capability is 10 * major + minor."""
    wide = dtype == torch.float32
    return _TILES[stage, 90 if capability >= 90 and not wide else 80, wide]


@cache
def capability_of(device: torch.device) -> int:
    """10 * major + minor of a GPU; the interpreter stands in for an sm_80."""
    if device.type != "cuda":
        return 80
    major, minor = torch.cuda.get_device_capability(device)
    return 10 * major + minor


@cache
def num_processors(device: torch.device) -> int:
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 1


def rows_of(x: torch.Tensor, block: int, tma: bool) -> torch.Tensor | TensorDescriptor:
    """A contiguous [T, H, D] tensor as a kernel argument that `load_rows` and `store_rows` take."""
    num_tokens, num_heads, head_dim = x.shape
    if not tma:
        return x
    width = num_heads * head_dim
    return TensorDescriptor(x, [num_tokens, width], [width, 1], [block, head_dim])
