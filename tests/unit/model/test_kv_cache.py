"""Caches against recomputation, and shared prompts against the same sequences with a copy each."""

from __future__ import annotations

import weakref
from collections.abc import Callable

import pytest
import torch

from videoseek.model import kv_cache
from videoseek.model.kv_cache import KVCache, SequenceCache, SharedPrefixCache, fork

GROUPS, SIZE, LAYERS = 2, 8, 2


def fresh(draw: torch.Generator, num_sequences: int, num_tokens: int) -> list[torch.Tensor]:
    """query, key and value of new tokens, in float64."""
    heads = (3 * GROUPS, GROUPS, GROUPS)
    return [torch.randn(num_sequences, count, num_tokens, SIZE, generator=draw, dtype=torch.float64) for count in heads]


def feed(cache: SequenceCache, tokens: list[torch.Tensor], num_valid: list[int]) -> torch.Tensor:
    """All layers' outputs for the valid new tokens, which are appended."""
    query, key, value = tokens
    cache.begin(query.shape[2])
    outputs = [cache.attend(layer, query, key * (layer + 1), value) for layer in range(LAYERS)]
    cache.advance(torch.tensor(num_valid))
    valid = torch.arange(query.shape[2]) < torch.tensor(num_valid)[:, None]
    return torch.cat([output[valid] for output in outputs])


