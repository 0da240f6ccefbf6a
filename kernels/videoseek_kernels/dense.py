"""Computes attention under a TokenMask by torch's scaled_dot_product_attention (SDPA), on any device.

A mask is cut in one of two ways. `PaddedDocuments` pads documents of similar length to a batch with a bool mask: few
calls, good for a CPU and many short documents. A `Segment` is a causal or a full call: flash kernels serve segments
without a mask in memory, good for a GPU.

T tokens, H query heads, G key heads, D head size, B documents of L padded tokens.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.attention.bias import causal_lower_right

from videoseek_kernels.mask import TokenMask, send

#: A bucket pads documents to the longest document, and closes before a document below this share of the longest.
_BUCKET_FILL = 0.7

#: The first capable kernel of torch serves a segment on CUDA. On Hopper, cuDNN's kernel is faster at a known length.
#: cuDNN makes a plan for each new length, and a plan takes longer than many calls.
FLASH_FIRST = [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]
CUDNN_FIRST = [SDPBackend.CUDNN_ATTENTION, *FLASH_FIRST]


def masked_sdpa(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: torch.Tensor, scale: float | None = None
) -> torch.Tensor:
    """Attends query [B, H, L, D] to key and value [B, G, K, D] under a bool mask [B, 1, L, K] -> [B, H, L, D].

    scale: D ** -0.5 if None.
    """
    heads_per_group = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(heads_per_group, dim=1), value.repeat_interleave(heads_per_group, dim=1)
    return F.scaled_dot_product_attention(query, key, value, attn_mask=mask, scale=scale)


@dataclass(frozen=True, slots=True)
class PaddedDocuments:
    """The documents of a packed row, padded in buckets of similar length, built once for all layers and passes.

    buckets: rows int64 [B, L] (any row as padding) and mask bool [B, 1, L, L] of each bucket.
    unpack: int64 [T], the place of each token in the concatenated and flattened buckets.
    """

    buckets: list[tuple[torch.Tensor, torch.Tensor]]
    unpack: torch.Tensor

    @classmethod
    def build(cls, mask: TokenMask) -> PaddedDocuments:
        """Cuts a mask on the CPU at the `document_bounds` of `end`."""
        bounds = document_bounds(mask.end)
        documents = sorted(zip(bounds[:-1], bounds[1:], strict=True), key=lambda document: document[0] - document[1])
        buckets: list[tuple[torch.Tensor, torch.Tensor]] = []
        unpack = torch.empty(len(mask), dtype=torch.long)
        filled = 0
        while documents:
            longest = documents[0][1] - documents[0][0]
            short = (i for i, (start, stop) in enumerate(documents) if stop - start < _BUCKET_FILL * longest)
            size = next(short, len(documents))
            bucket, documents = documents[:size], documents[size:]
            rows = torch.full((size, longest), -1)
            for i, (start, stop) in enumerate(bucket):
                rows[i, : stop - start] = torch.arange(start, stop)
                unpack[start:stop] = filled + i * longest + torch.arange(stop - start)
            filled += rows.numel()
            buckets.append((rows.clamp(min=0), _bucket_mask(rows, mask)))
        return cls(buckets, unpack)

    def to(self, device: torch.device | str) -> PaddedDocuments:
        return PaddedDocuments(
            [(send(rows, device), send(mask, device)) for rows, mask in self.buckets], send(self.unpack, device)
        )


def document_bounds(end: torch.Tensor) -> list[int]:
    """Returns row indices `[0, .., T]`, the bounds of documents or tree-packed groups: attention crosses no bound."""
    reach = end.cummax(0).values
    starts = torch.arange(1, len(end) + 1)
    return [0, *starts[reach <= starts].tolist()]


def _bucket_mask(rows: torch.Tensor, mask: TokenMask) -> torch.Tensor:
    """Turns rows int64 [B, L], -1 for padding, into a mask bool [B, 1, L, L]."""
    query, key = rows[:, :, None], rows[:, None, :]
    seen = (key >= 0) & (key <= query) & (query < mask.end[rows][:, None, :])
    seen &= (mask.visible[rows][:, :, None] & mask.key_class[rows][:, None, :]) != 0
    # A padded row sees itself, because an empty softmax is NaN. The output of a padded row is dropped.
    seen |= torch.eye(rows.shape[1], dtype=torch.bool) & (rows < 0)[:, :, None]
    return seen[:, None]


def padded_attention(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, documents: PaddedDocuments, scale: float | None = None
) -> torch.Tensor:
    """Attends q [T, H, D] to k and v [T, G, D] -> [T, H, D]; differentiable. scale: D ** -0.5 if None."""
    outputs = []
    for rows, mask in documents.buckets:
        # The gather takes heads first: a row of the model, [H, T, D] in memory, then needs no copy before the gather.
        query, key, value = (x.transpose(0, 1)[:, rows].transpose(0, 1) for x in (q, k, v))  # [B, H or G, L, D]
        attended = masked_sdpa(query, key, value, mask, scale)
        outputs.append(attended.transpose(1, 2).flatten(0, 1))  # [B * L, H, D]
    return torch.cat(outputs)[documents.unpack]


@dataclass(frozen=True, slots=True)
class Segment:
    """A call: rows [start, stop) against keys `context` (int64 [n], all before start) and, if `tail`, the rows' own.

    With `tail` the call is causal at the lower right corner, otherwise full. Rows with neither context nor tail are
    blind. `override` marks rows that replace the result of an earlier segment.
    """

    start: int
    stop: int
    context: torch.Tensor
    tail: bool
    override: bool

    @property
    def num_pairs(self) -> int:
        num_rows = self.stop - self.start
        return num_rows * len(self.context) + (num_rows * (num_rows + 1) // 2 if self.tail else 0)

    def to(self, device: torch.device | str) -> Segment:
        return Segment(self.start, self.stop, send(self.context, device), self.tail, self.override)


def find_segments(mask: TokenMask) -> list[Segment]:
    """Cuts a mask on the CPU into segments in ascending order of rows. At most one segment overrides a row.

    Tokens of a run have the same `end`, and no `end` lies inside a run. All rows of a run share the earlier keys that
    reach the run (the ancestors in a tree, no keys in a packed row). Rows that lose keys by class are computed again in
    spans. A span sees only the visible keys, and replaces the first result.
    """
    end, key_class, visible = mask.end.numpy(), mask.key_class.numpy(), mask.visible.numpy()
    segments: list[Segment] = []
    for start, stop in _runs(end):
        context = np.flatnonzero(end[:start] > start)
        own_keys = end[start] >= stop
        special = _special_rows(context, start, stop, key_class, visible) if own_keys else np.ones(stop - start, bool)
        if not special.all():
            segments.append(Segment(start, stop, torch.from_numpy(context), tail=True, override=False))
        own_seen = own_keys & (visible[start:stop] & key_class[start:stop] != 0)
        for first, last in _spans(special, visible[start:stop], own_seen):
            before = np.concatenate([context, np.arange(start, start + first if own_keys else start)])
            seen = before[key_class[before] & visible[start + first] != 0]
            tail = bool(own_seen[first])
            segments.append(Segment(start + first, start + last, torch.from_numpy(seen), tail, override=True))
    return segments


def _runs(end: np.ndarray) -> Iterator[tuple[int, int]]:
    changes = np.flatnonzero(np.diff(end)) + 1
    cuts = np.unique(np.concatenate([[0], changes, end, [len(end)]]))
    yield from zip(cuts[:-1].tolist(), cuts[1:].tolist(), strict=True)


def _special_rows(context: np.ndarray, start: int, stop: int, key_class: np.ndarray, visible: np.ndarray) -> np.ndarray:
    """Returns bool [stop - start], True for a row that loses structurally visible keys by class."""
    special = np.zeros(stop - start, bool)
    own = key_class[start:stop]
    inherited = set(np.unique(key_class[context]).tolist())
    for kind in inherited | set(np.unique(own).tolist()):
        blind = visible[start:stop] & kind == 0
        if kind not in inherited:
            blind[: int(np.argmax(own == kind))] = False
        special |= blind
    return special


def _spans(special: np.ndarray, visible: np.ndarray, own_seen: np.ndarray) -> Iterator[tuple[int, int]]:
    """Yields the longest stretches of special rows with equal `visible` and equal `own_seen`."""
    changed = np.diff(special) | (np.diff(visible) != 0) | np.diff(own_seen)
    cuts = [0, *(np.flatnonzero(changed) + 1).tolist(), len(special)]
    yield from ((a, b) for a, b in zip(cuts[:-1], cuts[1:], strict=True) if special[a])


def segmented_attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    segments: Sequence[Segment],
    scale: float | None = None,
    backends: list[SDPBackend] = FLASH_FIRST,
) -> torch.Tensor:
    """Attends q [T, H, D] to k and v [T, G, D] by segments in `find_segments` order -> [T, H, D]; differentiable.

    Gradients are exact: the overwrite cuts the first result's gradient off the replaced rows, so the first result of a
    replaced row adds nothing to dq, dk or dv. scale: D ** -0.5 if None.
    """
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    if not any(segment.num_pairs for segment in segments):
        # No row sees a key. The zeros still belong to the graph of q, k and v.
        nothing = sum(x.masked_fill(torch.ones_like(x, dtype=torch.bool), 0).sum() for x in (k, v))
        return q.masked_fill(torch.ones_like(q, dtype=torch.bool), 0) + nothing
    first = [segment for segment in segments if not segment.override]
    overrides = [segment for segment in segments if segment.override]
    parts: list[torch.Tensor] = []
    filled = 0
    with _prefer(backends, q.device):
        for segment in first:
            if filled < segment.start:
                parts.append(torch.zeros_like(q[filled : segment.start]))
            parts.append(_attend(q, k, v, segment, scale))
            filled = segment.stop
        if filled < len(q):
            parts.append(torch.zeros_like(q[filled:]))
        out = torch.cat(parts)
        if not overrides:
            return out
        rows = torch.cat([torch.arange(segment.start, segment.stop, device=q.device) for segment in overrides])
        return out.index_copy(0, rows, torch.cat([_attend(q, k, v, segment, scale) for segment in overrides]))


def _attend(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, segment: Segment, scale: float) -> torch.Tensor:
    rows = slice(segment.start, segment.stop)
    if not segment.num_pairs:
        return torch.zeros_like(q[rows])
    alone = not len(segment.context)
    if alone:
        keys, values = k[rows], v[rows]
    else:
        keys, values = (
            torch.cat([x.index_select(0, segment.context), *([x[rows]] if segment.tail else [])]) for x in (k, v)
        )
    bias = causal_lower_right(len(q[rows]), len(keys)) if segment.tail and not alone else None
    # [1, H, L, D]: the layout of torch's flash kernels, as a view.
    query, key, value = (x.transpose(0, 1).unsqueeze(0) for x in (q[rows], keys, values))
    grouped = q.shape[1] != k.shape[1]
    out = F.scaled_dot_product_attention(
        query, key, value, attn_mask=bias, is_causal=alone, scale=scale, enable_gqa=grouped
    )
    return out.squeeze(0).transpose(0, 1)


def _prefer(backends: list[SDPBackend], device: torch.device) -> AbstractContextManager[None]:
    return sdpa_kernel(backends, set_priority=True) if device.type == "cuda" else nullcontext()
