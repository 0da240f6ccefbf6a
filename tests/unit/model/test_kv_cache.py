"""Caches against recomputation, and shared films against the same sequences with a copy each."""

from __future__ import annotations

import random
import weakref

import pytest
import torch

from videoseek.model import kv_cache
from videoseek.model.kv_cache import CachePass, CopyCache, SharedPrefixCache, Slot, Tokens, new_cache

GROUPS, SIZE, LAYERS = 2, 8, 2
SHAPE = (LAYERS, GROUPS, SIZE)
CPU = torch.device("cpu")


def causal(keys: torch.Tensor, values: torch.Tensor, query: torch.Tensor) -> torch.Tensor:
    """Outputs [L, H, D] of the last L of the given tokens [G, K, D], each seeing all before it."""
    total, new = keys.shape[1], query.shape[1]
    group = len(query) // len(keys)
    unseen = torch.ones(new, total, dtype=torch.bool).triu(total - new + 1)
    heads = []
    for head in range(len(query)):
        scores = (query[head] @ keys[head // group].T / SIZE**0.5).masked_fill(unseen, -torch.inf)
        heads.append(scores.softmax(-1) @ values[head // group])
    return torch.stack(heads, dim=1)


class Checked:
    """Feeds passes of random tokens to a cache, and compares each with attention over everything fed before."""

    def __init__(self, cache: CopyCache, seed: int = 0) -> None:
        self.cache = cache
        self.draw = torch.Generator().manual_seed(seed)
        self.history: dict[object, tuple[torch.Tensor, torch.Tensor]] = {}

    def feed(self, stretches: list[tuple[object, int, object]]) -> list[Tokens]:
        """One token of each active slot, and stretches: (who, number of tokens, context's owner or None)."""
        cache = self.cache
        rows = cache.rows() if any(slot.is_active for slot in cache.rows()) else []
        slots = {slot.owner: slot for slot in cache.slots}
        contexts = []
        for _, count, before in stretches:
            context = cache.context(slots[before]) if before in slots else before
            contexts.append((count, context if before is not None else None))
        cache.reserve(cache.num_slots, max((slot.length for slot in cache.slots), default=0) + 1)
        attention = CachePass(cache, len(rows), contexts)  # type: ignore[arg-type]
        total = len(rows) + sum(count for _, count, _ in stretches) + 2  # two rows of padding
        heads = (3 * GROUPS, GROUPS, GROUPS)
        query, key, value = (torch.randn(1, n, total, SIZE, generator=self.draw, dtype=torch.float64) for n in heads)
        outputs = [attention.attend(layer, query, key * (layer + 1), value)[0] for layer in range(LAYERS)]
        bounds = [(slot.owner, i, i + 1, slot.owner) for i, slot in enumerate(rows) if slot.is_active]
        first, tokens = len(rows), []
        for who, count, before in stretches:
            bounds.append((who, first, first + count, before))
            tokens.append(attention.taken(first, first + count))
            first += count
        for who, start, stop, before in bounds:
            none = torch.zeros(GROUPS, 0, SIZE, dtype=torch.float64)
            old = self.history.get(before, (none, none))
            keys, values = (torch.cat([a, b[0, :, start:stop]], 1) for a, b in zip(old, (key, value), strict=True))
            for layer, output in enumerate(outputs):
                wanted = causal(keys * (layer + 1), values, query[0, :, start:stop])
                torch.testing.assert_close(output[start:stop], wanted, atol=1e-12, rtol=0)
            self.history[who] = keys, values
        assert all(not output[-2:].any() for output in outputs)
        for slot in rows:
            slot.length += slot.is_active
        return tokens


@pytest.mark.parametrize("shared", [False, True], ids=["copies", "shared films"])
def test_cache_equals_recomputation_through_growth_and_change(shared: bool) -> None:
    """Films, prompts, turns, observations, ends: in a random order, with slots that move and are used again."""
    kind: CopyCache = CopyCache(SHAPE, torch.float64, CPU)
    if shared:
        kind = SharedPrefixCache(SHAPE, torch.float64, CPU, group_size=2)
    checked, chance = Checked(kind), random.Random(3)
    slots: dict[str, Slot] = {}
    for number in range(9):
        film, prompt = chance.randint(1, 5), chance.randint(1, 4)
        (film_tokens,) = checked.feed([("film", film, None)])
        checked.history[film_tokens] = checked.history["film"]
        (suffix,) = checked.feed([("prompt", prompt, film_tokens)])
        for copy in range(3):
            name = f"{number}/{copy}"
            slots[name] = kind.open(name, film_tokens, suffix)
            checked.history[name] = checked.history["prompt"]
            kind.set_active(slots[name], True)
        for _ in range(6):
            for name in chance.sample(sorted(slots), min(2, len(slots))):
                kind.set_active(slots[name], chance.random() < 0.6)
            idle = [name for name, slot in slots.items() if not slot.is_active][:2]
            observed = [(name, chance.randint(1, 30), name) for name in idle]
            for (name, *_), tokens in zip(observed, checked.feed(observed), strict=True):  # type: ignore[arg-type]
                kind.append(slots[name], tokens)
        for name in chance.sample(sorted(slots), len(slots) // 2):
            kind.close(slots.pop(name))
    assert kind.capacity > 64


def test_a_film_is_kept_once_and_its_lane_is_used_again() -> None:
    cache = SharedPrefixCache(SHAPE, torch.float64, CPU, group_size=4)
    checked = Checked(cache)
    films = [checked.feed([("film", length, None)])[0] for length in (5, 3)]
    (suffix,) = checked.feed([("prompt", 1, None)])
    slots = [cache.open(i, films[0], suffix) for i in range(4)]
    assert cache.film_keys[0].shape == (1, 5, GROUPS, SIZE) and {slot.length for slot in slots} == {1}
    other = cache.open("other", films[1], suffix)
    assert len(cache.lanes) == 2 and other.index == 4
    for slot in slots:
        cache.close(slot)
    assert cache.open("again", films[1], suffix).index == 5 and cache.open("new", films[0], suffix).index == 0


def test_a_long_sequence_lengthens_the_span_of_its_own_call_only(monkeypatch: pytest.MonkeyPatch) -> None:
    spans: list[int] = []
    sdpa = kv_cache.F.scaled_dot_product_attention

    def counting(query: torch.Tensor, key: torch.Tensor, *rest: torch.Tensor, **options: torch.Tensor) -> torch.Tensor:
        spans.append(key.shape[2])
        return sdpa(query, key, *rest, **options)

    monkeypatch.setattr(kv_cache.F, "scaled_dot_product_attention", counting)
    cache = CopyCache(SHAPE, torch.float64, CPU)
    checked = Checked(cache)
    (short,) = checked.feed([("short", 3, None)])
    (long,) = checked.feed([("long", 200, None)])
    for i in range(20):
        cache.set_active(cache.open(i, long if i == 2 else short, short), True)
        checked.history[i] = tuple(  # type: ignore[assignment]
            torch.cat([a, b], 1)
            for a, b in zip(checked.history["long" if i == 2 else "short"], checked.history["short"], strict=True)
        )
    spans.clear()
    checked.feed([])
    assert spans == [256, 64] * LAYERS


def test_the_cache_grows_tensor_by_tensor() -> None:
    """The old tensor is gone before the next one is copied."""
    cache = CopyCache((4, GROUPS, SIZE), torch.float64, CPU)
    cache.reserve(2, 5)
    old = [weakref.ref(tensor) for tensor in (*cache.keys, *cache.values)]
    alive: list[int] = []

    class Watched(list):
        def __setitem__(self, index: int, tensor: torch.Tensor) -> None:  # type: ignore[override]
            super().__setitem__(index, tensor)
            alive.append(sum(ref() is not None for ref in old))

    cache.keys, cache.values = Watched(cache.keys), Watched(cache.values)
    cache.reserve(4, 100)
    assert alive == [8, 7, 6, 5, 4, 3, 2, 1]


def test_reserved_tokens_are_those_of_the_memory() -> None:
    """A film with few sequences takes a whole lane beside a film with many."""
    cache = SharedPrefixCache(SHAPE, torch.float32, CPU, group_size=8)
    films = [(40, 10), (20, 1), (30, 1)]
    for length, number in films:
        film, question = (Tokens([(torch.zeros(num_tokens, GROUPS, SIZE),) * 2] * LAYERS) for num_tokens in (length, 5))
        for _ in range(number):
            cache.open(object(), film, question)
    num_held = cache.num_slots * cache.capacity + cache.film_keys[0].shape[:2].numel()
    assert cache.num_reserved(films, cache.capacity) == num_held == 4 * (8 * cache.capacity + 40)


def test_a_copy_cache_works_on_its_own_device() -> None:
    """A GPU without the Triton kernels keeps copies: nothing of a step may lie in host memory."""
    meta = torch.device("meta")
    cache = CopyCache(SHAPE, torch.float32, meta)
    tokens = Tokens([(torch.zeros(3, GROUPS, SIZE, device=meta),) * 2 for _ in range(LAYERS)])
    for owner in "ab":
        cache.set_active(cache.open(owner, tokens, tokens), True)
    cache.begin_step()
    query, key = (torch.zeros(1, num_heads, 2, SIZE, device=meta) for num_heads in (2 * GROUPS, GROUPS))
    assert cache.step(0, query, key, key).shape == query.shape


def test_the_kernels_rule_decides(monkeypatch: pytest.MonkeyPatch) -> None:
    assert isinstance(new_cache(SHAPE, torch.float32, CPU, 4), CopyCache)
    monkeypatch.setattr(kv_cache, "choose", lambda _: "triton")
    cache = new_cache(SHAPE, torch.float32, CPU, 4)
    assert isinstance(cache, SharedPrefixCache) and cache.group_size == 4
