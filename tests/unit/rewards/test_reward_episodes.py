"""Hand-computed episodes, the table of docs/reward.md, and a search for episodes that `strict` pays without a look."""

from __future__ import annotations

import random
import re
from dataclasses import dataclass
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from videoseek.rewards.clue_score import FIT_FLOOR, MIN_WINDOW_SECONDS, clue_fit
from videoseek.rewards.trajectory_guided import VARIANTS, RewardParts, Trajectory, score
from videoseek.types import Interval

PAGE = Path(__file__).parents[3] / "docs/reward.md"
W1, W2, D1, D2 = "clue_single_w_tool", "clue_multi_w_tool", "clue_single_wo_tool", "clue_multi_wo_tool"


def intervals(text: str) -> list[Interval]:
    """Reads `10-20, 40-50`, or `none`."""
    pairs = [part.split()[-1].split("-") for part in text.split(",") if part.strip() not in ("", "none")]
    return [(float(start), float(end)) for start, end in pairs]


def trajectory(kind: str, clues: str, windows: str, answer: str) -> Trajectory:
    """Writes out an episode whose right answer is A. A window may have the prefix `failed` or `low` (no strategy)."""
    turns, executed = [], []
    for part, (start, end) in zip(windows.split(","), intervals(windows), strict=False):
        strategy = "low" if "low" in part else "fine"
        payload = f'{{"temporal_segment": [{start!r}, {end!r}], "sampling_strategy": "{strategy}"}}'
        turns.append(f"<think>x</think>\n<grounding>{payload}</grounding>")
        if strategy == "fine":  # `executed` holds well-formed calls only
            executed.append("failed" not in part)
    turns.append(f"<think>y</think>\n<answer>{answer}</answer>")
    return Trajectory(kind, "A", intervals(clues), turns, executed)


