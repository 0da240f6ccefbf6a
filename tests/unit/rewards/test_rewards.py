from __future__ import annotations

import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from videoseek.rewards import trajectory_guided
from videoseek.rewards.accuracy import option_letter, public_match, tolerant_match
from videoseek.rewards.clue_score import clue_fits, clue_score, merge, overlap
from videoseek.rewards.format import public_format, public_windows
from videoseek.rewards.functions import RewardFunctionError, load_reward_function, load_reward_functions
from videoseek.rewards.trajectory_guided import SCORED_KINDS, VARIANTS, RewardParts, Trajectory, episode_reward
from videoseek.types import Call, CallRecord, Clip, Episode, Fault, Interval, Sample, StopReason, Turn

SINGLE, MULTI, DIRECT_SINGLE, DIRECT_MULTI = SCORED_KINDS[:4]
CLUES = [(10.0, 20.0), (40.0, 50.0)]


def score(
    kind: str,
    answer: str,
    clues: list[Interval],
    turns: list[str],
    executed: list[bool] | None = None,
    **settings: Any,
) -> RewardParts:
    return trajectory_guided.score(Trajectory(kind, answer, clues, turns, executed), **settings)


def look(start: float, end: float, strategy: str = "fine", think: str = "x") -> str:
    payload = f'{{"temporal_segment": [{start}, {end}], "sampling_strategy": "{strategy}"}}'
    return f"<think>{think}</think>\n<grounding>{payload}</grounding>"


def say(answer: str, think: str = "y") -> str:
    return f"<think>{think}</think>\n<answer>{answer}</answer>"


QUOTED = look(10, 20).replace('"', "'")
TWO_ANSWERS = "<think></think>\n<answer>B</answer>\n<answer>A</answer>"

# Rewards of single_w, multi_w, single_wo, multi_wo, then the clue score: run with the authors' released code.
GOLDEN = {
    "no call, right": ([say("A")], [2.0, 2.0, 2.75, 2.5], 0.0),
    "no call, wrong": ([say("B")], [1, 1, 1, 1], 0.0),
    "one clue": ([look(10, 20), say("A")], [2.8125, 2.8125, 2.7125, 2.5], 0.625),
    "both clues": ([look(10, 20), look(40, 50), say("A")], [3.0, 3.0, 2.675, 2.5], 1.0),
    "reversed window": ([look(20, 10), say("A")], [2.8125, 2.8125, 2.7125, 2.5], 0.625),
    "unknown strategy": ([look(10, 20, "low"), say("A")], [1.5, 1.5, 1.5, 1.5], 0.625),
    "single quotes": ([QUOTED, say("A")], [1.5, 1.5, 1.5, 1.5], 0.0),
    "both clues, wrong": ([look(10, 20), look(40, 50), say("B")], [1, 1, 1, 1], 1.0),
    "ends with a call": ([look(10, 20)], [0, 0, 0, 0], 0.625),
    "two answers": ([TWO_ANSWERS], [2.0, 2.0, 2.75, 2.5], 0.0),
    "right, out of structure": (["<answer>A</answer>"], [1, 1, 1, 1], 0.0),
    "a call without overlap": ([look(70, 80), say("A")], [2.5, 2.5, 2.7125, 2.5], 0.0),
    "no turns": ([], [0, 0, 0, 0], 0.0),
}


@pytest.mark.parametrize(("turns", "rewards", "clue"), GOLDEN.values(), ids=GOLDEN.keys())
def test_public_code_equals_its_golden_vectors(turns: list[str], rewards: list[float], clue: float) -> None:
    parts = [score(kind, "A", CLUES, turns, variant="public_code") for kind in SCORED_KINDS[:4]]
    assert [part.reward for part in parts] == pytest.approx(rewards, abs=1e-9)
    assert [part.clue_score for part in parts] == pytest.approx([clue] * 4, abs=1e-9)


