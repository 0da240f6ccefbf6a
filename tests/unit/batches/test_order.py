from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from videoseek.batches.order import batch_indices, cut_rows


@settings(deadline=None)
@given(batch_size=st.integers(1, 9), num_samples=st.integers(1, 12), steps=st.integers(1, 12), seed=st.integers(0, 99))
def test_every_epoch_shows_every_sample_once(batch_size: int, num_samples: int, steps: int, seed: int) -> None:
    stream = [index for step in range(steps) for index in batch_indices(step, batch_size, num_samples, seed)]
    assert len(stream) == steps * batch_size
    for first in range(0, len(stream) - num_samples + 1, num_samples):
        assert sorted(stream[first : first + num_samples]) == list(range(num_samples))
    assert max(Counter(stream).values()) - min(Counter(stream).get(i, 0) for i in range(num_samples)) <= 1


def test_a_step_is_a_pure_function_of_its_number() -> None:
    later = batch_indices(37, 5, 11, 3)
    for step in range(60):
        batch_indices(step, 5, 11, 3)
    assert batch_indices(37, 5, 11, 3) == later


def test_epochs_and_seeds_differ_in_order() -> None:
    epochs = [tuple(batch_indices(step, 40, 40, 0)) for step in range(5)]
    assert len(set(epochs)) == 5
    assert tuple(batch_indices(0, 40, 40, 1)) not in epochs


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


@settings(deadline=None)
@given(lengths=st.lists(st.integers(1, 30)), max_tokens=st.integers(1, 40))
def test_rows_keep_the_order_and_the_limit(lengths: list[int], max_tokens: int) -> None:
    rows = cut_rows(lengths, max_tokens)
    assert [index for row in rows for index in row] == list(range(len(lengths)))
    assert all(len(row) == 1 or sum(lengths[i] for i in row) <= max_tokens for row in rows)
    for row, following in zip(rows, rows[1:], strict=False):
        assert sum(lengths[i] for i in [*row, following[0]]) > max_tokens
