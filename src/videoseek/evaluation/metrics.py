"""Metrics of benchmarks as pure functions of outcomes: accuracies, intervals over films and the recall of moments.

A question that a reply does not answer is wrong. Errors of the engine and of the judge are counted apart.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean

import numpy as np

from videoseek.types import Interval

STATUSES = ("answered", "unanswered", "engine_error", "judge_error")
IOU_THRESHOLDS = (0.3, 0.5, 0.7)
NUM_RESAMPLES = 2000


@dataclass(frozen=True, slots=True)
class Outcome:
    """The verdict on a question about `film`. `score` is in [0, 1] (1: right) and 0 unless the status is `answered`.

    `groups` maps a division, such as `duration`, to the question's group or groups there.
    """

    id: str
    film: str
    score: float
    status: str = "answered"
    groups: Mapping[str, str | tuple[str, ...]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.status not in STATUSES:
            raise ValueError(f"status {self.status!r} of question {self.id!r} is not one of {', '.join(STATUSES)}")
        if not 0 <= self.score <= (self.status == "answered"):
            raise ValueError(f"score {self.score} of question {self.id!r} must be in [0, 1], and 0 if {self.status}")

    def groups_of(self, division: str) -> tuple[str, ...]:
        """Returns the question's groups in a division, perhaps none."""
        groups = self.groups.get(division, ())
        return (groups,) if isinstance(groups, str) else groups


@dataclass(frozen=True, slots=True)
class Accuracy:
    """Means over all questions and over the answered ones (NaN without any), and the number of questions by status."""

    of_all: float
    of_answered: float
    num_questions: int
    counts: dict[str, int]


def accuracy(outcomes: Sequence[Outcome]) -> Accuracy:
    """Returns the accuracy with both denominators. `of_all` is the one to report."""
    counts = {status: sum(outcome.status == status for outcome in outcomes) for status in STATUSES}
    total = sum(outcome.score for outcome in outcomes)
    of_all, of_answered = (total / n if n else math.nan for n in (len(outcomes), counts["answered"]))
    return Accuracy(of_all, of_answered, len(outcomes), counts)


def by_group(outcomes: Sequence[Outcome], division: str) -> dict[str, Accuracy]:
    """Returns the accuracy of each group, sorted. A question of several groups counts in each."""
    names = sorted({group for outcome in outcomes for group in outcome.groups_of(division)})
    return {name: accuracy([outcome for outcome in outcomes if name in outcome.groups_of(division)]) for name in names}


def macro_average(outcomes: Sequence[Outcome], division: str) -> float:
    """Returns the mean over groups of the accuracy of all questions (MLVU's M-Avg); NaN without groups."""
    groups = by_group(outcomes, division)
    return fmean(group.of_all for group in groups.values()) if groups else math.nan


def summarize(outcomes: Sequence[Outcome], divisions: Sequence[str] = (), seed: int = 0) -> dict[str, float]:
    """Returns the flat scores of a benchmark: accuracies, 95 % interval, counts, and by division macro and groups."""
    whole = accuracy(outcomes)
    low, high = film_interval([o.score for o in outcomes], [o.film for o in outcomes], seed=seed)
    values = {
        "accuracy": whole.of_all,
        "accuracy_low": low,
        "accuracy_high": high,
        "accuracy_of_answered": whole.of_answered,
        "num_questions": float(whole.num_questions),
        "num_films": float(len({outcome.film for outcome in outcomes})),
        **{f"num_{status}": float(count) for status, count in whole.counts.items()},
    }
    for division in divisions:
        values[f"macro/{division}"] = macro_average(outcomes, division)
        groups = by_group(outcomes, division)
        values |= {f"accuracy/{division}/{name}": group.of_all for name, group in groups.items()}
    return values


def film_interval(
    values: Sequence[float],
    films: Sequence[str],
    *,
    groups: Sequence[str] | None = None,
    level: float = 0.95,
    num_resamples: int = NUM_RESAMPLES,
    seed: int = 0,
) -> tuple[float, float]:
    """Returns the percentile interval of the mean under a bootstrap that draws whole films, not questions.

    Questions about one film are dependent. With `groups`, one per value, the mean is the mean of the groups' means.
    Returns NaN for fewer than two films. Raises ValueError for lists of different lengths.
    """
    if len(values) != len(films) or (groups is not None and len(groups) != len(values)):
        raise ValueError(f"values, films and groups must have equal lengths, got {len(values)} values")
    names, film_index = np.unique(np.asarray(films, dtype=str), return_inverse=True)
    if len(names) < 2:
        return math.nan, math.nan
    group_names, group_index = np.unique(np.asarray(groups or [""] * len(values), dtype=str), return_inverse=True)
    sums, counts = np.zeros((2, len(names), len(group_names)))
    np.add.at(sums, (film_index, group_index), np.asarray(values, np.float64))
    np.add.at(counts, (film_index, group_index), 1)
    # weights[r, f]: how often resample r holds film f
    draws = np.random.default_rng(seed).multinomial(len(names), np.full(len(names), 1 / len(names)), num_resamples)
    drawn = draws @ counts
    # A resample may miss a group: the mean is over the others.
    means = np.divide(draws @ sums, drawn, out=np.full(drawn.shape, np.nan), where=drawn > 0)
    low, high = np.quantile(np.nanmean(means, axis=1), [(1 - level) / 2, (1 + level) / 2]).tolist()
    return low, high


def knowledge_gain(before: float, after: float) -> float:
    """Returns VideoMMMU's delta, in per cent of the errors of `before`. Accuracies are in [0, 1], `before` below 1."""
    if not 0 <= before < 1 or not 0 <= after <= 1:
        raise ValueError(f"accuracies must be in [0, 1] and the one before below 1, got {before} and {after}")
    return 100 * (after - before) / (1 - before)


def moment_recall(crops: Sequence[Interval], moments_seconds: Sequence[float]) -> float:
    """Returns the share of moments inside a crop, for benchmarks that name moments instead of windows."""
    if not moments_seconds:
        raise ValueError("a question without moments has no recall")
    return fmean(any(start <= moment < end for start, end in crops) for moment in moments_seconds)
