"""Launch of the Hopper forward."""

from __future__ import annotations

import torch
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.nvidia.hopper import TensorDescriptor

from videoseek_kernels.block_mask import BlockMask
from videoseek_kernels.impl.hopper.kernel import HALF, attn_fwd_kernel_hopper
from videoseek_kernels.impl.triton.forward import list_arguments, tile_constants
from videoseek_kernels.impl.triton.launch import Launch, TileConfig

_TYPES = {torch.bfloat16: gl.bfloat16, torch.float16: gl.float16}

#: Head size -> tile: the widest tile with all stages in shared memory and without spills on every supported Triton. A
#: tile counts the warps of one of the two computing groups.
TILES = {128: TileConfig(128, 128, 4, 2, tma=True), 64: TileConfig(128, 128, 4, 4, tma=True)}
#: Tiles for head size 128 that may be faster, without and with turns between the computing groups.
CANDIDATES = {
    "forward, Hopper": [(128, 128, 4, 2), (128, 64, 4, 3), (128, 64, 4, 4)],
    "forward, Hopper in turns": [(128, 128, 4, 2), (128, 64, 4, 3)],
}


def hopper_launch(
    inputs: tuple[torch.Tensor, torch.Tensor, torch.Tensor],
    outputs: tuple[torch.Tensor, torch.Tensor],
    block_mask: BlockMask,
    scale: float,
    config: TileConfig | None = None,
    alternate: bool = False,
) -> Launch:
    """Returns the launch of (q [T, Hq, D], k and v [T, Hkv, D]) -> (O like q, L float32 [Hq, T] in log2 units).

    All tensors are contiguous; q, k, v and O have 16 bits. The mask's blocks are whole multiples of the tile.
    `alternate` lets the two computing groups issue their products in turns (FlashAttention-3, section 3.1).
    """
    (q, k, v), (out, lse) = inputs, outputs
    config = config or TILES[q.shape[2]]
    num_tiles = block_mask.by_query.order.shape[0] * (block_mask.block_m // config.block_m)
    arguments = {
        "q": _tiles_of(q, HALF.value),
        "k": _tiles_of(k, config.block_n),
        "v": _tiles_of(v, config.block_n),
        "out": _tiles_of(out, HALF.value),
        "lse": lse,
        **list_arguments(block_mask, block_mask.by_query, scale),
        "num_tiles": num_tiles,
    }
    constants = tile_constants(q, k, block_mask, config) | {"STAGES": config.num_stages, "ALTERNATE": alternate}
    del constants["TMA"]
    return Launch(attn_fwd_kernel_hopper, (num_tiles * q.shape[1],), arguments, constants, config)


def _tiles_of(x: torch.Tensor, num_rows: int) -> TensorDescriptor:
    """Returns a contiguous [T, H, D] tensor as a matrix [T, H * D] for TMA in tiles [num_rows, D]."""
    num_tokens, num_heads, head_dim = x.shape
    block, width = [num_rows, head_dim], num_heads * head_dim
    layout = gl.NVMMASharedLayout.get_default_for(block, _TYPES[x.dtype])
    return TensorDescriptor(x, [num_tokens, width], [width, 1], block, layout)
