"""Keys and values of growing sequences during generation, and attention against the cache.

`KVCache` holds every sequence whole. `SharedPrefixCache` holds one copy of each prompt for all its sequences. A forward
pass calls `begin`, then `attend` in each layer, then `advance`.

Legend: C prompts of P tokens, B sequences, N slots of S tokens, L new tokens, H query heads, G key heads, D head size.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import ClassVar, Self

import torch
import torch.nn.functional as F
from einops import rearrange
from videoseek_kernels import decode_attention
from videoseek_kernels.dense import masked_sdpa
from videoseek_kernels.dispatch import choose
from videoseek_kernels.key_values import KeyValues

#: Limits the mask, and the keys repeated over a group's query heads, of one SDPA call, in elements: 512 MiB of bfloat16
#: each. A call takes at least one sequence.
_CALL_ELEMENTS = 2**28


def _no_sequences() -> torch.Tensor:
    return torch.zeros(0, dtype=torch.long)


@dataclass(slots=True)
class SequenceCache(ABC):
    """Attention of new tokens against the cached tokens of B sequences of unequal length.

    keys, values: one tensor per layer, with `capacity` tokens along `token_axis`. filled: the number of valid tokens in
    each slot. New tokens may be padded on the right. Padding lands behind the valid tokens: masks hide the padding, and
    the next call overwrites the padding. A sequence can sit out a pass: feed padding and advance by 0.
    """

    keys: list[torch.Tensor]
    values: list[torch.Tensor]
    filled: torch.Tensor

    token_axis: ClassVar[int]

    @property
    def capacity(self) -> int:
        """Returns the token capacity of a slot."""
        return self.keys[0].shape[self.token_axis]

    @property
    @abstractmethod
    def lengths(self) -> torch.Tensor:
        """Returns the valid tokens [B] of each sequence, excluding a shared prompt."""

    @abstractmethod
    def select(self, rows: torch.Tensor, capacity: int) -> None:
        """Keeps the sequences `rows` [B'], in the given order, with room for `capacity` tokens."""

    @abstractmethod
    def narrow(self, start: int, stop: int) -> Self:
        """Returns the sequences [start, stop) as a view: tokens fed to the view also enter this cache."""

    @abstractmethod
    def begin(self, num_new: int) -> None:
        """Prepares a pass over `num_new` (padded) tokens per sequence. Raises ValueError for insufficient room."""

    @abstractmethod
    def attend(self, layer: int, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        """Stores key and value [B, G, L, D] and attends by query [B, H, L, D] -> [B, L, H, D].

        Raises RuntimeError before `begin`.
        """

    @abstractmethod
    def advance(self, num_valid: torch.Tensor) -> None:
        """Ends a pass: the first num_valid [B] new tokens of each sequence are real and stay."""

    def reserve(self, num_more: int) -> None:
        """Makes room for `num_more` further tokens per sequence."""
        # F.pad names the last axis first: pairs of zeros skip the axes behind the tokens.
        padding = (0, 0) * (3 - self.token_axis) + (0, num_more)
        self._replace_each(lambda tensor: F.pad(tensor, padding))

    def _replace_each(self, change: Callable[[torch.Tensor], torch.Tensor]) -> None:
        # Layer by layer: each old tensor is freed before the next layer. At most one layer is held twice.
        for layer in range(len(self.keys)):
            self.keys[layer] = change(self.keys[layer])
            self.values[layer] = change(self.values[layer])

    def _check_room(self, num_tokens: int) -> None:
        if num_tokens > self.capacity:
            raise ValueError(f"cache holds {self.capacity} tokens, {num_tokens} are needed")


@dataclass(slots=True)
class KVCache(SequenceCache):
    """Every sequence whole, including the prompt. Keys and values are [B, G, capacity, D]; slot i is sequence i."""

    _mask: torch.Tensor | None = None
    _span: int = 0

    token_axis: ClassVar[int] = 2

    @classmethod
    def empty(
        cls, num_layers: int, shape: tuple[int, int, int, int], dtype: torch.dtype, device: torch.device
    ) -> KVCache:
        """Returns a cache without tokens. shape is [B, G, capacity, D]."""
        keys = [torch.zeros(shape, dtype=dtype, device=device) for _ in range(num_layers)]
        values = [torch.zeros_like(key) for key in keys]
        return cls(keys, values, torch.zeros(shape[0], dtype=torch.long, device=device))

    @property
    def lengths(self) -> torch.Tensor:
        return self.filled

    def select(self, rows: torch.Tensor, capacity: int) -> None:
        """See `SequenceCache`. Rows may repeat: each sequence of a prompt gets a copy."""
        self.filled = self.filled[rows]
        keep = int(self.filled.max()) if len(rows) else 0

        def resized(tensor: torch.Tensor) -> torch.Tensor:
            fresh = tensor.new_zeros(len(rows), tensor.shape[1], capacity, tensor.shape[3])
            fresh[:, :, :keep] = tensor[rows, :, :keep]
            return fresh

        self._replace_each(resized)

    def narrow(self, start: int, stop: int) -> KVCache:
        # Slices are views, including `filled`: `advance` of the part adds to the whole in place.
        return KVCache(
            [key[start:stop] for key in self.keys],
            [value[start:stop] for value in self.values],
            self.filled[start:stop],
        )

    def begin(self, num_new: int) -> None:
        # Padding may reach past the longest sequence's valid tokens: the span is the longest plus all new tokens.
        self._span = int(self.filled.max()) + num_new
        self._check_room(self._span)
        last_visible = self.filled[:, None] + torch.arange(num_new, device=self.filled.device)
        self._mask = (torch.arange(self._span, device=self.filled.device) <= last_visible[..., None])[:, None]

    def attend(self, layer: int, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        if self._mask is None:
            raise RuntimeError("KVCache.begin was not called")
        num_new = key.shape[2]
        rows = torch.arange(len(self.filled), device=key.device)[:, None]
        columns = self.filled[:, None] + torch.arange(num_new, device=key.device)
        self.keys[layer][rows, :, columns] = key.transpose(1, 2)
        self.values[layer][rows, :, columns] = value.transpose(1, 2)
        keys, values = self.keys[layer][:, :, : self._span], self.values[layer][:, :, : self._span]
        if num_new == 1:
            return _sdpa_one_token(query, keys, values, self._mask).transpose(1, 2)
        at_once = _sequences_per_call(query, self._span)
        calls = zip(*(tensor.split(at_once) for tensor in (query, keys, values, self._mask)), strict=True)
        return torch.cat([masked_sdpa(*call) for call in calls]).transpose(1, 2)

    def advance(self, num_valid: torch.Tensor) -> None:
        self.filled += num_valid  # in place, for `narrow`


@dataclass(slots=True)
class SharedPrefixCache(SequenceCache):
    """One copy of each prompt for all its sequences, and the own tokens of each sequence.

    Sequence i keeps its own tokens in slot slots[i]; slot s belongs to prompt s // group_size. Own keys and values are
    [N, S, G, D]. Prompt keys and values are [C, P, G, D], and prompt_lengths [C] counts the valid tokens. Tokens stand
    before heads, the layout of the decode kernel.
    """

    prompt_keys: list[torch.Tensor]
    prompt_values: list[torch.Tensor]
    prompt_lengths: torch.Tensor
    slots: list[int]
    group_size: int
    _slots: torch.Tensor = field(default_factory=_no_sequences)
    _mask: torch.Tensor = field(default_factory=_no_sequences)
    _span: int = 0

    token_axis: ClassVar[int] = 1

    @classmethod
    def fork(cls, prompts: KVCache, sizes: Sequence[int]) -> SharedPrefixCache:
        """Returns sizes[i] sequences on prompt i, with zero own tokens. Takes over the prompts' tensors."""
        longest = int(prompts.lengths.max())

        def tokens_first(tensors: list[torch.Tensor]) -> list[torch.Tensor]:
            # In place in the prompts' own list: the old layout of a layer is freed before the next layer is copied.
            for layer in range(len(tensors)):
                tensors[layer] = tensors[layer][:, :, :longest].transpose(1, 2).contiguous()
            return tensors

        prompt_keys, prompt_values = tokens_first(prompts.keys), tokens_first(prompts.values)
        # The decode kernel requires equal numbers of slots per group. Slots of smaller groups stay empty.
        group_size = max(sizes)
        num_slots = len(sizes) * group_size
        own = [keys.new_zeros(num_slots, 0, *keys.shape[2:]) for keys in prompt_keys]
        return cls(
            keys=own,
            values=list(own),
            filled=torch.zeros(num_slots, dtype=torch.int32, device=prompts.lengths.device),
            prompt_keys=prompt_keys,
            prompt_values=prompt_values,
            prompt_lengths=prompts.lengths.int(),
            slots=[prompt * group_size + number for prompt, size in enumerate(sizes) for number in range(size)],
            group_size=group_size,
        )

    @property
    def lengths(self) -> torch.Tensor:
        return self.filled[torch.tensor(self.slots, device=self.filled.device)]

    def select(self, rows: torch.Tensor, capacity: int) -> None:
        """See `SequenceCache`; rows must be distinct. Drops prompts without a sequence and reassigns the slots."""
        old_slots = [self.slots[row] for row in rows.tolist()]
        old_prompts = [slot // self.group_size for slot in old_slots]
        kept_prompts = sorted(set(old_prompts))
        ranks = [old_prompts[:i].count(prompt) for i, prompt in enumerate(old_prompts)]
        # The largest remaining group sets the group size: groups shrink as their sequences end.
        self.group_size = max(ranks) + 1
        self.slots = [
            kept_prompts.index(prompt) * self.group_size + rank for prompt, rank in zip(old_prompts, ranks, strict=True)
        ]
        device = self.filled.device
        source, target = torch.tensor(old_slots, device=device), torch.tensor(self.slots, device=device)
        num_slots = len(kept_prompts) * self.group_size
        filled = self.filled.new_zeros(num_slots)
        filled[target] = self.filled[source]
        keep = int(filled.max())

        def moved(tensor: torch.Tensor) -> torch.Tensor:
            fresh = tensor.new_zeros(num_slots, capacity, *tensor.shape[2:])
            fresh[target, :keep] = tensor[source, :keep]
            return fresh

        self.filled = filled
        self._replace_each(moved)
        if len(kept_prompts) < len(self.prompt_lengths):
            kept = torch.tensor(kept_prompts, device=device)
            self.prompt_lengths = self.prompt_lengths[kept]
            for layer in range(len(self.prompt_keys)):
                self.prompt_keys[layer] = self.prompt_keys[layer][kept]
                self.prompt_values[layer] = self.prompt_values[layer][kept]

    def narrow(self, start: int, stop: int) -> SharedPrefixCache:
        # `replace` keeps the same tensors and lists. Only the choice of slots differs.
        return replace(self, slots=self.slots[start:stop])

    def begin(self, num_new: int) -> None:
        device = self.filled.device
        self._slots = torch.tensor(self.slots, device=device)
        lengths = self.filled[self._slots]
        self._span = int(lengths.max()) + num_new
        self._check_room(self._span)
        if num_new == 1:
            return  # the decode kernel takes lengths in place of a mask
        last_visible = lengths[:, None] + torch.arange(num_new, device=device)
        own = torch.arange(self._span, device=device) <= last_visible[..., None]  # [B, L, span]
        num_prompt_tokens = self.prompt_keys[0].shape[1]
        prompt_lengths = self.prompt_lengths[self._slots // self.group_size]
        # Shorter prompts are padded to P tokens, in front of the own tokens: the mask hides the padding.
        shared = torch.arange(num_prompt_tokens, device=device) < prompt_lengths[:, None, None]
        self._mask = torch.cat([shared.expand(-1, num_new, -1), own], dim=2)[:, None]

    def attend(self, layer: int, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        if not self._span:
            raise RuntimeError("SharedPrefixCache.begin was not called")
        columns = self.filled[self._slots][:, None] + torch.arange(key.shape[2], device=key.device)
        self.keys[layer][self._slots[:, None], columns] = key.transpose(1, 2)
        self.values[layer][self._slots[:, None], columns] = value.transpose(1, 2)
        if key.shape[2] == 1:
            return self._attend_by_kernel(layer, query)
        at_once = _sequences_per_call(query, self._mask.shape[3])
        outputs = []
        for slots, rows, mask in zip(
            self._slots.split(at_once), query.split(at_once), self._mask.split(at_once), strict=True
        ):
            keys = self._joined(self.prompt_keys[layer], self.keys[layer], slots)
            values = self._joined(self.prompt_values[layer], self.values[layer], slots)
            outputs.append(masked_sdpa(rows, keys, values, mask))
        return torch.cat(outputs).transpose(1, 2)

    def advance(self, num_valid: torch.Tensor) -> None:
        self.filled[self._slots] += num_valid.int()

    def _joined(self, prompts: torch.Tensor, own: torch.Tensor, slots: torch.Tensor) -> torch.Tensor:
        """Returns [B', G, P + span, D] for the slots [B'], their prompts first."""
        return torch.cat([prompts[slots // self.group_size], own[slots, : self._span]], dim=1).transpose(1, 2)

    def _attend_by_kernel(self, layer: int, query: torch.Tensor) -> torch.Tensor:
        """Attends by one new token a sequence, query [B, H, 1, D] -> [B, 1, H, D]."""
        # The kernel needs equal groups: empty slots take part with arbitrary content, and their output is dropped.
        rows = query.new_zeros(len(self.filled), 1, query.shape[1], query.shape[3])
        rows[self._slots] = query.transpose(1, 2)
        # The new token is already in its slot. `advance` counts the token later.
        own = KeyValues(self.keys[layer], self.values[layer], self.filled + 1)
        prompts = KeyValues(self.prompt_keys[layer], self.prompt_values[layer], self.prompt_lengths)
        return decode_attention(rows, own, prefix=prompts)[self._slots]


def fork(prompts: KVCache, sizes: Sequence[int]) -> SequenceCache:
    """Returns a cache of sizes[i] sequences on prompt i. Consumes the prompts' cache.

    With the Triton kernels the sequences share prompts. Elsewhere each sequence gets a copy: for small models a copy
    costs less than attention in two parts.
    """
    if choose(prompts.keys[0]) == "triton":
        return SharedPrefixCache.fork(prompts, sizes)
    rows = torch.arange(len(sizes)).repeat_interleave(torch.tensor(sizes))
    prompts.select(rows.to(prompts.lengths.device), prompts.capacity)
    return prompts


def _sequences_per_call(query: torch.Tensor, num_keys: int) -> int:
    """Returns the number of sequences of query [B, H, L, D] with `num_keys` keys each for one SDPA call."""
    _, num_heads, num_new, head_size = query.shape
    return max(1, _CALL_ELEMENTS // (num_keys * max(num_new, num_heads * head_size)))


def _sdpa_one_token(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Computes `masked_sdpa` for L = 1 with the query heads of a key head as its rows: keys stay unrepeated."""
    rows = rearrange(query, "b (group head) 1 size -> b group head size", group=key.shape[1])
    attended = F.scaled_dot_product_attention(rows, key, value, attn_mask=mask)
    return rearrange(attended, "b group head size -> b (group head) 1 size")
