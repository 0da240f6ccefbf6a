"""Correctness on a real GPU: the two-times rule in bf16 and fp16, repeatability, decode against its reference.

Every function yields rows as they are found; a row with the key "failed" is a failure, and the next case still runs.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import product
from typing import Any

import numpy as np
import torch
from videoseek_kernels.api import tdam_attention
from videoseek_kernels.block_mask import build_block_mask, build_with_numpy, build_with_torch
from videoseek_kernels.decode import decode_attention
from videoseek_kernels.key_values import KeyValues
from videoseek_kernels.mask import TokenMask
from videoseek_kernels.reference import masked_attention
from videoseek_kernels.rope import apply_mrope, mrope_tables

from kernel_bench.measure import noting, time_one
from kernel_bench.testing import (
    eager_attention,
    excess,
    gradients,
    pack,
    random_inputs,
    random_mask,
    relative_error,
    trajectory_mask,
)

Row = dict[str, Any]
RESULTS = ("out", "dq", "dk", "dv")
#: bf16 rounds a result to 2e-3 of itself; a stretch of 512 keys that is not read shows as 0.1 at 32k keys.
DECODE_BOUND = 1e-2
_HALVES = (torch.bfloat16, torch.float16)


def case_masks() -> dict[str, TokenMask]:
    rng = np.random.default_rng(0)
    masks = {f"trajectory {length}": trajectory_mask(length, 3) for length in (1, 63, 127, 129, 1023, 2048)}
    masks["random forests"] = pack(random_mask(rng, int(rng.integers(1, 400))) for _ in range(8))
    masks["documents of one"] = TokenMask.documents([1] * 70 + [200])
    return masks


def correctness() -> Iterator[Row]:
    """Checks every result's error over its budget (at most 1 passes), repeats by bit, block masks by byte."""
    with poisoned_memory():
        heads = ((2, 2), (4, 2), (7, 1))
        for (name, mask), dtype, head_dim, count in product(case_masks().items(), _HALVES, (64, 128), heads):
            yield over_budget(name, mask, dtype, head_dim, count)
        # Many key tiles and heads, so that dk and dv are written whole: the short cases all cut them into parts.
        yield over_budget("dk, dv in one part", trajectory_mask(2048, 3), torch.bfloat16, 128, (32, 32))
        yield from repeatability()
    yield from builders_agree()


@contextmanager
def poisoned_memory() -> Iterator[None]:
    """Fills uninitialised floats with NaN, so that a read of memory that no kernel wrote shows."""
    enabled = torch.are_deterministic_algorithms_enabled()
    warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(enabled, warn_only=warn_only)


def hopper_correctness() -> Iterator[Row]:
    """Checks the error budget of the Hopper forward with the Triton backward, and its repeatability."""
    with poisoned_memory():
        for (name, mask), dtype, head_dim in product(case_masks().items(), _HALVES, (64, 128)):
            yield over_budget(name, mask, dtype, head_dim, (7, 1), impl="hopper")
        yield from repeatability(impl="hopper")


def over_budget(
    name: str, mask: TokenMask, dtype: torch.dtype, head_dim: int, heads: tuple[int, int], impl: str = "triton"
) -> Row:
    """Returns one case as a row: failed if any error exceeds its budget, or if it could not run."""
    row: Row = {"case": f"{name}, {str(dtype)[6:]}, D{head_dim}, {heads[0]}:{heads[1]}"}
    faults: dict[str, str] = {}
    with noting(faults, "failed"):
        over = check(mask, dtype, head_dim, heads, impl=impl)
        row |= {key: round(value, 3) for key, value in over.items()}
        if not all(value <= 1 for value in over.values()):
            raise AssertionError("error over budget")
    return row | faults


def check(
    mask: TokenMask,
    dtype: torch.dtype,
    head_dim: int,
    heads: tuple[int, int],
    device: str = "cuda",
    impl: str = "triton",
) -> dict[str, float]:
    """Returns error over budget of O, dq, dk, dv and L; infinite if a blind row has a result."""
    q, k, v, upstream = random_inputs(len(mask), heads, head_dim, dtype, device)
    block_mask, scale = build_block_mask(mask).to(device), head_dim**-0.5
    seen = block_mask.mask.dense()
    out, lse = tdam_attention(q, k, v, block_mask, impl=impl, return_lse=True)
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


def repeatability(times: int = 100, impl: str = "triton") -> Iterator[Row]:
    """Repeats the same inputs: every bit of every gradient must repeat."""
    mask = pack([trajectory_mask(1500, 3), trajectory_mask(700, 2)])
    q, k, v, upstream = random_inputs(len(mask), (28, 4), 128, torch.bfloat16, "cuda")
    block_mask = build_block_mask(mask).to("cuda")
    first = gradients(tdam_attention(q, k, v, block_mask, impl=impl), (q, k, v), upstream)
    differing = set()
    for _ in range(times):
        again = gradients(tdam_attention(q, k, v, block_mask, impl=impl), (q, k, v), upstream)
        differing |= {name for name, a, b in zip(RESULTS, first, again, strict=True) if not torch.equal(a, b)}
    row: Row = {"case": f"bit-equal over {times} repeats"}
    yield row | ({"failed": f"{', '.join(sorted(differing))} differ"} if differing else {})


