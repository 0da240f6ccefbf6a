"""Scores windows against clues: Video-o3's hybrid clue score, S = (2 IoU + IoP + IoG) / 4, and the fit of one window.

All times are in seconds.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from videoseek.config import VideoConfig
from videoseek.types import Interval

#: The tool's shortest window by default. A shorter clue counts at this length: the shortest call is the tightest fit.
MIN_WINDOW_SECONDS = VideoConfig().min_window_seconds
#: A window at or below this IoU earns 0: either most of the clue is missed, or most of the window is off the clue.
FIT_FLOOR = 0.2
# Lengths up to this (seconds) count as 0, as in the public code.
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
    """Returns the same instants as disjoint intervals in order. Touching intervals become one."""
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
    """Returns the overlap of two sets of instants, each the union of its intervals; 0 for an empty side."""
    windows, truth = merge(predicted), merge(clues)
    pairs = ((max(a, c), min(b, d)) for a, b in windows for c, d in truth)
    shared = sum(end - start for start, end in pairs if end > start)
    predicted_length, true_length = _length(windows), _length(truth)

    def ratio(whole: float) -> float:
        return shared / whole if whole > _NOTHING else 0.0

    return Overlap(ratio(predicted_length + true_length - shared), ratio(predicted_length), ratio(true_length))


def clue_score(predicted: Iterable[Interval], clues: Iterable[Interval]) -> float:
    """Returns S of all windows against all clues, as sets: the pairing of windows and clues has no effect."""
    return overlap(predicted, clues).score


def clue_fit(window: Interval, clue: Interval, min_window_seconds: float = MIN_WINDOW_SECONDS) -> float:
    """Returns the IoU of a window and a clue, rescaled: FIT_FLOOR gives 0 and the exact window gives 1.

    The fit never falls with more of the clue at equal precision, or with more precision at equal overlap.
    """
    clue_seconds, window_seconds = clue[1] - clue[0], window[1] - window[0]
    shared_seconds = min(window[1], clue[1]) - max(window[0], clue[0])
    if shared_seconds <= 0 or clue_seconds <= _NOTHING:
        return 0.0
    # Half of a tiny clue counts as half of the shortest window, at any place in the window.
    shared = shared_seconds * max(1.0, min_window_seconds / clue_seconds)
    total = max(window_seconds, min_window_seconds) + max(clue_seconds, min_window_seconds)
    return min(1.0, max(0.0, (shared / (total - shared) - FIT_FLOOR) / (1 - FIT_FLOOR)))


def clue_fits(
    windows: Sequence[Interval], clues: Sequence[Interval], min_window_seconds: float = MIN_WINDOW_SECONDS
) -> list[float]:
    """Returns the fit of the best window for each clue.

    A clue without a window counts 0. A second window on a clue earns the improvement only. A window over two clues is
    compared with each clue.
    """
    return [max((clue_fit(window, clue, min_window_seconds) for window in windows), default=0.0) for clue in clues]
