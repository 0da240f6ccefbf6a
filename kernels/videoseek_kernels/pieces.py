"""A mask cut into calls that plain flash attention can serve: each either causal at its lower right corner or full.

Tokens are cut into runs with one `end` and no `end` inside: all rows of a run share the earlier keys that reach it
(its ancestors in a tree; none when packed). Rows that lose keys by class are then computed again in spans, each over
the keys it sees, and take the place of the first result.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch

from videoseek_kernels.mask import TokenMask, send


@dataclass(frozen=True, slots=True)
class Piece:
    """Rows [start, stop) against the keys `context` (int64 [n], all before start) and, if `tail`, their own, causally.

    With neither, the rows see nothing. `override` marks rows that replace what an earlier piece gave.
    """

    start: int
    stop: int
    context: torch.Tensor
    tail: bool
    override: bool

    @property
    def num_pairs(self) -> int:
        rows = self.stop - self.start
        return rows * len(self.context) + (rows * (rows + 1) // 2 if self.tail else 0)

    def to(self, device: torch.device | str) -> Piece:
        return Piece(self.start, self.stop, send(self.context, device), self.tail, self.override)


def find_pieces(mask: TokenMask) -> list[Piece]:
    """Cut a mask on the CPU, in ascending order of rows; a row belongs to one piece that overrides at most."""
    end, key_class, visible = mask.end.numpy(), mask.key_class.numpy(), mask.visible.numpy()
    pieces: list[Piece] = []
    for start, stop in _runs(end):
        context = np.flatnonzero(end[:start] > start)
        own_keys = end[start] >= stop
        special = _special_rows(context, start, stop, key_class, visible) if own_keys else np.ones(stop - start, bool)
        if not special.all():
            pieces.append(Piece(start, stop, torch.from_numpy(context), tail=True, override=False))
        own_seen = own_keys & (visible[start:stop] & key_class[start:stop] != 0)
        for first, last in _spans(special, visible[start:stop], own_seen):
            before = np.concatenate([context, np.arange(start, start + first if own_keys else start)])
            seen = before[key_class[before] & visible[start + first] != 0]
            tail = bool(own_seen[first])
            pieces.append(Piece(start + first, start + last, torch.from_numpy(seen), tail, override=True))
    return pieces


def _runs(end: np.ndarray) -> Iterator[tuple[int, int]]:
    changes = np.flatnonzero(np.diff(end)) + 1
    cuts = np.unique(np.concatenate([[0], changes, end, [len(end)]]))
    yield from zip(cuts[:-1].tolist(), cuts[1:].tolist(), strict=True)


def _special_rows(context: np.ndarray, start: int, stop: int, key_class: np.ndarray, visible: np.ndarray) -> np.ndarray:
    """bool [stop - start]: the row loses some key that structure alone would show it."""
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
    """Longest stretches of special rows that agree on `visible` and on whether they see their own kind."""
    changed = np.diff(special) | (np.diff(visible) != 0) | np.diff(own_seen)
    cuts = [0, *(np.flatnonzero(changed) + 1).tolist(), len(special)]
    yield from ((a, b) for a, b in zip(cuts[:-1], cuts[1:], strict=True) if special[a])
