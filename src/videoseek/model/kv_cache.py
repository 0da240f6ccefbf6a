"""Keys and values of growing sequences during generation, and attention against them.

A `CachePass` is the attention of one packed pass of the decoder: one new token of each active sequence, and stretches
of new tokens (prompts, observations) behind cached ones. `CopyCache` holds every sequence whole. `SharedPrefixCache`
holds one copy of each film's tokens for all sequences about the film.

Legend: C films of P tokens, N slots of S tokens, T tokens of a pass, L new tokens, K cached and new tokens, H query
heads, G key heads, D head size.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import count
from typing import Any

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
#: Cached tokens in front of new ones: gives keys and values [K, G, D] of a layer.
Context = Callable[[int], Pair]


@dataclass(frozen=True, slots=True, eq=False)
class Tokens:
    """Keys and values [K, G, D] of consecutive tokens, one pair per layer. `number` tells films apart."""

    pairs: list[Pair]
    number: int = field(default_factory=count().__next__)

    def __call__(self, layer: int) -> Pair:
        return self.pairs[layer]

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

    def __init__(self, cache: CopyCache, num_rows: int, stretches: Sequence[tuple[int, Context | None]]) -> None:
        self._cache, self._num_rows, self._stretches = cache, num_rows, stretches
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
                pairs = zip(context(layer), (keys, values), strict=True)
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


class CopyCache:
    """Keys and values [N, S, G, D] of up to N sequences, each whole, one pair of tensors per layer.

    The active slots come first.
    """

    is_shared = False

    def __init__(self, shape: tuple[int, int, int], dtype: torch.dtype, device: torch.device) -> None:
        """shape: layers, G, D."""
        num_layers, num_groups, size = shape
        self.device, self.dtype = device, dtype
        empty = torch.zeros(0, 0, num_groups, size, dtype=dtype, device=device)
        self.keys, self.values = [empty] * num_layers, [empty] * num_layers
        self.slots: list[Slot] = []
        self._num_active = 0
        self._places = torch.zeros(0, dtype=torch.long)
        self._chunks: list[tuple[slice, int, torch.Tensor]] = []

    @property
    def num_slots(self) -> int:
        return self.keys[0].shape[0]

    @property
    def capacity(self) -> int:
        """Returns the most tokens of a slot."""
        return self.keys[0].shape[1]

    def num_reserved(self, films: Sequence[tuple[int, int]], longest: int) -> int:
        """Returns the tokens of memory for films, each its length and its number of sequences.

        `longest` is the most tokens of a slot.
        """
        return sum(number for _, number in films) * longest

    def rows(self) -> list[Slot]:
        """Returns the slots of a step's rows, in order. A row of an inactive slot has no effect."""
        return self.slots[: self._num_active]

    def open(self, owner: Any, film: Tokens, suffix: Tokens) -> Slot:
        """Returns a new, inactive slot with the tokens of a film and a suffix."""
        if len(self.slots) == self.num_slots:
            self.reserve(max(16, 2 * self.num_slots), len(film) + len(suffix) + 1)
        slot = Slot(owner, len(self.slots))
        self.slots.append(slot)
        self.append(slot, film)
        self.append(slot, suffix)
        return slot

    def close(self, slot: Slot) -> None:
        """Frees a slot."""
        self.set_active(slot, False)
        self._swap(slot, self.slots[-1])
        self.slots.pop()

    def set_active(self, slot: Slot, is_active: bool) -> None:
        """Lets a slot take part in the next steps, or not."""
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
        """Returns all tokens of a slot, the film's included."""
        own = (slot.index, slice(slot.length))
        return lambda layer: (self.keys[layer][own], self.values[layer][own])

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
        for tensors in (self.keys, self.values):
            _grow(tensors, max(num_slots, self.num_slots), capacity)

    def begin_step(self) -> None:
        """Prepares a pass with one new token of each of `rows`: everything that is equal in all layers."""
        lengths = [slot.length for slot in self.rows()]
        self.reserve(self.num_slots, max(lengths) + 1)
        firsts = torch.arange(len(lengths), device=self.device) * self.capacity
        self._places = firsts + torch.tensor(lengths, device=self.device)
        self._chunks = []
        places = torch.arange(self.capacity, device=self.device)
        zero, unseen = torch.tensor([0.0, -torch.inf], dtype=self.dtype, device=self.device)
        for start in range(0, len(lengths), _CHUNK):
            part = lengths[start : start + _CHUNK]
            span = (max(part) // _SPAN + 1) * _SPAN
            is_seen = places[:span] <= torch.tensor(part, device=self.device)[:, None, None, None]
            self._chunks.append((slice(start, start + len(part)), span, torch.where(is_seen, zero, unseen)))

    def step(self, layer: int, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        """Stores the new key and value [1, G, N, D] of `rows` and attends by query [1, H, N, D] -> [1, H, N, D]."""
        keys, values = self._store(layer, key, value)
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

    def _store(self, layer: int, key: torch.Tensor, value: torch.Tensor) -> Pair:
        keys, values = self.keys[layer], self.values[layer]
        keys.flatten(0, 1).index_copy_(0, self._places, key[0].transpose(0, 1))
        values.flatten(0, 1).index_copy_(0, self._places, value[0].transpose(0, 1))
        return keys, values


class SharedPrefixCache(CopyCache):
    """One copy of each film's tokens, in a lane, and the own tokens of each sequence.

    Slot s belongs to lane s // group_size. Film keys and values are [C, P, G, D]. A film with more than `group_size`
    sequences takes several lanes. All slots are rows of a step: the decode kernel wants equal lanes, and a step of
    constant shape can be recorded as a CUDA graph. `lanes` holds the number and the length of each lane's film.
    """

    is_shared = True

    def __init__(self, shape: tuple[int, int, int], dtype: torch.dtype, device: torch.device, group_size: int) -> None:
        super().__init__(shape, dtype, device)
        self.group_size = group_size
        self.film_keys, self.film_values = list(self.keys), list(self.values)
        self.film_lengths = torch.zeros(0, dtype=torch.int32, device=device)
        self.lanes: list[tuple[int, int] | None] = []

    def num_reserved(self, films: Sequence[tuple[int, int]], longest: int) -> int:
        num_lanes = sum(-(-number // self.group_size) for _, number in films)
        return num_lanes * (self.group_size * longest + max(length for length, _ in films))

    def rows(self) -> list[Slot]:
        return self.slots

    def shapes(self) -> tuple[torch.Size, torch.Size]:
        """Returns the shapes of own and film keys."""
        return self.keys[0].shape, self.film_keys[0].shape

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
        lane, own = slot.index // self.group_size, super().context(slot)
        _, length = self.lanes[lane] or (0, 0)
        films = (self.film_keys, self.film_values)

        def joined(layer: int) -> Pair:  # layer by layer: joined in all layers at once, the film would be there twice
            keys, values = (torch.cat([f[layer][lane, :length], new]) for f, new in zip(films, own(layer), strict=True))
            return keys, values

        return joined

    def begin_step(self) -> None:
        self.begin_at(torch.tensor([slot.length for slot in self.slots], dtype=torch.int32, device=self.device))

    def begin_at(self, lengths: torch.Tensor) -> None:
        """Prepares a step with the own lengths int32 [N] of all slots, on the device."""
        self._places = torch.arange(self.num_slots, device=self.device) * self.capacity + lengths
        self._lengths_after = lengths + 1
        self._visible = torch.full((self.num_slots, 1), -1, dtype=torch.int32, device=self.device)

    def step(self, layer: int, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        own = KeyValues(*self._store(layer, key, value), self._lengths_after)
        films = KeyValues(self.film_keys[layer], self.film_values[layer], self.film_lengths)
        rows = query[0].transpose(0, 1)[:, None].contiguous()  # [N, 1, H, D]
        return decode_attention(rows, own, prefix=films, visible=self._visible)[:, 0].transpose(0, 1)[None]

    def _load(self, lane: int, film: Tokens, num_own: int) -> None:
        """Puts a film into a free or new lane."""
        num_lanes, longest = max(lane + 1, len(self.lanes)), max(len(film), self.film_keys[0].shape[1])
        for tensors in (self.film_keys, self.film_values):
            _grow(tensors, num_lanes, longest)
        if lane == len(self.lanes):
            self.lanes.append(None)
            self.film_lengths = F.pad(self.film_lengths, (0, 1))
            self.slots += [Slot(None, len(self.slots) + i) for i in range(self.group_size)]
            self.reserve(len(self.slots), num_own + 1)
        self.lanes[lane] = (film.number, len(film))
        self.film_lengths[lane] = len(film)
        for layer, (keys, values) in enumerate(film.pairs):
            self.film_keys[layer][lane, : len(film)] = keys
            self.film_values[layer][lane, : len(film)] = values


def _grow(tensors: list[torch.Tensor], num_rows: int, num_tokens: int) -> None:
    """Makes each tensor at least [num_rows, num_tokens, ..]. Each old tensor is freed before the next one is copied."""
    for layer in range(len(tensors)):
        if tensors[layer].shape[:2] != (num_rows, num_tokens):
            old = tensors[layer]
            tensors[layer] = old.new_zeros(num_rows, num_tokens, *old.shape[2:])
            tensors[layer][: old.shape[0], : old.shape[1]] = old


def new_cache(shape: tuple[int, int, int], dtype: torch.dtype, device: torch.device, group_size: int) -> CopyCache:
    """Returns an empty cache for a model of `shape` (layers, G, D).

    With the Triton kernels, up to `group_size` sequences about a film share its tokens. Elsewhere each sequence gets a
    copy: for small models a copy costs less than attention in two parts.
    """
    if choose(torch.empty(0, shape[2], dtype=dtype, device=device)) == "triton":
        return SharedPrefixCache(shape, dtype, device, group_size)
    return CopyCache(shape, dtype, device)
