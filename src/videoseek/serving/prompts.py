"""A sequence in the form that vLLM takes: one pad token for each clip, and a frame rate that gives our positions."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from videoseek.batches.positions import clip_positions
from videoseek.types import Clip


def with_one_pad(ids: Sequence[int], clips: Sequence[Clip], pad: int) -> list[int]:
    """Returns ids with one pad token for each clip instead of the clip's run of them."""
    short_ids: list[int] = []
    index, remaining = 0, iter(clips)
    while index < len(ids):
        short_ids.append(ids[index])
        index += next(remaining).num_tokens if ids[index] == pad else 1
    return short_ids


def engine_frame_rate(clip: Clip, tokens_per_second: float) -> float:
    """Returns the frame rate at which vLLM gives a clip the positions of `clip_positions`. Raises ValueError.

    vLLM rounds the seconds of a grid to float32 and goes on in float64, where the product with a grid's number may fall
    just below an integer that we reach. The neighbouring float32 then gives the same positions.
    """
    num_grids, patch_rows, patch_columns = clip.grid_thw
    ours = clip_positions(clip, 0, tokens_per_second)[0].numpy()[:: patch_rows * patch_columns // 4]
    seconds = np.float32(clip.second_per_grid)
    for near in (seconds, np.nextafter(seconds, np.float32(np.inf)), np.nextafter(seconds, np.float32(0))):
        if np.array_equal((np.arange(num_grids) * (float(near) * tokens_per_second)).astype(np.int64), ours):
            return 2.0 / float(near)
    raise ValueError(f"no frame rate near {clip.sample_fps:g} gives clip {clip} the same positions in vLLM")


def first_difference(theirs: Sequence[int], ours: Sequence[int]) -> str:
    """Returns a sentence about the first difference of two prompts."""
    pairs = enumerate(zip(theirs, ours, strict=False))
    where = next((index for index, (their, our) in pairs if their != our), min(len(theirs), len(ours)))
    return (
        f"vLLM expanded the prompt to {len(theirs)} tokens, the trainer to {len(ours)}; they differ from token {where} "
        f"({list(theirs[where : where + 4])} there, {list(ours[where : where + 4])} here). Do the preprocessor files "
        "of its model folder belong to the model?"
    )
