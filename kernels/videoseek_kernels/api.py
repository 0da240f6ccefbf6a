"""The operator: attention under a TokenMask. `dispatch` chooses the implementation."""

from __future__ import annotations

from typing import Literal, overload

import torch

from videoseek_kernels.block_mask import BlockMask, build_block_mask
from videoseek_kernels.dense import padded_attention, segmented_attention
from videoseek_kernels.dispatch import (
    DTYPES,
    IMPLEMENTATIONS,
    check_hopper_inputs,
    check_scale,
    check_triton_inputs,
    choose,
    log_choice,
)
from videoseek_kernels.mask import TokenMask
from videoseek_kernels.reference import masked_attention


@overload
def tdam_attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    mask: TokenMask | BlockMask,
    *,
    scale: float | None = ...,
    impl: str = ...,
    return_lse: Literal[False] = ...,
) -> torch.Tensor: ...
@overload
def tdam_attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    mask: TokenMask | BlockMask,
    *,
    scale: float | None = ...,
    impl: str = ...,
    return_lse: Literal[True],
) -> tuple[torch.Tensor, torch.Tensor]: ...
def tdam_attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    mask: TokenMask | BlockMask,
    *,
    scale: float | None = None,
    impl: str = "auto",
    return_lse: bool = False,
) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
    """Computes softmax attention of T packed tokens under a mask; differentiable in q, k and v.

    q [T, Hq, D]; k and v [T, Hkv, D], Hq a multiple of Hkv. Returns O [T, Hq, D]; with `return_lse` also the natural
    log-sum-exp of each row's scores, [T, Hq], in float32 (float64 if the reference gets float64). A blind row,
    a row without visible keys, gives 0, log-sum-exp -inf, and zero gradients.

    mask: a `BlockMask`, built once per batch, or a `TokenMask` (each call then builds a new `BlockMask`).
    scale: factor on the scores, D ** -0.5 if None.
    impl: "auto" (the rule of `dispatch`), "triton", "hopper" (another forward, only for Hopper), "flex"
    (FlexAttention of torch, on a GPU over FlashAttention 4), "dense" (calls of torch's SDPA, without a log-sum-exp) or
    "reference". A forced choice never falls back, and raises ValueError or
    RuntimeError if the choice cannot run. Wrong shapes, types and devices raise ValueError.

    k and v must be finite at hidden keys too: a hidden key has weight 0, and 0 * NaN is NaN.
    """
    _check(q, k, v, mask, impl)
    check_scale(scale)
    chosen = impl
    if impl == "auto":
        chosen = choose(q)
        if return_lse and chosen == "dense":
            chosen = "triton" if q.device.type == "cuda" else "reference"
    if not torch.compiler.is_compiling():
        log_choice("tdam_attention", impl, chosen, str(q.device), q.dtype)
    if chosen == "dense" and return_lse:
        raise ValueError('return_lse needs another impl than "dense", which has no log-sum-exp')

    # Autocast would let torch's products, unlike the kernels, return another type than q's.
    with torch.autocast(q.device.type, enabled=False):
        out, lse = _attend(q, k, v, mask, scale, chosen)
    return (out, lse) if return_lse and lse is not None else out


def _attend(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    mask: TokenMask | BlockMask,
    scale: float | None,
    chosen: str,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    factor = q.shape[-1] ** -0.5 if scale is None else scale
    if chosen == "reference":
        token_mask = mask.mask if isinstance(mask, BlockMask) else mask
        return masked_attention(q, k, v, token_mask.dense(), factor)
    block_mask = mask if isinstance(mask, BlockMask) else build_block_mask(mask)
    if chosen == "dense":
        # On a GPU, flash kernels serve segments without a mask in memory. On a CPU, fewer calls are faster.
        if q.device.type == "cuda":
            return segmented_attention(q, k, v, block_mask.segments, scale), None
        return padded_attention(q, k, v, block_mask.documents, scale), None
    if chosen == "flex":
        from videoseek_kernels.impl import flex

        return flex.attend(q, k, v, block_mask, factor)
    # Triton is an optional package, so only a call that chooses Triton imports the Triton modules.
    if chosen == "triton":
        check_triton_inputs(q)
    else:
        check_hopper_inputs(q, (block_mask.block_m, block_mask.block_n))
    from videoseek_kernels.impl.triton.operator import attend

    return attend(q, k, v, block_mask, factor, hopper=chosen == "hopper")


def _check(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: TokenMask | BlockMask, impl: str) -> None:
    if not isinstance(mask, TokenMask | BlockMask):
        raise ValueError(f"mask must be a TokenMask or a BlockMask, got {type(mask).__name__}")
    fits = q.dim() == k.dim() == 3 and k.shape == v.shape and q.shape[::2] == k.shape[::2]
    if not fits or k.shape[1] == 0 or q.shape[1] % k.shape[1]:
        raise ValueError(
            "wanted q [T, Hq, D] and k, v [T, Hkv, D] with Hq a multiple of Hkv, "
            f"got q {list(q.shape)}, k {list(k.shape)}, v {list(v.shape)}"
        )
    if len({q.dtype, k.dtype, v.dtype}) > 1 or len({q.device, k.device, v.device, mask.device}) > 1:
        types = ", ".join(f"{name} {x.dtype} on {x.device}" for name, x in (("q", q), ("k", k), ("v", v)))
        raise ValueError(f"q, k, v and the mask must share type and device, got {types}, mask on {mask.device}")
    if q.dtype not in DTYPES:
        raise ValueError(f"q, k and v must be {', '.join(str(x)[6:] for x in DTYPES)}, got {q.dtype}")
    if len(mask) != q.shape[0]:
        raise ValueError(f"the mask covers {len(mask)} tokens, q has {q.shape[0]}")
    if impl not in IMPLEMENTATIONS:
        raise ValueError(f"impl {impl!r} is not one of {', '.join(IMPLEMENTATIONS)}")
