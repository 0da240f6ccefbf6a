"""Our position ids inside transformers' own Qwen2.5-VL, whose `generate` follows another rule after a clip.

Legend: B sequences, L tokens of a padded sequence.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import Qwen2_5_VLModel

from videoseek.batches.positions import mrope_positions
from videoseek.model.load import position_rule, tokens_per_second

_IMAGE, _VIDEO = 1, 2  # transformers' kinds of a token, beside 0 for text


@dataclass(frozen=True, slots=True)
class _Grid:
    """The part of a `Clip` that decides positions: patches in time, height and width, and seconds between grids."""

    grid_thw: tuple[int, int, int]
    second_per_grid: float

    @property
    def num_tokens(self) -> int:
        time, height, width = self.grid_thw
        return time * height * width // 4


def use_positions(model: nn.Module) -> None:
    """Replaces the computation of positions in each Qwen2.5-VL model inside `model`; see `videoseek.use_positions`."""
    found = [module for module in model.modules() if isinstance(module, Qwen2_5_VLModel)]
    if not found:
        raise ValueError(f"use_positions wants a Qwen2.5-VL model of transformers, got {type(model).__name__}")
    for inner in found:
        inner.get_rope_index = _RopeIndex(position_rule(inner.config), tokens_per_second(inner.config))


@dataclass(frozen=True, slots=True)
class _RopeIndex:
    """Stands in for `Qwen2_5_VLModel.get_rope_index` of transformers 5."""

    rule: str
    tokens_per_second: float

    def __call__(
        self,
        input_ids: torch.Tensor,
        mm_token_type_ids: torch.Tensor,
        image_grid_thw: torch.Tensor | None = None,
        video_grid_thw: torch.Tensor | None = None,
        second_per_grid_ts: Any = None,
        attention_mask: torch.Tensor | None = None,
        **_: Any,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Returns the positions [3, B, L], and what the next position is beyond the number of tokens [B, 1]."""
        seconds = [1.0] * len(input_ids[0]) if second_per_grid_ts is None else list(map(float, second_per_grid_ts))
        images, videos = ([] if grids is None else grids.tolist() for grids in (image_grid_thw, video_grid_thw))
        remaining = {
            _IMAGE: [_Grid(tuple(grid), 1.0) for grid in images],
            _VIDEO: [_Grid(tuple(grid), second) for grid, second in zip(videos, seconds, strict=False)],
        }
        positions = torch.zeros(3, *input_ids.shape, dtype=torch.long)
        beyond = []
        for row, kinds in enumerate(mm_token_type_ids.cpu()):
            kept = torch.ones(len(kinds), dtype=torch.bool) if attention_mask is None else attention_mask[row].cpu() > 0
            shown = kinds[kept].tolist()
            grids: list[Any] = []
            index = 0
            while index < len(shown):
                if shown[index]:
                    grids.append(remaining[shown[index]].pop(0))
                index += grids[-1].num_tokens if shown[index] else 1
            pads = [int(kind != 0) for kind in shown]
            own, following = mrope_positions(pads, grids, 1, self.tokens_per_second, rule=self.rule)
            positions[:, row, kept] = own
            beyond.append([following - len(shown)])
        return positions.to(input_ids.device), torch.tensor(beyond, device=input_ids.device)
