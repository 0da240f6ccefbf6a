"""The operator: attention under a TokenMask, whatever computes it."""

from __future__ import annotations

from typing import Literal, overload

import torch

from videoseek_kernels.composition import compose
from videoseek_kernels.dispatch import (
    IMPLEMENTATIONS,
    check_hopper_inputs,
    check_triton_inputs,
    choose,
    kernels,
    log_choice,
)
from videoseek_kernels.mask import TokenMask
from videoseek_kernels.plan import Plan, plan
from videoseek_kernels.reference import masked_attention


@overload
def tdam_attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    mask_or_plan: TokenMask | Plan,
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
    mask_or_plan: TokenMask | Plan,
    *,
    scale: float | None = ...,
    impl: str = ...,
    return_lse: Literal[True],
) -> tuple[torch.Tensor, torch.Tensor]: ...
def tdam_attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    mask_or_plan: TokenMask | Plan,
    *,
    scale: float | None = None,
    impl: str = "auto",
    return_lse: bool = False,
) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
    """Softmax attention of T packed tokens under a mask, differentiable in q, k and v.

    q [T, Hq, D]; k and v [T, Hkv, D], Hq a multiple of Hkv. Returns O [T, Hq, D]; with `return_lse` also the natural
    log-sum-exp of each row's scores, [T, Hq], in float32 (float64 where the reference is given that). A row that sees
    nothing gives 0, log-sum-exp -inf, and zero gradients. Give a `Plan`, built once per batch, rather than a mask.

    scale: factor on the scores, D ** -0.5 if None. impl: "auto" (the README says the rule), "triton", "hopper" (another
    forward, for Hopper alone), "composition" (which has no log-sum-exp) or "reference". A forced choice that cannot
    run raises; nothing falls back.
    """
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    _check(q, k, v, mask_or_plan, scale, impl)
    chosen = impl
    if impl == "auto":
        chosen = choose(q)
        if return_lse and chosen == "composition":
            chosen = "triton" if q.device.type == "cuda" else "reference"
    log_choice("tdam_attention", impl, chosen, str(q.device), q.dtype)

    if chosen == "reference":
        mask = mask_or_plan.mask if isinstance(mask_or_plan, Plan) else mask_or_plan
        out, lse = masked_attention(q, k, v, mask.dense(), scale)
        return (out, lse) if return_lse else out
    ready = mask_or_plan if isinstance(mask_or_plan, Plan) else plan(mask_or_plan)
    if chosen == "composition":
        if return_lse:
            raise ValueError('return_lse needs another impl than "composition", which has no log-sum-exp')
        return compose(q, k, v, ready.pieces, scale)
    if chosen == "hopper":
        check_hopper_inputs(q, (ready.block_m, ready.block_n))
        forward = kernels("tier2.forward").hopper_launch
    else:
        check_triton_inputs(q)
        forward = None
    out, lse = kernels("tier1.attention").attend(q, k, v, ready, scale, forward)
    return (out, lse) if return_lse else out


def _check(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask_or_plan: TokenMask | Plan, scale: float, impl: str
) -> None:
    if q.dim() != 3 or k.dim() != 3 or k.shape != v.shape or q.shape[::2] != k.shape[::2] or q.shape[1] % k.shape[1]:
        raise ValueError(
            "wanted q [T, Hq, D] and k, v [T, Hkv, D] with Hq a multiple of Hkv, "
            f"got q {list(q.shape)}, k {list(k.shape)}, v {list(v.shape)}"
        )
    if len({q.dtype, k.dtype, v.dtype}) > 1 or len({q.device, k.device, v.device, mask_or_plan.device}) > 1:
        types = ", ".join(f"{name} {x.dtype} on {x.device}" for name, x in (("q", q), ("k", k), ("v", v)))
        raise ValueError(f"q, k, v and the mask must share type and device, got {types}, mask on {mask_or_plan.device}")
    if len(mask_or_plan) != q.shape[0]:
        raise ValueError(f"the mask covers {len(mask_or_plan)} tokens, q has {q.shape[0]}")
    if not 0 < scale < float("inf"):
        raise ValueError(f"scale must be positive and finite, got {scale}")
    if impl not in IMPLEMENTATIONS:
        raise ValueError(f"impl {impl!r} is not one of {', '.join(IMPLEMENTATIONS)}")
