"""The seam between the decoder and attention: everything that depends on transformers' attention registry.

The name contains "flash" so that the vision tower hands over packed windows (`cu_seq_lens_q`) in one call. The decoder
receives, in place of a mask tensor, an object of this module that knows how to attend: `PackedAttention` or
`KernelAttention` for training rows, `KVCache` for generation. It travels through the model untouched under the
key `full_attention`.

Legend: B documents or sequences, L padded length, T packed tokens, H query heads, G key heads, D head size.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from importlib.util import find_spec
from typing import Protocol

import torch
import torch.nn.functional as F
from einops import rearrange
from transformers import AttentionInterface, Qwen2_5_VLForConditionalGeneration
from transformers.masking_utils import AttentionMaskInterface
from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import Qwen2_5_VLAttention
from videoseek_kernels import TokenMask, plan, tdam_attention
from videoseek_kernels.plan import Plan

IMPLEMENTATION = "videoseek_flash"

logger = logging.getLogger(__name__)

#: Documents are padded to the longest of their bucket; a bucket closes below this share of its longest document.
_BUCKET_FILL = 0.7

#: Elements of the mask, and of the keys repeated over a group's query heads, in one call of generation: 512 MiB of
#: bfloat16 each. A call takes one sequence at least.
_CALL_ELEMENTS = 2**28


class Attends(Protocol):
    def attend(self, layer: int, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        """query [B, H, L, D], key and value [B, G, L, D] -> [B, L, H, D]."""


def install_attention(model: Qwen2_5_VLForConditionalGeneration) -> Qwen2_5_VLForConditionalGeneration:
    """Puts the decoder and the vision tower of a model on our attention, and returns it.

    Registered in both of transformers' tables, then set on the configurations: `set_attn_implementation` would try to
    load any name with "flash" in it as a kernel from a hub (transformers 5.23, `lazy_import_flash_attention`).
    """
    AttentionInterface.register(IMPLEMENTATION, _attention)
    AttentionMaskInterface.register(IMPLEMENTATION, _refuse_mask)
    for config in (model.config, model.config.text_config, model.config.vision_config):
        config._attn_implementation = IMPLEMENTATION
    return model


def _refuse_mask(*args: object, **kwargs: object) -> None:
    raise RuntimeError("videoseek passes its own attention plan; call the model through videoseek.model.policy")


def _attention(
    module: Qwen2_5_VLAttention,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: Attends | None,
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
        raise RuntimeError("the decoder was called without an attention plan")
    return attention_mask.attend(module.layer_idx, query, key, value), None


@cache
def flash_attn_serves(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether flash-attn computes the vision tower's windows: where it is installed, on a GPU, in 16 bits. Logged."""
    serves = device.type == "cuda" and dtype in (torch.float16, torch.bfloat16) and find_spec("flash_attn") is not None
    logger.info("vision tower on %s in %s: windows by %s", device, dtype, "flash-attn" if serves else "torch")
    return serves


def flash_windows(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, bounds: torch.Tensor, longest: int
) -> torch.Tensor:
    """`torch_windows` in one call, without a look at `bounds` from the host; no window exceeds `longest` tokens."""
    from flash_attn import flash_attn_varlen_func

    rows = (rearrange(tensor, "1 head token size -> token head size") for tensor in (query, key, value))
    return flash_attn_varlen_func(*rows, bounds, bounds, longest, longest)[None]


