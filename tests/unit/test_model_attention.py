"""Packed and cached attention against the dense formula."""

from __future__ import annotations

import itertools
import weakref
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_world import tiny_world

from videoseek.batches.packing import pack_documents
from videoseek.model import attention
from videoseek.model.attention import IMPLEMENTATION, KVCache, PackedAttention, document_bounds, install_attention
from videoseek.model.policy import Policy
from videoseek.model.tiny import build_model

GROUPS, SIZE = 2, 8


def random_qkv(num_tokens: int, group: int = 2, *, seed: int = 0, grad: bool = False) -> list[torch.Tensor]:
    """q [1, G * group, T, D], k and v [1, G, T, D] in float64."""
    draw = torch.Generator().manual_seed(seed)
    heads = (GROUPS * group, GROUPS, GROUPS)
    shapes = [(1, count, num_tokens, SIZE) for count in heads]
    return [torch.randn(shape, generator=draw, dtype=torch.float64).requires_grad_(grad) for shape in shapes]


def dense(qkv: list[torch.Tensor], end: torch.Tensor, key_class: torch.Tensor, visible: torch.Tensor) -> torch.Tensor:
    """[1, T, H, D] straight from the definition; a row that sees nothing gives 0."""
    query, key, value = (tensor[0] for tensor in qkv)
    group, num_tokens = len(query) // len(key), query.shape[1]
    seen = torch.zeros(num_tokens, num_tokens, dtype=torch.bool)
    for m, n in itertools.product(range(num_tokens), repeat=2):
        seen[m, n] = n <= m < int(end[n]) and (int(visible[m]) & int(key_class[n])) != 0
    heads = []
    for head in range(len(query)):
        scores = (query[head] @ key[head // group].T / SIZE**0.5).masked_fill(~seen, -torch.inf)
        heads.append(scores.softmax(-1).nan_to_num() @ value[head // group])
    return torch.stack(heads, dim=1)[None]


@st.composite
def masks(draw: st.DrawFn) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """end, key_class, visible of documents and trees of any size, one token included."""
    end: list[int] = []
    for _ in range(draw(st.integers(1, 4))):
        base, shared = len(end), draw(st.integers(0, 4))
        branches: list[int] = []
        for size in draw(st.lists(st.integers(1, 7), min_size=1, max_size=3)):
            branches += [base + shared + len(branches) + size] * size
        end += [base + shared + len(branches)] * shared + branches
    bits = st.lists(st.sampled_from([1, 2, 4]), min_size=len(end), max_size=len(end))
    sets = st.lists(st.integers(0, 7), min_size=len(end), max_size=len(end))
    return tuple(torch.tensor(values, dtype=torch.int32) for values in (end, draw(bits), draw(sets)))


@settings(deadline=None)
@given(mask=masks(), group=st.sampled_from([1, 2, 7]))
def test_packed_equals_the_dense_formula(mask: tuple[torch.Tensor, ...], group: int) -> None:
    qkv = random_qkv(len(mask[0]), group)
    out = PackedAttention.plan(*mask).attend(0, *qkv)
    torch.testing.assert_close(out, dense(qkv, *mask), atol=1e-12, rtol=0)


def test_packed_gradients_equal_the_dense_formula() -> None:
    end = torch.tensor([1, 12, 12, 7, 7, 7, 7, 12, 12, 12, 12, 12, 15, 15, 15], dtype=torch.int32)
    key_class = torch.tensor([1, 2, 1, 1, 4, 1, 4, 1, 1, 4, 4, 1, 1, 1, 1], dtype=torch.int32)
    visible = torch.tensor([7, 7, 7, 3, 7, 5, 7, 3, 7, 7, 5, 7, 7, 7, 7], dtype=torch.int32)
    mine, other = random_qkv(15, grad=True), random_qkv(15, grad=True)
    weights = torch.randn(1, 15, 2 * GROUPS, SIZE, dtype=torch.float64)
    (PackedAttention.plan(end, key_class, visible).attend(0, *mine) * weights).sum().backward()
    (dense(other, end, key_class, visible) * weights).sum().backward()
    for tensor, wanted in zip(mine, other, strict=True):
        torch.testing.assert_close(tensor.grad, wanted.grad, atol=1e-12, rtol=0)


def test_lengths_share_a_bucket_only_when_similar() -> None:
    sizes = [40, 3, 38, 1, 2, 39]
    end = torch.tensor([sum(sizes[: i + 1]) for i, size in enumerate(sizes) for _ in range(size)], dtype=torch.int32)
    ones = torch.ones_like(end)
    plan = PackedAttention.plan(end, ones, ones)
    assert [tuple(rows.shape) for rows, _ in plan.buckets] == [(3, 40), (1, 3), (1, 2), (1, 1)]
    qkv = random_qkv(len(end))
    torch.testing.assert_close(plan.attend(0, *qkv), dense(qkv, end, ones, ones), atol=1e-12, rtol=0)


@pytest.mark.parametrize(
    ("end", "bounds"),
    [
        ([1], [0, 1]),
        ([1, 2, 3], [0, 1, 2, 3]),
        ([3, 3, 3], [0, 3]),
        ([2, 2, 5, 5, 5], [0, 2, 5]),
        ([6, 6, 4, 4, 6, 6, 7], [0, 6, 7]),  # a prompt of two with two branches, then a token alone
        ([1, 2, 5, 4, 5], [0, 1, 2, 5]),
    ],
    ids=str,
)
def test_document_bounds(end: list[int], bounds: list[int]) -> None:
    assert document_bounds(torch.tensor(end, dtype=torch.int32)) == bounds


def causal(keys: torch.Tensor, values: torch.Tensor, query: torch.Tensor) -> torch.Tensor:
    """Outputs [L, H, D] of the last L of the given tokens, each seeing all before it."""
    total, new = keys.shape[1], query.shape[1]
    qkv = [torch.zeros(1, query.shape[0], total, SIZE, dtype=torch.float64), keys[None], values[None]]
    qkv[0][0, :, total - new :] = query
    ones = torch.ones(total, dtype=torch.int32)
    return dense(qkv, torch.full((total,), total), ones, ones)[0, total - new :]


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


def test_fed_in_parts_the_cache_is_the_same() -> None:
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


def test_calls_of_few_sequences_give_what_one_call_gives(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[int] = []
    sdpa = attention.sdpa
    monkeypatch.setattr(attention, "sdpa", lambda *args: sizes.append(len(args[0])) or sdpa(*args))
    monkeypatch.setattr(attention, "_CALL_ELEMENTS", 2 * 6 * 2 * GROUPS * SIZE)
    cache = KVCache.empty(2, (5, GROUPS, 6, SIZE), torch.float64, torch.device("cpu"))
    History(5).feed(cache, [6, 2, 4, 1, 3], seed=1)
    assert sizes == [2, 2, 1] * 2


def test_a_single_token_repeats_no_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    cache = KVCache.empty(2, (3, GROUPS, 6, SIZE), torch.float64, torch.device("cpu"))
    history = History(3)
    history.feed(cache, [3, 5, 1], seed=1)
    monkeypatch.setattr(attention, "sdpa", None)
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
        cache.attend(0, *random_qkv(1))


@pytest.mark.parametrize("bounds", [[0, 4, 8, 12], [0, 3, 4, 9, 12], [0, 12], [0, 1, 2, 12]], ids=str)
def test_vision_windows_equal_one_softmax_each(bounds: list[int]) -> None:
    query, key, value = random_qkv(12, group=1)
    out = attention.torch_windows(query, key, value, torch.tensor(bounds, dtype=torch.int32))
    for start, stop in itertools.pairwise(bounds):
        window = slice(start, stop)
        scores = query[0, :, window] @ key[0, :, window].transpose(1, 2) / SIZE**0.5
        wanted = (scores.softmax(-1) @ value[0, :, window]).transpose(0, 1)
        torch.testing.assert_close(out[0, window], wanted, atol=1e-12, rtol=0)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=["fp16", "bf16"])
def test_flash_attn_computes_the_same_windows(dtype: torch.dtype) -> None:
    pytest.importorskip("flash_attn", reason="flash-attn is not installed")
    assert attention.flash_attn_serves(torch.device("cuda"), dtype)
    qkv = [torch.randn(1, 16, 500, 80, device="cuda", dtype=dtype, requires_grad=True) for _ in range(3)]
    bounds = torch.tensor([0, 64, 128, 160, 500], dtype=torch.int32, device="cuda")
    upstream = torch.randn(1, 500, 16, 80, device="cuda", dtype=dtype)
    flash, torchs = attention.flash_windows(*qkv, bounds, 340), attention.torch_windows(*qkv, bounds)
    torch.testing.assert_close(flash, torchs, atol=2e-2, rtol=0)
    for mine, other in zip(*(torch.autograd.grad(out, qkv, upstream) for out in (flash, torchs)), strict=True):
        torch.testing.assert_close(mine, other, atol=5e-2, rtol=0)


def test_flash_attn_serves_no_cpu_and_no_float32() -> None:
    assert not attention.flash_attn_serves(torch.device("cpu"), torch.bfloat16)
    assert not attention.flash_attn_serves(torch.device("cuda"), torch.float32)


def test_decoder_and_vision_tower_are_on_our_attention(monkeypatch: pytest.MonkeyPatch) -> None:
    world = tiny_world()
    policy, episodes = world.policy(), world.episodes()
    visual, decoder = policy.model.model.visual, policy.model.model.language_model
    assert {block.attn.config._attn_implementation for block in visual.blocks} == {IMPLEMENTATION}
    assert {layer.self_attn.config._attn_implementation for layer in decoder.layers} == {IMPLEMENTATION}
    calls: list[str] = []
    windows, attend = attention.torch_windows, PackedAttention.attend
    monkeypatch.setattr(attention, "torch_windows", lambda *args: calls.append("vision") or windows(*args))
    monkeypatch.setattr(PackedAttention, "attend", lambda self, *args: calls.append("text") or attend(self, *args))
    policy(pack_documents(episodes, world.packing))
    assert calls == ["vision"] * len(visual.blocks) + ["text"] * len(decoder.layers)


def test_model_refuses_to_run_without_a_plan() -> None:
    world = tiny_world()
    model = Policy(install_attention(build_model(world.config, 0))).model
    with pytest.raises(RuntimeError, match="attention plan"):
        model(input_ids=torch.tensor([[1, 2, 3]]))
