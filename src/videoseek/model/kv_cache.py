"""Keys and values of growing sequences during generation, and attention against them.

A `CachePass` is the attention of one packed pass of the decoder: one new token of each active sequence, and stretches
of new tokens (prompts, observations) behind cached ones. `CopyCache` holds every sequence whole. `SharedPrefixCache`
holds one copy of each film's tokens for all sequences about the film.

Legend: C films of P tokens, N slots of S tokens, T tokens of a pass, L new tokens, K cached and new tokens, H query
heads, G key heads, D head size.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import count
from typing import Any, ClassVar, Protocol

import torch
import torch.nn.functional as F
from torch.nn.attention.bias import causal_lower_right
from videoseek_kernels import decode_attention
from videoseek_kernels.dispatch import choose
from videoseek_kernels.key_values import KeyValues

#: Attention on a CPU reads keys in spans of whole multiples of this, so that a row's sum runs over the same blocks
#: whatever the longest sequence beside it is.
_SPAN = 64
#: Sequences of one attention call on a CPU. A long sequence lengthens the span of its own call only.
_CHUNK = 16

Pair = tuple[torch.Tensor, torch.Tensor]


class Context(Protocol):
    """Cached tokens in front of new ones."""

    def layer(self, index: int) -> Pair:
        """Returns keys and values [K, G, D] of a layer."""


@dataclass(frozen=True, slots=True, eq=False)
class Tokens:
    """Keys and values [K, G, D] of consecutive tokens, one pair per layer. `number` tells films apart."""

    pairs: list[Pair]
    number: int = field(default_factory=count().__next__)

    def layer(self, index: int) -> Pair:
        return self.pairs[index]

    def __len__(self) -> int:
        return len(self.pairs[0][0])


@dataclass(slots=True, eq=False)
class Slot:
    """The place of `owner`'s sequence in a cache, and the number of its tokens there, without shared ones.

    Only active slots take part in a step of one token each.
    """

    owner: Any
    index: int
    length: int = 0
    is_active: bool = False


def causal_sdpa(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    """Attends by the last L tokens, query [1, H, L, D], to key and value [1, G, K, D] -> [1, H, L, D].

    Flash kernels of a GPU need neither a mask in memory nor keys repeated over the heads of a group.
    """
    num_new, num_keys = query.shape[2], key.shape[2]
    bias = None if num_new == num_keys else causal_lower_right(num_new, num_keys)
    return F.scaled_dot_product_attention(
        query, key, value, attn_mask=bias, is_causal=bias is None, enable_gqa=query.shape[1] != key.shape[1]
    )


class CachePass:
    """The attention of a packed pass: a token of each active slot of `cache`, then `stretches`, then padding.

    A stretch is its number of tokens and the cached tokens in front of it. Call `taken` for its keys after the pass.
    """

    def __init__(self, cache: SlotCache, num_rows: int, stretches: Sequence[tuple[int, Context | None]]) -> None:
        self._cache = cache
        self._num_rows = num_rows
        self._stretches = stretches
        self._new: list[Pair] = []
        if num_rows:
            cache.begin_step()

    def attend(self, layer: int, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        """Attends by query [1, H, T, D] with the new key and value [1, G, T, D] -> [1, T, H, D]."""
        first = self._num_rows
        outputs = []
        if first:
            outputs.append(self._cache.step(layer, query[:, :, :first], key[:, :, :first], value[:, :, :first]))
        for length, context in self._stretches:
            rows = slice(first, first + length)
            keys, values = key[:, :, rows], value[:, :, rows]
            if context is not None:
                pairs = zip(context.layer(layer), (keys, values), strict=True)
                keys, values = (torch.cat([old.transpose(0, 1)[None], new], dim=2) for old, new in pairs)
            outputs.append(causal_sdpa(query[:, :, rows], keys, values))
            first += length
        if first < query.shape[2]:
            outputs.append(torch.zeros_like(query[:, :, first:]))
        self._new.append((key[0].transpose(0, 1), value[0].transpose(0, 1)))
        return (torch.cat(outputs, dim=2) if len(outputs) > 1 else outputs[0]).transpose(1, 2)

    def taken(self, start: int, stop: int) -> Tokens:
        """Returns the keys and values of the new tokens [start, stop) of the pass."""
        # Copies: a view would keep the keys of the whole pass alive.
        return Tokens([(key[start:stop].clone(), value[start:stop].clone()) for key, value in self._new])


@dataclass(slots=True)
class SlotCache(ABC):
    """Keys and values [N, S, G, D] of up to N sequences, one pair of tensors per layer."""

    shape: tuple[int, int, int]  # layers, G, D
    dtype: torch.dtype
    device: torch.device
    keys: list[torch.Tensor] = field(init=False)
    values: list[torch.Tensor] = field(init=False)
    slots: list[Slot] = field(default_factory=list)

    is_shared: ClassVar[bool]

    def __post_init__(self) -> None:
        num_layers, num_groups, size = self.shape
        empty = torch.zeros(0, 0, num_groups, size, dtype=self.dtype, device=self.device)
        self.keys, self.values = [empty] * num_layers, [empty] * num_layers

    @property
    def num_slots(self) -> int:
        return self.keys[0].shape[0]

    @property
    def capacity(self) -> int:
        """Returns the most tokens of a slot."""
        return self.keys[0].shape[1]

    @abstractmethod
    def rows(self) -> list[Slot]:
        """Returns the slots of a step's rows, in order. A row of an inactive slot has no effect."""

    @abstractmethod
    def open(self, owner: Any, film: Tokens, suffix: Tokens) -> Slot:
        """Returns a new, inactive slot with the tokens of a film and a suffix."""

    @abstractmethod
    def close(self, slot: Slot) -> None:
        """Frees a slot."""

    @abstractmethod
    def set_active(self, slot: Slot, is_active: bool) -> None:
        """Lets a slot take part in the next steps, or not."""

    @abstractmethod
    def context(self, slot: Slot) -> Context:
        """Returns all tokens of a slot, the film's included."""

    @abstractmethod
    def begin_step(self) -> None:
        """Prepares a pass with one new token of each of `rows`: everything that is equal in all layers."""

    @abstractmethod
    def step(self, layer: int, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        """Stores the new key and value [1, G, N, D] of `rows` and attends by query [1, H, N, D] -> [1, H, N, D]."""

    def append(self, slot: Slot, tokens: Tokens) -> None:
        """Appends tokens to a slot."""
        stop = slot.length + len(tokens)
        self.reserve(self.num_slots, stop + 1)
        for layer, (keys, values) in enumerate(tokens.pairs):
            self.keys[layer][slot.index, slot.length : stop] = keys
            self.values[layer][slot.index, slot.length : stop] = values
        slot.length = stop

    def reserve(self, num_slots: int, capacity: int) -> None:
        """Makes room for `num_slots` slots of `capacity` tokens."""
        if num_slots <= self.num_slots and capacity <= self.capacity:
            return
        # Half more than needed: each growth copies all keys.
        capacity = self.capacity if capacity <= self.capacity else -(-(capacity + capacity // 2) // _SPAN) * _SPAN
        num_slots = max(num_slots, self.num_slots)

        def grown(tensor: torch.Tensor) -> torch.Tensor:
            fresh = tensor.new_zeros(num_slots, capacity, *tensor.shape[2:])
            fresh[: tensor.shape[0], : tensor.shape[1]] = tensor
            return fresh

        self._replace_each(grown)

    def _replace_each(self, change: Callable[[torch.Tensor], torch.Tensor]) -> None:
        # Tensor by tensor: each old tensor is freed before the next one is copied.
        for tensors in (self.keys, self.values):
            for layer in range(len(tensors)):
                tensors[layer] = change(tensors[layer])


@dataclass(slots=True)
class CopyCache(SlotCache):
    """Every sequence whole, the film's tokens included. The active slots come first."""

    _num_active: int = 0
    _places: torch.Tensor = field(init=False)
    _chunks: list[tuple[slice, int, torch.Tensor]] = field(init=False)

    is_shared: ClassVar[bool] = False

    def rows(self) -> list[Slot]:
        return self.slots[: self._num_active]

    def open(self, owner: Any, film: Tokens, suffix: Tokens) -> Slot:
        if len(self.slots) == self.num_slots:
            self.reserve(max(16, 2 * self.num_slots), len(film) + len(suffix) + 1)
        slot = Slot(owner, len(self.slots))
        self.slots.append(slot)
        self.append(slot, film)
        self.append(slot, suffix)
        return slot

    def close(self, slot: Slot) -> None:
        self.set_active(slot, False)
        self._swap(slot, self.slots[-1])
        self.slots.pop()

    def set_active(self, slot: Slot, is_active: bool) -> None:
        if slot.is_active == is_active:
            return
        slot.is_active = is_active
        self._num_active += 1 if is_active else -1
        self._swap(slot, self.slots[self._num_active - 1 if is_active else self._num_active])

    def _swap(self, one: Slot, other: Slot) -> None:
        if one is other:
            return
        span, here, there = max(one.length, other.length), [one.index, other.index], [other.index, one.index]
        for tensor in (*self.keys, *self.values):
            tensor[here, :span] = tensor[there, :span]
        one.index, other.index = there
        self.slots[one.index], self.slots[other.index] = one, other

    def context(self, slot: Slot) -> Context:
        own = slice(slot.length)
        return Tokens([(k[slot.index, own], v[slot.index, own]) for k, v in zip(self.keys, self.values, strict=True)])

    def begin_step(self) -> None:
        lengths = torch.tensor([slot.length for slot in self.rows()])
        self.reserve(self.num_slots, int(lengths.max()) + 1)
        self._places = torch.arange(len(lengths)) * self.capacity + lengths
        self._chunks = []
        places, zero = torch.arange(self.capacity), torch.zeros((), dtype=self.dtype)
        unseen = torch.full((), -torch.inf, dtype=self.dtype)
        for start in range(0, len(lengths), _CHUNK):
            part = lengths[start : start + _CHUNK, None]
            span = (int(part.max()) // _SPAN + 1) * _SPAN
            mask = torch.where(places[:span] <= part, zero, unseen)[:, None, None]
            self._chunks.append((slice(start, start + len(part)), span, mask))

    def step(self, layer: int, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        keys, values = self.keys[layer], self.values[layer]
        keys.flatten(0, 1).index_copy_(0, self._places, key[0].transpose(0, 1))
        values.flatten(0, 1).index_copy_(0, self._places, value[0].transpose(0, 1))
        # The query heads of a key head are the rows of a call: keys stay unrepeated.
        heads = query[0].unflatten(0, (key.shape[1], -1)).permute(2, 0, 1, 3)  # [N, G, H / G, D]
        outputs = [
            F.scaled_dot_product_attention(
                heads[rows], keys[rows, :span].transpose(1, 2), values[rows, :span].transpose(1, 2), attn_mask=mask
            )
            for rows, span, mask in self._chunks
        ]
        attended = torch.cat(outputs) if len(outputs) > 1 else outputs[0]
        return attended.permute(1, 2, 0, 3).flatten(0, 1)[None]


@dataclass(slots=True)
class SharedPrefixCache(SlotCache):
    """One copy of each film's tokens, in a lane, and the own tokens of each sequence.

    Slot s belongs to lane s // group_size. Film keys and values are [C, P, G, D]. A film with more than `group_size`
    sequences takes several lanes. All slots are rows of a step: the decode kernel wants equal lanes, and a step of
    constant shape can be recorded as a CUDA graph.
    """

    group_size: int = 1
    film_keys: list[torch.Tensor] = field(init=False)
    film_values: list[torch.Tensor] = field(init=False)
    film_lengths: torch.Tensor = field(init=False)
    lanes: list[tuple[int, int] | None] = field(default_factory=list)  # number and length of each lane's film
    _places: torch.Tensor = field(init=False)
    _lengths_after: torch.Tensor = field(init=False)
    _visible: torch.Tensor = field(init=False)

    is_shared: ClassVar[bool] = True

    def __post_init__(self) -> None:
        SlotCache.__post_init__(self)
        self.film_keys, self.film_values = list(self.keys), list(self.values)
        self.film_lengths = torch.zeros(0, dtype=torch.int32, device=self.device)

    def rows(self) -> list[Slot]:
        return self.slots

    def open(self, owner: Any, film: Tokens, suffix: Tokens) -> Slot:
        free = [slot for slot in self.slots if slot.owner is None]
        name = (film.number, len(film))
        slot = next((slot for slot in free if self.lanes[slot.index // self.group_size] == name), None)
        if slot is None:
            lane = self.lanes.index(None) if None in self.lanes else len(self.lanes)
            self._load(lane, film, len(suffix))
            slot = self.slots[lane * self.group_size]
        slot.owner = owner
        self.append(slot, suffix)
        return slot

    def close(self, slot: Slot) -> None:
        self.slots[slot.index] = Slot(None, slot.index)
        lane, first = slot.index // self.group_size, slot.index // self.group_size * self.group_size
        if all(other.owner is None for other in self.slots[first : first + self.group_size]):
            self.lanes[lane] = None

    def set_active(self, slot: Slot, is_active: bool) -> None:
        slot.is_active = is_active

    def context(self, slot: Slot) -> Context:
        return _Joined(self, slot)

    def begin_step(self) -> None:
        self.begin_at(torch.tensor([slot.length for slot in self.slots], dtype=torch.int32, device=self.device))

    def begin_at(self, lengths: torch.Tensor) -> None:
        """Prepares a step with the own lengths int32 [N] of all slots, on the device."""
        self._places = torch.arange(self.num_slots, device=self.device) * self.capacity + lengths
        self._lengths_after = lengths + 1
        self._visible = torch.full((self.num_slots, 1), -1, dtype=torch.int32, device=self.device)

    def step(self, layer: int, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        keys, values = self.keys[layer], self.values[layer]
        keys.flatten(0, 1).index_copy_(0, self._places, key[0].transpose(0, 1))
        values.flatten(0, 1).index_copy_(0, self._places, value[0].transpose(0, 1))
        own = KeyValues(keys, values, self._lengths_after)
        films = KeyValues(self.film_keys[layer], self.film_values[layer], self.film_lengths)
        rows = query[0].transpose(0, 1)[:, None].contiguous()  # [N, 1, H, D]
        return decode_attention(rows, own, prefix=films, visible=self._visible)[:, 0].transpose(0, 1)[None]

    def _load(self, lane: int, film: Tokens, num_own: int) -> None:
        """Puts a film into a free or new lane."""
        num_lanes, longest = max(lane + 1, len(self.lanes)), max(len(film), self.film_keys[0].shape[1])
        if (num_lanes, longest) != self.film_keys[0].shape[:2]:
            for tensors in (self.film_keys, self.film_values):
                for layer, old in enumerate(tensors):
                    tensors[layer] = old.new_zeros(num_lanes, longest, *old.shape[2:])
                    tensors[layer][: old.shape[0], : old.shape[1]] = old
            self.film_lengths = F.pad(self.film_lengths, (0, num_lanes - len(self.film_lengths)))
        if lane == len(self.lanes):
            self.lanes.append(None)
            self.slots += [Slot(None, len(self.slots) + i) for i in range(self.group_size)]
            self.reserve(len(self.slots), num_own + 1)
        self.lanes[lane] = (film.number, len(film))
        self.film_lengths[lane] = len(film)
        for layer, (keys, values) in enumerate(film.pairs):
            self.film_keys[layer][lane, : len(film)] = keys
            self.film_values[layer][lane, : len(film)] = values


@dataclass(frozen=True, slots=True)
class _Joined:
    """The film's and the own tokens of a slot, joined layer by layer: all layers at once would copy the whole film."""

    cache: SharedPrefixCache
    slot: Slot

    def layer(self, index: int) -> Pair:
        cache, slot = self.cache, self.slot
        lane = slot.index // cache.group_size
        _, length = cache.lanes[lane] or (0, 0)
        keys = torch.cat([cache.film_keys[index][lane, :length], cache.keys[index][slot.index, : slot.length]])
        values = torch.cat([cache.film_values[index][lane, :length], cache.values[index][slot.index, : slot.length]])
        return keys, values


def new_cache(shape: tuple[int, int, int], dtype: torch.dtype, device: torch.device, group_size: int) -> SlotCache:
    """Returns an empty cache for a model of `shape` (layers, G, D).

    With the Triton kernels, up to `group_size` sequences about a film share its tokens. Elsewhere each sequence gets a
    copy: for small models a copy costs less than attention in two parts.
    """
    if choose(torch.empty(0, shape[2], dtype=dtype, device=device)) == "triton":
        return SharedPrefixCache(shape, dtype, device, group_size=group_size)
    return CopyCache(shape, dtype, device)
