"""Each public format as its small samples have it, and what is wrong with a record of it."""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support.tiny_world import tiny_world

from videoseek.config import UsageError
from videoseek.samples.readers import FORMATS, Reader, detect_format
from videoseek.samples.readers.kinds import kind_from_evidence, kind_from_name
from videoseek.samples.readers.rows import Row, VideoPaths
from videoseek.samples.rules import find_bad
from videoseek.samples.schema import DataError
from videoseek.trajectory.formats import FORMATS as CALL_FORMATS
from videoseek.types import Call, Sample

SAMPLES = Path(__file__).parents[3] / "data/samples"
PATHS = VideoPaths.of(None, ["__VIDEO_ROOT__/=>"])
FORMAT_OF = {
    "videoseek.jsonl": "videoseek",
    "seeker_sft_single_w_tool.json": "seeker_sft",
    "seeker_rl.json": "seeker_rl",
    "sharegpt.json": "sharegpt",
    "swift.jsonl": "swift",
    "video_r1.json": "video_r1",
    "video_r1_sft.json": "video_r1",
    "trl.jsonl": "trl",
    "verl.parquet": "verl",
    "paravt.parquet": "paravt",
    "paravt_sft.parquet": "paravt",
}
RED, BLUE = Call(4.0, 8.0, "medium"), Call(16.0, 20.0, "medium")
OPTIONS = ("rows", "columns", "checks", "slashes")


def read_rows(path: Path, fmt: str | None, paths: VideoPaths | None = None) -> list[Row]:
    return list(Reader(path, fmt, paths or VideoPaths()).rows(set()))


def read(name: str) -> list[Sample]:
    rows = read_rows(SAMPLES / name, None, PATHS)
    assert [row.problem for row in rows] == [None] * len(rows)
    return [row.sample for row in rows if row.sample is not None]


def calls(sample: Sample) -> list[tuple[Call, ...]]:
    name = "hermes" if "<tool_call>" in "".join(sample.turns) else "grounding"
    return [CALL_FORMATS[name]().parse(turn).calls for turn in sample.turns]


@pytest.mark.parametrize("name", FORMAT_OF)
def test_every_sample_file_is_known_reads_and_passes_the_check(name: str) -> None:
    assert detect_format(SAMPLES / name) == FORMAT_OF[name]
    samples = read(name)
    assert samples and {sample.video.split("#")[0] for sample in samples} <= {
        str(SAMPLES / "videos/cards.mp4"),
        str(SAMPLES / "videos/frames"),
    }
    need_turns = any(sample.turns for sample in samples)
    assert find_bad(samples, range(len(samples)), need_turns=need_turns) == []
    assert all(sample.id.startswith(f"{Path(name).stem}/") for sample in samples) or name == "videoseek.jsonl"


def test_every_format_has_a_sample() -> None:
    assert set(FORMAT_OF.values()) == set(FORMATS)


def test_seeker_trajectories_become_samples() -> None:
    one, two = read("seeker_sft_single_w_tool.json")
    assert (one.id, one.question, one.options) == ("seeker_sft_single_w_tool/1", "What is on the red card?", OPTIONS)
    assert (one.answer, one.kind, calls(one)) == ("A", "clue_single_w_tool", [(RED,), ()])
    assert one.turns[1] == "<think>The card has rows.</think>\n<answer>A</answer>", "no newline after the turn"
    assert calls(two) == [(RED,), (BLUE,), ()]
    episode = tiny_world().environment.replay(one)
    assert len(episode.clips) == 2 and episode.answer == "A"


def test_seeker_questions_become_samples() -> None:
    red, first, when = read("seeker_rl.json")
    assert (red.kind, red.clues, red.answer, red.options[0]) == ("clue_single_w_tool", ((4.0, 8.0),), "A", "A. rows")
    assert first.kind == "clue_multi_wo_tool" and first.video.endswith("videos/frames#fps=4")
    assert (when.kind, when.clues) == ("temporal_grounding", ((4.0, 8.0),))
    assert (when.question, json.loads(when.answer)) == ("a red card is shown", {"temporal_segment": [4, 8]})