def test_public_code_decays_calls_beyond_the_clues_of_single_only() -> None:
    turns = [look(10, 20), look(10, 20), look(40, 50), look(40, 50), say("A")]
    assert score(SINGLE, "A", CLUES, turns, variant="public_code").reward == pytest.approx(2.9)
    assert score(MULTI, "A", CLUES, turns, variant="public_code").reward == pytest.approx(3.0)
    assert score(SINGLE, "A", [], turns, variant="public_code").reward == pytest.approx(2 + 0.5 * 0.8)
    assert score(SINGLE, "A", CLUES, turns, variant="public_code", decay=0.0).reward == pytest.approx(3.0)


def test_the_parts_explain_the_reward() -> None:
    part = score(SINGLE, "A", CLUES, [look(10, 20), look(1, 2), look(3, 4), say("A")], variant="public_code")
    assert part.decay == pytest.approx(0.95) and part.calls == 3
    assert part.bonus == pytest.approx((0.5 + 0.5 * part.clue_score) * part.decay)
    assert part.reward == pytest.approx(part.accuracy * (1 + part.bonus) + part.format)


GROUND = {
    "exact": ('{"temporal_segment": [10, 20]}', 2.0),
    "partly": ('{"temporal_segment": [15, 30]}', 1.25),
    "reversed": ('{"temporal_segment": [20, 10]}', 1.0),
    "a bare list": ("[10, 20]", 0.0),
    "words": ("from 10 to 20", 0.0),
    "one number": ('{"temporal_segment": [10]}', 0.0),
    "the second clue": ('{"temporal_segment": [40, 50]}', 1.0),
}


@pytest.mark.parametrize(("answer", "reward"), GROUND.values(), ids=GROUND.keys())
def test_grounding_rewards_of_the_public_code(answer: str, reward: float) -> None:
    part = score("temporal_grounding", "-", CLUES, [say(answer)], variant="public_code")
    assert part.reward == pytest.approx(reward)
    assert part.bonus == 0


def test_strict_grounding_knows_every_clue() -> None:
    part = score("temporal_grounding", "-", CLUES, [say('{"temporal_segment": [40, 50]}')])
    assert part.reward == pytest.approx(1 + 10 / 20)
    with pytest.raises(ValueError, match="at least one clue"):
        score("temporal_grounding", "-", [], [say("x")])


def test_the_paper_form_asks_no_perfect_format_for_the_bonus() -> None:
    turns = [look(10, 20, "low"), say("A")]
    assert score(SINGLE, "A", CLUES, turns, variant="paper").reward == pytest.approx(1.8125 + 0.5)
    assert score(SINGLE, "A", CLUES, turns, variant="public_code").reward == pytest.approx(1.5)
    for kind in SCORED_KINDS[:4]:
        clean = [look(10, 20), look(40, 50), say("A")]
        assert score(kind, "A", CLUES, clean, variant="paper") == score(kind, "A", CLUES, clean, variant="public_code")


STRICT = {
    "both clues": (SINGLE, [look(10, 20), look(40, 50), say("A")], 3.0),
    "one of two": (SINGLE, [look(10, 20), say("A")], 2 + 0.75),
    "no overlap earns nothing": (SINGLE, [look(70, 80), say("A")], 2.0),
    "no call earns nothing": (SINGLE, [say("A")], 2.0),
    "reversed window is a fault": (SINGLE, [look(20, 10), say("A")], 1.5),
    "a repeated call adds nothing": (MULTI, [look(10, 20), look(10, 20), say("A")], 2 + 0.75),
    "surplus calls decay": (MULTI, [look(10, 20), look(40, 50), look(1, 2), say("A")], 2.95),
    "wrong window, then fixed": (SINGLE, [look(70, 80), look(10, 20), look(40, 50), say("A")], 2.95),
    "right, direct": (DIRECT_SINGLE, [say("A")], 2.75),
    "direct kind with a call": (DIRECT_SINGLE, [look(10, 20), say("A")], 2 + 0.75 * 0.95),
    "direct, many clues": (DIRECT_MULTI, [say("A")], 2.5),
    "direct, many clues, a call": (DIRECT_MULTI, [look(10, 20), say("A")], 2 + 0.5 * 0.95),
    "two answers": (DIRECT_MULTI, [TWO_ANSWERS], 1.0),
    "empty think": (DIRECT_MULTI, [say("A", think=" ")], 1.0),
    "letter in words": (DIRECT_MULTI, [say("Option **a**")], 2.5),
    "answered too early": (SINGLE, [say("A"), look(10, 20), say("A")], 1.0),
    "ends with a call": (SINGLE, [look(10, 20)], 0.0),
    "no turns": (SINGLE, [], 0.0),
}


