"""The difference of two runs on the same questions: exact McNemar test, bootstrap over films, changed questions.

A run's greedy episodes count, one per question: trajectories/greedy_MODEL.jsonl.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from videoseek.evaluation.metrics import film_interval
from videoseek.metrics import RunError
from videoseek.trajectory_record import TrajectoryRecord

#: A question, equal in both runs: its id and its text.
Key = tuple[str, str]


@dataclass(frozen=True, slots=True)
class Verdict:
    """Whether a run answered a question about `film` right. A reply without an answer is wrong."""

    film: str
    right: bool


@dataclass(frozen=True, slots=True)
class Paired:
    """Two runs on their common questions. `low` and `high` bound the difference of accuracies at 95 %.

    `gained` and `lost` are the ids of the questions that the second run newly answers right or wrong.
    """

    num_questions: int
    num_films: int
    num_unshared: int
    accuracies: tuple[float, float]
    low: float
    high: float
    p_value: float
    gained: list[str]
    lost: list[str]

    @property
    def difference(self) -> float:
        """Returns the accuracy of the second run minus the accuracy of the first."""
        return self.accuracies[1] - self.accuracies[0]


def read_verdicts(path: Path) -> dict[Key, Verdict]:
    """Reads the first episode of each question of a trajectory file. Raises RunError with the line of a bad episode."""
    verdicts: dict[Key, Verdict] = {}
    # `splitlines` would also cut at characters such as U+2028, which a reply may hold.
    for number, line in enumerate(path.read_text(encoding="utf-8").split("\n"), start=1):
        if not line:
            continue
        try:
            record = TrajectoryRecord.from_json(json.loads(line))
        except (LookupError, TypeError, ValueError, AttributeError, RecursionError) as error:
            raise RunError(f"{path}, line {number} is not a recorded episode: {error}") from error
        sample = record.sample
        verdicts.setdefault((sample.id, sample.question), Verdict(sample.video, record.is_right))
    return verdicts


def compare_verdicts(first: Mapping[Key, Verdict], second: Mapping[Key, Verdict], seed: int = 0) -> Paired | None:
    """Compares two runs on the questions of both, or returns None without any."""
    shared = [key for key in first if key in second]
    if not shared:
        return None
    films = [first[key].film for key in shared]
    changes = [second[key].right - first[key].right for key in shared]
    low, high = film_interval([float(change) for change in changes], films, seed=seed)
    gained = [key[0] for key, change in zip(shared, changes, strict=True) if change > 0]
    lost = [key[0] for key, change in zip(shared, changes, strict=True) if change < 0]
    right = [sum(run[key].right for key in shared) / len(shared) for run in (first, second)]
    unshared = len(first) + len(second) - 2 * len(shared)
    p_value = mcnemar(len(gained), len(lost))
    return Paired(len(shared), len(set(films)), unshared, (right[0], right[1]), low, high, p_value, gained, lost)


def mcnemar(num_gained: int, num_lost: int) -> float:
    """Returns the two-sided exact p-value: as many changes fall on the two sides by a fair coin, or more unevenly."""
    total, fewer = num_gained + num_lost, min(num_gained, num_lost)
    tail = sum(math.comb(total, count) for count in range(fewer + 1))
    return min(1.0, tail / 2 ** (total - 1)) if total else 1.0
