"""Branches that share their prompts, against the same sequences with a copy each."""

from __future__ import annotations

import pytest
import torch

from videoseek.model import branches
from videoseek.model.attention import KVCache
from videoseek.model.branches import SharedPrefixCache, branch

GROUPS, SIZE, LAYERS = 2, 8, 2


def fresh(draw: torch.Generator, num_sequences: int, num_tokens: int) -> list[torch.Tensor]:
    """query, key and value of new tokens, in float64."""
    heads = (3 * GROUPS, GROUPS, GROUPS)
    return [torch.randn(num_sequences, count, num_tokens, SIZE, generator=draw, dtype=torch.float64) for count in heads]


def feed(cache: KVCache | SharedPrefixCache, tokens: list[torch.Tensor], num_valid: list[int]) -> torch.Tensor:
    """All layers' outputs for the valid new tokens, which are appended."""
    query, key, value = tokens
    cache.begin(query.shape[2])
    outputs = [cache.attend(layer, query, key * (layer + 1), value) for layer in range(LAYERS)]
    cache.advance(torch.tensor(num_valid))
    valid = torch.arange(query.shape[2]) < torch.tensor(num_valid)[:, None]
    return torch.cat([output[valid] for output in outputs])


def prompts(draw: torch.Generator, lengths: list[int]) -> KVCache:
    cache = KVCache.empty(LAYERS, (len(lengths), GROUPS, max(lengths), SIZE), torch.float64, torch.device("cpu"))
    feed(cache, fresh(draw, len(lengths), max(lengths)), lengths)
    return cache


def both(lengths: list[int], sizes: list[int]) -> tuple[KVCache, SharedPrefixCache]:
    """The same sequences with copies of their prompts, and sharing them."""
    copied, shared = (prompts(torch.Generator().manual_seed(0), lengths) for _ in range(2))
    copied = branch(copied, sizes)
    assert isinstance(copied, KVCache)
    return copied, SharedPrefixCache.of(shared, sizes)


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


def test_fed_in_parts_the_cache_is_the_same() -> None:
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
    assert isinstance(branch(prompts(draw, [3]), [2]), KVCache)
    monkeypatch.setattr(branches, "choose", lambda _: "triton")
    assert isinstance(branch(prompts(draw, [3]), [2]), SharedPrefixCache)


def test_refusals() -> None:
    _, shared = both([2], [1])
    with pytest.raises(RuntimeError, match="begin was not called"):
        shared.attend(0, *fresh(torch.Generator(), 1, 1))
    with pytest.raises(ValueError, match="cache holds 0 tokens, 2 are needed"):
        shared.begin(2)
