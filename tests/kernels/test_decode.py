"""Decode against caches: every step equals the row that prefill gives, shared prefix or not."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from kernel_bench.correctness import decode_error
from kernel_bench.correctness import random_cache as random_bf16_cache
from kernel_bench.testing import ALL, CROP_VIDEO, GLOBAL_VIDEO, TEXT
from videoseek_kernels import TokenMask, decode_attention, tdam_attention
from videoseek_kernels.impl.triton import decode as triton_decode
from videoseek_kernels.key_values import KeyValues


def random_cache(
    rng: np.random.Generator, lengths: list[int], num_slots: int, heads: int, head_dim: int, dtype: torch.dtype
) -> KeyValues:
    """Slots past the filled ones hold NaN: reading one shows."""
    k, v = (torch.from_numpy(rng.standard_normal((len(lengths), num_slots, heads, head_dim))) for _ in range(2))
    for index, length in enumerate(lengths):
        k[index, length:] = float("nan")
        v[index, length:] = float("nan")
    classes = np.array([TEXT, GLOBAL_VIDEO, CROP_VIDEO, 0], np.int32)[rng.integers(0, 4, (len(lengths), num_slots))]
    return KeyValues(k.to(dtype), v.to(dtype), torch.tensor(lengths, dtype=torch.int32), torch.from_numpy(classes))


def moved(cache: KeyValues | None, device: str, dtype: torch.dtype) -> KeyValues | None:
    if cache is None:
        return None
    classes = None if cache.key_class is None else cache.key_class.to(device)
    return KeyValues(cache.k.to(device, dtype), cache.v.to(device, dtype), cache.lengths.to(device), classes)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=["fp32", "fp16"])
@pytest.mark.parametrize(
    ("lengths", "prefix_lengths", "rows", "heads"),
    [
        ([1, 40], None, 1, (7, 1)),
        ([65, 9, 33, 70], [30], 1, (4, 2)),
        ([12, 3, 5, 64], [45, 1], 3, (2, 1)),
        ([6] * 11, [20], 1, (7, 1)),
    ],
    ids=["plain", "one-group", "two-groups-three-rows", "more-rows-than-a-tile"],
)
def test_kernel_equals_reference(
    lengths: list[int],
    prefix_lengths: list[int] | None,
    rows: int,
    heads: tuple[int, int],
    dtype: torch.dtype,
    device: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(triton_decode, "SPLIT_TOKENS", 64)
    rng = np.random.default_rng(5)
    cache = random_cache(rng, lengths, 71, heads[1], 32, dtype)
    prefix = random_cache(rng, prefix_lengths, 47, heads[1], 32, dtype) if prefix_lengths else None
    q = torch.from_numpy(rng.standard_normal((len(lengths), rows, heads[0], 32))).to(dtype)
    sets = torch.tensor([ALL, ALL & ~CROP_VIDEO, ALL & ~GLOBAL_VIDEO, 0], dtype=torch.int32)
    visible = sets[torch.arange(len(lengths) * rows) % 4].view(len(lengths), rows)
    on_device = {"prefix": moved(prefix, device, dtype), "visible": visible.to(device)}
    got = decode_attention(q.to(device), moved(cache, device, dtype), impl="triton", **on_device)
    exact = decode_attention(
        q.double(),
        moved(cache, "cpu", torch.float64),
        prefix=moved(prefix, "cpu", torch.float64),
        visible=visible,
        impl="reference",
    )
    torch.testing.assert_close(got.cpu().double(), exact, rtol=0, atol=1e-5 if dtype == torch.float32 else 2e-3)


@pytest.mark.parametrize("impl", ["reference", "triton"])
def test_steps_equal_prefill(impl: str, device: str) -> None:
    """A prompt shared by two rollouts, decoded token by token, against the packed tree."""
    generator = torch.Generator().manual_seed(1)
    prompt, steps = 10, 4
    num_tokens = prompt + 2 * steps
    q, k, v = (torch.randn(num_tokens, heads, 32, generator=generator).to(device) for heads in (4, 2, 2))
    end = torch.tensor([num_tokens] * prompt + [prompt + steps] * steps + [num_tokens] * steps, dtype=torch.int32)
    key_class = torch.tensor([TEXT, GLOBAL_VIDEO] * (num_tokens // 2), dtype=torch.int32)
    visible = torch.tensor([ALL] * (num_tokens - 2) + [ALL & ~GLOBAL_VIDEO] * 2, dtype=torch.int32)
    wanted = tdam_attention(q, k, v, TokenMask(end, key_class, visible).to(device), impl="reference")

    rows = torch.tensor([[prompt + r * steps + s for s in range(steps)] for r in range(2)])
    key_class, visible = key_class.to(device), visible.to(device)

    def full(length: int, count: int) -> torch.Tensor:
        return torch.full((count,), length, dtype=torch.int32, device=device)

    prefix = KeyValues(k[None, :prompt], v[None, :prompt], full(prompt, 1), key_class[None, :prompt].contiguous())
    for step in range(steps):
        cache = KeyValues(k[rows], v[rows], full(step + 1, 2), key_class[rows])
        now = rows[:, step : step + 1]
        got = decode_attention(q[now], cache, prefix=prefix, visible=visible[now], impl=impl)
        torch.testing.assert_close(got, wanted[now], rtol=0, atol=1e-5)


@pytest.mark.parametrize("num_parts", [1, 31, 33, 70])
def test_merge_weighs_any_number_of_parts(num_parts: int, device: str) -> None:
    """Rows whose first parts, last parts, or all of them saw nothing; sizes from e-30 to e30."""
    generator = torch.Generator().manual_seed(num_parts)
    parts = torch.randn(num_parts, 5, 32, generator=generator)
    lse = torch.randn(num_parts, 5, generator=generator) * torch.tensor([1.0, 40.0, 1.0, 1.0, 1.0])
    lse[: num_parts // 2, 2], lse[num_parts // 2 + 1 :, 3], lse[:, 4] = (float("-inf"),) * 3
    parts[lse.isinf()] = 0.0
    out = torch.full((5, 32), float("nan"), device=device)
    triton_decode.merge_launch(parts.to(device), lse.to(device), out).run()
    weights = (lse.double() * math.log(2)).softmax(0).nan_to_num()
    wanted = (parts.double() * weights[..., None]).sum(0)
    torch.testing.assert_close(out.cpu().double(), wanted, rtol=0, atol=1e-5)


def test_a_stretch_that_is_not_read_exceeds_the_bound_of_the_gpu_check() -> None:
    """Against long caches of random values the signal itself is a few hundredths: only a relative error tells."""
    q, cache = torch.randn(1, 1, 28, 128).bfloat16(), random_bf16_cache(1, 8192, "cpu")
    cut = KeyValues(cache.k, cache.v, cache.lengths - 512)
    good, bad = (decode_attention(q, held, impl="reference") for held in (cache, cut))
    assert (good - bad).abs().max() < 5e-2
    assert "failed" not in decode_error(good, q, cache, None)
    for wrong in (bad, torch.full_like(good, float("nan"))):
        assert "failed" in decode_error(wrong, q, cache, None)


def test_result_does_not_depend_on_the_batch(device: str) -> None:
    rng = np.random.default_rng(2)
    cache = moved(random_cache(rng, [40, 7, 64], 64, 1, 32, torch.float32), device, torch.float32)
    assert cache is not None
    q = torch.from_numpy(rng.standard_normal((3, 1, 7, 32))).float().to(device)
    alone = KeyValues(*(x[1:2].contiguous() for x in (cache.k, cache.v, cache.lengths, cache.key_class)))
    together = decode_attention(q, cache, impl="triton")
    assert torch.equal(decode_attention(q[1:2], alone, impl="triton"), together[1:2])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"q": torch.zeros(3, 1, 4, 32)}, "2 caches"),
        ({"q": torch.zeros(2, 1, 3, 32)}, "does not fit"),
        ({"visible": torch.zeros(2, 2, dtype=torch.int32)}, "visible must be"),
        ({"visible": torch.zeros(2, 2, dtype=torch.int32)[:, :1]}, "visible must be contiguous"),
        ({"scale": -1.0}, "positive, finite number, got -1.0"),
        ({"scale": math.nan}, "positive, finite number, got nan"),
        ({"q": torch.zeros(2, 1, 4, 32, device="meta")}, "cache is on cpu, q is on meta"),
        ({"impl": "dense"}, "not one of auto, triton, reference"),
    ],
    ids=["sequences", "ratio", "visible", "strided", "scale", "nan", "device", "impl"],
)
def test_bad_arguments_are_named(change: dict, message: str) -> None:
    slots = torch.zeros(2, 5, 2, 32)
    cache = KeyValues(slots, slots, torch.tensor([1, 2], dtype=torch.int32))
    with pytest.raises(ValueError, match=message):
        decode_attention(**({"q": torch.zeros(2, 1, 4, 32), "cache": cache} | change))


def test_lengths_beyond_the_slots_read_no_other_cache(device: str) -> None:
    cache = moved(random_cache(np.random.default_rng(3), [40, 40], 40, 1, 32, torch.float32), device, torch.float32)
    assert cache is not None
    q = torch.randn(2, 1, 7, 32, device=device)
    wanted = decode_attention(q, cache, impl="triton")
    object.__setattr__(cache, "lengths", cache.lengths + 9)  # the values on a GPU are unchecked
    beyond = torch.zeros(2, 1, 7, 32, device=device)
    beyond[:] = decode_attention(q, cache, impl="triton")
    torch.testing.assert_close(beyond, wanted, rtol=0, atol=1e-6)


def test_bad_caches_are_named() -> None:
    slots = torch.zeros(2, 5, 2, 32)
    with pytest.raises(ValueError, match="lengths must be int32"):
        KeyValues(slots, slots, torch.tensor([1, 2]))
    table = torch.tensor([[1, 0], [2, 0]], dtype=torch.int32)
    with pytest.raises(ValueError, match="lengths must be int32 \\[C\\], contiguous"):
        KeyValues(slots, slots, table[:, 0])
    with pytest.raises(ValueError, match="at most the 5 slots, got 6"):
        KeyValues(slots, slots, torch.tensor([1, 6], dtype=torch.int32))
    with pytest.raises(ValueError, match="share a device"):
        KeyValues(slots, slots, torch.tensor([1, 2], dtype=torch.int32, device="meta"))
    with pytest.raises(ValueError, match="whole buffer"):
        KeyValues(slots[:, :4], slots[:, :4], torch.tensor([1, 2], dtype=torch.int32))
    with pytest.raises(ValueError, match="key_class must be int32"):
        KeyValues(slots, slots, torch.tensor([1, 2], dtype=torch.int32), torch.zeros(2, 4, dtype=torch.int32))
