"""The plan of a GRPO update: nothing lost, rows within their limit, ranks in balance, few repeated prompts."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from videoseek.batches.planning import GroupShape, Tree, num_planned_tokens, pack_trees, plan_rows, split_into_trees

#: A prompt with an overview of 15,360 tokens, as the 7B recipe has it: the film's part, the question's part, and the
#: tokens of a crop by its quota.
FILM_TOKENS, QUESTION_TOKENS = 16_460, 200
PROMPT_TOKENS = FILM_TOKENS + QUESTION_TOKENS
CROP_TOKENS = (2048, 4096, 6144)


def shape_of(rank: int, index: int, film_length: int, questions: Sequence[tuple[int, Sequence[int]]]) -> GroupShape:
    """Returns the shape of questions about one film: the own tokens of each question, and of each of its episodes."""
    prompts, lengths, shared = [], [], []
    for number, (own_length, branch_lengths) in enumerate(questions):
        prompt_length = film_length + own_length
        prompts += [number] * len(branch_lengths)
        lengths += [prompt_length + length for length in branch_lengths]
        shared += [film_length if number else 0, *[prompt_length] * (len(branch_lengths) - 1)]
    return GroupShape(rank, index, tuple(prompts), tuple(lengths), tuple(shared))


@st.composite
def shapes(draw: st.DrawFn) -> list[GroupShape]:
    ranks = draw(st.lists(st.integers(0, 3), max_size=12))
    branches = st.lists(st.integers(1, 90), min_size=1, max_size=8)
    questions = st.lists(st.tuples(st.integers(0, 20), branches), min_size=1, max_size=3)
    return [shape_of(rank, index, draw(st.integers(1, 60)), draw(questions)) for index, rank in enumerate(ranks)]


@given(groups=shapes(), max_tokens=st.integers(1, 200))
def test_every_episode_is_planned_once_and_ranks_are_balanced(groups: list[GroupShape], max_tokens: int) -> None:
    plan = plan_rows(groups, max_tokens, num_ranks=4)
    planned = Counter((tree.shape, i) for rows in plan for row in rows for tree in row for i in tree.episodes)
    assert planned == Counter((group, i) for group in groups for i in range(len(group.lengths)))
    counts = [len(rows) for rows in plan]
    assert max(counts) - min(counts) <= 1
    for row in (row for rows in plan for row in rows):
        single_episode = len(row) == 1 and len(row[0].episodes) == 1
        assert sum(tree.length for tree in row) <= max_tokens or single_episode


@given(lengths=st.lists(st.integers(1, 50), max_size=30), capacity=st.integers(1, 60))
def test_first_fit_decreasing_fills_rows(lengths: list[int], capacity: int) -> None:
    trees = [Tree(shape_of(0, index, 0, [(0, [length])]), (0,)) for index, length in enumerate(lengths)]
    rows = pack_trees(trees, capacity)
    assert sorted(tree.shape.index for row in rows for tree in row) == list(range(len(lengths)))
    fillings = sorted(sum(tree.length for tree in row) for row in rows)
    assert all(sum(tree.length for tree in row) <= capacity for row in rows if len(row) > 1)
    # Two rows that would fit into one would have been one.
    assert len(fillings) < 2 or fillings[0] + fillings[1] > capacity


@given(groups=shapes(), max_tokens=st.integers(1, 200))
def test_a_film_takes_no_more_tokens_than_its_questions_apart(groups: list[GroupShape], max_tokens: int) -> None:
    for shape in groups:
        apart = 0
        for prompt in set(shape.prompts):
            own = [i for i, number in enumerate(shape.prompts) if number == prompt]
            shared = [0, *(shape.shared_lengths[i] for i in own[1:])]
            question = GroupShape(0, 0, (0,) * len(own), tuple(shape.lengths[i] for i in own), tuple(shared))
            apart += sum(tree.length for tree in split_into_trees(question, max_tokens))
        assert sum(tree.length for tree in split_into_trees(shape, max_tokens)) <= apart


@pytest.mark.parametrize(
    ("max_tokens", "trees"),
    [(33, {(0, 1, 2): 33}), (32, {(0, 1): 24, (2,): 19}), (23, {(0,): 18, (1,): 19, (2,): 19})],
)
def test_a_film_is_held_once_in_each_of_its_trees(max_tokens: int, trees: dict[tuple[int, ...], int]) -> None:
    """A film of 10 tokens, a question of 3 with branches of 5 and 6, and a question of 2 with a branch of 7."""
    shape = shape_of(0, 0, 10, [(3, [5, 6]), (2, [7])])
    assert shape.tokens_apart == 18 + 19 + 19
    assert {tree.episodes: tree.length for tree in split_into_trees(shape, max_tokens)} == trees


def test_ranks_keep_their_own_groups_while_they_are_in_balance() -> None:
    groups = [shape_of(rank, index, 10, [(0, [5, 5])]) for index, rank in enumerate((0, 1, 0, 1))]
    plan = plan_rows(groups, 25, num_ranks=2)
    assert [{tree.shape.rank for row in rows for tree in row} for rows in plan] == [{0}, {1}]


@pytest.mark.parametrize(
    ("num_crops", "max_tokens", "share_of_one_tree", "share_of_the_possible"),
    [(1, 65_536, 0.92, 0.99), (2, 65_536, 0.83, 0.98), (3, 65_536, 0.72, 0.98), (3, 98_304, 0.86, 0.99)],
)
def test_the_plan_saves_most_of_the_repeated_prompts(
    num_crops: int, max_tokens: int, share_of_one_tree: float, share_of_the_possible: float
) -> None:
    """Groups of 16 episodes with crops of mixed quotas, against separate episodes.

    One tree a group would save everything but may exceed the row. The least number of trees that a row allows bounds
    what can be saved: for three crops at 65,536 tokens that bound is 0.73 of the saving of one tree.
    """
    chance = random.Random(0)
    planned = apart = one_tree = bound = 0
    for index in range(50):
        shape, own = sampled_shape(chance, index, num_questions=1, num_crops=num_crops)
        planned += num_planned_tokens([[split_into_trees(shape, max_tokens)]])
        apart += shape.tokens_apart
        one_tree += PROMPT_TOKENS + own
        bound += PROMPT_TOKENS * -(-own // (max_tokens - PROMPT_TOKENS)) + own
    assert (apart - planned) / (apart - one_tree) > share_of_one_tree
    assert (apart - planned) / (apart - bound) > share_of_the_possible


@pytest.mark.parametrize(
    ("max_tokens", "num_crops", "saving_of_groups", "saving_of_films"),
    [
        (65_536, 1, 3.25, 3.5),
        (65_536, 2, 2.08, 2.13),
        (65_536, 3, 1.62, 1.65),
        (10**9, 1, 3.85, 4.5),
        (10**9, 2, 2.6, 2.82),
        (10**9, 3, 2.1, 2.22),
    ],
)
def test_the_plan_of_a_film_saves_more_than_that_of_its_questions(
    max_tokens: int, num_crops: int, saving_of_groups: float, saving_of_films: float
) -> None:
    """Tokens of separate episodes over tokens of the plan, for 4 questions about a film and 16 episodes a question."""
    chance = random.Random(0)
    apart = of_groups = of_films = bound = 0
    for index in range(50):
        shape, own = sampled_shape(chance, index, num_questions=4, num_crops=num_crops)
        groups = [shape_of(0, i, PROMPT_TOKENS, [(0, branches(shape, i))]) for i in range(4)]
        apart += shape.tokens_apart
        of_groups += sum(tree.length for group in groups for tree in split_into_trees(group, max_tokens))
        of_films += sum(tree.length for tree in split_into_trees(shape, max_tokens))
        bound += FILM_TOKENS * -(-own // (max_tokens - PROMPT_TOKENS)) + 4 * QUESTION_TOKENS + own
    assert saving_of_groups < apart / of_groups < saving_of_groups * 1.03
    assert saving_of_films < apart / of_films < saving_of_films * 1.03
    assert of_films < 1.02 * bound


def sampled_shape(chance: random.Random, index: int, *, num_questions: int, num_crops: int) -> tuple[GroupShape, int]:
    """Returns the shape of 16 episodes a question with crops of mixed quotas, and the tokens after the prompts."""
    questions = [
        [sum(chance.choice(CROP_TOKENS) + chance.randint(100, 400) for _ in range(num_crops)) for _ in range(16)]
        for _ in range(num_questions)
    ]
    shape = shape_of(0, index, FILM_TOKENS, [(QUESTION_TOKENS, branches) for branches in questions])
    return shape, sum(map(sum, questions))


def branches(shape: GroupShape, prompt: int) -> list[int]:
    """Returns the tokens after the prompt of each episode of a prompt."""
    return [n - PROMPT_TOKENS for n, i in zip(shape.lengths, shape.prompts, strict=True) if i == prompt]
