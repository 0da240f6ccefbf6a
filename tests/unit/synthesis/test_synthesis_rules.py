"""What synthesis decides without a request: windows, quotas, rules, balance, shards, inputs and encoded clips."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from support.video_samples import steady, write_video

from videoseek.config import UsageError, VideoConfig
from videoseek.samples.schema import DataError
from videoseek.synthesis.inputs import read_items
from videoseek.synthesis.items import DETAILS, Caption, Clue, Item, Question, Rejection, Usage, in_shard
from videoseek.synthesis.outputs import balanced_ids
from videoseek.synthesis.prompts import SCHEMAS, prompt, prompt_version
from videoseek.synthesis.rules import (
    judge_fault,
    leaked_words,
    merge_clues,
    question_fault,
    sampling_strategy,
    trajectory_fault,
    verdict_fault,
    whole_seconds,
)
from videoseek.synthesis.settings import QUADRANTS, SynthesisSettings, check_settings
from videoseek.synthesis.stages import caption_windows
from videoseek.trajectory.media import clip_parts, video_digest
from videoseek.types import STRATEGIES
from videoseek.video.decode import probe
from videoseek.video.quotas import crop_clip

LIMITS = VideoConfig()
QUESTION = Question("What does the sign say?", ("Oslo", "Rome", "Lima", "Bonn"), "B")


def clue(start: float, end: float, detail: str = "medium", finding: str = "the sign says Rome in blue letters") -> Clue:
    return Clue(start, end, "a sign beside the door", finding, detail, "")


@pytest.mark.parametrize(("seconds", "strategy"), [(2, "coarse"), (28, "medium"), (35, "fine")])
def test_quota_equals_the_papers_worked_example(seconds: float, strategy: str) -> None:
    assert sampling_strategy(seconds, "medium", LIMITS) == strategy


@pytest.mark.parametrize(("detail", "coarse", "medium"), [("large", 32, 64), ("medium", 16, 32), ("small", 8, 16)])
def test_quotas_equal_the_documented_table(detail: str, coarse: int, medium: int) -> None:
    strategies = [sampling_strategy(seconds, detail, LIMITS) for seconds in range(2, 100)]
    assert strategies == ["coarse"] * (coarse - 1) + ["medium"] * (medium - coarse) + ["fine"] * (99 - medium)


def test_quota_grows_with_length_and_with_detail() -> None:
    rank = STRATEGIES.index
    for detail in DETAILS:
        ranks = [rank(sampling_strategy(seconds, detail, LIMITS)) for seconds in range(1, 200)]
        assert ranks == sorted(ranks)
    for seconds in range(1, 200):
        ranks = [rank(sampling_strategy(seconds, detail, LIMITS)) for detail in DETAILS]
        assert ranks == sorted(ranks)


def test_quota_does_not_grow_beyond_the_maximum_number_of_frames() -> None:
    assert sampling_strategy(10_000, "large", replace(LIMITS, max_frames=32)) == "coarse"


def test_windows_are_rounded_outwards_and_stay_inside_the_video() -> None:
    assert whole_seconds(12.2, 15.1, 60.0, 1.0) == (12.0, 16.0)
    assert whole_seconds(-0.4, 0.2, 60.0, 1.0) == (0.0, 1.0)
    assert whole_seconds(58.7, 61.0, 59.97, 1.0) == (58.0, 59.9)
    assert whole_seconds(59.9, 60.5, 59.97, 1.0) == (58.0, 59.9)
    assert whole_seconds(0.0, 0.5, 0.84, 1.0) == (0.0, 0.8)


def test_near_clues_are_merged_and_keep_the_finer_detail() -> None:
    clues = [clue(40, 41, "large"), clue(10.5, 12, "large"), clue(12.9, 14.2, "small")]
    first, second = merge_clues(clues, 60.0, 1.0, LIMITS)
    assert (first.window, first.detail) == ((10.0, 15.0), "small")
    assert first.strategy == sampling_strategy(5, "small", LIMITS)
    assert second.window == (40.0, 41.0)
    assert len(merge_clues([clue(0, 3), clue(5, 8)], 60.0, 1.9, LIMITS)) == 2


def kinds(*counts: int) -> dict[str, str]:
    """Returns `counts[i]` ids of the i-th quadrant, with their quadrants."""
    return {f"{kind}-{i}": kind for kind, count in zip(QUADRANTS, counts, strict=True) for i in range(count)}


def test_balance_meets_the_shares_and_keeps_the_scarcest_quadrant_completely() -> None:
    kept_ids = balanced_ids(kinds(100, 40, 30, 10), [0.4, 0.3, 0.2, 0.1], seed=0)
    assert Counter(name.rpartition("-")[0] for name in kept_ids) == dict(zip(QUADRANTS, (40, 30, 20, 10), strict=True))


def test_balance_ignores_empty_quadrants_and_drops_those_without_a_share() -> None:
    kept_ids = balanced_ids(kinds(10, 4, 0, 7), [0.5, 0.5, 0.5, 0.0], seed=0)
    assert Counter(name.rpartition("-")[0] for name in kept_ids) == {QUADRANTS[0]: 4, QUADRANTS[1]: 4}


def test_balance_depends_on_the_seed_and_the_ids_only() -> None:
    kind_of = kinds(50, 10, 10, 10)
    backwards = dict(reversed(kind_of.items()))
    assert balanced_ids(kind_of, [1, 1, 1, 1], 3) == balanced_ids(backwards, [1, 1, 1, 1], 3)
    assert balanced_ids(kind_of, [1, 1, 1, 1], 3) != balanced_ids(kind_of, [1, 1, 1, 1], 4)
    assert balanced_ids(kind_of, [], 3) == set(kind_of)


def test_each_item_is_in_one_shard() -> None:
    items = [Item(f"v{i}", f"v{i}", "x.mp4") for i in range(200)]
    shards = [in_shard(items, index, 4) for index in range(1, 5)]
    assert sorted(item.id for shard in shards for item in shard) == sorted(item.id for item in items)
    assert all(30 <= len(shard) <= 70 for shard in shards)


def generated(**changes: Any) -> dict[str, Any]:
    question = {
        "question": "What does the sign beside the door say?",
        "correct": "Rome",
        "wrong": ["Oslo", "Lima", "Bonn"],
        "evidence": [[10, 14.5]],
    }
    return question | changes


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"wrong": ["Oslo", "Lima"]}, "wrong_options"),
        ({"wrong": ["Oslo", "Lima", " rome"]}, "equal_options"),
        ({"correct": " "}, "empty_text"),
        ({"question": "What happens at 1:05?"}, "time_in_question"),
        ({"question": "What is seen after 12 seconds?"}, "time_in_question"),
        ({"evidence": []}, "no_evidence"),
        ({"evidence": [[10]]}, "evidence_window"),
        ({"evidence": [[14, 10]]}, "evidence_window"),
        ({"evidence": [[10, 80]]}, "evidence_window"),
    ],
)
def test_faulty_generated_questions_are_rejected(changes: dict[str, Any], code: str) -> None:
    assert question_fault(generated(), 3, 60.0) is None
    fault = question_fault(generated(**changes), 3, 60.0)
    assert fault is not None and fault[0] == code


LOOKS = [clue(10, 14), clue(30, 33, finding="a second notice names the platform number seven")]


def trajectory(*thinks: str, final: str = "The sign says Rome.", answer: str = "B", shift: float = 0) -> dict[str, Any]:
    steps = [
        {"think": think, "window": [look.start_seconds + shift, look.end_seconds]}
        for think, look in zip(thinks, LOOKS, strict=False)
    ]
    return {"steps": steps, "final": {"think": final, "answer": answer}}


GOOD = ("The sign beside the door is too small.", "It says Rome in blue letters; I check the other one.")


def test_a_good_trajectory_passes() -> None:
    assert trajectory_fault(trajectory(*GOOD), QUESTION, LOOKS) is None


@pytest.mark.parametrize(
    ("reply", "words"),
    [
        (trajectory(GOOD[0]), "2 steps"),
        (trajectory(*GOOD, shift=0.5), "copied as [10, 14]"),
        (trajectory(*GOOD, answer="C"), "must stay 'B'"),
        (trajectory(*GOOD, final="  "), "think 3 is empty"),
        (trajectory(*GOOD, final="<answer>B</answer>"), "angle bracket"),
        (trajectory("As the given clue says, I look here.", GOOD[1]), "given clue"),
        (trajectory("The blue letters there must say Rome.", GOOD[1]), "step 1 tells what only the look of step 1"),
        (trajectory("A notice may name the platform number.", GOOD[1]), "step 1 tells what only the look of step 2"),
    ],
)
def test_the_fault_of_a_bad_trajectory_is_named(reply: dict[str, Any], words: str) -> None:
    assert words in (trajectory_fault(reply, QUESTION, LOOKS) or "")


def test_a_single_shared_word_is_not_a_leak() -> None:
    assert leaked_words("I look at the letters.", "blue letters spell the name of a town", set()) == set()


def test_verdicts_and_judgements_must_be_consistent() -> None:
    assert verdict_fault({"answer": "(b)"}, QUESTION) is None
    assert "A, B, C, D" in (verdict_fault({"answer": "E"}, QUESTION) or "")
    assert judge_fault({"analysis": "fine", "faults": [], "is_valid": True}) is None
    assert judge_fault({"analysis": "fine", "faults": ["guess"], "is_valid": True}) is not None
    assert judge_fault({"analysis": "fine", "faults": [], "is_valid": False}) is not None


def test_items_are_equal_after_a_round_trip_through_json() -> None:
    item = Item(
        id="v-q01",
        source="v",
        video="v.mp4",
        captions=(Caption(0, 1.5, "a door\u2028opens"),),
        question=replace(QUESTION, evidence=((1.0, 2.0),)),
        clues=(clue(1, 2),),
        turns=("<think>x</think>",),
        usage={"verify": Usage(1, 0, 30, 4)},
        rejection=Rejection("judge", "guess", "it guesses"),
    )
    assert Item.from_json(item.to_json()) == item
    assert {"seen", "ending"} < json.loads(item.to_json()).keys()  # names on disk, which older shards use
    assert Item.from_json(Item("v", "v", "v.mp4").to_json()) == Item("v", "v", "v.mp4")


def test_caption_windows_cover_the_video() -> None:
    windows = caption_windows(130.0, 60.0)
    assert len(windows) == 2 and windows[0][0] == 0 and windows[-1][1] == 130.0
    assert caption_windows(7.0, 60.0) == [(0, 7.0)]


def test_prompts_render_their_input_verbatim_and_have_a_version() -> None:
    text = prompt("trajectory", {"question": "a <b> & {{c}}"}, needs_tool=True, num_clues=2)
    assert '"a <b> & {{c}}"' in text and "each of the 2 windows" in text
    assert "empty list" in prompt("trajectory", {}, needs_tool=False, num_clues=0)
    assert len(prompt_version()) == 12
    for schema in SCHEMAS.values():
        assert schema["additionalProperties"] is False and schema["required"] == list(schema["properties"])


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"shard": "5/4"}, "shard must be i/n"),
        ({"shard": "0/4"}, "shard must be i/n"),
        ({"shard": "1"}, "shard must be i/n"),
        ({"model": None}, "model is missing"),
        ({"shares": [1.0]}, "four numbers"),
        ({"endpoint": "localhost:8000"}, "endpoint must be a URL"),
        ({"endpoint": "http://me:secret@host/v1"}, "must hold no user"),
        ({"endpoint": "http://host/v1?key=secret"}, "must hold no user"),
        ({"merge": True, "shard": "1/2"}, "joins all shards"),
    ],
)
def test_contradictory_settings_are_refused(changes: dict[str, Any], words: str) -> None:
    settings = replace(SynthesisSettings(model="m"), **changes)
    with pytest.raises(UsageError, match=words) as error:
        check_settings(settings)
    assert "secret" not in str(error.value)


LINE = {"id": "a", "video": "a.mp4", "question": "Which?", "options": ["x", "y"], "answer": "B"}


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("{", "line 2"),
        ("[]", "JSON object, got list"),
        (json.dumps({**LINE, "anwser": "A"}), "unknown field 'anwser'"),
        (json.dumps({**LINE, "answer": "C"}), "one of 2 options"),
        (json.dumps({**LINE, "options": [1, 2]}), "list of strings"),
        (json.dumps({"video": "b.mp4", "answer": "A"}), "need a 'question'"),
        (json.dumps({**LINE, "id": "b", "video": "../b.mp4"}), "lies outside"),
        (json.dumps({"id": "b", "video": "b.mp4", "captions": [{"start": 3, "end": 1, "text": "x"}]}), "start < end"),
        (json.dumps({"id": "b", "video": "b.mp4", "captions": [{"start": 3}]}), "start, end and text"),
        (json.dumps(LINE), "used twice"),
        (json.dumps({**LINE, "id": "a-q01"}), "may clash"),
        (json.dumps({"video": ""}), "field 'video'"),
    ],
)
def test_bad_lines_are_named_before_any_request(tmp_path: Path, line: str, words: str) -> None:
    path = tmp_path / "lines.jsonl"
    path.write_text(json.dumps(LINE) + "\n" + line + "\n")
    with pytest.raises(DataError, match=words.replace("[", r"\[")):
        read_items(path, None)


def test_folders_are_read_in_the_order_of_their_paths(tmp_path: Path) -> None:
    for name in ("b/x.MKV", "a.mp4", "notes.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    assert [item.id for item in read_items(tmp_path, None)] == ["a.mp4", "b/x.MKV"]
    (tmp_path / "a.mp4").unlink()
    (tmp_path / "a.mp4").symlink_to(tmp_path.parent / "elsewhere.mp4")
    (tmp_path.parent / "elsewhere.mp4").touch()
    with pytest.raises(DataError, match="a.mp4' lies outside video_root"):
        read_items(tmp_path, None)
    assert read_items(tmp_path, tmp_path.parent)[0].video == str(tmp_path.parent.resolve() / "elsewhere.mp4")
    with pytest.raises(UsageError, match="neither a folder"):
        read_items(tmp_path / "gone", None)
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="holds no video"):
        read_items(tmp_path / "empty", None)


def test_a_clip_is_sent_as_pictures_with_times_or_as_mp4(tmp_path: Path) -> None:
    video = str(write_video(tmp_path / "v.mp4", steady(40, 10.0)))
    clip = crop_clip(probe(video), 1.0, 3.0, "coarse", VideoConfig(frame_policy="uniform"))
    pictures = clip_parts(clip, "frames")
    assert [part["text"] for part in pictures[1::2]] == ["1.0 s:", "1.5 s:", "2.0 s:", "2.5 s:"]
    assert all(part["image_url"]["url"].startswith("data:image/jpeg;base64,") for part in pictures[2::2])
    sentence, film = clip_parts(clip, "video")
    assert "from 1.0 seconds to 3.0 seconds" in sentence["text"]
    assert film["video_url"]["url"].startswith("data:video/mp4;base64,")
    assert clip_parts(clip, "video")[1] == film


def test_an_mp4_has_the_frames_of_the_clip_at_its_rate(tmp_path: Path) -> None:
    import base64

    video = str(write_video(tmp_path / "v.mp4", steady(40, 10.0)))
    clip = crop_clip(probe(video), 1.0, 3.0, "coarse", VideoConfig(frame_policy="uniform"))
    url = clip_parts(clip, "video")[1]["video_url"]["url"]
    film = tmp_path / "film.mp4"
    film.write_bytes(base64.b64decode(url.partition("base64,")[2]))
    info = probe(str(film))
    assert (info.num_frames, info.height, info.width) == (4, clip.height, clip.width)
    assert info.duration_seconds == pytest.approx(2.0, abs=0.02)


def test_the_digest_of_a_video_depends_on_its_content(tmp_path: Path) -> None:
    first, second = tmp_path / "a.mp4", tmp_path / "b.mp4"
    first.write_bytes(b"x" * 1000)
    second.write_bytes(b"x" * 1000)
    assert video_digest(str(first)) == video_digest(str(second))
    second.write_bytes(b"x" * 999 + b"y")
    assert video_digest(str(first)) != video_digest(str(second))
    images = tmp_path / "frames"
    images.mkdir()
    (images / "0.jpg").write_bytes(b"x")
    assert video_digest(f"{images}#fps=2") != video_digest(f"{images}#fps=4")
