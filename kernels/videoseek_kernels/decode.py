"""Attention of a few new rows per sequence over key/value caches, with a prefix shared by a group of sequences.

B sequences of R new rows each; C caches of S slots; Hq query heads on Hkv key/value heads of size D.
"""

from __future__ import annotations

import torch

from videoseek_kernels.dispatch import check_scale, check_triton_inputs, log_choice
from videoseek_kernels.key_values import KeyValues
from videoseek_kernels.reference import masked_attention

IMPLEMENTATIONS = ("auto", "triton", "reference")


def decode_attention(
    q: torch.Tensor,
    cache: KeyValues,
    *,
    prefix: KeyValues | None = None,
    visible: torch.Tensor | None = None,
    scale: float | None = None,
    impl: str = "auto",
) -> torch.Tensor:
    """Computes attention of the last R tokens of each sequence, q [B, R, Hq, D] -> [B, R, Hq, D]; without gradients.

    `cache` already holds the keys of the R tokens. Row r of a sequence sees the sequence's slots up to lengths - R + r
    and all slots of the prefix. `prefix` holds C caches, each shared by B / C neighbouring sequences, and a shared
    cache is read once. `visible` int32 [B, R] is matched against key_class as in `TokenMask` (None sees every class).
    Slots hidden from all rows are not read. scale: D ** -0.5 if None. impl: "auto" takes Triton on CUDA and the
    reference elsewhere. Raises ValueError for wrong shapes and types.
    """
    _check(q, cache, prefix, visible, impl)
    check_scale(scale)
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    chosen = ("triton" if q.device.type == "cuda" else "reference") if impl == "auto" else impl
    log_choice("decode_attention", impl, chosen, str(q.device), q.dtype)
    if visible is None:
        visible = torch.full(q.shape[:2], -1, dtype=torch.int32, device=q.device)
    with torch.no_grad():
        if chosen == "reference":
            return _decode_reference(q, cache, prefix, visible, scale)
        check_triton_inputs(q)
        from videoseek_kernels.impl.triton.decode import decode

        return decode(q, cache, prefix, visible, scale)


def _check(
    q: torch.Tensor, cache: KeyValues, prefix: KeyValues | None, visible: torch.Tensor | None, impl: str
) -> None:
    if q.dim() != 4 or cache.k.shape[0] != q.shape[0]:
        raise ValueError(f"wanted q [B, R, Hq, D] and one cache each, got {list(q.shape)}, {cache.k.shape[0]} caches")
    for name, held in (("cache", cache), ("prefix", prefix)):
        if held is None:
            continue
        if held.k.shape[3] != q.shape[3] or q.shape[2] % held.k.shape[2] or held.k.dtype != q.dtype:
            raise ValueError(f"{name} k {list(held.k.shape)} {held.k.dtype} does not fit q {list(q.shape)} {q.dtype}")
        if held.k.device != q.device:
            raise ValueError(f"{name} is on {held.k.device}, q is on {q.device}")
        if q.shape[0] % held.k.shape[0] or held.k.shape[2] != cache.k.shape[2]:
            raise ValueError(f"{held.k.shape[0]} {name} caches cannot serve {q.shape[0]} sequences in equal groups")
    if visible is not None and (visible.shape != q.shape[:2] or visible.dtype != torch.int32):
        raise ValueError(f"visible must be int32 {list(q.shape[:2])}, got {visible.dtype} {list(visible.shape)}")
    if visible is not None and (visible.device != q.device or not visible.is_contiguous()):
        raise ValueError(f"visible must be contiguous on {q.device}, is on {visible.device}")
    if impl not in IMPLEMENTATIONS:
        raise ValueError(f"impl {impl!r} is not one of {', '.join(IMPLEMENTATIONS)}")


def _decode_reference(
    q: torch.Tensor, cache: KeyValues, prefix: KeyValues | None, visible: torch.Tensor, scale: float
) -> torch.Tensor:
    """Computes sequence by sequence over the filled slots, under a dense mask."""
    num_sequences, num_rows = q.shape[:2]
    row = torch.arange(num_rows, device=q.device)[:, None]
    results = []
    for index in range(num_sequences):
        length = int(cache.lengths[index])
        parts = [(cache, index, torch.arange(length, device=q.device)[None, :] <= length - num_rows + row)]
        if prefix is not None:
            group = index * prefix.k.shape[0] // num_sequences
            parts.insert(0, (prefix, group, row.new_ones(num_rows, int(prefix.lengths[group]), dtype=torch.bool)))
        keys, values, seen = [], [], []
        for held, slot, reached in parts:
            filled = reached.shape[1]
            keys.append(held.k[slot, :filled])
            values.append(held.v[slot, :filled])
            if held.key_class is not None:
                reached = reached & (visible[index][:, None] & held.key_class[slot, :filled] != 0)
            seen.append(reached)
        results.append(masked_attention(q[index], torch.cat(keys), torch.cat(values), torch.cat(seen, 1), scale)[0])
    return torch.stack(results)