# kind, clues, windows, answer, then (S, decay, bonus) of `strict` and of `public_code`. `paper` equals `public_code`.
# A fit is (IoU - 0.2) / 0.8. The public S is (2 IoU + IoP + IoG) / 4. R = accuracy * (1 + bonus) + format.
ONE, TWO = "10-20", "10-20, 40-50"
Parts = tuple[float, float, float]
NOTHING: Parts = (0, 1, 0)
FULL: Parts = (1, 1, 1)
HALF_BOTH: tuple[Parts, Parts] = ((0.375, 1, 0.375), (0.625, 1, 0.8125))  # IoU 1/2; the public S is (1 + 1 + 1/2) / 4
TABLE: list[tuple[str, str, str, str, Parts, Parts]] = [
    # One clue, one window.
    (W1, ONE, "none", "A", NOTHING, NOTHING),
    (W1, ONE, "none", "B", NOTHING, NOTHING),
    (W1, ONE, "10-20", "A", FULL, FULL),
    (W1, ONE, "10-20", "B", (1, 1, 0), (1, 1, 0)),
    (W1, ONE, "10-15", "A", *HALF_BOTH),
    (W1, ONE, "15-20", "A", *HALF_BOTH),
    (W1, ONE, "10-30", "A", *HALF_BOTH),
    (W1, ONE, "5-25", "A", *HALF_BOTH),
    (W1, ONE, "10-18", "A", (0.75, 1, 0.75), (0.85, 1, 0.925)),  # IoU 0.8; (1.6 + 1 + 0.8) / 4
    (W1, ONE, "12-18", "A", (0.5, 1, 0.5), (0.7, 1, 0.85)),  # IoU 0.6; (1.2 + 1 + 0.6) / 4
    (W1, ONE, "10-12", "A", NOTHING, (0.4, 1, 0.7)),  # IoU 0.2; (0.4 + 1 + 0.2) / 4
    (W1, ONE, "10-60", "A", NOTHING, (0.4, 1, 0.7)),  # IoU 0.2; (0.4 + 0.2 + 1) / 4
    (W1, ONE, "8-22", "A", (9 / 14, 1, 9 / 14), (11 / 14, 1, 25 / 28)),  # IoU 10/14; (20/14 + 10/14 + 1) / 4
    (W1, ONE, "15-25", "A", (1 / 6, 1, 1 / 6), (5 / 12, 1, 17 / 24)),  # IoU 5/15; (2/3 + 1/2 + 1/2) / 4
    (W1, ONE, "0-600", "A", NOTHING, (0.2625, 1, 0.63125)),  # IoU 1/60; (2/60 + 1/60 + 1) / 4
    (W1, ONE, "0-600", "B", NOTHING, (0.2625, 1, 0)),
    # 0.1 s of 10 s: IoU 0.1/19.9; (0.2/19.9 + 0.01 + 0.01) / 4
    (W1, ONE, "19.9-29.9", "A", NOTHING, (0.05 / 19.9 + 0.005, 1, 0.5 + 0.025 / 19.9 + 0.0025)),
    (W1, ONE, "20-30", "A", NOTHING, (0, 1, 0.5)),  # touches the clue
    (W1, ONE, "0-10", "A", NOTHING, (0, 1, 0.5)),
    (W1, ONE, "70-80", "A", NOTHING, (0, 1, 0.5)),
    # One clue, several calls: all but one are surplus.
    (W1, ONE, "10-20, 10-20", "A", (1, 0.95, 0.95), (1, 0.95, 0.95)),
    (W1, ONE, "5-25, 10-20", "A", (1, 0.95, 0.95), (0.625, 0.95, 0.771875)),  # union 5-25; 0.8125 * 0.95
    (W1, ONE, "10-20, 5-25", "A", (1, 0.95, 0.95), (0.625, 0.95, 0.771875)),
    (W1, ONE, "0-40, 5-25, 10-20", "A", (1, 0.9, 0.9), (0.4375, 0.9, 0.646875)),  # (2/4 + 1/4 + 1) / 4; 0.71875 * 0.9
    (W1, ONE, "10-15, 15-20", "A", (0.375, 0.95, 0.35625), (1, 0.95, 0.95)),
    (W1, ONE, "70-80, 10-20", "A", (1, 0.95, 0.95), (0.625, 0.95, 0.771875)),  # I 10, P 20: (1 + 1/2 + 1) / 4
    (W1, ONE, "0-600, 10-20", "A", (1, 0.95, 0.95), (0.2625, 0.95, 0.5996875)),  # 0.63125 * 0.95
    (W1, ONE, "0-600, 0-600", "A", (0, 0.95, 0), (0.2625, 0.95, 0.5996875)),
    (W1, ONE, ", ".join(["10-20"] * 6), "A", (1, 0.75, 0.75), (1, 0.75, 0.75)),
    (W1, ONE, ", ".join(["10-20"] * 22), "A", (1, 0, 0), (1, 0, 0)),  # 21 surplus calls: 1 - 1.05 stops at 0
    # Failed calls.
    (W1, ONE, "failed 10-20", "A", NOTHING, FULL),
    (W1, ONE, "failed 10-20, 10-20", "A", (1, 0.95, 0.95), (1, 0.95, 0.95)),
    (W1, ONE, "failed 10-20, 70-80", "A", (0, 0.95, 0), (0.625, 0.95, 0.771875)),
    # A clue of 0.2 s counts as 1 s: any window of 1 s around it is exact.
    (W1, "10-10.2", "10-11", "A", FULL, (0.4, 1, 0.7)),  # (0.4 + 0.2 + 1) / 4
    (W1, "10-10.2", "9.6-10.6", "A", FULL, (0.4, 1, 0.7)),
    (W1, "10-10.2", "9.2-10.2", "A", FULL, (0.4, 1, 0.7)),
    (W1, "10-10.2", "9-11", "A", (0.375, 1, 0.375), (0.325, 1, 0.6625)),  # 1 s of 2 s; (0.2 + 0.1 + 1) / 4
    (W1, "10-10.2", "9-14", "A", NOTHING, (0.28, 1, 0.64)),  # 1 s of 5 s; (0.08 + 0.04 + 1) / 4
    # Half of the clue is half a second: 0.5 of 1.5 s; (2/11 + 0.1 + 0.5) / 4
    (W1, "10-10.2", "10.1-11.1", "A", (1 / 6, 1, 1 / 6), (1 / 22 + 0.15, 1, 0.575 + 1 / 44)),
    (W1, "10-11", "10-11", "A", FULL, FULL),
    (W1, "10-11", "10.9-11.9", "A", NOTHING, (1 / 38 + 0.05, 1, 0.525 + 1 / 76)),  # IoU 0.1/1.9; (0.2/1.9 + 0.2) / 4
    # Long clues, and one that the annotation lets end after a film of 32 s.
    (W1, "0-90", "0-100", "A", (0.875, 1, 0.875), (0.925, 1, 0.9625)),  # IoU 0.9; (1.8 + 0.9 + 1) / 4
    (W1, "0-100", "0-100", "A", FULL, FULL),
    (W1, "10-70", "10-40", "A", *HALF_BOTH),
    (W1, "20-40", "20-32", "A", (0.5, 1, 0.5), (0.7, 1, 0.85)),  # IoU 0.6; (1.2 + 1 + 0.6) / 4
    (W1, "20-40", "20-40", "A", FULL, FULL),
    # No clue is known.
    (W1, "none", "10-20", "A", (0, 0.95, 0), (0, 0.95, 0.475)),
    (W1, "none", "none", "A", NOTHING, NOTHING),
    # Two clues: half of the bonus follows the best look, half the mean over clues.
    (W1, TWO, "10-20, 40-50", "A", FULL, FULL),
    (W1, TWO, "40-50, 10-20", "A", FULL, FULL),
    (W1, TWO, "10-20", "A", (0.5, 1, 0.75), (0.625, 1, 0.8125)),  # (1 + 1 + 1/2) / 4
    (W1, TWO, "10-20, 10-20", "A", (0.5, 1, 0.75), (0.625, 1, 0.8125)),
    (W1, TWO, "10-50", "A", (0.0625, 1, 0.0625), (0.625, 1, 0.8125)),  # IoU 1/4 each; (1 + 1/2 + 1) / 4
    (W1, TWO, "20-40", "A", NOTHING, (0, 1, 0.5)),  # between the clues
    (W1, TWO, "10-20, 70-80", "A", (0.5, 1, 0.75), (5 / 12, 1, 17 / 24)),  # I 10 of 30; (2/3 + 1/2 + 1/2) / 4
    (W1, TWO, "10-15, 40-45", "A", *HALF_BOTH),
    (W1, TWO, "10-20, 40-45", "A", (0.6875, 1, 0.84375), (0.8125, 1, 0.90625)),  # fits 1, 0.375; (1.5 + 1 + 0.75) / 4
    (W1, TWO, "10-20, failed 40-50", "A", (0.5, 1, 0.75), FULL),
    (W1, TWO, "0-600", "A", NOTHING, (0.275, 1, 0.6375)),  # IoU 1/30; (2/30 + 1/30 + 1) / 4
    (W1, TWO, "10-20, 40-50, 1-2", "A", (1, 0.95, 0.95), (27 / 28, 0.95, 0.95 * 55 / 56)),  # (60/21 + 1) / 4
    (W2, TWO, "10-20, 40-50, 1-2", "A", (1, 0.95, 0.95), (27 / 28, 1, 55 / 56)),
    (W2, TWO, "none", "A", NOTHING, NOTHING),
    (W2, TWO, "10-20, 10-20, 10-20, 10-20", "A", (0.5, 0.9, 0.675), (0.625, 1, 0.8125)),
    (W2, TWO, "10-20, 40-50", "B", (1, 1, 0), (1, 1, 0)),
    # Clues that touch, overlap, lie within each other, or stand there twice.
    (W2, "10-20, 20-30", "10-20, 20-30", "A", FULL, FULL),
    (W2, "10-20, 20-30", "10-30", "A", (0.375, 1, 0.375), FULL),  # IoU 1/2 each
    (W2, "10-20, 15-25", "10-25", "A", (7 / 12, 1, 7 / 12), FULL),  # IoU 2/3 each
    (W2, "10-20, 12-14", "10-20", "A", (0.5, 1, 0.75), FULL),  # IoU 1 and 1/5
    (W2, "10-20, 10-20", "10-20", "A", FULL, FULL),
    # Three clues.
    (W2, "0-4, 10-14, 20-24", "0-4, 10-14, 20-24", "A", FULL, FULL),
    (W2, "0-4, 10-14, 20-24", "10-14", "A", (1 / 3, 1, 2 / 3), (0.5, 1, 0.75)),  # (2/3 + 1 + 1/3) / 4
    (W2, "0-4, 10-14, 20-24", "0-24", "A", NOTHING, (0.625, 1, 0.8125)),  # IoU 1/6 each; (1 + 1/2 + 1) / 4
    # Direct kinds: search is 1, S is fixed to 0.5 or 0, and no call helps.
    (D1, ONE, "none", "A", (0, 1, 0.75), (0, 1, 0.75)),
    (D1, ONE, "none", "B", NOTHING, NOTHING),
    (D1, ONE, "10-20", "A", (1, 0.95, 0.7125), (1, 0.95, 0.7125)),
    (D1, ONE, "10-20, 10-20", "A", (1, 0.9, 0.675), (1, 0.9, 0.675)),
    (D1, ONE, "0-600", "A", (0, 0.95, 0.7125), (0.2625, 0.95, 0.7125)),
    (D1, ONE, "failed 10-20", "A", (0, 0.95, 0.7125), (1, 0.95, 0.7125)),
    (D1, "none", "none", "A", (0, 1, 0.75), (0, 1, 0.75)),
    (D2, TWO, "none", "A", (0, 1, 0.5), (0, 1, 0.5)),
    (D2, TWO, "10-20, 40-50", "A", (1, 0.9, 0.45), (1, 1, 0.5)),
    (D2, "none", "10-20", "A", (0, 0.95, 0.475), (0, 1, 0.5)),
]