def torch_windows(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, bounds: torch.Tensor) -> torch.Tensor:
    """Full attention inside the windows [bounds[i], bounds[i+1]) of [1, H, T, D] -> [1, T, H, D].

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


def sdpa(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """[B, H, L, D] against [B, G, K, D] under a bool mask [B, 1, L, K] -> [B, H, L, D]."""
    groups = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(groups, dim=1), value.repeat_interleave(groups, dim=1)
    return F.scaled_dot_product_attention(query, key, value, attn_mask=mask)


def sequences_per_call(query: torch.Tensor, num_keys: int) -> int:
    """How many sequences of query [B, H, L, D] may meet `num_keys` keys each in one call of generation."""
    _, num_heads, num_new, head_size = query.shape
    return max(1, _CALL_ELEMENTS // (num_keys * max(num_new, num_heads * head_size)))


def _sdpa_one_token(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """`sdpa` for L = 1: the query heads of a key head stand as its rows, so that no key is repeated."""
    rows = rearrange(query, "b (group head) 1 size -> b group head size", group=key.shape[1])
    attended = F.scaled_dot_product_attention(rows, key, value, attn_mask=mask)
    return rearrange(attended, "b group head size -> b (group head) 1 size")


@dataclass(slots=True)
class PackedAttention:
    """Attention over one packed row under `visible(m, n) = n <= m < end[n] and visible[m] & key_class[n]`.

    The dense path of any device: documents are cut out at the boundaries that `end` implies, padded to buckets of
    similar length and given a bool mask each. Built once per batch and shared by all layers and passes.
    """

    buckets: list[tuple[torch.Tensor, torch.Tensor]]  # rows [B, L] (T where padded), mask [B, 1, L, L]
    unpack: torch.Tensor  # [T] where each token stands in the concatenated, flattened buckets

    @classmethod
    def plan(cls, end: torch.Tensor, key_class: torch.Tensor, visible: torch.Tensor) -> PackedAttention:
        bounds = document_bounds(end)
        spans = sorted(zip(bounds[:-1], bounds[1:], strict=True), key=lambda span: span[0] - span[1])
        buckets: list[tuple[torch.Tensor, torch.Tensor]] = []
        unpack = torch.empty(end.shape[0], dtype=torch.long)
        filled = 0
        while spans:
            longest = spans[0][1] - spans[0][0]
            size = next((i for i, (a, b) in enumerate(spans) if b - a < _BUCKET_FILL * longest), len(spans))
            bucket, spans = spans[:size], spans[size:]
            rows = torch.full((size, longest), -1)
            for i, (start, stop) in enumerate(bucket):
                rows[i, : stop - start] = torch.arange(start, stop)
                unpack[start:stop] = filled + i * longest + torch.arange(stop - start)
            filled += rows.numel()
            buckets.append((rows.clamp(min=0), _bucket_mask(rows, end, key_class, visible)))
        device = end.device
        return cls([(rows.to(device), mask.to(device)) for rows, mask in buckets], unpack.to(device))

    def attend(self, layer: int, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        outputs = []
        for rows, mask in self.buckets:
            q, k, v = (tensor[0][:, rows].transpose(0, 1) for tensor in (query, key, value))  # [B, H or G, L, D]
            outputs.append(sdpa(q, k, v, mask).transpose(1, 2).flatten(0, 1))  # [B * L, H, D]
        return torch.cat(outputs)[self.unpack][None]


@dataclass(slots=True)
class KernelAttention:
    """The same attention by the package's kernels; which of them, they choose by rule and log."""

    plan: Plan

    def attend(self, layer: int, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        q, k, v = (tensor[0].transpose(0, 1).contiguous() for tensor in (query, key, value))  # [T, H or G, D]
        return tdam_attention(q, k, v, self.plan)[None]


def plan_attention(end: torch.Tensor, key_class: torch.Tensor, visible: torch.Tensor, device: torch.device) -> Attends:
    """Attention on `device` for one packed row, from its mask on the host.

    The kernels on a GPU, by a plan made on the host, which needs no look at the GPU; on a CPU padded documents, which
    suit many short ones.
    """
    if device.type == "cuda":
        return KernelAttention(plan(TokenMask(end, key_class, visible)).to(device))
    return PackedAttention.plan(end, key_class, visible)


def document_bounds(end: torch.Tensor) -> list[int]:
    """Row indices `[0, .., T]` between which no key is seen from outside: a document, or a tree-packed group."""
    reach = end.cpu().cummax(0).values
    starts = torch.arange(1, len(end) + 1)
    return [0, *starts[reach <= starts].tolist()]


def _bucket_mask(rows: torch.Tensor, end: torch.Tensor, key_class: torch.Tensor, visible: torch.Tensor) -> torch.Tensor:
    end, key_class, visible = end.cpu(), key_class.cpu(), visible.cpu()
    query, key = rows[:, :, None], rows[:, None, :]  # -1 where padded
    mask = (key >= 0) & (key <= query) & (query < end[rows][:, None, :])
    mask &= (visible[rows][:, :, None] & key_class[rows][:, None, :]) != 0
    # A padded row sees itself: a softmax over nothing is NaN, and nobody reads its output.
    mask |= torch.eye(rows.shape[1], dtype=torch.bool) & (rows < 0)[:, :, None]
    return mask[:, None]


@dataclass(slots=True)
class KVCache:
    """Attention of new tokens against a growing cache of B sequences of unequal length.

    `keys` and `values` hold [B, G, capacity, D] for each layer; `lengths` [B] tokens are valid before this call. New
    tokens may be padded on the right: padding lands behind the valid part and is overwritten by the next call.
    """

    keys: list[torch.Tensor]
    values: list[torch.Tensor]
    lengths: torch.Tensor
    _mask: torch.Tensor | None = field(default=None)
    _span: int = 0

    @classmethod
    def empty(
        cls, num_layers: int, shape: tuple[int, int, int, int], dtype: torch.dtype, device: torch.device
    ) -> KVCache:
        """shape is [B, G, capacity, D]."""
        keys = [torch.zeros(shape, dtype=dtype, device=device) for _ in range(num_layers)]
        values = [torch.zeros_like(key) for key in keys]
        return cls(keys, values, torch.zeros(shape[0], dtype=torch.long, device=device))

    @property
    def capacity(self) -> int:
        return self.keys[0].shape[2]

    def select(self, rows: torch.Tensor, capacity: int) -> None:
        """Keeps the sequences `rows` (repeats allowed: a shared prefix is copied), with room for `capacity` tokens.

        Layer by layer, so that no more than one layer is held twice.
        """
        self.lengths = self.lengths[rows]
        keep = int(self.lengths.max()) if len(rows) else 0

        def resized(tensor: torch.Tensor) -> torch.Tensor:
            fresh = tensor.new_zeros(len(rows), tensor.shape[1], capacity, tensor.shape[3])
            fresh[:, :, :keep] = tensor[rows, :, :keep]
            return fresh

        self._replace_each(resized)

    def reserve(self, num_more: int) -> None:
        """Room for `num_more` further tokens a sequence."""
        self._replace_each(lambda tensor: F.pad(tensor, (0, 0, 0, num_more)))

    def _replace_each(self, change: Callable[[torch.Tensor], torch.Tensor]) -> None:
        for layer in range(len(self.keys)):
            self.keys[layer] = change(self.keys[layer])
            self.values[layer] = change(self.values[layer])

    def narrow(self, start: int, stop: int) -> KVCache:
        """The sequences [start, stop) in the same memory: what is fed to them is fed to this cache."""
        return KVCache(
            [key[start:stop] for key in self.keys],
            [value[start:stop] for value in self.values],
            self.lengths[start:stop],
        )

    def begin(self, num_new: int) -> None:
        """Prepares the mask for a forward pass over `num_new` (padded) tokens a sequence."""
        self._span = int(self.lengths.max()) + num_new
        if self._span > self.capacity:
            raise ValueError(f"cache holds {self.capacity} tokens, {self._span} are needed")
        last_visible = self.lengths[:, None] + torch.arange(num_new, device=self.lengths.device)
        self._mask = (torch.arange(self._span, device=self.lengths.device) <= last_visible[..., None])[:, None]

    def advance(self, num_valid: torch.Tensor) -> None:
        self.lengths += num_valid

    def attend(self, layer: int, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        if self._mask is None:
            raise RuntimeError("KVCache.begin was not called")
        num_new = key.shape[2]
        rows = torch.arange(len(self.lengths), device=key.device)[:, None]
        columns = self.lengths[:, None] + torch.arange(num_new, device=key.device)
        self.keys[layer][rows, :, columns] = key.transpose(1, 2)
        self.values[layer][rows, :, columns] = value.transpose(1, 2)
        keys, values = self.keys[layer][:, :, : self._span], self.values[layer][:, :, : self._span]
        if num_new == 1:
            return _sdpa_one_token(query, keys, values, self._mask).transpose(1, 2)
        at_once = sequences_per_call(query, self._span)
        calls = zip(*(tensor.split(at_once) for tensor in (query, keys, values, self._mask)), strict=True)
        return torch.cat([sdpa(*call) for call in calls]).transpose(1, 2)
