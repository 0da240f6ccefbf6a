"""Correctness on a real GPU: the two-times rule in bf16 and fp16, repeatability, decode against its reference."""

from __future__ import annotations

from itertools import product
from typing import Any

import numpy as np
import torch

from videoseek_kernels.attention import tdam_attention
from videoseek_kernels.benchmark.measure import interleave
from videoseek_kernels.decode import KVCache, decode_attention
from videoseek_kernels.mask import TokenMask
from videoseek_kernels.plan import plan, plan_with_numpy, plan_with_torch
from videoseek_kernels.reference import masked_attention
from videoseek_kernels.testing import (
    eager_attention,
    excess,
    gradients,
    pack,
    random_inputs,
    random_mask,
    trajectory_mask,
)

RESULTS = ("out", "dq", "dk", "dv")


def case_masks() -> dict[str, TokenMask]:
    rng = np.random.default_rng(0)
    masks = {f"trajectory {length}": trajectory_mask(length, 3) for length in (1, 63, 127, 129, 1023, 2048)}
    masks["random forests"] = pack(random_mask(rng, int(rng.integers(1, 400))) for _ in range(8))
    masks["documents of one"] = TokenMask.documents([1] * 70 + [200])
    return masks


def two_times_rule() -> list[dict[str, Any]]:
    """Every result's error over its budget; raises if any exceeds 1, if lse is off, or if a repeat differs by a bit."""
    rows: list[dict[str, Any]] = []
    failures = []
    heads = ((2, 2), (4, 2), (7, 1))
    for (name, mask), dtype, head_dim, count in product(
        case_masks().items(), (torch.bfloat16, torch.float16), (64, 128), heads
    ):
        over = check(mask, dtype, head_dim, count)
        about = f"{name}, {str(dtype)[6:]}, D{head_dim}, {count[0]}:{count[1]}"
        rows.append({"case": about, **{key: round(value, 3) for key, value in over.items()}})
        if not max(over.values()) <= 1:
            failures.append(f"{about}: {over}")
    if failures:
        raise AssertionError("error over budget (1 passes):\n" + "\n".join(failures))
    worst = {key: max(row[key] for row in rows) for key in (*RESULTS, "lse")}
    return [{"case": f"worst of {len(rows)}", **worst}, *repeatability(), *builders_agree()]


def check(mask: TokenMask, dtype: torch.dtype, head_dim: int, heads: tuple[int, int]) -> dict[str, float]:
    q, k, v, upstream = random_inputs(len(mask), heads, head_dim, dtype, "cuda")
    ready, scale = plan(mask).to("cuda"), head_dim**-0.5
    seen = ready.mask.dense()
    out, lse = tdam_attention(q, k, v, ready, impl="triton", return_lse=True)
    got = gradients(out, (q, k, v), upstream)
    wide_q, wide_k, wide_v = (x.detach().float().requires_grad_() for x in (q, k, v))
    exact_out, exact_lse = masked_attention(wide_q, wide_k, wide_v, seen, scale)
    exact = gradients(exact_out, (wide_q, wide_k, wide_v), upstream.float())
    plain = gradients(eager_attention(q, k, v, seen, scale), (q, k, v), upstream)
    over = {name: excess(a, b, c) for name, a, b, c in zip(RESULTS, got, exact, plain, strict=True)}
    sighted = seen.any(1)
    blind_ok = bool((lse[~sighted] == float("-inf")).all()) and not bool(out[~sighted].any())
    gap = (lse[sighted] - exact_lse[sighted]).abs().max().item() if sighted.any() else 0.0
    return over | {"lse": gap / 1e-3 if blind_ok else float("inf")}


def repeatability(times: int = 100) -> list[dict[str, Any]]:
    """The same inputs again and again: every bit of every gradient must repeat."""
    mask = pack([trajectory_mask(1500, 3), trajectory_mask(700, 2)])
    q, k, v, upstream = random_inputs(len(mask), (28, 4), 128, torch.bfloat16, "cuda")
    ready = plan(mask).to("cuda")
    first = gradients(tdam_attention(q, k, v, ready, impl="triton"), (q, k, v), upstream)
    for turn in range(times):
        again = gradients(tdam_attention(q, k, v, ready, impl="triton"), (q, k, v), upstream)
        for name, a, b in zip(RESULTS, first, again, strict=True):
            if not torch.equal(a, b):
                raise AssertionError(f"repeat {turn}: {name} differs")
    return [{"case": f"bit-equal over {times} repeats"}]


def builders_agree() -> list[dict[str, Any]]:
    """The block lists made on the GPU against those made by numpy."""
    rng = np.random.default_rng(1)
    for case in range(50):
        mask = random_mask(rng, int(rng.integers(1, 3000)))
        host, device = plan_with_numpy(mask, 128, 128), plan_with_torch(mask.to("cuda"), 128, 128).to("cpu")
        for side in ("by_query", "by_key"):
            pairs = zip(getattr(host, side).tensors, getattr(device, side).tensors, strict=True)
            if not all(torch.equal(a, b) for a, b in pairs) or not torch.equal(host.key_word, device.key_word):
                raise AssertionError(f"mask {case}: the plans differ in {side}")
    return [{"case": "50 plans byte-equal on GPU and CPU"}]


def smoke() -> list[dict[str, Any]]:
    """A few short cases, for tools that slow everything down."""
    mask = pack([trajectory_mask(150, 2), TokenMask.documents([1, 49])])
    return [{"case": str(dtype)[6:], **check(mask, dtype, 128, (7, 1))} for dtype in (torch.bfloat16, torch.float16)]


def decode_bandwidth() -> list[dict[str, Any]]:
    """Decode at the 7B shape: agreement with the reference, then GB/s of the cache that must be read, beside a copy."""
    copy = torch.empty(2**30, dtype=torch.int8, device="cuda")
    copy_ms = interleave({"copy": lambda: copy[: 2**29].copy_(copy[2**29 :])})["copy"].median_ms
    rows: list[dict[str, Any]] = [{"case": "copy", "GB/s": round(2**30 / copy_ms / 1e6)}]
    for batch, context, shared in ((1, 32768, 0), (8, 8192, 0), (32, 8192, 0), (8, 1024, 32768)):
        q = torch.randn(batch, 1, 28, 128, dtype=torch.bfloat16, device="cuda")
        cache = _full_cache(batch, context)
        prefix = _full_cache(1, shared) if shared else None
        got = decode_attention(q, cache, prefix=prefix, impl="triton").float()
        exact = decode_attention(q, cache, prefix=prefix, impl="reference").float()
        if not (got - exact).abs().max().item() < 2e-2:
            raise AssertionError(f"decode, batch {batch}, context {context}, prefix {shared}: off by more than 2e-2")
        run = {"ours": lambda q=q, cache=cache, prefix=prefix: decode_attention(q, cache, prefix=prefix, impl="triton")}
        timing = interleave(run)["ours"]
        num_bytes = (batch * context + shared) * 4 * 128 * 2 * 2
        rate = num_bytes / timing.median_ms / 1e6
        rows.append(
            {
                "case": f"batch {batch}, context {context}, shared prefix {shared}",
                "ms": round(timing.median_ms, 4),
                "GB/s": round(rate),
                "of copy": round(rate / rows[0]["GB/s"], 3),
            }
        )
    return rows


def _full_cache(count: int, length: int) -> KVCache:
    k, v = (torch.randn(count, length, 4, 128, dtype=torch.bfloat16, device="cuda") for _ in range(2))
    return KVCache(k, v, torch.full((count,), length, dtype=torch.int32, device="cuda"))
