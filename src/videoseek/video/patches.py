"""Turns pixels into the patch rows of Qwen2.5-VL's vision tower."""

from __future__ import annotations

import torch
from einops import rearrange

PATCH_PIXELS = 14
MERGE = 2
FRAMES_PER_GRID = 2

#: Channel statistics of CLIP's training images, as in the training of the released vision tower.
MEAN = (0.48145466, 0.4578275, 0.40821073)
STD = (0.26862954, 0.26130258, 0.27577711)


def patchify(frames: torch.Tensor) -> torch.Tensor:
    """Turns uint8 [F, H, W, 3] into float32 [F/2 * H/14 * W/14, 1176], in the order of Qwen2-VL's processors.

    Rows run over frame pairs, then over 2 x 2 blocks of patches, then over the four patches of a block. The merger
    joins a block into a token. A row holds channel, frame of the pair, pixel row, pixel column. Values are scaled to
    [0, 1] and normalised per channel. F must be even, H and W multiples of 28.
    """
    if frames.dtype != torch.uint8 or frames.ndim != 4 or frames.shape[-1] != 3:
        raise ValueError(f"frames are {frames.dtype} {tuple(frames.shape)}; wanted torch.uint8 [F, H, W, 3]")
    num_frames, height, width, _ = frames.shape
    side = PATCH_PIXELS * MERGE
    if num_frames % FRAMES_PER_GRID or height % side or width % side:
        raise ValueError(f"frames have shape {tuple(frames.shape)}; wanted an even F, H and W multiples of {side}")
    rows = rearrange(
        frames,
        "(grid frame) (down y row) (across x column) channel -> (grid down across y x) channel (frame row column)",
        **{"frame": FRAMES_PER_GRID, "y": MERGE, "row": PATCH_PIXELS, "x": MERGE, "column": PATCH_PIXELS},
    )
    mean = torch.tensor(MEAN, device=frames.device).view(1, 3, 1)
    std = torch.tensor(STD, device=frames.device).view(1, 3, 1)
    return rows.float().div_(255).sub_(mean).div_(std).flatten(1)
