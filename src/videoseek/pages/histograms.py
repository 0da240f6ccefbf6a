"""How values are spread: bins with round edges, and the few numbers that sum them up."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from videoseek.pages.charts import Axis

_NUM_BINS = 24
#: Beyond this ratio of largest to median, equal bins would hold nearly everything in their first.
_LONG_TAIL = 20.0


@dataclass(frozen=True, slots=True)
class Summary:
    num_values: int
    total: float
    least: float
    median: float
    mean: float
    p90: float
    most: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Summary:
        numbers = np.asarray(values, np.float64)
        least, median, p90, most = np.quantile(numbers, [0, 0.5, 0.9, 1]).tolist()
        return cls(len(values), float(numbers.sum()), least, median, float(numbers.mean()), p90, most)


@dataclass(frozen=True, slots=True)
class Histogram:
    """`counts[i]` values lie in [edges[i], edges[i + 1]), the last bin includes its end. `axis` spans the edges."""

    title: str
    unit: str
    edges: tuple[float, ...]
    counts: tuple[int, ...]
    axis: Axis
    summary: Summary


def histogram(title: str, unit: str, values: Sequence[float]) -> Histogram | None:
    """None without any value. Few whole numbers have a bin each; a long tail gets bins of growing width."""
    if not values:
        return None
    summary = Summary.of(values)
    whole = all(value == int(value) for value in values)
    if whole and summary.most - summary.least < _NUM_BINS:
        first, last = int(summary.least), int(summary.most)
        edges = np.arange(first - 0.5, last + 1)
        stride = -(-(last - first + 1) // 8)
        axis = Axis(first - 0.5, last + 0.5, tuple(float(tick) for tick in range(first, last + 1, stride)))
    elif summary.least > 0 and summary.most > _LONG_TAIL * summary.median:
        axis = Axis.fit([summary.least, summary.most], log=True)
        edges = np.geomspace(axis.low, axis.high, _NUM_BINS + 1)
    else:
        axis = Axis.fit([summary.least, summary.most])
        edges = np.linspace(axis.low, axis.high, _NUM_BINS + 1)
    counts, _ = np.histogram(np.clip(values, edges[0], edges[-1]), edges)
    return Histogram(title, unit, tuple(edges.tolist()), tuple(counts.tolist()), axis, summary)