def causal(keys: torch.Tensor, values: torch.Tensor, query: torch.Tensor) -> torch.Tensor:
    """Outputs [L, H, D] of the last L of the given tokens, each seeing all before it."""
    total, new = keys.shape[1], query.shape[1]
    group = len(query) // len(keys)
    unseen = torch.ones(new, total, dtype=torch.bool).triu(total - new + 1)
    heads = []
    for head in range(len(query)):
        scores = (query[head] @ keys[head // group].T / SIZE**0.5).masked_fill(unseen, -torch.inf)
        heads.append(scores.softmax(-1) @ values[head // group])
    return torch.stack(heads, dim=1)


class History:
    """What each sequence of a cache should hold, and the comparison with it."""

    def __init__(self, num_sequences: int) -> None:
        self.keys = [torch.zeros(GROUPS, 0, SIZE, dtype=torch.float64) for _ in range(num_sequences)]
        self.values = list(self.keys)

    def feed(self, cache: KVCache, num_valid: list[int], seed: int) -> None:
        """Appends ragged new tokens, padded with large numbers, and checks every valid row of every layer."""
        longest = max(num_valid)
        draw = torch.Generator().manual_seed(seed)
        shapes = [(len(num_valid), count, longest, SIZE) for count in (2 * GROUPS, GROUPS, GROUPS)]
        query, key, value = (torch.randn(shape, generator=draw, dtype=torch.float64) for shape in shapes)
        for row, count in enumerate(num_valid):
            key[row, :, count:] = value[row, :, count:] = 1e3
            self.keys[row] = torch.cat([self.keys[row], key[row, :, :count]], dim=1)
            self.values[row] = torch.cat([self.values[row], value[row, :, :count]], dim=1)
        cache.begin(longest)
        for layer, sign in enumerate((1, -1)):
            out = cache.attend(layer, query, key * sign, value * sign)
            for row, count in enumerate(num_valid):
                wanted = causal(self.keys[row] * sign, self.values[row] * sign, query[row, :, :count])
                torch.testing.assert_close(out[row, :count], wanted, atol=1e-12, rtol=0)
        cache.advance(torch.tensor(num_valid))

    def select(self, rows: list[int]) -> None:
        self.keys, self.values = [self.keys[row] for row in rows], [self.values[row] for row in rows]


def test_cache_equals_recomputation_through_growth_selection_and_padding() -> None:
    cache = KVCache.empty(2, (3, GROUPS, 6, SIZE), torch.float64, torch.device("cpu"))
    history = History(3)
    history.feed(cache, [6, 2, 4], seed=1)
    cache.select(torch.tensor([2, 0, 0, 1, 2]), 10)
    history.select([2, 0, 0, 1, 2])
    assert cache.capacity == 10 and cache.lengths.tolist() == [4, 6, 6, 2, 4]
    history.feed(cache, [1, 0, 3, 2, 3], seed=2)
    history.feed(cache, [0, 0, 0, 1, 0], seed=3)
    cache.reserve(5)
    history.feed(cache, [5, 1, 0, 4, 0], seed=4)
    cache.select(torch.tensor([3]), 12)
    history.select([3])
    history.feed(cache, [3], seed=5)
    assert cache.lengths.tolist() == [12]


def test_selected_copies_do_not_share_memory() -> None:
    cache = KVCache.empty(2, (1, GROUPS, 4, SIZE), torch.float64, torch.device("cpu"))
    history = History(1)
    history.feed(cache, [3], seed=1)
    cache.select(torch.tensor([0, 0]), 8)
    history.select([0, 0])
    history.feed(cache, [2, 4], seed=2)


def test_a_cache_fed_in_parts_is_the_same() -> None:
    cache = KVCache.empty(2, (3, GROUPS, 6, SIZE), torch.float64, torch.device("cpu"))
    parts = [(cache.narrow(0, 1), History(1), [4]), (cache.narrow(1, 3), History(2), [6, 1])]
    for part, history, num_valid in parts:
        history.feed(part, num_valid, seed=1)
    whole = History(3)
    whole.keys = [keys for _, history, _ in parts for keys in history.keys]
    whole.values = [values for _, history, _ in parts for values in history.values]
    assert cache.lengths.tolist() == [4, 6, 1]
    cache.select(torch.tensor([2, 0, 1]), 8)
    whole.select([2, 0, 1])
    whole.feed(cache, [2, 1, 2], seed=2)


def test_several_small_calls_equal_one_large_call(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[int] = []
    sdpa = kv_cache.masked_sdpa
    monkeypatch.setattr(kv_cache, "masked_sdpa", lambda *args: sizes.append(len(args[0])) or sdpa(*args))
    monkeypatch.setattr(kv_cache, "_CALL_ELEMENTS", 2 * 6 * 2 * GROUPS * SIZE)
    cache = KVCache.empty(2, (5, GROUPS, 6, SIZE), torch.float64, torch.device("cpu"))
    History(5).feed(cache, [6, 2, 4, 1, 3], seed=1)
    assert sizes == [2, 2, 1] * 2


def test_decoding_of_one_token_copies_no_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    cache = KVCache.empty(2, (3, GROUPS, 6, SIZE), torch.float64, torch.device("cpu"))
    history = History(3)
    history.feed(cache, [3, 5, 1], seed=1)
    monkeypatch.setattr(kv_cache, "masked_sdpa", None)
    history.feed(cache, [1, 1, 0], seed=2)


@pytest.mark.parametrize("change", ["select", "reserve"])
def test_the_cache_is_changed_layer_by_layer(change: str) -> None:
    """The old tensors of a layer are gone before the next layer's are made."""
    cache = KVCache.empty(4, (2, GROUPS, 6, SIZE), torch.float64, torch.device("cpu"))
    old = [weakref.ref(tensor) for pair in zip(cache.keys, cache.values, strict=True) for tensor in pair]
    alive: list[int] = []
    replace_each = KVCache._replace_each

    def counting(self: KVCache, resize: Callable[[torch.Tensor], torch.Tensor]) -> None:
        def counted(tensor: torch.Tensor) -> torch.Tensor:
            alive.append(sum(ref() is not None for ref in old))
            return resize(tensor)

        replace_each(self, counted)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(KVCache, "_replace_each", counting)
        cache.select(torch.tensor([0, 0, 1]), 8) if change == "select" else cache.reserve(2)
    assert alive == [8, 7, 6, 5, 4, 3, 2, 1] and cache.capacity == 8


def test_cache_refuses_more_than_it_holds() -> None:
    cache = KVCache.empty(1, (2, GROUPS, 4, SIZE), torch.float64, torch.device("cpu"))
    with pytest.raises(ValueError, match="cache holds 4 tokens, 5 are needed"):
        cache.begin(5)
    with pytest.raises(RuntimeError, match="begin was not called"):
        cache.attend(0, *fresh(torch.Generator(), 2, 1))


def prompts(draw: torch.Generator, lengths: list[int]) -> KVCache:
    cache = KVCache.empty(LAYERS, (len(lengths), GROUPS, max(lengths), SIZE), torch.float64, torch.device("cpu"))
    feed(cache, fresh(draw, len(lengths), max(lengths)), lengths)
    return cache


def both(lengths: list[int], sizes: list[int]) -> tuple[KVCache, SharedPrefixCache]:
    """The same sequences with copies of their prompts, and sharing them."""
    copied, shared = (prompts(torch.Generator().manual_seed(0), lengths) for _ in range(2))
    copied = fork(copied, sizes)
    assert isinstance(copied, KVCache)
    return copied, SharedPrefixCache.fork(shared, sizes)


def test_shared_prompts_equal_copies_through_growth_selection_and_padding() -> None:
    draw = torch.Generator().manual_seed(1)
    copied, shared = both([5, 2, 4], [2, 3, 1])

    def step(num_valid: list[int]) -> None:
        tokens = fresh(draw, len(num_valid), max(num_valid))
        for cache in (copied, shared):
            if int(cache.lengths.max()) + max(num_valid) > cache.capacity:
                cache.reserve(max(num_valid) + 1)
        torch.testing.assert_close(feed(shared, tokens, num_valid), feed(copied, tokens, num_valid), atol=1e-12, rtol=0)

    def keep(rows: list[int], more: int) -> None:
        for cache in (copied, shared):
            cache.select(torch.tensor(rows), int(cache.lengths[torch.tensor(rows)].max()) + more)

    step([1] * 6)
    step([1, 0, 1, 1, 0, 1])
    keep([0, 2, 3, 4, 5], more=4)
    step([4, 1, 3, 0, 2])
    step([1] * 5)
    keep([1, 4], more=3)  # the first prompt has no sequence left
    assert len(shared.prompt_lengths) == 2 and shared.group_size == 1
    step([1, 1])
    step([2, 1])
    assert (copied.lengths - shared.lengths).tolist() == [2, 4]


def test_a_shared_prefix_cache_fed_in_parts_is_the_same() -> None:
    draw = torch.Generator().manual_seed(2)
    copied, shared = both([3, 4], [2, 2])
    tokens, num_valid = fresh(draw, 4, 3), [3, 1, 2, 2]
    for cache in (copied, shared):
        cache.reserve(3)
    wanted = feed(copied, tokens, num_valid)
    for rows in (slice(0, 3), slice(3, 4)):
        part = shared.narrow(rows.start, rows.stop)
        got = feed(part, [tensor[rows] for tensor in tokens], num_valid[rows])
        count = sum(num_valid[rows])
        first = sum(num_valid[: rows.start])
        whole = wanted.unflatten(0, (LAYERS, sum(num_valid)))[:, first : first + count].flatten(0, 1)
        torch.testing.assert_close(got, whole, atol=1e-12, rtol=0)
    assert shared.lengths.tolist() == num_valid


def test_a_prompt_is_kept_once() -> None:
    _, shared = both([5], [8])
    assert shared.prompt_keys[0].shape == (1, 5, GROUPS, SIZE) and shared.capacity == 0


def test_the_kernels_rule_decides(monkeypatch: pytest.MonkeyPatch) -> None:
    draw = torch.Generator().manual_seed(0)
    assert isinstance(fork(prompts(draw, [3]), [2]), KVCache)
    monkeypatch.setattr(kv_cache, "choose", lambda _: "triton")
    assert isinstance(fork(prompts(draw, [3]), [2]), SharedPrefixCache)


def test_shared_prefix_cache_refuses_more_than_it_holds() -> None:
    _, shared = both([2], [1])
    with pytest.raises(RuntimeError, match="begin was not called"):
        shared.attend(0, *fresh(torch.Generator(), 1, 1))
    with pytest.raises(ValueError, match="cache holds 0 tokens, 2 are needed"):
        shared.begin(2)