@pytest.mark.parametrize(("kind", "clues", "windows", "answer", "strict", "public"), TABLE)
def test_rewards_match_a_table(kind: str, clues: str, windows: str, answer: str, strict: Parts, public: Parts) -> None:
    run, right = trajectory(kind, clues, windows, answer), float(answer == "A")
    for variant, parts in (("strict", strict), ("paper", public), ("public_code", public)):
        found = score(run, variant)
        assert (found.clue_score, found.decay, found.bonus) == pytest.approx(parts, abs=1e-9), variant
        assert (found.accuracy, found.format) == (right, 1)
        assert found.reward == pytest.approx(right * (1 + parts[2]) + 1)


def test_the_table_is_long_enough() -> None:
    assert len({row[:4] for row in TABLE}) == len(TABLE) >= 60


# Rows of docs/reward.md


def page_rows(heading: str) -> list[tuple[Trajectory, list[str]]]:
    """Episodes below a heading of the page, each with its printed numbers."""
    sections = re.split(r"^#+ ", PAGE.read_text(encoding="utf-8"), flags=re.MULTILINE)
    (text,) = [section for section in sections if section.startswith(heading + "\n")]
    lines = [line.strip("|").split("|") for line in text.splitlines() if line.startswith("|")]
    header, _, *rows = [[cell.strip() for cell in line] for line in lines]
    assert header == ["kind", "clues", "windows", "answer", "strict S", *(f"{variant} R" for variant in VARIANTS)]
    return [(trajectory(*row[:4]), row[4:]) for row in rows]


