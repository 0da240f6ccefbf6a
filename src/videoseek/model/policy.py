"""Policy: Qwen2.5-VL on packed rows (training) and on growing sequences (generation).

Legend: T packed tokens, V vision tokens, N labelled rows, B sequences, C hidden size.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint
from transformers import Qwen2_5_VLForConditionalGeneration

from videoseek.batches.token_batch import TokenBatch
from videoseek.model.attention import DecoderAttention, PackedAttention
from videoseek.timing import CLOCK
from videoseek.types import Clip
from videoseek.video.decode import read_frames
from videoseek.video.patches import patchify

#: Rows per projection to the vocabulary: 4,096 rows of 152k logits are 2.5 GB in fp32.
PROJECTION_ROWS = 4096


def num_projections(num_labels: int) -> int:
    """Returns the number of calls of the vocabulary projection for `num_labels`, at least one."""
    return max(1, math.ceil(num_labels / PROJECTION_ROWS))


class Policy(nn.Module):
    """Wraps the model: one `forward` serves SFT and RL, and ZeRO-3 hooks see every call.

    The vision tower runs once per distinct clip, and the vocabulary projection on labelled rows only.
    """

    def __init__(self, model: Qwen2_5_VLForConditionalGeneration, *, freeze_vision: str = "none") -> None:
        """freeze_vision: freezes `none`, the `tower` without its projector (`merger`), or `all` of the vision model."""
        super().__init__()
        self.model = model
        self.vision_is_frozen = freeze_vision == "all"
        model.model.visual.requires_grad_(freeze_vision == "none")
        model.model.visual.merger.requires_grad_(freeze_vision != "all")

    @property
    def device(self) -> torch.device:
        return self.model.model.language_model.embed_tokens.weight.device

    def encode(self, clips: Sequence[Clip], least_tokens: int = 0) -> torch.Tensor:
        """Returns the features [V, C] of distinct clips, concatenated in order. Raises VideoError.

        The pass has at least `least_tokens` tokens: grey ones fill it up, and their features are dropped.
        """
        visual = self.model.model.visual
        if not clips:
            return torch.zeros(0, self.model.config.text_config.hidden_size, dtype=visual.dtype, device=self.device)
        with CLOCK.phase("encode"), torch.set_grad_enabled(torch.is_grad_enabled() and not self.vision_is_frozen):
            patches = torch.cat([patchify(read_frames(clip)) for clip in clips]).to(self.device, visual.dtype)
            grids = [clip.grid_thw for clip in clips]
            num_tokens = sum(clip.num_tokens for clip in clips)
            if num_tokens < least_tokens:
                grids.append((least_tokens - num_tokens, 2, 2))  # one token a grid
                patches = F.pad(patches, (0, 0, 0, 4 * (least_tokens - num_tokens)))
            return visual(patches, grid_thw=torch.tensor(grids, device=self.device)).pooler_output[:num_tokens]

    def embed(
        self, token_ids: torch.Tensor, vision_rows: torch.Tensor | None = None, features: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Returns the embeddings [T, C] of token ids [T], with `features` [V, C] at `vision_rows` [V] if given."""
        embeddings = self.model.model.language_model.embed_tokens(token_ids)
        if vision_rows is None or features is None:
            return embeddings
        return embeddings.index_copy(0, vision_rows, features.to(embeddings.dtype))

    def decode(self, embeddings: torch.Tensor, positions: torch.Tensor, attention: DecoderAttention) -> torch.Tensor:
        """Returns the final hidden states [B, L, C] of embeddings [B, L, C] at positions [3, B, L]."""
        return self.model.model.language_model(
            inputs_embeds=embeddings,
            position_ids=positions,
            attention_mask={"full_attention": attention},
            use_cache=False,
        ).last_hidden_state

    def forward(
        self,
        batch: TokenBatch,
        features: torch.Tensor | None = None,
        temperature: float = 1.0,
        least_projections: int = 1,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Returns the log-prob [N] of every label and, without gradient, the entropy [N] of each row's distribution.

        `features` [V, C] belong to `batch.clips`; None computes the features here. The vocabulary projection runs at
        least `least_projections` times: ranks with sharded weights must run the projection equally often.
        """
        features = self.encode(batch.clips) if features is None else features
        embeddings = self.embed(batch.token_ids, batch.vision_rows, features[batch.feature_rows])
        attention = PackedAttention.build(batch.end, batch.key_class, batch.visible, self.device)
        hidden = self.decode(embeddings[None], batch.positions[:, None], attention)[0]
        return self.label_logprobs(hidden[batch.label_rows], batch.labels, temperature, least_projections)

    def label_logprobs(
        self, hidden: torch.Tensor, labels: torch.Tensor, temperature: float, least_projections: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Returns log-probs [N] and entropies [N] of hidden [N, C] and labels [N], projected in chunks of rows."""
        surplus = max(0, least_projections - num_projections(len(labels)))
        hidden_chunks = [*hidden.split(PROJECTION_ROWS), *[hidden[:0]] * surplus]
        label_chunks = [*labels.split(PROJECTION_ROWS), *[labels[:0]] * surplus]
        # Checkpointing recomputes the logits of a chunk in the backward pass: memory holds the logits of one chunk.
        chunks = [
            checkpoint(self._project, *chunk, temperature, use_reentrant=False)
            if torch.is_grad_enabled() and len(hidden_chunks) > 1
            else self._project(*chunk, temperature)
            for chunk in zip(hidden_chunks, label_chunks, strict=True)
        ]
        logprobs, entropies = zip(*chunks, strict=True)
        return torch.cat(logprobs), torch.cat(entropies)

    def _project(
        self, hidden: torch.Tensor, labels: torch.Tensor, temperature: float
    ) -> tuple[torch.Tensor, torch.Tensor]:
        distribution = F.log_softmax(self.model.lm_head(hidden).float() / temperature, dim=-1)
        with torch.no_grad():
            entropy = -(distribution.exp() * distribution).sum(-1)
        return distribution.gather(-1, labels[:, None])[:, 0], entropy

    def project(self, hidden: torch.Tensor) -> torch.Tensor:
        """Returns the logits [N, vocabulary] of final hidden states [N, C], in fp32."""
        return self.model.lm_head(hidden).float()
