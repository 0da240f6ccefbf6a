"""The contestants: every available way to compute the same attention, and a reason for each that is missing."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from videoseek_kernels.api import tdam_attention
from videoseek_kernels.block_mask import BlockMask
from videoseek_kernels.dense import CUDNN_FIRST, FLASH_FIRST, document_bounds, segmented_attention
from videoseek_kernels.impl.flex import flex_mask
from videoseek_kernels.mask import TokenMask

from kernel_bench import cudnn_flex
from kernel_bench.measure import noting

Attention = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]


@dataclass(frozen=True, slots=True)
class Contestant:
    """run maps q [T, Hq, D], k, v [T, Hkv, D] to [T, Hq, D].

    A `causal` contestant ignores the mask: a yardstick, not a rival. Without `backward` it has a forward pass alone.
    """

    name: str
    run: Attention
    causal: bool = False
    build_seconds: float = 0.0
    backward: bool = True


#: FlashAttention 3 from its sources, then as PyPI's fa3-fwd has it: (module, has a backward pass).
_FA3 = (("flash_attn_interface", True), ("fa3_fwd_interface", False))
#: Peak bytes that eager attention with its backward pass takes per query head and pair.
_EAGER_BYTES = 12
#: Share of the free memory that a contestant may need; the rest is for q, k, v and what parity keeps.
_FREE_SHARE = 0.8


def contestants(
    block_mask: BlockMask,
    heads: tuple[int, int],
    head_dim: int,
    build_seconds: float = 0.0,
    *,
    tuned: bool = False,
    hopper: bool = False,
) -> tuple[list[Contestant], dict[str, str]]:
    """Returns all that can run for this mask on this machine, ours first, and {name: reason} for the rest.

    tuned: FlexAttention a second time, with its tiles searched for, which takes a minute. hopper: see `ours`.
    """
    torch._dynamo.reset()  # FlexAttention compiles for each mask, and past its limit of recompilations runs unfused
    found = [*ours(block_mask, build_seconds, hopper), *causal_contestants()]
    absent: dict[str, str] = {}
    for name, mode in (("FlexAttention", None), ("FlexAttention tuned", "max-autotune-no-cudagraphs")):
        if mode is None or tuned:
            with noting(absent, name):
                found.append(_flex(block_mask, name, mode))
    with noting(absent, "FlexAttention FLASH"):
        found.append(_flex_flash(block_mask))
    with noting(absent, "varlen FA2 (torch)"):
        found.append(_varlen(block_mask))
    with noting(absent, "cuDNN-frontend flex"):
        found.append(_cudnn_flex(block_mask, heads, head_dim))
    module, backward = next((fa3 for fa3 in _FA3 if find_spec(fa3[0])), _FA3[-1])
    for name, source, has_backward in (("FA3 causal", module, backward), ("FA4 causal", "flash_attn.cute", True)):
        with noting(absent, name):
            run = _flash(import_module(source).flash_attn_func)
            found.append(Contestant(name, run, causal=True, backward=has_backward))

    pairs = len(block_mask) ** 2
    needs = {"SDPA dense mask": pairs, "eager 4D mask": _EAGER_BYTES * heads[0] * pairs}
    for name, build in (("SDPA dense mask", _sdpa_dense), ("eager 4D mask", _eager)):
        torch.cuda.empty_cache()
        free_bytes = torch.cuda.mem_get_info()[0]
        if needs[name] > _FREE_SHARE * free_bytes:
            absent[name] = f"needs about {needs[name] >> 30} GiB, {free_bytes >> 30} GiB are free"
        else:
            with noting(absent, name):
                found.append(build(block_mask))
    return found, absent


def ours(block_mask: BlockMask, build_seconds: float = 0.0, hopper: bool = False) -> list[Contestant]:
    """Returns what this package offers; SDPA segments as they ship, and with cuDNN, which plans for each length.

    hopper: also the Hopper forward with the Triton backward; until a GPU has run it, it might never return.
    """
    start = time.perf_counter()
    segments = block_mask.segments
    seconds = time.perf_counter() - start

    def triton(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        return tdam_attention(q, k, v, block_mask, impl="triton")

    def hopper_forward(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        return tdam_attention(q, k, v, block_mask, impl="hopper")

    def over_flash(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        return segmented_attention(q, k, v, segments, backends=FLASH_FIRST)

    def over_cudnn(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        return segmented_attention(q, k, v, segments, backends=CUDNN_FIRST)

    found = [
        Contestant("Triton", triton, build_seconds=build_seconds),
        Contestant("SDPA segments", over_flash, build_seconds=seconds),
        Contestant("SDPA segments, cuDNN", over_cudnn, build_seconds=seconds),
    ]
    return [*found, Contestant("Hopper", hopper_forward, build_seconds=build_seconds)] if hopper else found


def causal_contestants() -> list[Contestant]:
    """Returns torch's own causal kernels, which every installation has."""
    return [
        Contestant("cuDNN causal", _causal(SDPBackend.CUDNN_ATTENTION), causal=True),
        Contestant("FA2 causal (torch)", _causal(SDPBackend.FLASH_ATTENTION), causal=True),
    ]


def _heads_first(*tensors: torch.Tensor) -> list[torch.Tensor]:
    return [x.transpose(0, 1).unsqueeze(0) for x in tensors]


def _tokens_first(out: torch.Tensor) -> torch.Tensor:
    return out.squeeze(0).transpose(0, 1)


