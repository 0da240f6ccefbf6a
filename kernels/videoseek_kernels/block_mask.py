"""The block mask lists the blocks of the T x T square with visible pairs. A batch builds the block mask once.

T tokens; a block has block_m rows and block_n keys. A block is EMPTY (not listed), FULL (every pair visible, so the
kernels skip the mask) or PARTIAL. The test uses minima, maxima, OR and AND per block. The labels EMPTY and FULL are
always exact. A PARTIAL block may in truth be empty or full.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import torch

from videoseek_kernels.dense import PaddedDocuments, Segment, find_segments
from videoseek_kernels.mask import TokenMask, send


@dataclass(frozen=True, slots=True)
class BlockLists:
    """A list for each of n blocks along an axis: the listed blocks of the other axis, in compressed rows (CSR).

    indices int32 [capacity]: the concatenated lists, each with FULL blocks first, both parts ascending. The capacity is
    enough for any causal mask, and so independent of the data. Zeros follow the last list.
    offsets int32 [n + 1]: the start of each list. num_full int32 [n]: the number of FULL blocks in each list.
    order int32 [n]: blocks by falling list length, ties by index.
    """

    indices: torch.Tensor
    offsets: torch.Tensor
    num_full: torch.Tensor
    order: torch.Tensor

    @property
    def tensors(self) -> tuple[torch.Tensor, ...]:
        return self.indices, self.offsets, self.num_full, self.order

    def to(self, device: torch.device | str) -> BlockLists:
        return BlockLists(*(send(x, device) for x in self.tensors))


@dataclass(frozen=True)
class BlockMask:
    """A mask prepared for a batch. Every layer, head, pass and recomputation uses the same block mask.

    mask: the mask itself, on the device. block_m, block_n: rows and keys a block.
    key_word: int32 [T filled up to whole key blocks], `end << 5 | class index`, or 0 for a key hidden from all rows.
    by_query lists key blocks per query block (forward, dq), by_key query blocks per key block (dk, dv).
    host_mask: the mask on the CPU, if the CPU built the block mask.
    """

    mask: TokenMask
    block_m: int
    block_n: int
    key_word: torch.Tensor
    by_query: BlockLists
    by_key: BlockLists
    host_mask: TokenMask | None = None
    #: Forms of this mask for other libraries, by name, each made at its first use.
    forms: dict[str, Any] = field(default_factory=dict, repr=False, compare=False)

    def __len__(self) -> int:
        return len(self.mask)

    @property
    def device(self) -> torch.device:
        return self.mask.device

    @property
    def tensors(self) -> list[torch.Tensor]:
        """Returns all tensors on the device. `of` builds an equal block mask from the tensors."""
        mask = self.mask
        return [mask.end, mask.key_class, mask.visible, self.key_word, *self.by_query.tensors, *self.by_key.tensors]

    @classmethod
    def of(cls, tensors: Sequence[torch.Tensor], blocks: Sequence[int]) -> BlockMask:
        """Returns the block mask of `tensors` with `blocks` (block_m, block_n)."""
        end, key_class, visible, key_word, *lists = tensors
        mask = TokenMask(end, key_class, visible)
        block_m, block_n = blocks
        return cls(mask, block_m, block_n, key_word, BlockLists(*lists[:4]), BlockLists(*lists[4:]))

    @property
    def num_bytes(self) -> int:
        """Returns the bytes that the kernels read beside q, k and v."""
        tensors = (self.key_word, self.mask.visible, *self.by_query.tensors, *self.by_key.tensors)
        return sum(x.numel() * x.element_size() for x in tensors)

    # Both cuts of the dense path need the mask on the host: a block mask built on the GPU waits once for a copy.
    @cached_property
    def documents(self) -> PaddedDocuments:
        """Returns the mask cut into padded documents, for the dense path on a CPU."""
        return PaddedDocuments.build(self.host_mask or self.mask.to("cpu")).to(self.device)

    @cached_property
    def segments(self) -> list[Segment]:
        """Returns the mask cut into causal and full calls, for the dense path on a GPU."""
        return [segment.to(self.device) for segment in find_segments(self.host_mask or self.mask.to("cpu"))]

    def to(self, device: torch.device | str) -> BlockMask:
        return BlockMask(
            self.mask.to(device),
            self.block_m,
            self.block_n,
            send(self.key_word, device),
            self.by_query.to(device),
            self.by_key.to(device),
            self.host_mask,
        )


def build_block_mask(mask: TokenMask, block_m: int = 128, block_n: int = 128) -> BlockMask:
    """Builds the block lists on the mask's device: with numpy on the CPU, with torch on the GPU. The bytes are equal.

    On the GPU all shapes are independent of the data, so the host never waits. Raises ValueError for a block size other
    than a power of two of at least 16.
    """
    for name, block in (("block_m", block_m), ("block_n", block_n)):
        if block < 16 or block & (block - 1):
            raise ValueError(f"{name} must be a power of two of at least 16, got {block}")
    if mask.device.type == "cpu":
        return build_with_numpy(mask, block_m, block_n)
    return build_with_torch(mask, block_m, block_n)


def _capacity(num_tokens: int, block_m: int, block_n: int) -> int:
    """Returns the number of blocks that hold a pair with n <= m: any mask lists at most this number of blocks."""
    last_row = np.minimum(np.arange(block_m, num_tokens + block_m, block_m), num_tokens)
    return int((-(-last_row // block_n)).sum())


def build_with_numpy(mask: TokenMask, block_m: int, block_n: int) -> BlockMask:
    """Implements `build_block_mask` for a mask on the CPU."""
    num_tokens = len(mask)
    capacity = _capacity(num_tokens, block_m, block_n)
    key_class, visible = mask.key_class.numpy(), mask.visible.numpy()
    end = np.where(key_class != 0, mask.end.numpy(), 0)
    class_index = np.maximum(np.frexp(key_class.astype(np.float32))[1] - 1, 0)

    def blocks(values: np.ndarray, block: int, fill: int) -> np.ndarray:
        return np.pad(values, (0, -num_tokens % block), constant_values=fill).reshape(-1, block)

    row_or = np.bitwise_or.reduce(blocks(visible, block_m, 0), 1)[:, None]
    row_and = np.bitwise_and.reduce(blocks(visible, block_m, -1), 1)[:, None]
    key_or = np.bitwise_or.reduce(blocks(key_class, block_n, 0), 1)[None, :]
    end_blocks = blocks(end, block_n, 0)
    min_end, max_end = end_blocks.min(1)[None, :], end_blocks.max(1)[None, :]
    first_row = np.arange(0, num_tokens, block_m)[:, None]
    last_row = np.minimum(first_row + block_m, num_tokens) - 1
    first_key = np.arange(0, num_tokens, block_n)[None, :]

    kept = (first_key <= last_row) & (max_end > first_row) & (row_or & key_or != 0)
    covered = (first_key + block_n - 1 <= first_row) & (min_end > last_row) & (row_and & key_or == key_or)
    state = np.where(kept, np.where(covered, 0, 1), 2).astype(np.int8)
    return BlockMask(
        mask,
        block_m,
        block_n,
        torch.from_numpy(blocks(end << 5 | class_index, block_n, 0).reshape(-1).astype(np.int32)),
        _lists_with_numpy(state, capacity),
        _lists_with_numpy(state.T, capacity),
        host_mask=mask,
    )


def _lists_with_numpy(state: np.ndarray, capacity: int) -> BlockLists:
    """Builds lists from `state` [n, n']: 0 for FULL, 1 for PARTIAL, 2 for EMPTY."""
    count = (state < 2).sum(1)
    ranked = state.argsort(1, kind="stable")
    indices = np.zeros(capacity, np.int32)
    indices[: count.sum()] = ranked[np.arange(state.shape[1]) < count[:, None]]
    offsets = np.concatenate([[0], count.cumsum()])
    order = (-count).argsort(kind="stable")
    parts = (indices, offsets, (state == 0).sum(1), order)
    return BlockLists(*(torch.from_numpy(x.astype(np.int32)) for x in parts))


def build_with_torch(mask: TokenMask, block_m: int, block_n: int) -> BlockMask:
    """Implements `build_block_mask` for a mask on any device, without a host sync."""
    num_tokens, device = len(mask), mask.device
    capacity = _capacity(num_tokens, block_m, block_n)
    end = torch.where(mask.key_class != 0, mask.end, 0)
    class_index = (torch.frexp(mask.key_class.float()).exponent - 1).clamp(min=0)

    def blocks(values: torch.Tensor, block: int, fill: int) -> torch.Tensor:
        return torch.nn.functional.pad(values, (0, -num_tokens % block), value=fill).view(-1, block)

    row_blocks, key_blocks = blocks(mask.visible, block_m, 0), blocks(mask.key_class, block_n, 0)
    row_or = _fold(row_blocks, torch.bitwise_or)[:, None]
    row_and = _fold(blocks(mask.visible, block_m, -1), torch.bitwise_and)[:, None]
    key_or = _fold(key_blocks, torch.bitwise_or)[None, :]
    min_end, max_end = (x[None, :] for x in blocks(end, block_n, 0).aminmax(dim=1))
    first_row = torch.arange(0, num_tokens, block_m, device=device)[:, None]
    last_row = (first_row + block_m).clamp(max=num_tokens) - 1
    first_key = torch.arange(0, num_tokens, block_n, device=device)[None, :]

    kept = (first_key <= last_row) & (max_end > first_row) & (row_or & key_or != 0)
    covered = (first_key + block_n - 1 <= first_row) & (min_end > last_row) & (row_and & key_or == key_or)
    full, partial = kept & covered, kept & ~covered
    return BlockMask(
        mask,
        block_m,
        block_n,
        blocks(end << 5 | class_index, block_n, 0).flatten().int(),
        _lists_with_torch(full, partial, capacity),
        _lists_with_torch(full.T, partial.T, capacity),
    )


def _fold(blocks: torch.Tensor, combine: Callable[..., torch.Tensor]) -> torch.Tensor:
    """Reduces [n, 2**p] to [n] by halving: torch lacks a bitwise reduction."""
    while blocks.shape[1] > 1:
        half = blocks.shape[1] // 2
        blocks = combine(blocks[:, :half], blocks[:, half:])
    return blocks[:, 0]


def _lists_with_torch(full: torch.Tensor, partial: torch.Tensor, capacity: int) -> BlockLists:
    num_full, count = full.sum(1), (full | partial).sum(1)
    offsets = torch.nn.functional.pad(count.cumsum(0), (1, 0))
    rank = torch.where(full, full.cumsum(1) - 1, num_full[:, None] + partial.cumsum(1) - 1)
    # All EMPTY blocks land in one spare slot behind the list, so every shape is independent of the data.
    slot = torch.where(full | partial, offsets[:-1, None] + rank, capacity)
    indices = torch.zeros(capacity + 1, dtype=torch.int32, device=full.device)
    column = torch.arange(full.shape[1], dtype=torch.int32, device=full.device).expand_as(slot)
    indices.scatter_(0, slot.flatten(), column.flatten())
    order = count.argsort(stable=True, descending=True)
    return BlockLists(indices[:capacity], *(x.int() for x in (offsets, num_full, order)))
