"""TokenBatch: one packed row, ready for the model."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Any

import torch

from videoseek.types import Clip


@dataclass(slots=True)
class TokenBatch:
    """One packed row of several documents (T tokens), ready for the model.

    token_ids [T]; positions [3, T] (M-RoPE axes: time, height, width).
    end, key_class, visible [T] int32 are the mask: row m sees key n iff n <= m < end[n] and visible[m] & key_class[n].
    clips are distinct. Token row vision_rows[i] takes row feature_rows[i] of the clips' concatenated features ([V]
    each). Row label_rows[i] predicts labels[i] ([N] each), and label_documents[i] is the index of the label's episode.
    rollout_logprobs[i] is the log-prob under the sampling policy (0 for recorded text). sample_ids holds one id per
    document.
    """

    token_ids: torch.Tensor
    positions: torch.Tensor
    end: torch.Tensor
    key_class: torch.Tensor
    visible: torch.Tensor
    clips: list[Clip]
    vision_rows: torch.Tensor
    feature_rows: torch.Tensor
    label_rows: torch.Tensor
    labels: torch.Tensor
    label_documents: torch.Tensor
    rollout_logprobs: torch.Tensor
    sample_ids: list[str]

    def __post_init__(self) -> None:
        (num_tokens,) = self.token_ids.shape
        for name in ("end", "key_class", "visible"):
            if getattr(self, name).shape != (num_tokens,):
                raise ValueError(f"{name} has shape {tuple(getattr(self, name).shape)}, expected ({num_tokens},)")
        if self.positions.shape != (3, num_tokens):
            raise ValueError(f"positions have shape {tuple(self.positions.shape)}, expected (3, {num_tokens})")
        if self.vision_rows.shape != self.feature_rows.shape:
            raise ValueError(f"{len(self.vision_rows)} vision tokens but {len(self.feature_rows)} features")

    @property
    def num_documents(self) -> int:
        return len(self.sample_ids)

    def __len__(self) -> int:
        return self.token_ids.shape[0]

    def to(self, device: torch.device) -> TokenBatch:
        """Returns the batch with its tensors on `device`. The mask stays on the host for planning the attention."""
        mask = ("end", "key_class", "visible")
        values = {item.name: getattr(self, item.name) for item in fields(self) if item.name not in mask}
        moved: dict[str, Any] = {k: v.to(device) for k, v in values.items() if isinstance(v, torch.Tensor)}
        return replace(self, **moved)
