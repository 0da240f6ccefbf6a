"""Keys and values of sequences that grow during generation, and attention against them.

`KVCache` holds every sequence whole. `SharedPrefixCache` holds a prompt once for all sequences that continue it. A
forward pass calls `begin`, then `attend` in each layer, then `advance`.

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

#: Elements of the mask, and of the keys repeated over a group's query heads, in one SDPA call: 512 MiB of bfloat16
#: each. A call takes one sequence at least.
_CALL_ELEMENTS = 2**28


def _no_sequences() -> torch.Tensor:
    return torch.zeros(0, dtype=torch.long)


@dataclass(slots=True)
class SequenceCache(ABC):
    """Attention of new tokens against the cached tokens of B sequences of unequal length.

    keys, values: one tensor for each layer, with `capacity` tokens along `token_axis`. filled: how many tokens are
    valid in each slot. New tokens may be padded on the right: padding lands behind the valid tokens, where no mask
    reaches it, and the next call overwrites it. So a sequence may sit out a pass: it feeds padding and advances by 0.
    """

    keys: list[torch.Tensor]
    values: list[torch.Tensor]
    filled: torch.Tensor

    token_axis: ClassVar[int]

    @property
    def capacity(self) -> int:
        """Tokens that a slot has room for."""
        return self.keys[0].shape[self.token_axis]

    @property
    @abstractmethod
    def lengths(self) -> torch.Tensor:
        """Valid tokens [B] of each sequence, without a shared prompt."""

    @abstractmethod
    def select(self, rows: torch.Tensor, capacity: int) -> None:
        """Keeps the sequences `rows` [B'], in that order, with room for `capacity` tokens."""

    @abstractmethod
    def narrow(self, start: int, stop: int) -> Self:
        """Returns the sequences [start, stop) in the same memory: tokens fed to them are fed to this cache."""

    @abstractmethod
    def begin(self, num_new: int) -> None:
        """Prepares a pass over `num_new` (padded) tokens a sequence. Raises ValueError if they have no room."""

    @abstractmethod
    def attend(self, layer: int, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        """Stores key and value [B, G, L, D] and attends by query [B, H, L, D] -> [B, L, H, D].

        Raises RuntimeError if `begin` was not called.
        """

    @abstractmethod
    def advance(self, num_valid: torch.Tensor) -> None:
        """Ends a pass: num_valid [B] of the new tokens of each sequence are real and stay."""

    def reserve(self, num_more: int) -> None:
        """Makes room for `num_more` further tokens a sequence."""
        # F.pad names the last axis first: pairs of zeros skip the axes behind the tokens.
        padding = (0, 0) * (3 - self.token_axis) + (0, num_more)
        self._replace_each(lambda tensor: F.pad(tensor, padding))

    def _replace_each(self, change: Callable[[torch.Tensor], torch.Tensor]) -> None:
        # Layer by layer: the old tensor is freed before the next layer's is made, so one layer at most is held twice.
        for layer in range(len(self.keys)):
            self.keys[layer] = change(self.keys[layer])
            self.values[layer] = change(self.values[layer])

    def _check_room(self, num_tokens: int) -> None:
        if num_tokens > self.capacity:
            raise ValueError(f"cache holds {self.capacity} tokens, {num_tokens} are needed")


@dataclass(slots=True)
class KVCache(SequenceCache):
    """Every sequence whole, prompt included. Keys and values are [B, G, capacity, D]; slot i is sequence i."""

    _mask: torch.Tensor | None = None
    _span: int = 0

    token_axis: ClassVar[int] = 2

    @classmethod
    def empty(
        cls, num_layers: int, shape: tuple[int, int, int, int], dtype: torch.dtype, device: torch.device
    ) -> KVCache:
        """Returns a cache without tokens; shape is [B, G, capacity, D]."""
        keys = [torch.zeros(shape, dtype=dtype, device=device) for _ in range(num_layers)]
        values = [torch.zeros_like(key) for key in keys]
        return cls(keys, values, torch.zeros(shape[0], dtype=torch.long, device=device))

    @property
    def lengths(self) -> torch.Tensor:
        return self.filled

    def select(self, rows: torch.Tensor, capacity: int) -> None:
        """See `SequenceCache`; rows may repeat, which copies a prompt for each of its sequences."""
        self.filled = self.filled[rows]
        keep = int(self.filled.max()) if len(rows) else 0

        def resized(tensor: torch.Tensor) -> torch.Tensor:
            fresh = tensor.new_zeros(len(rows), tensor.shape[1], capacity, tensor.shape[3])
            fresh[:, :, :keep] = tensor[rows, :, :keep]
            return fresh

        self._replace_each(resized)

    def narrow(self, start: int, stop: int) -> KVCache:
        # Slices are views, `filled` included: `advance` of the part adds to the whole in place.
        return KVCache(
            [key[start:stop] for key in self.keys],
            [value[start:stop] for value in self.values],
            self.filled[start:stop],
        )

    def begin(self, num_new: int) -> None:
        # Padding may reach past the longest sequence's valid tokens, hence the longest plus all new ones.
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
    """A prompt once for all sequences that continue it, and each sequence's own tokens.

    Sequence i keeps its own tokens in slot slots[i]; slot s belongs to prompt s // group_size. Keys and values are
    [N, S, G, D]; those of the prompts are [C, P, G, D], of which prompt_lengths [C] are valid. Tokens stand before
    heads, the layout of the decode kernel.
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
        """Returns sizes[i] sequences on prompt i, without tokens of their own. Takes the prompts' tensors over."""
        longest = int(prompts.lengths.max())

        def tokens_first(tensors: list[torch.Tensor]) -> list[torch.Tensor]:
            # In place of the prompts' own list: the old layout of a layer is freed before the next layer is copied.
            for layer in range(len(tensors)):
                tensors[layer] = tensors[layer][:, :, :longest].transpose(1, 2).contiguous()
            return tensors

        prompt_keys, prompt_values = tokens_first(prompts.keys), tokens_first(prompts.values)
        # Groups have equally many slots, as the decode kernel requires; slots of smaller groups stay empty.
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
        """See `SequenceCache`; rows may not repeat. Prompts without a sequence are dropped, slots are dealt anew."""
        old_slots = [self.slots[row] for row in rows.tolist()]
        old_prompts = [slot // self.group_size for slot in old_slots]
        kept_prompts = sorted(set(old_prompts))
        ranks = [old_prompts[:i].count(prompt) for i, prompt in enumerate(old_prompts)]
        # The largest group that is left sets the group size: groups shrink as their sequences end.
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
        # `replace` keeps the same tensors and lists; only the choice of slots is the part's own.
        return replace(self, slots=self.slots[start:stop])

    def begin(self, num_new: int) -> None:
        device = self.filled.device
        self._slots = torch.tensor(self.slots, device=device)
        lengths = self.filled[self._slots]
        self._span = int(lengths.max()) + num_new
        self._check_room(self._span)
        if num_new == 1:
            return  # the decode kernel takes lengths, not a mask
        last_visible = lengths[:, None] + torch.arange(num_new, device=device)
        own = torch.arange(self._span, device=device) <= last_visible[..., None]  # [B, L, span]
        num_prompt_tokens = self.prompt_keys[0].shape[1]
        prompt_lengths = self.prompt_lengths[self._slots // self.group_size]
        # Shorter prompts are padded to P tokens, between them and the own tokens: the mask hides the padding.
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
        # The kernel wants equal groups: slots without a sequence take part with whatever they hold; nobody reads them.
        rows = query.new_zeros(len(self.filled), 1, query.shape[1], query.shape[3])
        rows[self._slots] = query.transpose(1, 2)
        # The new token is in its slot already, before `advance` counts it.
        own = KeyValues(self.keys[layer], self.values[layer], self.filled + 1)
        prompts = KeyValues(self.prompt_keys[layer], self.prompt_values[layer], self.prompt_lengths)
        return decode_attention(rows, own, prefix=prompts)[self._slots]


def fork(prompts: KVCache, sizes: Sequence[int]) -> SequenceCache:
    """Returns a cache of sizes[i] sequences that continue prompt i; the prompts' cache must not be used afterwards.

    Prompts are shared where the Triton kernels run. Elsewhere each sequence gets a copy: for small models a copy costs
    less than attention in two parts.
    """
    if choose(prompts.keys[0]) == "triton":
        return SharedPrefixCache.fork(prompts, sizes)
    rows = torch.arange(len(sizes)).repeat_interleave(torch.tensor(sizes))
    prompts.select(rows.to(prompts.lengths.device), prompts.capacity)
    return prompts


def _sequences_per_call(query: torch.Tensor, num_keys: int) -> int:
    """Returns how many sequences of query [B, H, L, D] may meet `num_keys` keys each in one SDPA call."""
    _, num_heads, num_new, head_size = query.shape
    return max(1, _CALL_ELEMENTS // (num_keys * max(num_new, num_heads * head_size)))


def _sdpa_one_token(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """`masked_sdpa` for L = 1: the query heads of a key head stand as its rows, so that no key is repeated."""
    rows = rearrange(query, "b (group head) 1 size -> b group head size", group=key.shape[1])
    attended = F.scaled_dot_product_attention(rows, key, value, attn_mask=mask)
    return rearrange(attended, "b group head size -> b (group head) 1 size")