@pytest.mark.parametrize(("kind", "turns", "reward"), STRICT.values(), ids=STRICT.keys())
def test_strict_closes_the_holes(kind: str, turns: list[str], reward: float) -> None:
    assert score(kind, "A", CLUES, turns).reward == pytest.approx(reward)


def test_failed_calls_earn_nothing_and_count() -> None:
    turns = [look(10, 20), look(40, 50), say("A")]
    assert score(SINGLE, "A", CLUES, turns, executed=[True, False]).reward == pytest.approx(2.75)
    assert score(SINGLE, "A", CLUES, turns, executed=[False, False]).reward == pytest.approx(2.0)
    missed = score(SINGLE, "A", CLUES[:1], turns, executed=[True, False])
    assert (missed.calls, missed.decay) == (2, 0.95)
    with pytest.raises(ValueError, match="1 flags for 2 well-formed calls"):
        score(SINGLE, "A", CLUES, turns, executed=[True])


def test_the_bonus_never_turns_negative() -> None:
    turns = [look(10, 20)] * 30 + [say("A")]
    part = score(DIRECT_SINGLE, "A", CLUES, turns, decay=0.05)
    assert (part.decay, part.bonus, part.reward) == (0.0, 0.0, 2.0)


def test_a_window_over_everything_is_worth_no_more_than_no_call() -> None:
    whole, exact = [look(0, 1000), say("A")], [look(10, 20), look(40, 50), say("A")]
    assert score(SINGLE, "A", CLUES, whole).reward == score(SINGLE, "A", CLUES, [say("A")]).reward
    assert score(SINGLE, "A", CLUES, exact).clue_score == 1


def test_the_reward_is_importable_without_torch() -> None:
    code = "import sys; sys.modules['torch'] = None; import videoseek.rewards.trajectory_guided, videoseek.score"
    environment = {"PYTHONPATH": os.pathsep.join(sys.path)}
    subprocess.run([sys.executable, "-c", code], env=environment, check=True, timeout=60)


@pytest.mark.parametrize("variant", VARIANTS)
def test_unscorable_episodes_are_refused(variant: str) -> None:
    with pytest.raises(ValueError, match="'perception' is training text"):
        score("perception", "A", [], [say("A")], variant=variant)
    with pytest.raises(ValueError, match="'other' is not one of clue_single_w_tool"):
        score("other", "A", [], [say("A")], variant=variant)


def test_bad_settings_are_named() -> None:
    with pytest.raises(ValueError, match="variant 'lax' is not one of strict, paper, public_code"):
        score(SINGLE, "A", [], [], variant="lax")
    with pytest.raises(ValueError, match="call format 'xml' is not one of"):
        score(SINGLE, "A", [], [], call_format="xml")
    with pytest.raises(ValueError, match="reads the grounding format only"):
        score(SINGLE, "A", [], [], variant="paper", call_format="hermes")


def test_strict_scores_hermes_turns() -> None:
    call = '<tool_call>{{"name": "crop_video", "arguments": {}}}</tool_call>'
    arguments = ['{"temporal_segment": [10, 20], "sampling_strategy": "fine"}']
    arguments += ['{"temporal_segment": [40, 50], "sampling_strategy": "fine"}']
    turn = "<think>x</think>\n" + "\n".join(call.format(text) for text in arguments)
    assert score(MULTI, "A", CLUES, [turn, say("A")], call_format="hermes").reward == pytest.approx(3.0)


