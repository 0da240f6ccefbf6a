"""Generation of many sequences from few prompts: a prompt's keys and values are kept once and read once.

Legend: C prompts of P tokens, B sequences, N slots of S tokens, L new tokens, H query heads, G key heads, D head size.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import torch
import torch.nn.functional as F
from videoseek_kernels import decode_attention
from videoseek_kernels.decode import KVCache as KeyValues
from videoseek_kernels.dispatch import choose

from videoseek.model.attention import KVCache, sdpa, sequences_per_call


def branch(prompts: KVCache, sizes: Sequence[int]) -> KVCache | SharedPrefixCache:
    """A cache of sizes[i] sequences that go on from prompt i.

    Where the kernels serve, the prompts are shared; elsewhere each sequence gets a copy, which costs small models
    less than two parts of attention would. The prompts' own cache must not be used afterwards.
    """
    if choose(prompts.keys[0]) == "triton":
        return SharedPrefixCache.of(prompts, sizes)
    rows = torch.arange(len(sizes)).repeat_interleave(torch.tensor(sizes))
    prompts.select(rows.to(prompts.lengths.device), prompts.capacity)
    return prompts


@dataclass(slots=True)
class SharedPrefixCache:
    """Attention of new tokens against a shared prompt and a sequence's own tokens; used as `KVCache` is.

    Sequence i keeps its own tokens in slot places[i], of which filled[slot] are valid; slot s belongs to prompt
    s // group_size. Own keys and values are [N, S, G, D] for each layer, those of the prompts [C, P, G, D].
    """

    prompt_keys: list[torch.Tensor]
    prompt_values: list[torch.Tensor]
    prompt_lengths: torch.Tensor
    keys: list[torch.Tensor]
    values: list[torch.Tensor]
    filled: torch.Tensor
    places: list[int]
    group_size: int
    _slots: torch.Tensor = field(default_factory=lambda: torch.zeros(0, dtype=torch.long))
    _mask: torch.Tensor = field(default_factory=lambda: torch.zeros(0, dtype=torch.bool))
    _span: int = 0

    @classmethod
    def of(cls, prompts: KVCache, sizes: Sequence[int]) -> SharedPrefixCache:
        """Sequences without tokens of their own. Takes the prompts' tensors over, layer by layer."""
        filled = int(prompts.lengths.max())

        def tokens_first(tensors: list[torch.Tensor]) -> list[torch.Tensor]:
            for layer in range(len(tensors)):
                tensors[layer] = tensors[layer][:, :, :filled].transpose(1, 2).contiguous()
            return tensors

        prompt_keys, prompt_values = tokens_first(prompts.keys), tokens_first(prompts.values)
        group_size = max(sizes)
        num_slots = len(sizes) * group_size
        own = [prompt_keys[0].new_zeros(num_slots, 0, *prompt_keys[0].shape[2:]) for _ in prompt_keys]
        return cls(
            prompt_keys,
            prompt_values,
            prompts.lengths.int(),
            own,
            list(own),
            torch.zeros(num_slots, dtype=torch.int32, device=prompts.lengths.device),
            [prompt * group_size + number for prompt, size in enumerate(sizes) for number in range(size)],
            group_size,
        )

    @property
    def capacity(self) -> int:
        return self.keys[0].shape[1]

    @property
    def lengths(self) -> torch.Tensor:
        """Own tokens [B] of each sequence."""
        return self.filled[torch.tensor(self.places, device=self.filled.device)]

    def select(self, rows: torch.Tensor, capacity: int) -> None:
        """Keeps the sequences `rows`, with room for `capacity` tokens of their own, and the prompts that they need."""
        old_places = [self.places[row] for row in rows.tolist()]
        old_prompts = [place // self.group_size for place in old_places]
        kept_prompts = sorted(set(old_prompts))
        ranks = [old_prompts[:i].count(prompt) for i, prompt in enumerate(old_prompts)]
        self.group_size = max(ranks) + 1
        self.places = [
            kept_prompts.index(prompt) * self.group_size + rank for prompt, rank in zip(old_prompts, ranks, strict=True)
        ]
        device = self.filled.device
        source, target = torch.tensor(old_places, device=device), torch.tensor(self.places, device=device)
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

    def reserve(self, num_more: int) -> None:
        """Room for `num_more` further tokens a sequence."""
        self._replace_each(lambda tensor: F.pad(tensor, (0, 0, 0, 0, 0, num_more)))

    def _replace_each(self, change: Callable[[torch.Tensor], torch.Tensor]) -> None:
        for layer in range(len(self.keys)):
            self.keys[layer] = change(self.keys[layer])
            self.values[layer] = change(self.values[layer])

    def narrow(self, start: int, stop: int) -> SharedPrefixCache:
        """The sequences [start, stop) in the same memory: what is fed to them is fed to this cache."""
        return replace(self, places=self.places[start:stop])

    def begin(self, num_new: int) -> None:
        """Prepares a forward pass over `num_new` (padded) tokens a sequence; several need a mask."""
        device = self.filled.device
        self._slots = torch.tensor(self.places, device=device)
        lengths = self.filled[self._slots]
        self._span = int(lengths.max()) + num_new
        if self._span > self.capacity:
            raise ValueError(f"cache holds {self.capacity} tokens, {self._span} are needed")
        if num_new == 1:
            return  # the kernel takes lengths
        last_visible = lengths[:, None] + torch.arange(num_new, device=device)
        own = torch.arange(self._span, device=device) <= last_visible[..., None]  # [B, L, span]
        num_prompt_tokens = self.prompt_keys[0].shape[1]
        prompt_lengths = self.prompt_lengths[self._slots // self.group_size]
        shared = torch.arange(num_prompt_tokens, device=device) < prompt_lengths[:, None, None]
        self._mask = torch.cat([shared.expand(-1, num_new, -1), own], dim=2)[:, None]

    def advance(self, num_valid: torch.Tensor) -> None:
        self.filled[self._slots] += num_valid.int()

    def attend(self, layer: int, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        """query [B, H, L, D], key and value [B, G, L, D] -> [B, L, H, D]."""
        if not self._span:
            raise RuntimeError("SharedPrefixCache.begin was not called")
        columns = self.filled[self._slots][:, None] + torch.arange(key.shape[2], device=key.device)
        self.keys[layer][self._slots[:, None], columns] = key.transpose(1, 2)
        self.values[layer][self._slots[:, None], columns] = value.transpose(1, 2)
        if key.shape[2] == 1:
            return self._attend_by_kernel(layer, query)
        at_once = sequences_per_call(query, self._mask.shape[3])
        outputs = []
        for slots, rows, mask in zip(
            self._slots.split(at_once), query.split(at_once), self._mask.split(at_once), strict=True
        ):
            keys = self._joined(self.prompt_keys[layer], self.keys[layer], slots)
            values = self._joined(self.prompt_values[layer], self.values[layer], slots)
            outputs.append(sdpa(rows, keys, values, mask))
        return torch.cat(outputs).transpose(1, 2)

    def _joined(self, shared: torch.Tensor, own: torch.Tensor, slots: torch.Tensor) -> torch.Tensor:
        """[b, G, P + span, D] of a few slots, their prompts first."""
        return torch.cat([shared[slots // self.group_size], own[slots, : self._span]], dim=1).transpose(1, 2)

    def _attend_by_kernel(self, layer: int, query: torch.Tensor) -> torch.Tensor:
        """One new token a sequence. Slots that no sequence has take part with whatever they hold; nobody reads them."""
        rows = query.new_zeros(len(self.filled), 1, query.shape[1], query.shape[3])
        rows[self._slots] = query.transpose(1, 2)
        own = KeyValues(self.keys[layer], self.values[layer], self.filled + 1)
        prompts = KeyValues(self.prompt_keys[layer], self.prompt_values[layer], self.prompt_lengths)
        return decode_attention(rows, own, prefix=prompts)[self._slots]
