from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest
from support.tiny_world import FORMAT, MALFORMED, answer, look, tiny_world

from videoseek.samples import rules
from videoseek.samples.rules import Rules, find_bad, question_problems, refusal, turn_problems
from videoseek.types import Sample
from videoseek.video.decode import probe


@pytest.fixture(scope="module")
def sample() -> Sample:
    return tiny_world().samples[0]


@pytest.fixture(scope="module")
def duration(sample: Sample) -> float:
    return probe(sample.video).duration_seconds


def messages(samples: list[Sample], *, need_turns: bool = False, rules: Rules | None = None) -> list[str]:
    """The first error of each sample that cannot be trained on."""
    return [bad.problem.message for bad in find_bad(samples, range(len(samples)), need_turns=need_turns, rules=rules)]


def test_good_samples_pass_and_are_counted() -> None:
    samples, counts = tiny_world().samples, list[tuple[int, int]]()

    def on_progress(*count: int) -> None:
        counts.append(count)

    assert find_bad(samples, range(len(samples)), need_turns=True, on_progress=on_progress) == []
    assert counts == [(i + 1, len(samples)) for i in range(len(samples))]


def test_missing_and_corrupt_videos_are_named(sample: Sample, tmp_path: Path) -> None:
    (tmp_path / "junk.mp4").write_bytes(b"junk" * 100)
    for name in ("gone.mp4", "junk.mp4"):
        broken = replace(sample, id="bad one", video=str(tmp_path / name))
        (bad,) = find_bad([sample, broken], range(2), need_turns=False)
        assert bad.index == 1 and name in bad.problem.message
        assert str(refusal([bad])) == f"sample 'bad one': {bad.problem.message}"


def test_a_video_is_opened_once_for_all_samples_about_it(
    sample: Sample, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """This includes a video that cannot be opened: each attempt may take until the deadline."""
    opened: list[str] = []
    monkeypatch.setattr(rules, "probe", lambda video: opened.append(video) or probe(video))
    gone = str(tmp_path / "gone.mp4")
    samples = [replace(sample, id=str(i), video=gone if i % 2 else sample.video) for i in range(10)]
    bad_samples = find_bad(samples, range(10), need_turns=False)
    assert [(bad.index, bad.id, bad.problem.code) for bad in bad_samples] == [
        (i, str(i), "missing_file") for i in range(1, 10, 2)
    ]
    assert sorted(opened) == sorted([sample.video, gone])
    assert [bad.index for bad in find_bad(samples, [4, 3, 5], need_turns=False, first_only=True)] == [3]
    assert str(refusal(bad_samples[::-1])).startswith("sample '1': ")


def test_clues_lie_inside_the_video_up_to_rounding(sample: Sample, duration: float) -> None:
    assert messages([replace(sample, clues=((0.0, duration + 1.0),))]) == []
    for clue in ((0.0, duration + 1.5), (duration, duration + 0.5), (duration + 9, duration + 10), (0.0, float("inf"))):
        (message,) = messages([replace(sample, clues=((1.0, 2.0), clue))])
        assert re.match(r"clue \[.*\] lies beyond the end", message)


def test_window_lies_inside_the_video(sample: Sample, duration: float) -> None:
    assert messages([replace(sample, window=(0.0, duration))]) == []
    (message,) = messages([replace(sample, window=(1.0, duration + 4.0))])
    assert re.match(r"window \[1, .*\] lies beyond the end", message)


def test_only_sft_needs_turns(sample: Sample) -> None:
    bare = replace(sample, turns=())
    assert messages([bare]) == []
    assert messages([bare], need_turns=True) == ["the record has no turns; SFT needs the assistant's texts"]


RULES = Rules(FORMAT, max_turns=4, min_window_seconds=1.0)
MENDED = (look(4, 8).replace("[4, 8]", "[8, 4]"), look(4, 8), answer("A"))


def test_turns_that_are_used_must_keep_the_protocol(sample: Sample) -> None:
    good = replace(sample, answer="A", turns=MENDED)
    assert messages([good], need_turns=True, rules=RULES) == [], "a corrected reversed call is a demonstration"
    assert [problem.code for problem in turn_problems(good, RULES)] == ["call_reversed"]
    for turns, words in (
        ((answer("A"), answer("A")), "turn 1 of 2 answers"),
        ((look(4, 8),), "calls the tool and does not answer"),
        ((MALFORMED, answer("A")), "turn 1: The call must hold one JSON object"),
        ((look(4, 8),) * 4 + (answer("A"),), "5 turns; an episode of this kind ends after 4"),
    ):
        bad = replace(good, turns=turns)
        (message,) = messages([good, bad], need_turns=True, rules=RULES)
        assert words in message
        assert messages([bad], rules=RULES) == []


def test_warnings_do_not_stop_a_run(sample: Sample) -> None:
    odd = replace(sample, options=("rows", "Rows"), answer="rows", turns=())
    assert {problem.code for problem in question_problems(odd)} == {"repeated_option", "answer_not_letter"}
    assert messages([odd]) == []
    assert messages([replace(odd, answer="C")]) == ["answer 'C' is none of the options A to B"]


def test_a_kind_without_a_reward_is_refused_for_rl_only(sample: Sample) -> None:
    samples = [sample, replace(sample, kind="perception")]
    assert find_bad(samples, range(2), need_turns=False) == []
    (bad,) = find_bad(samples, range(2), need_turns=False, need_reward=True)
    assert (bad.index, bad.problem.code) == (1, "no_reward")
