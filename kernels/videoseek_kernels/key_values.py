"""KeyValues, the keys and values that decoding reads."""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True, slots=True)
class KeyValues:
    """Keys and values of C caches, for a single layer.

    k and v [C, S, Hkv, D]; lengths int32 [C] counts the filled slots of each cache. key_class int32 [C, S] as in
    `TokenMask`; None if every row sees every key.
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
        if self.lengths.shape != self.k.shape[:1] or self.lengths.dtype != torch.int32:
            raise ValueError(f"lengths must be int32 [C], got {self.lengths.dtype} {list(self.lengths.shape)}")
        classes = self.key_class
        if classes is None:
            return
        if classes.shape != self.k.shape[:2] or classes.dtype != torch.int32 or not classes.is_contiguous():
            raise ValueError(f"key_class must be int32 [C, S], contiguous, got {classes.dtype} {list(classes.shape)}")