@given(
    turns=st.lists(
        st.one_of(
            st.text(max_size=30),
            st.sampled_from([look(10, 20), look(5, 5), QUOTED, say("A"), TWO_ANSWERS, look(10, 20, "low"), "<answer>"]),
        ),
        max_size=6,
    ),
    kind=st.sampled_from(SCORED_KINDS),
    variant=st.sampled_from(VARIANTS),
)
def test_any_text_has_a_finite_reward(turns: list[str], kind: str, variant: str) -> None:
    part = score(kind, "A", CLUES, turns, variant=variant)
    assert 0 <= part.reward <= 3
    assert part.reward == pytest.approx(part.accuracy * (1 + part.bonus) + part.format)


@pytest.mark.parametrize(
    ("intervals", "merged"),
    [
        ([], []),
        ([(3, 4), (1, 2)], [(1, 2), (3, 4)]),
        ([(1, 2), (2, 3)], [(1, 3)]),
        ([(1, 9), (2, 3), (8, 10)], [(1, 10)]),
        ([(1, 2), (1, 2)], [(1, 2)]),
    ],
)
def test_merge_joins_overlapping_windows(intervals: list[Interval], merged: list[Interval]) -> None:
    assert merge(intervals) == merged


INTERVALS = st.lists(st.tuples(st.integers(0, 30), st.integers(1, 10)).map(lambda p: (p[0], p[0] + p[1])), max_size=5)


@given(windows=INTERVALS, clues=INTERVALS)
def test_overlap_equals_counting_seconds(windows: list[Interval], clues: list[Interval]) -> None:
    covered = {second for start, end in windows for second in range(int(start), int(end))}
    true = {second for start, end in clues for second in range(int(start), int(end))}
    shared = len(covered & true)
    found = overlap(windows, clues)
    assert found.iou == pytest.approx(shared / max(1, len(covered | true)))
    assert found.iop == pytest.approx(shared / max(1, len(covered)))
    assert found.iog == pytest.approx(shared / max(1, len(true)))
    assert 0 <= clue_score(windows, clues) <= 1
    assert all(0 <= fit <= 1 for fit in clue_fits(windows, clues))


def test_public_format_reads_structure_as_the_public_code_does() -> None:
    assert public_format(["\n" + look(1, 2) + "\n", say("A") + "\n"]) == (1.0, 1)
    assert public_format([look(1, 2).replace("\n", ""), say("A")]) == (1.0, 1)
    assert public_format([look(1, 2).replace("\n", "\n\n"), say("A")]) == (0.0, 0)
    assert public_format([look(1, 2) + " ", say("A")]) == (0.0, 0)
    assert public_format([look(1, 2).replace("[1, 2]", "[1]").replace("fine", "low"), say("A")]) == (0.0, 1)
    empty, listed = "<think>x</think><grounding>{}</grounding>", "<think>x</think><grounding>[]</grounding>"
    assert public_format([empty, listed, look(1, 2), look(1, 2), say("A")]) == (pytest.approx(1 - 4 / 5), 4)
    assert public_format(["<think>x</think><grounding>7</grounding>", say("A")]) == (0.5, 1)


def test_public_windows_are_read_from_any_block() -> None:
    text = look(1, 2) + look(9, 3) + QUOTED + "<grounding>" + "[" * 100_000 + "</grounding>"
    text += look(0, 1).replace("[0, 1]", '["4", null]') + look(0, 1).replace("[0, 1]", f"[0, 1{'0' * 400}]")
    assert public_windows([text, "<grounding>{}"]) == [(1, 2), (3, 9)]


@pytest.mark.parametrize("text", ["A", " A ", "(A) x", "A. x", "(A)", "A."])
def test_both_matchings_accept_answers_of_the_public_code(text: str) -> None:
    assert public_match(text, "A")
    assert tolerant_match(text, "A")