HEADINGS = ("Computed episodes", "More overlap at equal precision", "More precision at equal overlap")


@pytest.mark.parametrize("heading", HEADINGS)
def test_the_page_prints_what_the_code_computes(heading: str) -> None:
    rows = page_rows(heading)
    assert len(rows) >= 6
    for run, printed in rows:
        numbers = [score(run).clue_score, *(score(run, variant).reward for variant in VARIANTS)]
        assert [float(number) for number in printed] == pytest.approx(numbers, abs=6e-5), run


@pytest.mark.parametrize("heading", HEADINGS[1:])
def test_monotone_tables_of_the_page_rise(heading: str) -> None:
    rewards = [score(run).reward for run, _ in page_rows(heading)]
    assert rewards == sorted(rewards) and rewards[0] == 2 and rewards[-1] == 3


# The fit of one window

SECONDS = st.floats(0.05, 500)
SHARE = st.floats(0.01, 1)


@given(clue_seconds=SECONDS, overlaps=st.tuples(SHARE, SHARE).map(sorted), precision=SHARE)
def test_more_overlap_at_equal_precision_never_lowers_the_fit(
    clue_seconds: float, overlaps: list[float], precision: float
) -> None:
    def fit(overlap: float) -> float:
        shared = overlap * clue_seconds
        return clue_fit((1000 + shared - shared / precision, 1000 + shared), (1000, 1000 + clue_seconds))

    less, more = map(fit, overlaps)
    assert 0 <= less <= more + 1e-9 <= 1 + 1e-9