def builders_agree() -> Iterator[Row]:
    """Compares the block lists made on the GPU with those made by numpy."""
    rng = np.random.default_rng(1)
    differing = []
    for case in range(50):
        mask = random_mask(rng, int(rng.integers(1, 3000)))
        host, device = build_with_numpy(mask, 128, 128), build_with_torch(mask.to("cuda"), 128, 128).to("cpu")
        pairs = [(host.key_word, device.key_word)]
        for side in ("by_query", "by_key"):
            pairs += zip(getattr(host, side).tensors, getattr(device, side).tensors, strict=True)
        if not all(torch.equal(a, b) for a, b in pairs):
            differing.append(case)
    row: Row = {"case": "50 block masks byte-equal on GPU and CPU"}
    yield row | ({"failed": f"masks {differing} differ"} if differing else {})


def smoke() -> Iterator[Row]:
    """Runs a few short cases of every kernel, for tools that slow everything down."""
    mask = pack([trajectory_mask(150, 2), TokenMask.documents([1, 49])])
    for dtype in _HALVES:
        yield over_budget("attention", mask, dtype, 128, (7, 1))
    cache, prefix = random_cache(2, 600, "cuda"), random_cache(1, 130, "cuda")
    q = torch.randn(2, 1, 28, 128, dtype=torch.bfloat16, device="cuda")
    yield {"case": "decode", **decode_error(decode_attention(q, cache, prefix=prefix, impl="triton"), q, cache, prefix)}
    yield _rotation()


def _rotation() -> Row:
    q, k, _, _ = (x.detach() for x in random_inputs(200, (28, 4), 128, torch.bfloat16, "cuda"))
    tables = mrope_tables(torch.arange(600, device="cuda").view(3, 200), (16, 24, 24), 1e6)
    pairs = zip(apply_mrope(q, k, *tables, impl="triton"), apply_mrope(q, k, *tables, impl="reference"), strict=True)
    error = max(relative_error(a, b.float()) for a, b in pairs)
    return {"case": "rope", "relative error": error} | ({} if error < 1e-2 else {"failed": "not below 0.01"})


def decode_error(got: torch.Tensor, q: torch.Tensor, cache: KeyValues, prefix: KeyValues | None) -> Row:
    """Returns the relative error against the reference in float32, and `failed` if it reaches DECODE_BOUND."""
    wide_prefix = None if prefix is None else _wide(prefix)
    exact = decode_attention(q.float(), _wide(cache), prefix=wide_prefix, impl="reference")
    error = relative_error(got, exact)
    row: Row = {"relative error": float(f"{error:.2g}")}
    return row if error < DECODE_BOUND else row | {"failed": f"relative error is not below {DECODE_BOUND}"}


def _wide(cache: KeyValues) -> KeyValues:
    return KeyValues(cache.k.float(), cache.v.float(), cache.lengths, cache.key_class)


def decode_bandwidth() -> Iterator[Row]:
    """Checks decode at the 7B shape against the reference, then measures GB/s of the cache beside a copy."""
    copy = torch.empty(2**30, dtype=torch.int8, device="cuda")
    copy_ms = time_one(lambda: copy[: 2**29].copy_(copy[2**29 :])).median_ms
    copy_rate = 2**30 / copy_ms / 1e6
    yield {"case": "copy", "GB/s": round(copy_rate)}
    for batch, context, shared in ((1, 32768, 0), (8, 8192, 0), (32, 8192, 0), (32, 32768, 0), (8, 1024, 32768)):
        q = torch.randn(batch, 1, 28, 128, dtype=torch.bfloat16, device="cuda")
        cache = random_cache(batch, context, "cuda")
        prefix = random_cache(1, shared, "cuda") if shared else None

        def run(q: torch.Tensor = q, cache: KeyValues = cache, prefix: KeyValues | None = prefix) -> torch.Tensor:
            return decode_attention(q, cache, prefix=prefix, impl="triton")

        error = decode_error(run(), q, cache, prefix)
        timing = time_one(run)
        num_bytes = (batch * context + shared) * 4 * 128 * 2 * 2
        rate = num_bytes / timing.median_ms / 1e6
        yield {
            "case": f"batch {batch}, context {context}, shared prefix {shared}",
            "MB": num_bytes // 10**6,
            "ms": round(timing.median_ms, 4),
            "GB/s": round(rate),
            "of copy": round(rate / copy_rate, 3),
            **error,
        }


def random_cache(count: int, length: int, device: str) -> KeyValues:
    """Returns bf16 caches at the 7B shape, filled to the last slot."""
    k, v = (torch.randn(count, length, 4, 128, dtype=torch.bfloat16, device=device) for _ in range(2))
    return KeyValues(k, v, torch.full((count,), length, dtype=torch.int32, device=device))
