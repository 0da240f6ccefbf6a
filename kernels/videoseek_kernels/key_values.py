"""KeyValues, the keys and values that decoding reads."""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True, slots=True)
class KeyValues:
    """Keys and values of C caches, for a single layer.

    k and v [C, S, Hkv, D]; lengths int32 [C] counts the filled slots of each cache, at most S: more is refused on the
    CPU, and cut to S on a GPU. key_class int32 [C, S] as in `TokenMask`; None if every row sees every key.
    """

    k: torch.Tensor
    v: torch.Tensor
    lengths: torch.Tensor
    key_class: torch.Tensor | None = None

    def __post_init__(self) -> None:
        if self.k.dim() != 4 or self.k.shape != self.v.shape or self.k.dtype != self.v.dtype:
            raise ValueError(
                f"wanted k and v [C, S, Hkv, D] of one type, got {list(self.k.shape)} {self.k.dtype} "
                f"and {list(self.v.shape)} {self.v.dtype}"
            )
        if not (self.k.is_contiguous() and self.v.is_contiguous()):
            raise ValueError("k and v must be contiguous: give the whole buffer, and say by lengths what is filled")
        lengths, classes = self.lengths, self.key_class
        if lengths.shape != self.k.shape[:1] or lengths.dtype != torch.int32 or not lengths.is_contiguous():
            raise ValueError(f"lengths must be int32 [C], contiguous, got {lengths.dtype} {list(lengths.shape)}")
        if len({x.device for x in (self.k, self.v, lengths, *([] if classes is None else [classes]))}) > 1:
            raise ValueError(f"k, v, lengths and key_class must share a device; k is on {self.k.device}")
        if lengths.device.type == "cpu" and len(lengths) and int(lengths.max()) > self.k.shape[1]:
            raise ValueError(f"lengths must be at most the {self.k.shape[1]} slots, got {int(lengths.max())}")
        if classes is None:
            return
        if classes.shape != self.k.shape[:2] or classes.dtype != torch.int32 or not classes.is_contiguous():
            raise ValueError(f"key_class must be int32 [C, S], contiguous, got {classes.dtype} {list(classes.shape)}")
