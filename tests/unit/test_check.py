from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from tiny_world import FORMAT, MALFORMED, answer, look, tiny_world

from videoseek.samples import check
from videoseek.samples.check import Rules, check_samples, find_bad, question_problems, refusal, turn_problems
from videoseek.samples.schema import DataError
from videoseek.types import Sample
from videoseek.video.decode import probe


@pytest.fixture(scope="module")
def sample() -> Sample:
    return tiny_world().samples[0]


@pytest.fixture(scope="module")
def duration(sample: Sample) -> float:
    return probe(sample.video).duration_seconds


def test_good_samples_pass_and_are_counted() -> None:
    samples, seen = tiny_world().samples, []
    check_samples(samples, need_turns=True, on_progress=lambda done, total: seen.append((done, total)))
    assert seen == [(i + 1, len(samples)) for i in range(len(samples))]


def test_missing_and_corrupt_videos_are_named(sample: Sample, tmp_path: Path) -> None:
    (tmp_path / "junk.mp4").write_bytes(b"junk" * 100)
    for name in ("gone.mp4", "junk.mp4"):
        broken = replace(sample, id="bad one", video=str(tmp_path / name))
        with pytest.raises(DataError, match=f"'bad one'.*{name}"):
            check_samples([sample, broken], need_turns=False)


def test_a_video_is_opened_once_however_many_ask_about_it(
    sample: Sample, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also one that cannot be opened: it may take its deadline each time."""
    opened: list[str] = []
    monkeypatch.setattr(check, "probe", lambda video: opened.append(video) or probe(video))
    gone = str(tmp_path / "gone.mp4")
    samples = [replace(sample, id=str(i), video=gone if i % 2 else sample.video) for i in range(10)]
    found = find_bad(samples, range(10), need_turns=False)
    assert [(bad.index, bad.id, bad.problem.code) for bad in found] == [
        (i, str(i), "missing_file") for i in range(1, 10, 2)
    ]
    assert sorted(opened) == sorted([sample.video, gone])
    assert [bad.index for bad in find_bad(samples, [4, 3, 5], need_turns=False, first_only=True)] == [3]
    assert str(refusal(found[::-1])).startswith("sample '1': ")


def test_clues_lie_inside_the_video_up_to_rounding(sample: Sample, duration: float) -> None:
    check_samples([replace(sample, clues=((0.0, duration + 1.0),))], need_turns=False)
    for clue in ((0.0, duration + 1.5), (duration, duration + 0.5), (duration + 9, duration + 10), (0.0, float("inf"))):
        with pytest.raises(DataError, match=r"clue \[.*\] lies beyond the end"):
            check_samples([replace(sample, clues=((1.0, 2.0), clue))], need_turns=False)


def test_window_lies_inside_the_video(sample: Sample, duration: float) -> None:
    check_samples([replace(sample, window=(0.0, duration))], need_turns=False)
    with pytest.raises(DataError, match=r"window \[1, .*\] lies beyond the end"):
        check_samples([replace(sample, window=(1.0, duration + 4.0))], need_turns=False)


def test_turns_are_wanted_for_sft_only(sample: Sample) -> None:
    bare = replace(sample, turns=())
    check_samples([bare], need_turns=False)
    with pytest.raises(DataError, match="has no turns; SFT needs"):
        check_samples([bare], need_turns=True)


RULES = Rules(FORMAT, max_turns=4, min_window_seconds=1.0)
MENDED = (look(4, 8).replace("[4, 8]", "[8, 4]"), look(4, 8), answer("A"))


def test_the_protocol_is_held_against_turns_that_are_used(sample: Sample) -> None:
    good = replace(sample, answer="A", turns=MENDED)
    check_samples([good], need_turns=True, rules=RULES)  # a reversed call that is mended is a demonstration
    assert [problem.code for problem in turn_problems(good, RULES)] == ["call_reversed"]
    for turns, words in (
        ((answer("A"), answer("A")), "turn 1 of 2 answers"),
        ((look(4, 8),), "calls the tool and does not answer"),
        ((MALFORMED, answer("A")), "turn 1: The call must hold one JSON object"),
        ((look(4, 8),) * 4 + (answer("A"),), "5 turns; an episode of this kind ends after 4"),
    ):
        bad = replace(good, turns=turns)
        with pytest.raises(DataError, match=words):
            check_samples([good, bad], need_turns=True, rules=RULES)
        check_samples([bad], need_turns=False, rules=RULES)


def test_warnings_do_not_stop_a_run(sample: Sample) -> None:
    odd = replace(sample, options=("rows", "Rows"), answer="rows", turns=())
    assert {problem.code for problem in question_problems(odd)} == {"repeated_option", "answer_not_letter"}
    check_samples([odd], need_turns=False)
    with pytest.raises(DataError, match="none of the options A to B"):
        check_samples([replace(odd, answer="C")], need_turns=False)
