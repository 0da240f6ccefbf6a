"""The metrics of benchmarks against numbers worked out by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest

from videoseek.evaluation.metrics import (
    Outcome,
    accuracy,
    by_group,
    film_interval,
    knowledge_gain,
    macro_average,
    moment_recall,
    summarize,
)

OUTCOMES = [
    Outcome("1", "x", 1, groups={"task": "count", "type": ("a", "b")}),
    Outcome("2", "x", 0, groups={"task": "count", "type": ("a",)}),
    Outcome("3", "y", 1, groups={"task": "count"}),
    Outcome("4", "y", 0.5, groups={"task": "order"}),
    Outcome("5", "z", 0, "unanswered", {"task": "order"}),
    Outcome("6", "z", 0, "engine_error", {"task": "plot", "type": ("b",)}),
    Outcome("7", "z", 0, "judge_error", {"task": "plot"}),
    Outcome("8", "z", 1),
]


def test_unanswered_questions_and_errors_are_wrong_and_counted_apart() -> None:
    found = accuracy(OUTCOMES)
    assert (found.of_all, found.of_answered, found.num_questions) == (3.5 / 8, 3.5 / 5, 8)
    assert found.counts == {"answered": 5, "unanswered": 1, "engine_error": 1, "judge_error": 1}
    assert math.isnan(accuracy([]).of_all) and math.isnan(accuracy(OUTCOMES[4:7]).of_answered)
    assert accuracy(OUTCOMES[4:7]).of_all == 0


def test_macro_is_the_mean_of_the_groups_and_micro_of_the_questions() -> None:
    assert {name: group.of_all for name, group in by_group(OUTCOMES, "task").items()} == {
        "count": 2 / 3,
        "order": 0.25,
        "plot": 0.0,
    }
    assert macro_average(OUTCOMES, "task") == pytest.approx((2 / 3 + 0.25 + 0) / 3)
    assert {name: group.num_questions for name, group in by_group(OUTCOMES, "type").items()} == {"a": 2, "b": 2}
    assert math.isnan(macro_average(OUTCOMES, "nothing"))


def test_the_summary_holds_every_number_of_a_set() -> None:
    values = summarize(OUTCOMES, ["task"])
    assert (values["num_films"], values["num_judge_error"], values["accuracy/task/order"]) == (3, 1, 0.25)
    assert values["macro/task"] == macro_average(OUTCOMES, "task")
    assert values["accuracy_low"] < values["accuracy"] == 3.5 / 8 < values["accuracy_high"]


@pytest.mark.parametrize(
    ("score", "status", "words"),
    [(2, "answered", "must be in"), (1, "unanswered", "and 0 if"), (0, "lost", "not one of")],
)
def test_a_contradictory_outcome_is_refused(score: float, status: str, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        Outcome("1", "x", score, status)


def test_the_bootstrap_draws_films() -> None:
    """20 films of 10 equal questions: the interval is as wide as 20 independent values make it, not 200."""
    values = [float(film % 2) for film in range(20) for _ in range(10)]
    films = [str(film) for film in range(20) for _ in range(10)]
    low, high = film_interval(values, films)
    assert film_interval(values, films) == (low, high)
    expected = 1.96 * 0.5 / math.sqrt(20)
    assert high - 0.5 == pytest.approx(expected, rel=0.15) and 0.5 - low == pytest.approx(expected, rel=0.15)
    alone = film_interval(values, [str(index) for index in range(200)])
    assert (alone[1] - alone[0]) / (high - low) == pytest.approx(1 / math.sqrt(10), rel=0.15)
    assert film_interval([1.0, 1.0], ["a", "b"]) == (1, 1)
    assert all(map(math.isnan, film_interval([1.0, 0.0], ["a", "a"])))


def test_the_bootstrap_equals_a_loop_over_resamples() -> None:
    rng = np.random.default_rng(3)
    values, films, groups = rng.random(40).tolist(), [f"f{i % 7}" for i in range(40)], [f"g{i % 3}" for i in range(40)]
    means = []
    for draws in np.random.default_rng(0).multinomial(7, np.full(7, 1 / 7), 500):
        sums = {group: [0.0, 0] for group in set(groups)}
        for value, film, group in zip(values, films, groups, strict=True):
            sums[group][0] += value * draws[int(film[1:])]
            sums[group][1] += draws[int(film[1:])]
        means.append(np.mean([total / count for total, count in sums.values() if count]))
    expected = np.quantile(means, [0.05, 0.95])
    assert film_interval(values, films) != film_interval(values, films, seed=1)
    assert film_interval(values, films, groups=groups, level=0.9, num_resamples=500) == pytest.approx(expected)


def test_knowledge_gain() -> None:
    assert knowledge_gain(0.5, 0.6) == pytest.approx(20) and knowledge_gain(0.5, 0.4) == pytest.approx(-20)
    with pytest.raises(ValueError, match="below 1"):
        knowledge_gain(1.0, 1.0)


def test_moments_inside_crops() -> None:
    assert moment_recall([(0, 2), (4, 6)], [1, 2, 5]) == pytest.approx(2 / 3)
