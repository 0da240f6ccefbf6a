"""How well windows cover clues: Video-o3's hybrid clue score, S = (2 IoU + IoP + IoG) / 4. All times in seconds."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from videoseek.types import Interval

# Lengths up to this (seconds) count as nothing, as in the public code.
_NOTHING = 1e-6


@dataclass(frozen=True, slots=True)
class Overlap:
    """Intersection over union, over the prediction (precision) and over the ground truth (recall), each in [0, 1]."""

    iou: float
    iop: float
    iog: float

    @property
    def score(self) -> float:
        return (2 * self.iou + self.iop + self.iog) / 4


def merge(intervals: Iterable[Interval]) -> list[Interval]:
    """The same set of instants as disjoint intervals in order; those that touch become one."""
    merged: list[Interval] = []
    for start, end in sorted(intervals):
        if merged and start <= merged[-1][1]:
            merged[-1] = (merged[-1][0], max(merged[-1][1], end))
        else:
            merged.append((start, end))
    return merged


def _length(disjoint: Sequence[Interval]) -> float:
    return sum(end - start for start, end in disjoint)


def overlap(predicted: Iterable[Interval], clues: Iterable[Interval]) -> Overlap:
    """Overlap of two sets of instants, each the union of its intervals; 0 where a side is empty."""
    windows, truth = merge(predicted), merge(clues)
    pairs = ((max(a, c), min(b, d)) for a, b in windows for c, d in truth)
    shared = sum(end - start for start, end in pairs if end > start)
    predicted_length, true_length = _length(windows), _length(truth)

    def ratio(whole: float) -> float:
        return shared / whole if whole > _NOTHING else 0.0

    return Overlap(ratio(predicted_length + true_length - shared), ratio(predicted_length), ratio(true_length))


def clue_score(predicted: Iterable[Interval], clues: Iterable[Interval]) -> float:
    """S of all windows against all clues, as sets: which window found which clue does not matter."""
    return overlap(predicted, clues).score


def clue_score_per_clue(predicted: Sequence[Interval], clues: Sequence[Interval]) -> float:
    """Mean over clues of the best single window's S against that clue.

    A clue that no window met counts 0, a second window on a clue earns only what it improves, and a window that spans
    two clues is judged against each.
    """
    if not predicted or not clues:
        return 0.0
    return sum(max(overlap([window], [clue]).score for window in predicted) for clue in clues) / len(clues)
