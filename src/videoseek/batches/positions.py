"""M-RoPE position ids, by one function for SFT, GRPO, rollout and evaluation.

Legend: T tokens. Rows of a position tensor are time, height, width.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from videoseek.config import POSITION_RULES
from videoseek.types import Clip


def clip_positions(clip: Clip, start: int, tokens_per_second: float) -> torch.Tensor:
    """Returns the positions [3, num_tokens] of a clip. The first token has position `start`.

    The time axis advances `tokens_per_second` for each second of the clip's true sampling interval, truncated after the
    product (Qwen2.5-VL, 2502.13923, section 2.1.2).
    """
    num_grids, patch_rows, patch_columns = clip.grid_thw
    height, width = patch_rows // 2, patch_columns // 2
    times = (torch.arange(num_grids) * (clip.second_per_grid * tokens_per_second)).long()
    grid = torch.meshgrid(times, torch.arange(height), torch.arange(width), indexing="ij")
    return torch.stack(grid).reshape(3, -1) + start


def mrope_positions(
    token_ids: Sequence[int],
    clips: Sequence[Clip],
    video_pad_id: int,
    tokens_per_second: float,
    *,
    start: int = 0,
    rule: str = "max_all",
) -> tuple[torch.Tensor, int]:
    """Returns the positions [3, T] of tokens. Runs of `video_pad_id` stand for `clips`, in order.

    Also returns the position of the next token, as `start` of the next call in the sequence. All tokens of a clip
    belong to one call. After a clip, text goes on one past the largest position of all three axes (`max_all`, as in the
    code of the released weights, vLLM and transformers 4), or past max(height, width) alone (`hf5`, as in transformers
    5). Raises ValueError when pad tokens and clips do not match.
    """
    if rule not in POSITION_RULES:
        raise ValueError(f"position rule {rule!r} is not one of {', '.join(POSITION_RULES)}")
    blocks: list[torch.Tensor] = []
    remaining = iter(clips)
    index, position, num_tokens = 0, start, len(token_ids)
    while index < num_tokens:
        if token_ids[index] == video_pad_id:
            clip = next(remaining, None)
            if clip is None:
                raise ValueError(f"video pad token at index {index} has no clip ({len(clips)} given)")
            stop = index + clip.num_tokens
            if stop > num_tokens or any(token != video_pad_id for token in token_ids[index:stop]):
                raise ValueError(f"clip of {clip.num_tokens} tokens does not fit its pad tokens at index {index}")
            block = clip_positions(clip, position, tokens_per_second)
            _, patch_rows, patch_columns = clip.grid_thw
            spatial = max(patch_rows, patch_columns) // 2
            position = int(block.max()) + 1 if rule == "max_all" else position + spatial
        else:
            stop = index
            while stop < num_tokens and token_ids[stop] != video_pad_id:
                stop += 1
            block = (torch.arange(stop - index) + position).expand(3, -1)
            position += stop - index
        blocks.append(block)
        index = stop
    if next(remaining, None) is not None:
        raise ValueError(f"{len(clips)} clips were given for fewer runs of video pad tokens")
    positions = torch.cat(blocks, dim=1) if blocks else torch.zeros(3, 0, dtype=torch.long)
    return positions, position
