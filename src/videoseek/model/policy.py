"""The policy: Qwen2.5-VL called on packed rows and on growing sequences.

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
from videoseek.model.attention import Attends, KVCache, plan_attention
from videoseek.model.branches import SharedPrefixCache
from videoseek.types import Clip
from videoseek.video.decode import read_frames
from videoseek.video.patches import patchify

#: Rows projected to the vocabulary at a time: 4,096 rows of 152k logits are 2.5 GB in fp32.
PROJECTION_ROWS = 4096


def num_projections(num_labels: int) -> int:
    """How many calls of the vocabulary projection so many labels take; no labels take one too."""
    return max(1, math.ceil(num_labels / PROJECTION_ROWS))


class Policy(nn.Module):
    """Wraps the model so that one `forward` serves SFT and RL, and ZeRO-3 hooks see every call.

    The vision tower runs once per distinct clip, the vocabulary projection on labelled rows only.
    """

    def __init__(self, model: Qwen2_5_VLForConditionalGeneration, *, freeze_vision: str = "none") -> None:
        """freeze_vision: `none`; the `tower`, with its projector (`merger`) still trained; or `all` of it."""
        super().__init__()
        self.model = model
        self.vision_is_frozen = freeze_vision == "all"
        model.model.visual.requires_grad_(freeze_vision == "none")
        model.model.visual.merger.requires_grad_(freeze_vision != "all")

    @property
    def device(self) -> torch.device:
        return self.model.model.language_model.embed_tokens.weight.device

    def encode(self, clips: Sequence[Clip]) -> torch.Tensor:
        """Features [V, C] of distinct clips, concatenated in order."""
        visual = self.model.model.visual
        if not clips:
            return torch.zeros(0, self.model.config.text_config.hidden_size, dtype=visual.dtype, device=self.device)
        patches = torch.cat([patchify(read_frames(clip)) for clip in clips]).to(self.device, visual.dtype)
        grids = torch.tensor([clip.grid_thw for clip in clips], device=self.device)
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.vision_is_frozen):
            return visual(patches, grid_thw=grids).pooler_output

    def embed(self, token_ids: torch.Tensor, vision_rows: torch.Tensor, features: torch.Tensor) -> torch.Tensor:
        """Token embeddings [T, C] with `features` put into `vision_rows`."""
        embeddings = self.model.model.language_model.embed_tokens(token_ids)
        return embeddings.index_copy(0, vision_rows, features.to(embeddings.dtype))

    def decode(self, embeddings: torch.Tensor, positions: torch.Tensor, attention: Attends) -> torch.Tensor:
        """Final hidden states [B, L, C] of embeddings [B, L, C] at positions [3, B, L]."""
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
        """Log-prob [N] of every label and entropy [N] (no gradient) of the distribution it was drawn from.

        `features` [V, C], if given, are those of `batch.clips`; otherwise they are computed here. The vocabulary
        projection is called `least_projections` times at least: ranks that share its weights must agree on a number.
        """
        features = self.encode(batch.clips) if features is None else features
        embeddings = self.embed(batch.token_ids, batch.vision_rows, features[batch.feature_rows])
        attention = plan_attention(batch.end, batch.key_class, batch.visible, self.device)
        hidden = self.decode(embeddings[None], batch.positions[:, None], attention)[0]
        return self.label_logprobs(hidden[batch.label_rows], batch.labels, temperature, least_projections)

    def label_logprobs(
        self, hidden: torch.Tensor, labels: torch.Tensor, temperature: float, least_projections: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """hidden [N, C], labels [N] -> log-probs [N], entropies [N]; of several pieces, no logits are kept."""
        surplus = max(0, least_projections - num_projections(len(labels)))
        rows = [*hidden.split(PROJECTION_ROWS), *[hidden[:0]] * surplus]
        wanted = [*labels.split(PROJECTION_ROWS), *[labels[:0]] * surplus]
        pieces = [
            checkpoint(self._project, *piece, temperature, use_reentrant=False)
            if torch.is_grad_enabled() and len(rows) > 1
            else self._project(*piece, temperature)
            for piece in zip(rows, wanted, strict=True)
        ]
        logprobs, entropies = zip(*pieces, strict=True)
        return torch.cat(logprobs), torch.cat(entropies)

    def _project(
        self, hidden: torch.Tensor, labels: torch.Tensor, temperature: float
    ) -> tuple[torch.Tensor, torch.Tensor]:
        distribution = F.log_softmax(self.model.lm_head(hidden).float() / temperature, dim=-1)
        with torch.no_grad():
            entropy = -(distribution.exp() * distribution).sum(-1)
        return distribution.gather(-1, labels[:, None])[:, 0], entropy

    @torch.no_grad()
    def extend(
        self,
        cache: KVCache | SharedPrefixCache,
        embeddings: torch.Tensor,
        positions: torch.Tensor,
        num_valid: torch.Tensor,
    ) -> torch.Tensor:
        """Appends up to L new tokens to each of B cached sequences; logits [B, vocabulary] after the last valid one.

        embeddings [B, L, C] and positions [3, B, L] are padded on the right; num_valid [B] counts what is real; a
        sequence with none keeps its cache as it was, and its logits mean nothing.
        """
        cache.begin(embeddings.shape[1])
        hidden = self.decode(embeddings, positions, cache)
        cache.advance(num_valid)
        last = hidden[torch.arange(len(num_valid), device=hidden.device), (num_valid - 1).clamp(min=0)]
        return self.model.lm_head(last).float()