@given(clue_seconds=SECONDS, overlap=SHARE, precisions=st.tuples(SHARE, SHARE).map(sorted))
def test_more_precision_at_equal_overlap_never_lowers_the_fit(
    clue_seconds: float, overlap: float, precisions: list[float]
) -> None:
    def fit(precision: float) -> float:
        shared = overlap * clue_seconds
        return clue_fit((1000 + shared - shared / precision, 1000 + shared), (1000, 1000 + clue_seconds))

    less, more = map(fit, precisions)
    assert 0 <= less <= more + 1e-9 <= 1 + 1e-9


@given(start=st.floats(0, 1e4), clue_seconds=st.floats(0.01, 1e4))
def test_exact_window_has_a_fit_of_one(start: float, clue_seconds: float) -> None:
    window = start, start + max(clue_seconds, MIN_WINDOW_SECONDS)
    assert clue_fit(window, (start, start + clue_seconds)) == pytest.approx(1)


@pytest.mark.parametrize(
    ("window", "clue"),
    [((5, 5), (0, 10)), ((0, 10), (5, 5)), ((10, 0), (0, 10)), ((0, 1e308), (0, 1)), ((0, 10), (5, 5 + 1e-9))],
    ids=["window of no length", "clue of no length", "reversed window", "endless window", "clue of a nanosecond"],
)
def test_degenerate_intervals_have_no_fit(window: Interval, clue: Interval) -> None:
    assert clue_fit(window, clue) == 0


# A search for holes


@dataclass(frozen=True)
class Found:
    """A sequence of calls, its reward, and the reward of the best honest sequence that looks at as many clues."""

    run: Trajectory
    windows: list[Interval]
    parts: RewardParts
    honest: float

    @property
    def excess(self) -> float:
        return self.parts.reward - self.honest


def is_look(window: Interval, clue: Interval) -> bool:
    """A real look sees at least a fifth of the clue, in a window of at most five times its length (or 5 s)."""
    shared = min(window[1], clue[1]) - max(window[0], clue[0])
    length = clue[1] - clue[0]
    return shared >= FIT_FLOOR * length and window[1] - window[0] <= max(length, MIN_WINDOW_SECONDS) / FIT_FLOOR


