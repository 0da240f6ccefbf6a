from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from support.damaged_video import damaged_copy
from support.tiny_world import answer, look, memorised, native_engine, tiny_world

from videoseek.evaluation.scores import answer_questions, clue_iou, needs_tool, scores, summarize
from videoseek.rewards.trajectory_guided import write_rewards
from videoseek.rollout.sampler import SamplingSettings
from videoseek.types import Episode, Sample, StopReason


def sample(kind: str, key: str = "A", clues: tuple = ((4.0, 8.0),), options: tuple = ("rows", "checks")) -> Sample:
    return replace(
        tiny_world().samples[0], id=kind + key, kind=kind, answer=key, clues=clues, options=options, window=None
    )


def played(of: Sample, *turns: str) -> Episode:
    return tiny_world().environment.replay(replace(of, turns=turns))


def test_clue_iou_is_of_executed_crops_against_all_clues() -> None:
    two = sample("clue_multi_w_tool", clues=((4.0, 8.0), (16.0, 20.0)))
    assert clue_iou(played(two, look(4, 8), look(16, 20), answer("A"))) == pytest.approx(1.0)
    assert clue_iou(played(two, look(4, 8), answer("A"))) == pytest.approx(0.5)
    assert clue_iou(played(two, look(4, 12), look(4, 8), answer("A"))) == pytest.approx(4 / 12)
    assert clue_iou(played(two, look(500, 504), answer("A"))) == 0.0
    assert clue_iou(played(two, answer("A"))) == 0.0


def test_tool_kinds_are_those_whose_evidence_needs_a_crop() -> None:
    kinds = ("clue_single_w_tool", "clue_multi_w_tool", "clue_single_wo_tool", "clue_multi_wo_tool")
    assert [needs_tool(sample(kind)) for kind in (*kinds, "temporal_grounding")] == [True, True, False, False, False]


@pytest.fixture
def groups() -> list[list[Episode]]:
    single, direct = sample("clue_single_w_tool"), sample("clue_single_wo_tool", "B", (), ("a", "b", "c", "d"))
    return [
        [played(single, look(4, 8), answer("A")), played(single, look(8, 12), answer("B"))],
        [played(direct, answer("B")), played(direct, look(4, 8), answer("B"))],
    ]


def test_scores_equal_hand_computed_values(groups: list[list[Episode]]) -> None:
    greedy = [[played(group[0].sample, answer("A"))] for group in groups]
    values = scores(groups, greedy, "strict", 0.05, "grounding")
    expected = {
        "accuracy": 3 / 4,
        "accuracy_tool": 1 / 2,
        "accuracy_clue_single_w_tool": 1 / 2,
        "accuracy_clue_single_wo_tool": 1.0,
        "accuracy_greedy": 1 / 2,
        "accuracy_greedy_tool": 1.0,
        "accuracy_greedy_clue_single_w_tool": 1.0,
        "accuracy_greedy_clue_single_wo_tool": 0.0,
        "calls_per_episode": 3 / 4,
        "chance": (1 / 2 + 1 / 4) / 2,
        "chance_tool": 1 / 2,
        "clue_iou": 1 / 2,
        "format": 1.0,
        "overlong_rate": 0.0,
        "deadline_rate": 0.0,
        "unreadable": 0.0,
    }
    assert {name: values[name] for name in expected} == pytest.approx(expected)
    every = [episode for group in groups for episode in group]
    assert values["reward"] == pytest.approx(sum(episode.rewards["reward"] for episode in every) / 4)
    assert set(values) == {*expected, "reward"}


def test_rewards_are_those_of_the_variant(groups: list[list[Episode]]) -> None:
    scores(groups, [], "paper", 0.5, "grounding")
    mine = [dict(episode.rewards) for group in groups for episode in group]
    write_rewards([episode for group in groups for episode in group], "paper", 0.5, "grounding")
    assert mine == [episode.rewards for group in groups for episode in group]


def test_perception_is_right_when_it_names_the_same_things() -> None:
    listing = replace(sample("perception", "red at 4, blue at 8", ()), turns=("red at 4, blue at 8",))
    said = ("blue at 8, red at 4", "red at 4", "red at 8, blue at 4")
    rolled = [[replace(played(listing, text), sample=listing)] for text in said]
    values = scores(rolled, [], "strict", 0.05, "grounding")
    assert values["accuracy"] == values["accuracy_perception"] == pytest.approx(1 / 3)


def test_scores_without_episodes_are_zero() -> None:
    assert set(summarize([]).values()) == {0.0}


def test_questions_are_answered_sampled_and_greedily() -> None:
    policy, samples = memorised()
    engine = native_engine(policy, tiny_world().environment)
    settings = SamplingSettings(max_new_tokens_per_turn=24)
    progress: list[tuple[int, int]] = []
    sampled, greedy = answer_questions(
        engine, samples, 3, 0, settings, on_progress=lambda done, total: progress.append((done, total))
    )
    assert [len(group) for group in sampled] == [3] * 4 and [len(group) for group in greedy] == [1] * 4
    assert progress == sorted(progress) and progress[-1] == (16, 16) and len(progress) > 4
    again, _ = answer_questions(engine, samples, 3, 0, settings)
    assert [e.token_ids for group in again for e in group] == [e.token_ids for group in sampled for e in group]
    plain = engine.rollout(samples, 1, 99, replace(settings, temperature=0.0))
    assert [group[0].token_ids for group in plain] == [group[0].token_ids for group in greedy]


def test_episodes_cut_by_a_limit_are_reported(groups: list[list[Episode]]) -> None:
    first, second = groups
    first[0] = replace(first[0], stop_reason=StopReason.DEADLINE)
    second[1] = replace(second[1], stop_reason=StopReason.TOKEN_LIMIT)
    values = scores(groups, [], "strict", 0.05, "grounding")
    assert (values["overlong_rate"], values["deadline_rate"]) == (1 / 2, 1 / 4)


def test_unreadable_questions_are_left_out_and_reported(tmp_path: Path) -> None:
    policy, samples = memorised()
    bad = replace(samples[1], video=damaged_copy(samples[1].video, tmp_path / "v.mp4"))
    engine = native_engine(policy, tiny_world().environment)
    settings = SamplingSettings(max_new_tokens_per_turn=24)
    mixed = [samples[0], bad, *samples[2:]]
    sampled, greedy = answer_questions(engine, mixed, 2, 0, settings, skip_unreadable=True)
    assert [len(group) for group in sampled] == [2, 0, 2, 2] and [len(group) for group in greedy] == [1, 0, 1, 1]
    values = scores(sampled, greedy, "strict", 0.05, "grounding")
    without = scores(*answer_questions(engine, [mixed[0], *mixed[2:]], 2, 0, settings), "strict", 0.05, "grounding")
    assert values == without | {"unreadable": 1 / 4}
