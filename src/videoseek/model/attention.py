"""The interface between the model and attention: all code around transformers' attention registry.

The name contains "flash": therefore the vision tower passes packed windows (`cu_seq_lens_q`) in one call. The decoder
receives a `DecoderAttention` in place of a mask tensor: `PackedAttention` for training rows, a cache of `kv_cache` for
generation. The model passes the object through unchanged under the key `full_attention`.

Legend: B sequences, L padded length, T packed tokens, H query heads, G key heads, D head size.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from functools import cache
from typing import Protocol

import torch
import torch.nn.functional as F
from einops import rearrange
from transformers import AttentionInterface, Qwen2_5_VLForConditionalGeneration
from transformers.masking_utils import AttentionMaskInterface
from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import Qwen2_5_VLAttention
from videoseek_kernels import TokenMask, build_block_mask, tdam_attention
from videoseek_kernels.block_mask import BlockMask

IMPLEMENTATION = "videoseek_flash"

logger = logging.getLogger(__name__)


class DecoderAttention(Protocol):
    """Computes the attention of each decoder layer, in place of transformers' mask."""

    def attend(self, layer: int, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        """Attends by query [B, H, L, D] to key and value [B, G, L, D] -> [B, L, H, D]."""


def install_attention(model: Qwen2_5_VLForConditionalGeneration) -> Qwen2_5_VLForConditionalGeneration:
    """Puts the decoder and the vision tower of a model on this module's attention, and returns the model.

    Registers the attention in both tables of transformers and sets the configurations directly: for any name with
    "flash", `set_attn_implementation` loads a hub kernel (transformers 5.23, `lazy_import_flash_attention`).
    """
    AttentionInterface.register(IMPLEMENTATION, _attention)
    AttentionMaskInterface.register(IMPLEMENTATION, _refuse_mask)
    for config in (model.config, model.config.text_config, model.config.vision_config):
        config._attn_implementation = IMPLEMENTATION
    return model


def _refuse_mask(*args: object, **kwargs: object) -> None:
    raise RuntimeError("videoseek passes its own attention; call the model through videoseek.model.policy")


def _attention(
    module: Qwen2_5_VLAttention,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: DecoderAttention | None,
    *,
    cu_seq_lens_q: torch.Tensor | None = None,
    max_length_q: int = 0,
    **_: object,
) -> tuple[torch.Tensor, None]:
    if cu_seq_lens_q is not None:
        if flash_attn_serves(query.device, query.dtype):
            return flash_windows(query, key, value, cu_seq_lens_q, max_length_q), None
        return torch_windows(query, key, value, cu_seq_lens_q), None
    if attention_mask is None or module.layer_idx is None:
        raise RuntimeError("the decoder was called without attention; call the model through videoseek.model.policy")
    return attention_mask.attend(module.layer_idx, query, key, value), None


@cache
def flash_attn_serves(device: torch.device, dtype: torch.dtype) -> bool:
    """Returns and logs whether flash-attn computes the vision windows: on a GPU, in 16 bits, if installed."""
    serves, reason = device.type == "cuda" and dtype in (torch.float16, torch.bfloat16), ""
    if serves:
        try:
            # The package may be a build for another torch, or a namespace of flash-attn-4, which lacks the function.
            from flash_attn import flash_attn_varlen_func  # noqa: F401
        except ImportError as error:
            serves, reason = False, f" ({error})"
    logger.info("vision tower on %s in %s: windows by %s%s", device, dtype, "flash-attn" if serves else "torch", reason)
    return serves


def flash_windows(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, bounds: torch.Tensor, longest: int
) -> torch.Tensor:
    """Computes `torch_windows` in one call and keeps `bounds` on the device. `longest` bounds the window length.

    A trained tower takes the deterministic backward: the default adds gradients in changing order.
    """
    from flash_attn import flash_attn_varlen_func

    rows = (rearrange(tensor, "1 head token size -> token head size") for tensor in (query, key, value))
    trained = query.requires_grad
    return flash_attn_varlen_func(*rows, bounds, bounds, longest, longest, deterministic=trained)[None]


def torch_windows(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, bounds: torch.Tensor) -> torch.Tensor:
    """Attends inside each window [bounds[i], bounds[i+1]) without a mask, [1, H, T, D] -> [1, T, H, D].

    Windows of one length share a call.
    """
    lengths = bounds.diff()
    out = torch.empty_like(query)
    for length in lengths.unique().tolist():
        rows = bounds[:-1][lengths == length, None] + torch.arange(length, device=bounds.device)
        q, k, v = (tensor[0][:, rows].transpose(0, 1) for tensor in (query, key, value))  # [windows, H, length, D]
        attended = F.scaled_dot_product_attention(q, k, v)
        out = out.index_copy(2, rows.flatten(), attended.transpose(0, 1).flatten(1, 2)[None])
    return out.transpose(1, 2)


@dataclass(frozen=True, slots=True)
class PackedAttention:
    """Attention over one packed row under a `TokenMask`. `videoseek_kernels` chooses and logs the implementation.

    One object per batch serves all layers, passes and recomputations.
    """

    block_mask: BlockMask

    @classmethod
    def build(
        cls, end: torch.Tensor, key_class: torch.Tensor, visible: torch.Tensor, device: torch.device
    ) -> PackedAttention:
        """Builds the attention on `device` from the mask [T] of a row (see `TokenMask`)."""
        # A mask on the host builds its block lists there: the host need not wait for the GPU.
        return cls(build_block_mask(TokenMask(end, key_class, visible)).to(device))

    def attend(self, layer: int, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        q, k, v = (tensor[0].transpose(0, 1) for tensor in (query, key, value))  # [T, H or G, D]
        return tdam_attention(q, k, v, self.block_mask)[None]