def draw_clue(rng: random.Random, film_seconds: float) -> Interval:
    length = min(film_seconds, rng.choice([0.2, 1.0, 4.0, 10.0, rng.uniform(0.3, film_seconds), film_seconds * 0.9]))
    start = rng.uniform(0, film_seconds - length)
    return start, start + length


def draw_window(rng: random.Random, film_seconds: float, clue: Interval, before: list[Interval]) -> Interval:
    """Draws the whole film, a copy, a random window, or one that is exact, grazing, partial or wide for the clue."""
    start, end = clue
    length = end - start
    wide = length * rng.uniform(1, 20)
    offset = rng.uniform(0, wide - length)
    window = rng.choice(
        [
            (0.0, film_seconds),
            before[-1] if before else (0.0, film_seconds),
            tuple(sorted((rng.uniform(0, film_seconds), rng.uniform(0, film_seconds)))),
            (start, end),
            (end - 0.1, end - 0.1 + max(1.0, length)),
            (start + 0.1 - max(1.0, length), start + 0.1),
            (start, start + length * rng.random()),
            (start - offset, start - offset + wide),
        ]
    )
    # What the tool would refuse is drawn back into the film and up to the shortest window.
    first = min(max(0.0, window[0]), film_seconds - MIN_WINDOW_SECONDS)
    return first, min(film_seconds, max(window[1], first + MIN_WINDOW_SECONDS))


def as_trajectory(kind: str, clues: list[Interval], windows: list[Interval], executed: list[bool]) -> Trajectory:
    def texts(spans: list[Interval]) -> str:
        return ", ".join(f"{start:.6f}-{end:.6f}" for start, end in spans)

    run = trajectory(kind, texts(clues), texts(windows), "A")
    return Trajectory(kind, "A", run.clues, run.turns, executed)


def search(variant: str, num_sequences: int = 10_000) -> list[Found]:
    """Scores random sequences of calls with the right answer; returns those above the honest ones, worst first."""
    rng, found = random.Random(0), []
    no_call = {kind: score(trajectory(kind, ONE, "none", "A"), variant).reward for kind in (W1, W2, D1, D2)}
    for _ in range(num_sequences):
        kind, film_seconds = rng.choice([W1, W1, W2, W2, D1, D2]), rng.choice([8.0, 32.0, 100.0, 600.0])
        clues = [draw_clue(rng, film_seconds) for _ in range(rng.choice([1, 1, 2, 3]))]
        windows: list[Interval] = []
        for _ in range(rng.randint(0, 6)):
            windows.append(draw_window(rng, film_seconds, rng.choice(clues), windows))
        rng.shuffle(windows)
        executed = [rng.random() < 0.9 for _ in windows]
        run = as_trajectory(kind, clues, windows, executed)
        parts = score(run, variant)
        if parts.reward <= no_call[kind]:
            continue  # the answer without a call is honest too
        shown = [window for window, done in zip(windows, executed, strict=True) if done]
        seen = [clue for clue in clues if any(is_look(window, clue) for window in shown)]
        exact = [(start, max(end, start + MIN_WINDOW_SECONDS)) for start, end in seen if kind in (W1, W2)]
        honest = score(as_trajectory(kind, clues, exact, [True] * len(exact)), variant).reward
        found.append(Found(run, windows, parts, honest))
    return sorted((item for item in found if item.excess > 1e-6), key=lambda item: -item.excess)


def test_no_sequence_of_calls_beats_the_honest_ones() -> None:
    """Without a look at a clue, the best honest sequence is the one without calls."""
    holes = search("strict")
    worst = "\n".join(
        f"+{item.excess:.4f} {item.run.kind} clues {item.run.clues} windows {item.windows} {item.parts}"
        for item in holes[:5]
    )
    assert not holes, f"{len(holes)} sequences are paid without the look; the worst:\n{worst}"


def test_the_search_finds_the_holes_of_the_public_code() -> None:
    assert len(search("public_code", 1000)) > 100