def test_calls_of_other_tools_become_ours() -> None:
    looked, plain = read("sharegpt.json")
    assert calls(looked) == [(RED,), ()] and looked.kind == "clue_single_w_tool"
    assert (plain.kind, plain.answer, plain.turns) == ("perception", plain.turns[0], (plain.answer,))
    (both,) = read("swift.jsonl")
    assert calls(both) == [(RED, BLUE), ()] and both.kind == "clue_multi_w_tool"
    (traced,) = read("paravt_sft.parquet")
    assert calls(traced) == [(RED, BLUE), ()]
    called, direct = read("trl.jsonl")
    assert calls(called) == [(RED,), ()] and (direct.kind, calls(direct)) == ("clue_single_wo_tool", [()])


def test_problems_with_a_solution_become_samples() -> None:
    asked, counted = read("video_r1.json")
    (reasoned,) = read("video_r1_sft.json")
    assert (asked.id, asked.question, asked.answer, asked.turns) == ("video_r1/1", "What is on the red card?", "A", ())
    assert asked.options[0] == "A. rows" and (asked.kind, reasoned.kind) == (
        "clue_multi_wo_tool",
        "clue_single_wo_tool",
    )
    assert reasoned.turns == ("<think>The red card has rows.</think>\n<answer>A</answer>",)
    assert (counted.answer, counted.options) == ("3", ())


def test_ground_truths_become_answers() -> None:
    red, last = read("verl.parquet")
    assert (red.id, red.answer, red.clues, red.kind) == ("verl/0", "rows", ((4.0, 8.0),), "clue_single_w_tool")
    assert (last.question, last.clues, last.kind) == ("Which colour is shown last?", (), "clue_multi_wo_tool")
    choice, when, words = read("paravt.parquet")
    assert (choice.options, choice.answer, words.answer) == (OPTIONS, "A", "green")
    assert (when.kind, when.clues, json.loads(when.answer)) == (
        "temporal_grounding",
        ((4.0, 8.0),),
        {"temporal_segment": [4.0, 8.0]},
    )


def test_a_window_as_ground_truth_is_a_grounding_question(tmp_path: Path) -> None:
    record = {"prompt": [{"role": "user", "content": "<video>When?"}], "videos": ["v.mp4"], "extra_info": {}}
    path = write(tmp_path, record | {"reward_model": {"ground_truth": [3, 4.5]}})
    (row,) = read_rows(path, "verl")
    assert row.sample is not None
    assert (row.sample.kind, row.sample.clues) == ("temporal_grounding", ((3.0, 4.5),))


def write(folder: Path, *records: object) -> Path:
    path = folder / "records.jsonl"
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def _change(path: str, value: Any) -> Callable[[Any], None]:
    """Sets the item at a dotted path of a record; `del` removes it."""
    *parents, last = [int(part) if part.isdigit() else part for part in path.split(".")]

    def change(record: Any) -> None:
        for part in parents:
            record = record[part]
        if value == "del":
            del record[last]
        else:
            record[last] = value

    return change