@pytest.mark.parametrize("text", ["A) x", "A: x", "Option A", "a", "**A**", "\nA. x"])
def test_tolerant_matching_accepts_more_than_public_matching(text: str) -> None:
    assert not public_match(text, "A")
    assert tolerant_match(text, "A")


@pytest.mark.parametrize(
    ("text", "letter"),
    [
        ("(b)", "B"),
        ("[C]", "C"),
        ("'D'", "D"),
        ("The answer is (B).", "B"),
        ("The correct option: c", "C"),
        ("B) a red card", "B"),
        ("A. red B. blue", "A"),
        ("a dog", None),
        ("A or B", None),
        ("A, B", None),
        ("AB", None),
        ("", None),
        ("choices", None),
        ("because", None),
        ("3 cards", None),
    ],
)
def test_option_letter_is_read_from_the_answer(text: str, letter: str | None) -> None:
    assert option_letter(text) == letter


@pytest.mark.parametrize(
    ("answer", "key", "right"),
    [
        ("The  Red\ncard", "the red card", True),
        ("red", "the red card", False),
        ("B", "A. red", False),
        ("a", "A. red", True),
        ("a dog", "A", False),
    ],
)
def test_keys_in_words_match_equal_words_or_the_letter(answer: str, key: str, right: bool) -> None:
    assert tolerant_match(answer, key) is right


def episode(turns: list[str], records: list[CallRecord], kind: str = SINGLE) -> Episode:
    sample = Sample(id="s", video="v.mp4", question="?", answer="A", kind=kind, clues=tuple(CLUES))
    spans = [Turn("system", "s", 0, 2), Turn("user", "q", 2, 5)]
    for index, text in enumerate(turns):
        spans += [Turn("assistant", text, 5 + 2 * index, 6 + 2 * index)]
        spans += [Turn("user", "seen", 6 + 2 * index, 7 + 2 * index)]
    size = spans[-1].end
    return Episode(
        sample=sample,
        token_ids=list(range(size)),
        roles=[0] * size,
        turn_kinds=[0] * size,
        loss_mask=[False] * size,
        rollout_logprobs=[0.0] * size,
        clips=[],
        turns=spans,
        calls=records,
        stop_reason=StopReason.ANSWERED,
        prompt_length=5,
    )


CLIP = Clip("v.mp4", 10.0, 20.0, (10.0, 11.0), 28, 28, 2.0)
FIRST, SECOND = Call(10, 20, "fine"), Call(40, 50, "fine")


@pytest.mark.parametrize(
    ("records", "reward"),
    [
        ([CallRecord(0, FIRST, clip=CLIP), CallRecord(1, SECOND, clip=CLIP)], 3.0),
        ([CallRecord(0, FIRST, clip=CLIP), CallRecord(1, SECOND, fault=Fault("late", "Too late."))], 2.75),
        ([CallRecord(0, FIRST, clip=CLIP)], 2.75),
        ([CallRecord(1, SECOND, clip=CLIP)], 2.75),
        ([], 2.0),
    ],
    ids=["both ran", "second failed", "second never ran", "first never ran", "none ran"],
)
def test_an_episode_is_scored_by_what_ran(records: list[CallRecord], reward: float) -> None:
    turns = [look(10, 20), look(40, 50), say("A")]
    assert episode_reward(episode(turns, records)).reward == pytest.approx(reward)
    assert episode_reward(episode(turns, records), "public_code").reward == pytest.approx(3.0)


def test_a_malformed_call_has_no_window_but_counts() -> None:
    run = episode([QUOTED, look(10, 20), say("A")], [CallRecord(0, None, Fault("bad_json", "x")), CallRecord(1, FIRST)])
    part = episode_reward(run)
    assert (part.calls, part.clue_score, part.format) == (2, 0.0, pytest.approx(2 / 3))


