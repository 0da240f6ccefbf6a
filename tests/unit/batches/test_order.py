from __future__ import annotations

from collections import Counter
from dataclasses import replace
from itertools import groupby, pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from videoseek.batches.order import FILM_STRETCH, MAIN, RESERVE, SampleOrder, cut_rows
from videoseek.types import Sample


@settings(deadline=None)
@given(batch_size=st.integers(1, 9), num_samples=st.integers(1, 12), steps=st.integers(1, 12), seed=st.integers(0, 99))
def test_every_epoch_shows_every_sample_once(batch_size: int, num_samples: int, steps: int, seed: int) -> None:
    order = SampleOrder(num_samples, seed)
    stream = [index for step in range(steps) for index in order.batch(step, batch_size)]
    assert len(stream) == steps * batch_size
    for first in range(0, len(stream) - num_samples + 1, num_samples):
        assert sorted(stream[first : first + num_samples]) == list(range(num_samples))
    assert max(Counter(stream).values()) - min(Counter(stream).get(i, 0) for i in range(num_samples)) <= 1


def test_a_step_is_a_pure_function_of_its_number() -> None:
    order = SampleOrder(11, 3)
    later = order.batch(37, 5)
    for step in range(60):
        order.batch(step, 5)
    assert order.batch(37, 5) == SampleOrder(11, 3).batch(37, 5) == later


def test_epochs_and_seeds_differ_in_order() -> None:
    epochs = [tuple(SampleOrder(40, 0).batch(step, 40)) for step in range(5)]
    assert len(set(epochs)) == 5
    assert tuple(SampleOrder(40, 1).batch(0, 40)) not in epochs


def asked_about(film: int, number: int) -> list[Sample]:
    return [Sample(f"{film}-{i}", f"{film}.mp4", "Which?", "A", "clue_single_w_tool") for i in range(number)]


@pytest.mark.parametrize("order", [MAIN, RESERVE])
def test_questions_about_one_film_come_together_and_epochs_stay_whole(order: int) -> None:
    samples = [sample for film in range(12) for sample in asked_about(film, 1 + film % 5)]
    by_film = SampleOrder.of(samples, 0, by_film=True)
    epochs = [by_film.batch(step, len(samples), order) for step in range(3)]
    assert len({tuple(epoch) for epoch in epochs}) == 3
    for epoch in epochs:
        assert sorted(epoch) == list(range(len(samples)))
        changes = sum(samples[a].video != samples[b].video for a, b in pairwise(epoch))
        assert changes == 11, "every film is one stretch"
    assert SampleOrder.of(samples, 0, by_film=False).batch(0, 9, order) == SampleOrder(len(samples), 0).batch(
        0, 9, order
    )


def test_a_film_with_many_questions_does_not_fill_a_batch() -> None:
    samples = [*asked_about(0, 5 * FILM_STRETCH), *(asked_about(film, 1)[0] for film in range(1, 400))]
    epoch = SampleOrder.of(samples, 0, by_film=True).batch(0, len(samples))
    stretches = [len(list(run)) for film, run in groupby(samples[i].video for i in epoch) if film == "0.mp4"]
    assert stretches == [FILM_STRETCH] * 5


def test_windows_and_repeated_draws_are_films_of_their_own() -> None:
    """A window has a clip of its own. A mixture repeats samples, which no stretch holds twice."""
    samples = asked_about(0, 2) * 2 + [replace(asked_about(0, 3)[2], window=(0.0, 8.0))]
    epochs = [SampleOrder.of(samples, seed, by_film=True).batch(0, 5) for seed in range(20)]
    found = {frozenset(frozenset(part) for part in (epoch[:2], epoch[2:4])) for epoch in epochs if epoch[4] == 4}
    assert found == {frozenset({frozenset({0, 1}), frozenset({2, 3})})}


@pytest.mark.parametrize(
    ("lengths", "max_tokens", "rows"),
    [
        ([], 10, []),
        ([4, 6, 1], 10, [[0, 1], [2]]),
        ([10, 10], 10, [[0], [1]]),
        ([3, 50, 3], 10, [[0], [1], [2]]),
        ([50, 3, 3], 10, [[0], [1, 2]]),
        ([1, 1, 1], 1, [[0], [1], [2]]),
    ],
    ids=str,
)
def test_rows_equal_a_hand_computed_plan(lengths: list[int], max_tokens: int, rows: list[list[int]]) -> None:
    assert cut_rows(lengths, max_tokens) == rows


def test_neighbours_in_a_row_count_their_shared_tokens_once() -> None:
    """10 + 3 + 4 tokens fill the first row. The fourth item repeats the shared tokens in the second row."""
    assert cut_rows([10, 11, 12, 9, 5], 17, [0, 8, 8, 8, 0]) == [[0, 1, 2], [3, 4]]


@settings(deadline=None)
@given(lengths=st.lists(st.integers(1, 30)), max_tokens=st.integers(1, 40))
def test_rows_keep_the_order_and_the_limit(lengths: list[int], max_tokens: int) -> None:
    rows = cut_rows(lengths, max_tokens)
    assert [index for row in rows for index in row] == list(range(len(lengths)))
    assert all(len(row) == 1 or sum(lengths[i] for i in row) <= max_tokens for row in rows)
    for row, following in zip(rows, rows[1:], strict=False):
        assert sum(lengths[i] for i in [*row, following[0]]) > max_tokens