@pytest.mark.parametrize(
    ("name", "path", "value", "code", "words"),
    [
        ("seeker_sft_single_w_tool.json", "videos.1.crop", [5, 8], "window_mismatch", r"asks for \[4, 8\] .* \[5, 8\]"),
        ("seeker_sft_single_w_tool.json", "videos.1", "del", "marks_mismatch", "2 <video> marks for 1 videos"),
        ("seeker_sft_single_w_tool.json", "messages.2.content", "no clip", "marks_mismatch", "1 <video> marks for 2"),
        ("seeker_sft_single_w_tool.json", "videos.1.url", "other.mp4", "bad_media", "one video a record"),
        ("seeker_sft_single_w_tool.json", "videos.0.url", "../v.mp4", "bad_media", "one video a record"),
        ("seeker_sft_single_w_tool.json", "videos", [], "bad_media", "has no video"),
        ("seeker_sft_single_w_tool.json", "videos.1.crop", [5], "wrong_type", "'crop' wants"),
        ("seeker_sft_single_w_tool.json", "messages.3.content", "<think>x</think>", "no_answer", "last of 2 turns"),
        ("seeker_sft_single_w_tool.json", "messages.1.content", "<answer>A</answer>", "window_mismatch", "nothing"),
        ("seeker_sft_single_w_tool.json", "messages.1.role", "user", "marks_mismatch", "one <video> mark"),
        ("seeker_sft_single_w_tool.json", "messages.2.role", "assistant", "bad_turn", "message 3 is the assistant's"),
        ("seeker_sft_single_w_tool.json", "messages.0.role", "narrator", "wrong_type", "role of message 1, 'narrator'"),
        ("seeker_sft_single_w_tool.json", "messages.0.content", 5, "wrong_type", "content of message 1"),
        ("seeker_sft_single_w_tool.json", "messages", "del", "missing_field", "field 'messages'"),
        ("seeker_sft_single_w_tool.json", "messages", [], "no_turns", "does not begin with a user turn"),
        ("seeker_sft_single_w_tool.json", "id", [1], "wrong_type", "field 'id'"),
        ("seeker_rl.json", "solution", None, "wrong_type", "field 'solution'"),
        ("seeker_rl.json", "solution.answer", "del", "no_answer", "neither an answer nor"),
        ("seeker_rl.json", "solution.answer", 3, "wrong_type", "'solution.answer'"),
        ("seeker_rl.json", "solution.clue", [[4, 8]], "wrong_type", "list of objects"),
        ("seeker_rl.json", "solution.clue.0.timestamp", [8, 4], "bad_interval", "must satisfy"),
        ("seeker_rl.json", "video", "../../v.mp4", "outside_root", "lies outside"),
        ("seeker_rl.json", "video", "del", "missing_field", "'video'"),
        ("seeker_rl.json", "question", "del", "missing_field", "'question'"),
        ("sharegpt.json", "conversations.2.value", "{", "bad_turn", "call in message 3 is broken: no valid JSON"),
        ("sharegpt.json", "conversations.2.value", '{"name": "search", "arguments": {}}', "bad_turn", "tool 'search'"),
        ("sharegpt.json", "images", ["a.jpg"], "bad_media", "only video is read"),
        ("sharegpt.json", "videos.0", ["1.jpg", "2.jpg"], "bad_media", "frames: by their folder"),
        ("swift.jsonl", "messages.2.loss", False, "bad_turn", "message 3 has loss=false"),
        ("swift.jsonl", "messages.4.content", "[]]", "bad_turn", "message 5 is broken: no valid JSON"),
        ("video_r1.json", "problem", 5, "wrong_type", "field 'problem' must be a string"),
        ("video_r1.json", "solution", "del", "missing_field", "field 'answer' must be a string"),
        ("video_r1.json", "solution", " ", "no_answer", "has no answer"),
        ("video_r1.json", "path", "del", "bad_media", "this has 0"),
        ("video_r1.json", "data_type", "image", "bad_media", "'data_type' is 'image'; only video is read"),
        ("video_r1.json", "path", "../v.mp4", "outside_root", "lies outside"),
        ("trl.jsonl", "messages.0.content.0.type", "image", "bad_media", "part of type 'image'"),
        ("trl.jsonl", "messages.1.tool_calls", [{}], "wrong_type", "must hold a function"),
        ("videoseek.jsonl", "answer", " ", "no_answer", "has no answer"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_the_fault_of_a_record_is_named(
    name: str, path: str, value: Any, code: str, words: str, tmp_path: Path
) -> None:
    text = (SAMPLES / name).read_text()
    records = json.loads(text) if name.endswith(".json") else [json.loads(line) for line in text.splitlines()]
    broken = copy.deepcopy(records[0])
    _change(path, value)(broken)
    rows = read_rows(write(tmp_path, broken, records[0]), FORMAT_OF[name])
    assert rows[0].sample is None and rows[0].problem is not None and rows[1].problem is None
    assert rows[0].problem.code == code
    assert re.search(words, rows[0].problem.message)
    assert rows[0].where.endswith("records.jsonl, line 1")


@pytest.mark.parametrize(
    ("turns", "code"),
    [
        (["<think>a</think>\n<answer>A</answer>", "<think>b</think>\n<answer>A</answer>"], "answers already"),
        (["<think>hm</think>", "<think>b</think>\n<answer>A</answer>"], "neither calls the tool nor answers"),
        (["<grounding>{}</grounding>", "<tool_call>{}</tool_call><answer>A</answer>"], "mix the call forms"),
    ],
)
def test_unreplayable_trajectories_are_refused(turns: list[str], code: str, tmp_path: Path) -> None:
    talk = [{"role": "user", "content": "<video>Q"}]
    for turn in turns:
        talk += [{"role": "assistant", "content": turn}, {"role": "user", "content": "on"}]
    (row,) = read_rows(write(tmp_path, {"messages": talk[:-1], "videos": ["v.mp4"]}), "trl")
    assert row.problem is not None and row.problem.code == "bad_turn" and code in row.problem.message


def test_a_failed_call_has_no_clip(tmp_path: Path) -> None:
    """Media follow the order of calls, and some calls gave none."""
    records = json.loads((SAMPLES / "seeker_sft_single_w_tool.json").read_text())
    record = records[1]
    record["messages"][2]["content"] = "ERROR occurs during grounding."
    del record["videos"][1]
    (row,) = read_rows(write(tmp_path, record), "seeker_sft")
    assert row.problem is None and row.sample is not None and len(row.sample.turns) == 3


def video_r1_record(problem: str, **changes: Any) -> dict[str, Any]:
    return {"problem": problem, "solution": "<answer>A</answer>", "path": "v.mp4"} | changes


@pytest.mark.parametrize("process", ["", " \n", None])
def test_empty_reasoning_counts_as_missing(process: str | None, tmp_path: Path) -> None:
    (row,) = read_rows(write(tmp_path, video_r1_record("What?", process=process)), "video_r1")
    assert row.sample is not None and row.sample.turns == () and row.sample.answer == "A"


@pytest.mark.parametrize(
    ("problem", "question", "options"),
    [
        ("Which? Options: A. cat B. dog", "Which?", ("cat", "dog")),
        ("Which?\noptions: (A) a cat, (B) a dog, (C) none", "Which?", ("a cat", "a dog", "none")),
        ("Which? Options: A. cat B. dog\nThink first.", "Which?\nThink first.", ("cat", "dog")),
        ("Options: A. one B. vitamin A. pills D. C. none", "", ("one", "vitamin A. pills D.", "none")),
        ("Which? Options: A. B. C. D. all", "Which? Options: A. B. C. D. all", ()),
        ("Which? Options: A. cat", "Which? Options: A. cat", ()),
        ("Is vitamin A. or B. better?", "Is vitamin A. or B. better?", ()),
        ("Options: a. cat b. dog", "Options: a. cat b. dog", ()),
        ("Which?\nOptions:\nA. cat B. x\nB. dog", "Which?", ("cat B. x", "dog")),
    ],
)
def test_options_are_read_from_several_lines_or_one(
    problem: str, question: str, options: tuple[str, ...], tmp_path: Path
) -> None:
    (row,) = read_rows(write(tmp_path, video_r1_record(problem)), "video_r1")
    assert row.sample is not None and (row.sample.question, row.sample.options) == (question, options)


def crop_text(start: float, end: float) -> str:
    call = {"name": "crop_video", "arguments": {"video_path": "v.mp4", "start_time": start, "end_time": end}}
    return f"<think>look</think><tool_call>{json.dumps(call)}</tool_call>"


END = "<think>seen</think><answer>A</answer>"


@pytest.mark.parametrize("mark", ["", "<video>"])
def test_a_trajectory_in_one_assistant_turn_is_split(mark: str, tmp_path: Path) -> None:
    """LongVT's form; with a mark, each response has a medium."""
    response = f"<tool_response>Frames: {mark}</tool_response>"
    transcript = f"{crop_text(4, 8)}\n{response}\n<tool_response>Sound</tool_response>"
    transcript += f"{crop_text(16, 20)}{response}\n{END}"
    talk = [{"role": "user", "content": "<video>Q"}, {"role": "assistant", "content": transcript}]
    (row,) = read_rows(write(tmp_path, {"messages": talk, "videos": ["v.mp4"] * (3 if mark else 1)}), "trl")
    assert row.problem is None and row.sample is not None
    assert calls(row.sample) == [(RED,), (BLUE,), ()]
    assert row.sample.turns[2] == END and "tool_response" not in "".join(row.sample.turns)


def test_a_transcript_must_begin_with_a_call_and_end_with_an_answer(tmp_path: Path) -> None:
    response = "<tool_response>x</tool_response>"
    for transcript, words in (
        (response + END, "begins with a <tool_response>"),
        (crop_text(4, 8) + response, "gives no answer"),
    ):
        talk = [{"role": "user", "content": "<video>Q"}, {"role": "assistant", "content": transcript}]
        (row,) = read_rows(write(tmp_path, {"messages": talk, "videos": ["v.mp4"]}), "trl")
        assert row.problem is not None and words in row.problem.message


def test_columns_and_tags_of_dataset_info_are_honoured(tmp_path: Path) -> None:
    talk = [{"who": "me", "says": "<video>What?"}, {"who": "it", "says": "<think>x</think>\n<answer>A</answer>"}]
    path = tmp_path / "mine.json"
    path.write_text(json.dumps([{"talk": talk, "films": ["v.mp4"]}]))
    tags = {"role_tag": "who", "content_tag": "says", "user_tag": "me", "assistant_tag": "it"}
    entry = {"file_name": "mine.json", "formatting": "sharegpt", "columns": {"messages": "talk", "videos": "films"}}
    info = tmp_path / "dataset_info.json"
    info.write_text(json.dumps({"other": {"file_name": "x.json"}, "mine": entry | {"tags": tags}}))
    assert detect_format(path) == "sharegpt"
    (row,) = read_rows(path, None)
    assert row.sample is not None and (row.sample.question, row.sample.answer) == ("What?", "A")
    for broken, words in (
        ({"mine": entry | {"formatting": "alpaca"}}, "must have formatting sharegpt"),
        ({"mine": entry | {"ranking": True}}, "no ranking"),
        (["mine"], "must be an object"),
    ):
        info.write_text(json.dumps(broken))
        with pytest.raises(DataError, match=words):
            Reader(path, "sharegpt", VideoPaths())
    info.write_text("{")
    with pytest.raises(DataError, match="dataset_info.json: no valid JSON"):
        detect_format(path)


def test_unknown_and_unclear_formats_are_refused(tmp_path: Path) -> None:
    path = write(tmp_path, {"a": 1})
    with pytest.raises(DataError, match="no format is known by the fields a; name one: videoseek"):
        detect_format(path)
    with pytest.raises(UsageError, match="format 'alpaca' of .* is not one of videoseek"):
        Reader(path, "alpaca", VideoPaths())
    with pytest.raises(DataError, match="holds no samples"):
        detect_format(write(tmp_path))
    with pytest.raises(DataError, match="line 1: a record must be a JSON object, got int"):
        detect_format(write(tmp_path, 1, [2]))


@pytest.mark.parametrize(
    ("name", "num_clues", "kind"),
    [
        ("clue_multi_wo_tool", 0, "clue_multi_wo_tool"),
        ("sft_llava-video_clue_multi_w_tool_same_9886", 0, "clue_multi_w_tool"),
        ("llava-video_youtube_qa_mc_2_3_m_clue_single_wo_tool_9946", 3, "clue_single_wo_tool"),
        ("nextgqa_val_w_tool_2365", 2, "clue_multi_w_tool"),
        ("nextgqa_val_wo_tool_702", 1, "clue_single_wo_tool"),
        ("longvideoreason_qa_from120to3600_freeform_9531", 0, "clue_multi_wo_tool"),
        ("charades_grounding_12408", 0, "temporal_grounding"),
        ("tool_reward_with_round_penalty", 1, "clue_single_w_tool"),
        ("tool_reward_without_round_penalty", 1, "clue_multi_w_tool"),
        ("tool_penalty_single_turn", 1, "clue_single_wo_tool"),
        ("tool_free_form", 1, "clue_multi_wo_tool"),
        ("sft_longvt_longvideo_reflection_2000", 1, None),
    ],
)
def test_names_of_files_and_sources_tell_the_kind(name: str, num_clues: int, kind: str | None) -> None:
    assert kind_from_name(name, num_clues) == kind


def test_evidence_tells_the_kind() -> None:
    fmt = CALL_FORMATS["hermes"]()
    look, other = (fmt.parse(fmt.render_turn("", call, None)) for call in (RED, BLUE))
    end = fmt.parse(fmt.render_turn("", None, "A"))
    clue = (4.0, 8.0)
    assert kind_from_evidence('{"temporal_segment": [1, 2]}', [clue], [end]) == "temporal_grounding"
    assert kind_from_evidence("A", [], []) == "clue_multi_wo_tool"
    assert kind_from_evidence("A", [clue], []) == "clue_single_w_tool"
    assert kind_from_evidence("A", [clue, (9.0, 10.0)], []) == "clue_multi_w_tool"
    assert kind_from_evidence("A", [], [look, look, end]) == "clue_single_w_tool"
    assert kind_from_evidence("A", [], [look, other, end]) == "clue_multi_w_tool"
    assert kind_from_evidence("A", [clue], [look, other, end]) == "clue_single_w_tool"
    assert kind_from_evidence("A", [clue], [end]) == "clue_single_wo_tool"