FUNCTIONS = """
def length(completions, **kwargs):
    return [float(len(messages)) for messages in completions]

def columns(prompts, completions, completion_ids, answer, clues, kind, video, **kwargs):
    assert prompts[0] == [{"role": "system", "content": "s"}, {"role": "user", "content": "q"}]
    assert completions[0][0]["role"] == "assistant" and completion_ids[0] == list(range(5, 7))
    assert (answer, kind, video) == (["A"], ["clue_single_w_tool"], ["v.mp4"])
    return [None]

async def later(answer, **kwargs):
    return [1 for _ in answer]

def short(**kwargs):
    return []

def nan(answer, **kwargs):
    return [float("nan") for _ in answer]

def word(answer, **kwargs):
    return ["good" for _ in answer]

def closed(prompts):
    return []

number = 3
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "mine.py"
    path.write_text(FUNCTIONS)
    return path


def test_user_functions_get_trl_columns(file: Path) -> None:
    run = episode([say("A")], [])
    length = load_reward_function(f"{file}:length")
    assert (length.name, length([run, run]), length([])) == ("length", [2.0, 2.0], [])
    assert load_reward_function(f"{file}:columns")([run]) == [None]
    assert load_reward_function(f"{file}:later")([run]) == [1.0]


@pytest.mark.parametrize(
    ("name", "complaint"),
    [("short", "list of 1 values"), ("nan", "returned nan"), ("word", "returned 'good'")],
)
def test_bad_returns_of_user_functions_are_named(file: Path, name: str, complaint: str) -> None:
    with pytest.raises(RewardFunctionError, match=complaint):
        load_reward_function(f"{file}:{name}")([episode([say("A")], [])])


@pytest.mark.parametrize(
    ("suffix", "complaint"),
    [
        (":missing", "defines no function missing"),
        (":number", "defines no function number"),
        (":closed", r"must take \*\*kwargs"),
        ("", "must read FILE.py:FUNCTION"),
        (".txt:length", "must read FILE.py:FUNCTION"),
    ],
)
def test_unloadable_reward_functions_are_named(file: Path, suffix: str, complaint: str) -> None:
    with pytest.raises(RewardFunctionError, match=complaint):
        load_reward_function(f"{file}{suffix}")


def test_names_of_functions_differ_from_each_other_and_from_the_rules_parts(tmp_path: Path) -> None:
    names = ("length", "accuracy", "reward")
    for file in ("one.py", "two.py"):
        (tmp_path / file).write_text("".join(f"def {name}(**kwargs):\n    return []\n" for name in names))
    one, two = (f"{tmp_path / file}:" for file in ("one.py", "two.py"))
    assert [function.name for function in load_reward_functions([f"{one}length"])] == ["length"]
    for specs in ([f"{one}length", f"{two}length"], [f"{one}accuracy"], [f"{one}length", f"{one}reward"]):
        with pytest.raises(RewardFunctionError, match=f"{specs[-1]}' has the name of another one or of a part"):
            load_reward_functions(specs)


def test_unloadable_files_are_named(tmp_path: Path) -> None:
    broken = tmp_path / "broken.py"
    broken.write_text("def f(:")
    with pytest.raises(RewardFunctionError, match="failed to load: SyntaxError"):
        load_reward_function(f"{broken}:f")
    with pytest.raises(RewardFunctionError, match="there is no file"):
        load_reward_function(f"{tmp_path / 'none.py'}:f")


def test_public_reward_handles_inputs_that_crashed_the_original() -> None:
    turns = [look(10, 20).replace("[10, 20]", "[" * 50_000), say("A")]
    assert score(SINGLE, "A", CLUES, turns, variant="public_code").reward == pytest.approx(1.5)
    assert math.isfinite(score(SINGLE, "A", CLUES, turns).reward)


@pytest.mark.parametrize("shortest", [0.5, 1.0, 4.0])
def test_the_shortest_window_of_the_tool_fits_a_tiny_clue_exactly(shortest: float) -> None:
    run = [look(10, 10 + shortest), say("A")]
    found = [score(SINGLE, "A", [(10.1, 10.3)], run, min_window_seconds=each).bonus for each in (0.5, 1.0, 4.0)]
    assert [bonus == pytest.approx(1) for bonus in found] == [each >= shortest for each in (0.5, 1.0, 4.0)]
