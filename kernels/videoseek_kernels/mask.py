"""The only mask form: causality, packing, trees, padding and TDAM in three integers a token.

Row m sees key n iff  n <= m  and  m < end[n]  and  (visible[m] & key_class[n]) != 0.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

#: The int32 word of a key holds a 5-bit class index beside `end`, so the word bounds both.
MAX_CLASSES = 31
MAX_TOKENS = 2**26 - 1


def send(x: torch.Tensor, device: torch.device | str) -> torch.Tensor:
    """Copies to a device. A copy to the GPU returns at once. A copy to the host waits, so the reader gets all bytes."""
    return x.to(device, non_blocking=torch.device(device).type == "cuda")


@dataclass(frozen=True, slots=True)
class TokenMask:
    """The visible pairs of T packed tokens, as three int32 tensors [T] on a common device.

    end: the row after the last row that may see this key (end of the document, or of the subtree in a packed tree).
    key_class: a single bit among bits 0..30, or 0 for a key hidden from all rows (padding).
    visible: the set of class bits that this row sees; -1 for all, 0 for a padding row.
    Raises ValueError for wrong shapes and types, and on the CPU for wrong values: a check would stall a GPU.
    """

    end: torch.Tensor
    key_class: torch.Tensor
    visible: torch.Tensor

    def __post_init__(self) -> None:
        for name in ("end", "key_class", "visible"):
            tensor = getattr(self, name)
            if tensor.dtype != torch.int32 or tensor.dim() != 1 or not tensor.is_contiguous():
                stride = "" if tensor.is_contiguous() else f" with strides {tensor.stride()}"
                raise ValueError(
                    f"{name} must be int32 [T], contiguous, got {tensor.dtype} {list(tensor.shape)}{stride}"
                )
            if tensor.shape != self.end.shape or tensor.device != self.end.device:
                raise ValueError(
                    f"{name} has {len(tensor)} tokens on {tensor.device}, end has {len(self.end)} on {self.end.device}"
                )
        if not 1 <= len(self) <= MAX_TOKENS:
            raise ValueError(f"a mask covers 1 to {MAX_TOKENS} tokens, got {len(self)}")
        if self.device.type == "cpu":
            self.check_values()

    def check_values(self) -> None:
        """Raises ValueError for values that the form cannot hold. On a GPU the check waits for the device."""
        low, high = int(self.end.min()), int(self.end.max())
        if low < 0 or high > len(self):
            raise ValueError(f"end must lie in [0, {len(self)}], got values from {low} to {high}")
        one_bit = (self.key_class >= 0) & (self.key_class & (self.key_class - 1) == 0)
        if not bool(one_bit.all()):
            wrong = int(self.key_class[~one_bit][0])
            raise ValueError(f"key_class must be 0 or one of the bits 0 to {MAX_CLASSES - 1}, got {wrong:#x}")

    @classmethod
    def documents(cls, lengths: Sequence[int], device: torch.device | str = "cpu") -> TokenMask:
        """Returns the mask of plain causal attention inside each of several packed documents."""
        sizes = torch.tensor(lengths, dtype=torch.int32)
        end = torch.repeat_interleave(sizes.cumsum(0).int(), sizes)
        return cls(end, torch.ones_like(end), torch.full_like(end, -1)).to(device)

    def __len__(self) -> int:
        return self.end.shape[0]

    @property
    def device(self) -> torch.device:
        return self.end.device

    def to(self, device: torch.device | str) -> TokenMask:
        return TokenMask(*(send(x, device) for x in (self.end, self.key_class, self.visible)))

    def dense(self, rows: torch.Tensor | None = None) -> torch.Tensor:
        """Returns bool [T, T], or [len(rows), T]: quadratic in T, for the reference and for tests."""
        key = torch.arange(len(self), device=self.device)
        rows = key if rows is None else rows
        structure = (key[None, :] <= rows[:, None]) & (rows[:, None] < self.end[None, :])
        return structure & ((self.visible[rows][:, None] & self.key_class[None, :]) != 0)
