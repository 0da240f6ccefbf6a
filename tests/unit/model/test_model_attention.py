"""Packed attention and vision windows against the dense formula."""

from __future__ import annotations

import itertools
import logging
import sys
from types import ModuleType

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.tiny_world import tiny_world

from videoseek.batches.packing import pack_documents
from videoseek.model import attention
from videoseek.model.attention import IMPLEMENTATION, PackedAttention, install_attention
from videoseek.model.policy import Policy
from videoseek.model.tiny import build_model

GROUPS, SIZE, CPU = 2, 8, torch.device("cpu")


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
    out = PackedAttention.build(*mask, CPU).attend(0, *qkv)
    torch.testing.assert_close(out, dense(qkv, *mask), atol=1e-12, rtol=0)


def test_packed_gradients_equal_the_dense_formula() -> None:
    end = torch.tensor([1, 12, 12, 7, 7, 7, 7, 12, 12, 12, 12, 12, 15, 15, 15], dtype=torch.int32)
    key_class = torch.tensor([1, 2, 1, 1, 4, 1, 4, 1, 1, 4, 4, 1, 1, 1, 1], dtype=torch.int32)
    visible = torch.tensor([7, 7, 7, 3, 7, 5, 7, 3, 7, 7, 5, 7, 7, 7, 7], dtype=torch.int32)
    mine, other = random_qkv(15, grad=True), random_qkv(15, grad=True)
    weights = torch.randn(1, 15, 2 * GROUPS, SIZE, dtype=torch.float64)
    (PackedAttention.build(end, key_class, visible, CPU).attend(0, *mine) * weights).sum().backward()
    (dense(other, end, key_class, visible) * weights).sum().backward()
    for tensor, wanted in zip(mine, other, strict=True):
        torch.testing.assert_close(tensor.grad, wanted.grad, atol=1e-12, rtol=0)


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


def test_a_flash_attn_without_the_function_serves_nothing(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """flash-attn-4 installs a package of the same name without `flash_attn_varlen_func`."""
    monkeypatch.setitem(sys.modules, "flash_attn", ModuleType("flash_attn"))
    attention.flash_attn_serves.cache_clear()
    with caplog.at_level(logging.INFO):
        assert not attention.flash_attn_serves(torch.device("cuda"), torch.bfloat16)
    assert "windows by torch (cannot import name 'flash_attn_varlen_func'" in caplog.text


def test_flash_attn_is_deterministic_where_the_tower_is_trained(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[bool] = []

    def flash_attn_varlen_func(q: torch.Tensor, *_: object, deterministic: bool) -> torch.Tensor:
        asked.append(deterministic)
        return q

    package = ModuleType("flash_attn")
    package.flash_attn_varlen_func = flash_attn_varlen_func  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "flash_attn", package)
    bounds = torch.tensor([0, 12], dtype=torch.int32)
    for trained in (True, False):
        attention.flash_windows(*random_qkv(12, 1, grad=trained), bounds, 12)
    assert asked == [True, False]


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


def test_model_refuses_to_run_without_attention() -> None:
    world = tiny_world()
    model = Policy(install_attention(build_model(world.config, 0))).model
    with pytest.raises(RuntimeError, match="call the model through videoseek.model.policy"):
        model(input_ids=torch.tensor([[1, 2, 3]]))