def _causal(backend: SDPBackend) -> Attention:
    def run(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        query, key, value = _heads_first(q, k, v)
        with sdpa_kernel(backend):
            return _tokens_first(F.scaled_dot_product_attention(query, key, value, is_causal=True, enable_gqa=True))

    return run


def _flex(block_mask: BlockMask, name: str, mode: str | None) -> Contestant:
    """FlexAttention as its authors would: compiled, block mask given, our mask form as three array look-ups."""
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention

    end, key_class, visible = block_mask.mask.end, block_mask.mask.key_class, block_mask.mask.visible
    num_tokens = len(block_mask)

    def sees(_b: torch.Tensor, _h: torch.Tensor, m: torch.Tensor, n: torch.Tensor) -> torch.Tensor:
        return (n <= m) & (m < end[n]) & ((visible[m] & key_class[n]) != 0)

    build = torch.compile(create_block_mask)
    for _ in range(2):  # the second is the cost once compiled
        torch.cuda.synchronize()
        start = time.perf_counter()
        flex_mask = build(sees, None, None, num_tokens, num_tokens, device=str(block_mask.device))
        torch.cuda.synchronize()
        seconds = time.perf_counter() - start
    attend = torch.compile(flex_attention, dynamic=False, mode=mode)

    def run(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        query, key, value = _heads_first(q, k, v)
        return _tokens_first(attend(query, key, value, block_mask=flex_mask, enable_gqa=True))

    return Contestant(name, run, build_seconds=seconds)


def _flex_flash(block_mask: BlockMask) -> Contestant:
    """FlexAttention over FlashAttention 4, with our block lists: what `impl="flex"` runs."""
    if find_spec("flash_attn") is None or find_spec("flash_attn.cute") is None:
        raise RuntimeError("flash-attn-4 is not installed")
    start = time.perf_counter()
    block_mask.forms["flex"] = flex_mask(block_mask)
    seconds = time.perf_counter() - start

    def run(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        return tdam_attention(q, k, v, block_mask, impl="flex")

    return Contestant("FlexAttention FLASH", run, build_seconds=seconds)


def _varlen(block_mask: BlockMask) -> Contestant:
    """All documents of a plain pack in one call of torch's flash kernel, FA3 or FA4 where activated."""
    from torch.nn.attention.varlen import varlen_attn

    mask = block_mask.mask.to("cpu")
    bounds = document_bounds(mask.end)
    plain = TokenMask.documents([stop - start for start, stop in pairwise(bounds)])
    if not torch.equal(plain.end, mask.end) or not bool((mask.visible[:, None] & mask.key_class.unique()).all()):
        raise RuntimeError("the mask is no plain pack of documents")
    ends = torch.tensor(bounds, dtype=torch.int32, device=block_mask.device)
    longest = max(stop - start for start, stop in pairwise(bounds))

    def run(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        causal = (-1, 0)
        out = varlen_attn(q, k, v, ends, ends, longest, longest, window_size=causal, enable_gqa=True)
        return out if isinstance(out, torch.Tensor) else out[0]

    return Contestant("varlen FA2 (torch)", run)


def _cudnn_flex(block_mask: BlockMask, heads: tuple[int, int], head_dim: int) -> Contestant:
    like = [
        torch.empty(len(block_mask), count, head_dim, dtype=torch.bfloat16, device=block_mask.device) for count in heads
    ]
    for _ in range(2):  # the second is the cost once compiled
        torch.cuda.synchronize()
        start = time.perf_counter()
        run = cudnn_flex.prepare(block_mask, like[0], like[1], like[1])
        torch.cuda.synchronize()
        seconds = time.perf_counter() - start
    return Contestant("cuDNN-frontend flex", run, build_seconds=seconds)


def _flash(function: Callable[..., torch.Tensor | tuple[torch.Tensor, ...]]) -> Attention:
    def run(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        out = function(q[None], k[None], v[None], causal=True)
        return (out[0] if isinstance(out, tuple) else out).squeeze(0)

    return run


def _dense(block_mask: BlockMask) -> tuple[torch.Tensor, float]:
    torch.cuda.synchronize()
    start = time.perf_counter()
    seen = block_mask.mask.dense()
    torch.cuda.synchronize()
    return seen, time.perf_counter() - start


def _sdpa_dense(block_mask: BlockMask) -> Contestant:
    seen, seconds = _dense(block_mask)

    def run(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        query, key, value = _heads_first(q, k, v)
        group = q.shape[1] // k.shape[1]
        key, value = key.repeat_interleave(group, 1), value.repeat_interleave(group, 1)
        return _tokens_first(F.scaled_dot_product_attention(query, key, value, attn_mask=seen[None, None]))

    return Contestant("SDPA dense mask", run, build_seconds=seconds)


def _eager(block_mask: BlockMask) -> Contestant:
    """Softmax in float32 over a 4D additive mask, as model libraries write it."""
    seen, seconds = _dense(block_mask)
    bias = torch.zeros(seen.shape, dtype=torch.bfloat16, device=seen.device).masked_fill_(~seen, float("-inf"))

    def run(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        query, key, value = _heads_first(q, k, v)
        group = q.shape[1] // k.shape[1]
        scores = query @ key.repeat_interleave(group, 1).transpose(2, 3) * q.shape[-1] ** -0.5
        weights = (scores + bias).softmax(-1, dtype=torch.float32).to(q.dtype)
        return _tokens_first(weights @ value.repeat_interleave(group, 1))

    return Contestant("eager 4D mask", run, build_seconds=seconds)
