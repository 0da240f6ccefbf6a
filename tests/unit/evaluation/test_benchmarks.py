"""The numbers of every set, computed by hand; modes, votes and forced answers; kills, shards and second calls."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.benchmarks import LAYOUTS, Films, videomme
from support.openai_server import serving
from support.scripted_engine import Policy, ScriptedEngine, scripted

from videoseek import evaluate
from videoseek.config import TrainConfig, UsageError
from videoseek.config_merge import load_config
from videoseek.evaluation.answers import read_answers
from videoseek.evaluation.benchmarks import evaluate_tasks, run_folder
from videoseek.evaluation.evidence import swap_seconds
from videoseek.evaluation.runner import Model
from videoseek.files import shipped_folder
from videoseek.trajectory.formats import FORMATS
from videoseek.types import Call, Clip, Sample, StopReason

MODEL = shipped_folder("tiny_base", "data/tiny_base")
FORMAT = FORMATS["grounding"]("brief")
#: A film of 12 seconds: 2 frames a second and small frames.
VIDEO = ["video.overview_fps=1", "video.crop_fps=1", "video.max_tokens_per_grid=2", "rollout.max_context_tokens=4096"]


@pytest.fixture(scope="module")
def films(tmp_path_factory: pytest.TempPathFactory) -> Films:
    return Films(tmp_path_factory.mktemp("films"))


def config_of(root: Path, task: str, *keys: str) -> TrainConfig:
    return load_config(
        ["recipe=sft_rl", f"evaluate.tasks=[{task}]", f"evaluate.data_root={root}", *VIDEO, "stages=[sft]", *keys]
    )


def look(start: float, end: float) -> str:
    return FORMAT.render_turn("look", Call(start, end, "medium"), None)


def say(answer: str) -> str:
    return FORMAT.render_turn("so", None, answer)


def run(
    config: TrainConfig, policy: Policy, out: Path, engines: list[ScriptedEngine] | None = None
) -> dict[str, Any] | None:
    results = evaluate_tasks(config, MODEL, lambda: scripted(config, policy, engines), out)
    return results[0] if results else None


def right_unless(*wrong: str) -> Policy:
    """Answers every question by its key, except the given ids, with a crop of 4 to 8 seconds before."""

    def policy(sample: Sample, _: int) -> Sequence[str]:
        key = "A" if sample.options and sample.id in wrong else "none" if sample.id in wrong else sample.answer
        return [look(4, 8), say(key)]

    return policy


def answer_text(mode: str, turns: Sequence[str]) -> Sequence[str]:
    """Returns the replies of a mode for the turns of an episode with the tool."""
    answer = FORMAT.parse(turns[-1]).answer or ""
    return {"tool": turns, "direct": [answer], "think": [f"<think>so</think><answer>{answer}</answer>"]}[mode]


#: Layout -> wrong questions -> numbers by hand.
EXPECTED: dict[str, tuple[tuple[str, ...], dict[str, float]]] = {
    # short 2/2, medium 1/2, long 1/2; one film is missing
    "videomme": (
        ("002-1", "003-2"),
        {"accuracy": 4 / 6, "accuracy/duration/medium": 0.5, "macro/duration": 2 / 3, "accuracy_with_missing": 4 / 7},
    ),
    # relevance 3 of 4 right: 56.25; chain broken at 3: 25; pair 2, 3 without the 2nd: 400 / 12
    "videomme_v2": (
        ("001-3", "002-3", "003-2", "003-4"),
        {"accuracy": 8 / 12, "group_score": (900 / 16 + 400 / 16 + 400 / 12) / 3},
    ),
    # plotQA 4/4 and count 0/2: macro 1/2, micro 2/3
    "mlvu_json": (("4_count-1", "4_count-2"), {"macro/task": 0.5, "accuracy": 4 / 6}),
    "mlvu_flat": (("data-5", "data-6"), {"macro/task": 0.5, "accuracy": 4 / 6}),
    # keyA1 has two categories. The crop [4, 8] against [4, 8] and [2, 4] of two films: recall 1, 0, 1, 0
    "lvbench_meta": (
        ("keyA1",),
        {
            "accuracy": 5 / 6,
            "accuracy/category/entity recognition": 3 / 4,
            "accuracy/category/reasoning": 1 / 2,
            "accuracy/category/summarization": 1.0,
            "mean/clue_recall": 0.5,
            "mean/clue_iou": 0.5,
            "accuracy_with_missing": 5 / 9,
        },
    ),
    # frames 16 and 20 at 4 frames a second: 4 and 5 seconds, both inside the crop
    "longvideobench_json": (
        ("film0_0", "film4_0"),
        {"accuracy": 4 / 6, "accuracy/duration_group/15": 0.5, "accuracy/duration_group/3600": 0.5}
        | {"mean/clue_recall": 1.0},
    ),
    # Perception 2/2, Comprehension 1/2, Adaptation 1/2 (the open answer)
    "videommmu": (
        ("Comprehension-dev_Art_Theory_1", "Adaptation-dev_Art_Theory_1"),
        {"macro/track": 2 / 3, "accuracy": 4 / 6, "accuracy/track/Adaptation": 0.5},
    ),
    "mmvu": (
        ("validation_0", "validation_5"),
        {"accuracy/form/choice": 0.75, "accuracy/form/open": 0.5, "accuracy/subject/Art": 2 / 3, "accuracy": 4 / 6},
    ),
    "video_holmes": (("q0",), {"accuracy": 6 / 7, "accuracy/type/SR": 0.0, "accuracy/type/CTI": 1.0}),
    "videosiah": (("test-00000-of-00001-1",), {"accuracy": 5 / 6}),
}


@pytest.mark.parametrize("mode", ["tool", "direct", "think"])
@pytest.mark.parametrize("layout", EXPECTED)
def test_numbers_by_hand(layout: str, mode: str, tmp_path: Path, films: Films) -> None:
    task, write, count = LAYOUTS[layout]
    write(tmp_path, films)
    wrong, expected = EXPECTED[layout]
    plan = right_unless(*wrong)
    config = config_of(tmp_path, task, f"evaluate.mode={mode}")
    result = run(config, lambda sample, index: answer_text(mode, plan(sample, index)), tmp_path / "out")
    assert result is not None
    values = result["values"]
    skipped = () if mode == "tool" else ("mean/clue_recall", "mean/clue_iou")
    expected = {name: value for name, value in expected.items() if name not in skipped}
    assert {name: values[name] for name in expected} == pytest.approx(expected)
    assert values["num_questions"] == count
    assert values["mean/calls"] == (1.0 if mode == "tool" else 0.0)
    assert values["mean/turns"] == (2.0 if mode == "tool" else 1.0)
    assert values["tool_share"] == (1.0 if mode == "tool" else 0.0)
    rows = count + result["missing_films"]
    assert result["questions"] == f"{rows} of {rows}"
    assert len(result["problems"]) == result["missing_films"] + 1


def test_charades_by_hand(tmp_path: Path, films: Films) -> None:
    """IoU 1, 1/2, 0 (unread), 1, 0 and 2/3: two queries are alike and both count."""
    LAYOUTS["charades"][1](tmp_path, films)
    replies = ["2 to 6 s", "[4, 6]", "soon", "00:04-00:08", "3.0 - 4.0", "The event happens in 8 - 12 seconds."]

    def policy(sample: Sample, _: int) -> Sequence[str]:
        return [say(replies[int(sample.id.rpartition("-")[2]) - 1])]

    result = run(config_of(tmp_path, "charades"), policy, tmp_path / "out")
    assert result is not None
    ious = [1, 0.5, 0, 1, 0, 2 / 3]
    values = result["values"]
    assert values["miou"] == pytest.approx(sum(ious) / 6) == result["value"]
    assert [values[f"recall@{limit}"] for limit in (0.3, 0.5, 0.7)] == pytest.approx([4 / 6, 4 / 6, 2 / 6])
    assert values["num_unanswered"] == 1


def test_gain_of_knowledge(tmp_path: Path, films: Films) -> None:
    """1 of 2 right without the film, 2 of 2 with it: all that was left to learn."""
    LAYOUTS["videommmu"][1](tmp_path, films)
    keys = ["evaluate.mode=direct"]
    wrong = "Adaptation-dev_Art_Theory_1"
    before = run(
        config_of(tmp_path, "videommmu_question_only", *keys),
        lambda sample, _: ["A" if sample.id == wrong else sample.answer],
        tmp_path / "out",
    )
    assert before is not None and before["values"]["accuracy/track/Adaptation"] == 0.5
    after = run(config_of(tmp_path, "videommmu", *keys), lambda sample, _: [sample.answer], tmp_path / "out")
    assert after is not None and after["values"]["knowledge_gain"] == pytest.approx(100.0)


@pytest.mark.parametrize(("layout", "task"), [("mmvu", "mmvu"), ("videommmu", "videommmu_question_only, videommmu")])
def test_a_small_draw_may_lack_the_group_of_a_number(
    layout: str, task: str, tmp_path: Path, films: Films, capsys: pytest.CaptureFixture[str]
) -> None:
    """One drawn question: no choice of MMVU for its heading number, no Adaptation of VideoMMMU for the gain."""
    LAYOUTS[layout][1](tmp_path, films)
    config = config_of(tmp_path, task, "evaluate.mode=direct", "evaluate.limit=1", "seed=0")
    results = evaluate_tasks(config, MODEL, lambda: scripted(config, lambda *_: ["none"], None), tmp_path / "out")
    values = results[-1]["values"]
    assert values["num_questions"] == 1 and "knowledge_gain" not in values
    if layout == "mmvu":
        assert results[0]["value"] is None and results[0]["interval"] == [None, None]
        assert "| accuracy/form/choice | - | - to - |" in capsys.readouterr().out


class Killed(BaseException):
    """Ends a run like a signal."""


def content(out: Path) -> dict[str, Any]:
    """Returns the answers and the results of the only run of a folder, without times and machine."""
    (results,) = out.glob("*/*/*/results.json")
    result = json.loads(results.read_text())
    for name in ("environment", "settings"):
        del result[name]
    del result["values"]["mean/seconds"]
    lines = [json.loads(line) for line in (results.parent / "answers.jsonl").read_text().splitlines()]
    for line in lines:
        del line["seconds"]
    return {"results": result, "answers": lines}


def test_a_killed_run_resumes_to_the_same_files(tmp_path: Path, films: Films) -> None:
    """A kill between batches, and one in the middle of a line; no question is asked twice."""
    LAYOUTS["videomme_v2"][1](tmp_path, films)
    config = config_of(tmp_path, "videomme_v2", "evaluate.questions_per_batch=2")
    asked: list[str] = []
    limit = 0

    def policy(sample: Sample, index: int) -> Sequence[str]:
        if len(asked) == limit:
            raise Killed
        asked.append(sample.id)
        return right_unless("001-3")(sample, index)

    limit = 100
    run(config, policy, tmp_path / "whole")
    expected, order = content(tmp_path / "whole"), list(asked)
    for limit in range(1, 12):
        asked.clear()
        out = tmp_path / f"out{limit}"
        with pytest.raises(Killed):
            run(config, policy, out)
        (file,) = out.glob("*/*/*/answers.jsonl") if limit >= 2 else [None]
        done = limit // 2 * 2
        if file is not None:
            file.write_bytes(file.read_bytes() + b'{"id": "torn')
        assert list(out.glob("*/*/*/results.json")) == []
        asked.clear()
        limit = 100
        run(config, policy, out)
        assert asked == order[done:]
        assert content(out) == expected


def test_three_shards_equal_one_run(tmp_path: Path, films: Films, capsys: pytest.CaptureFixture[str]) -> None:
    videomme(tmp_path, films)
    config = config_of(tmp_path, "videomme")
    policy = right_unless("001-2")
    run(config, policy, tmp_path / "whole")
    out = tmp_path / "out"
    for index in (3, 1):
        part = config_of(tmp_path, "videomme", f"evaluate.shard={index}/3")
        assert run(part, policy, out) is None
    assert "2 answers are open, of other shards" in capsys.readouterr().err
    (folder,) = out.glob("*/*/videomme")
    assert {path.name for path in folder.iterdir()} == {"answers-1of3.jsonl", "answers-3of3.jsonl"}
    assert {line["film"] for line in read_answers(folder).values()} == {"Video-MME/data/ytlong.mp4"} | {
        "Video-MME/data/ytshort.mp4"
    }
    run(config_of(tmp_path, "videomme", "evaluate.shard=2/3"), policy, out)
    assert content(out) == content(tmp_path / "whole")
    assert {path.name for path in folder.iterdir()} == {"answers.jsonl", "results.json"}
    with pytest.raises(UsageError, match="evaluate.shard must be INDEX/COUNT"):
        run(config_of(tmp_path, "videomme", "evaluate.shard=4/3"), policy, tmp_path / "no")
    # A run without shard merges parts that were made elsewhere.
    (folder / "results.json").unlink()
    (folder / "answers.jsonl").rename(folder / "answers-1of1.jsonl")
    run(config, policy, out)
    assert content(out) == content(tmp_path / "whole")


def test_a_second_call_adds_nothing(tmp_path: Path, films: Films, capsys: pytest.CaptureFixture[str]) -> None:
    videomme(tmp_path, films)
    config = config_of(tmp_path, "videomme")
    first = run(config, right_unless(), tmp_path / "out")
    files = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*")}

    def no_model() -> Any:
        raise AssertionError("a finished run loads no model")

    (second,) = evaluate_tasks(config, MODEL, no_model, tmp_path / "out")
    assert second == json.loads(json.dumps(first))
    assert "all 6 questions are answered already; nothing was added to" in capsys.readouterr().err
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*")} == files


def test_settings_that_decide_answers_name_the_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def name(*keys: str, model: Path = MODEL) -> Path:
        return run_folder(config_of(tmp_path, "mlvu", *keys), model, tmp_path)

    assert name() == name("evaluate.questions_per_batch=3", "evaluate.shard=1/2", "video.prefetch=false")
    other = ["evaluate.mode=think", "evaluate.votes=3", "evaluate.limit=2", "video.max_frames=8", "seed=1"]
    other += ["evaluate.subtitles=all", "evaluate.prompt_style=lmms", "evaluate.final_answer=true", "prompt.style=full"]
    assert len({name(), *(name(key) for key in other)}) == len(other) + 1
    assert name().parent.name == "tiny" and name().name.startswith("tool-")
    assert name("model=/data/run 1/final").parent.name == "data_run 1_final"
    monkeypatch.setattr("videoseek.evaluation.benchmarks._WHOLE_BYTES", 2**21)
    for size, place in ((2**21, 777777), (2**22, 2**21 + 100)):
        weights = bytearray(size)
        (tmp_path / "model.safetensors").write_bytes(weights)
        before = name(model=tmp_path)
        weights[place] = 1
        (tmp_path / "model.safetensors").write_bytes(weights)
        assert name(model=tmp_path) != before


@pytest.mark.parametrize("model", ["..", "../..", "/a/../b", "../b"])
def test_no_name_of_a_model_leaves_the_output_folder(model: str, tmp_path: Path) -> None:
    config = config_of(tmp_path, "videomme", f"model={model}")
    assert run_folder(config, MODEL, tmp_path / "out").resolve().is_relative_to(tmp_path / "out")


def test_changed_questions_are_refused(tmp_path: Path, films: Films) -> None:
    videomme(tmp_path, films, file="test.jsonl")
    config = config_of(tmp_path, "videomme")
    run(config, right_unless(), tmp_path / "out")
    path = tmp_path / "Video-MME/test.jsonl"
    path.write_text(path.read_text().replace("Which colour is card 2", "What colour is card 2"))
    with pytest.raises(UsageError, match="answers question '00[123]-2' with prompt .* give another output_dir"):
        run(config, right_unless(), tmp_path / "out")


def test_a_draw_is_of_the_whole_file_and_says_so(
    tmp_path: Path, films: Films, capsys: pytest.CaptureFixture[str]
) -> None:
    """Seven rows may be drawn, one of them without a film."""
    videomme(tmp_path, films)
    drawn = set()
    for seed in range(6):
        config = config_of(tmp_path, "videomme", "evaluate.limit=3", f"seed={seed}")
        result = run(config, right_unless(), tmp_path / "out")
        assert result is not None and result["questions"] == "3 of 7"
        assert result["values"]["num_questions"] + result["missing_films"] == 3
        (folder,) = run_folder(config, MODEL, tmp_path / "out").glob("videomme")
        drawn |= read_answers(folder).keys()
    assert len(drawn) > 3
    assert "videomme: 3 of 7 questions" in capsys.readouterr().err


def test_an_unreadable_film_is_an_error_and_no_answer(tmp_path: Path, films: Films) -> None:
    videomme(tmp_path, films)
    film = tmp_path / "Video-MME/data/ytlong.mp4"
    film.unlink()
    film.write_bytes(b"no film")
    result = run(config_of(tmp_path, "videomme"), right_unless(), tmp_path / "out")
    assert result is not None
    values = result["values"]
    assert (values["num_engine_error"], values["num_unanswered"], values["num_answered"]) == (2, 0, 4)
    assert (values["accuracy"], values["accuracy_of_answered"]) == (pytest.approx(4 / 6), 1.0)
    assert result["reasons"] == {"letter": 4, "unreadable_film": 2}


def test_the_majority_answers_and_the_first_of_equals(tmp_path: Path, films: Films) -> None:
    videomme(tmp_path, films)
    votes = {
        "001-1": "ABBA C",
        "001-2": "  B  ",
        "002-1": "CDCDB",
        "002-2": "BBACA",
        "003-1": "     ",
        "003-2": "EDEAB",
    }
    engines: list[ScriptedEngine] = []
    config = config_of(tmp_path, "videomme", "evaluate.votes=5", "evaluate.mode=direct", "rollout.temperature=0.7")
    result = run(config, lambda sample, index: [votes[sample.id][index].strip()], tmp_path / "out", engines)
    (folder,) = (tmp_path / "out").glob("*/*/videomme")
    answers = read_answers(folder)
    assert {name: line["extracted"] for name, line in answers.items()} == {
        "001-1": "A",
        "001-2": "B",
        "002-1": "C",
        "002-2": "B",
        "003-1": None,
        "003-2": "E",
    }
    assert answers["001-2"]["votes"] == [None, None, "B", None, None]
    assert result is not None and result["values"]["accuracy"] == pytest.approx(3 / 6)
    assert result["values"]["num_unanswered"] == 1
    assert {settings.temperature for settings in engines[0].settings} == {0.7}
    run(config_of(tmp_path, "videomme"), right_unless(), tmp_path / "greedy", engines)
    assert {settings.temperature for settings in engines[1].settings} == {0.0}


@pytest.mark.parametrize("final_answer", [True, False])
def test_a_forced_answer_follows_the_last_call(final_answer: bool, tmp_path: Path, films: Films) -> None:
    """Three turns may call; with a forced answer a fourth turn follows, whose call is not executed."""
    videomme(tmp_path, films)
    keys = ["rollout.max_turns=3", f"evaluate.final_answer={str(final_answer).lower()}"]
    engines: list[ScriptedEngine] = []

    def policy(sample: Sample, _: int) -> Sequence[str]:
        turns = [look(0, 4), look(4, 8), look(8, 12)]
        return [*turns, look(0, 2) if sample.id == "001-1" else say(sample.answer)] if final_answer else turns

    result = run(config_of(tmp_path, "videomme", *keys), policy, tmp_path / "out", engines)
    assert result is not None
    episodes = {episode.sample.id: episode for episode in engines[0].seen}
    observations = [turn.text for turn in episodes["001-2"].turns if turn.role == "user"][1:]
    assert [("Answer now" in text) for text in observations] == ([False, False, True] if final_answer else [False] * 2)
    assert result["values"]["mean/calls"] == (3.0 if final_answer else 2.0)
    assert result["values"]["accuracy"] == pytest.approx(5 / 6 if final_answer else 0.0)
    assert str(episodes["001-1"].stop_reason) == "turn_limit"


@pytest.mark.parametrize(
    ("kind", "shown"),
    [
        ("none", []),
        # Frames at 0, 1, .. 11 s: the line of 5.0 to 5.4 s is on screen at 5 s
        ("covering_frames", ["first & only", "a short line", "no font in two lines"]),
        ("all", ["first & only", "a short line", "no font in two lines"]),
        ("window", []),
    ],
)
def test_subtitles(kind: str, shown: list[str], tmp_path: Path, films: Films) -> None:
    videomme(tmp_path, films)
    engines: list[ScriptedEngine] = []
    config = config_of(tmp_path, "videomme", f"evaluate.subtitles={kind}")
    run(config, right_unless(), tmp_path / "out", engines)
    episodes = {episode.sample.id: episode for episode in engines[0].seen}
    assert len(episodes) == 6, "films without subtitles stay in the average"
    user = [turn.text for turn in episodes["001-1"].turns if turn.role == "user"]
    assert ("Subtitles of the video" in user[0]) == bool(shown)
    lines = [line for line in user[0].splitlines() if line.startswith("[")]
    assert [line.partition("] ")[2] for line in lines] == shown
    # The crop is of 4 to 8 seconds.
    assert ("a short line" in user[1], "first & only" in user[1]) == (kind == "window", False)
    without = [turn.text for turn in episodes["002-1"].turns if turn.role == "user"]
    assert not any("Subtitles" in text for text in without)


def test_covering_frames_are_those_of_the_overview(tmp_path: Path, films: Films) -> None:
    """Four frames at 0, 3.75, 7.75 and 11.75 seconds see no line but the last, which LongVideoBench leaves open."""
    LAYOUTS["longvideobench_json"][1](tmp_path, films)
    engines: list[ScriptedEngine] = []
    keys = ["evaluate.subtitles=covering_frames", "video.max_frames=4", "video.frame_policy=linspace"]
    run(config_of(tmp_path, "longvideobench", *keys), right_unless(), tmp_path / "out", engines)
    first = next(episode for episode in engines[0].seen if episode.sample.id == "film0_0")
    assert "late" in first.turns[1].text and "early" not in first.turns[1].text


def test_prompt_styles_and_their_hashes(tmp_path: Path, films: Films) -> None:
    videomme(tmp_path, films)
    hashes, texts = {}, {}
    for style in ("ours", "lmms", "vlmevalkit"):
        engines: list[ScriptedEngine] = []
        keys = [f"evaluate.prompt_style={style}", "evaluate.mode=direct", "prompt.style=full"]
        result = run(
            config_of(tmp_path, "videomme", *keys), lambda sample, _: [sample.answer], tmp_path / style, engines
        )
        assert result is not None
        hashes[style] = result["prompt_hash"]
        texts[style] = [turn.text for turn in engines[0].seen[0].turns if turn.role in ("system", "user")]
    assert len(set(hashes.values())) == 3
    assert texts["lmms"][0] == "You are a helpful assistant."
    assert "based on the video and the subtitles" in texts["lmms"][1], "the harness says so without subtitles too"
    assert texts["lmms"][1].endswith("\nA. red\nB. green\nC. blue\nD. black\nThe best answer is:")
    assert texts["vlmevalkit"][1].endswith("D. black\nAnswer: ")
    assert result["values"]["mean/right_parity"] == 5 / 6, "VLMEvalKit reads no E"
    assert "Options:\nA. red" in texts["ours"][1] and "Reply with the answer alone" in texts["ours"][0]
    LAYOUTS["lvbench_meta"][1](tmp_path, films)
    config = config_of(tmp_path, "lvbench", "evaluate.prompt_style=vlmevalkit")
    with pytest.raises(UsageError, match="task lvbench has ours, lmms for questions with options"):
        run(config, right_unless(), tmp_path / "no")


def test_swapped_crops_show_other_frames_under_the_same_words(tmp_path: Path, films: Films) -> None:
    """The scripted model is right only if its crop shows second 5: swapped crops cost all of its accuracy."""
    videomme(tmp_path, films)
    engines: list[ScriptedEngine] = []
    keys = ["evaluate.evidence=swap", "evaluate.papers=true"]
    config = config_of(tmp_path, "videomme", *keys)

    class Looking(ScriptedEngine):
        def _play(self, sample: Sample, index: int) -> Any:
            builder = self.environment.open(sample)
            self.environment.respond(builder, builder.assistant_text(look(4, 8)))
            saw = any(4 <= seconds < 8 for seconds in builder.clips[1].frame_seconds)
            self.environment.respond(builder, builder.assistant_text(say(sample.answer if saw else "A")))
            self.seen.append(builder.finish(StopReason.ANSWERED))
            return self.seen[-1]

    def model() -> Model:
        made = scripted(config, lambda sample, index: [])
        return Model(made.environment, lambda changed: engines.append(Looking(changed, made.engine)) or engines[-1])

    (result,) = evaluate_tasks(config, MODEL, model, tmp_path / "out")
    assert result["necessity"] == {"accuracy_swapped": 0.0, "drop": 1.0}
    plain, swapped = (engine.seen[0] for engine in engines)
    assert [turn.text for turn in swapped.turns[:4]] == [turn.text for turn in plain.turns[:4]]
    assert swapped.clips[1].frame_seconds != plain.clips[1].frame_seconds
    assert result["values"]["accuracy"] == 1.0


def test_a_judge_scores_open_answers_only_and_once(tmp_path: Path, films: Films) -> None:
    """Six open answers: one has the key's words, and the judge gives 0.5 to the others; its faults are counted."""
    LAYOUTS["videosiah"][1](tmp_path, films)

    def grade(body: dict[str, Any]) -> str:
        answer = json.loads(body["messages"][1]["content"])["answer"]
        return '{"reason": "a part", "score": 0.5}' if answer != "nonsense" else "I cannot say."

    replies = ["A dog barks.", "Some dog.", "Some dog.", "", "nonsense", "A dog, barking"]
    policy: Policy = lambda sample, _: [replies[int(sample.id.rpartition("-")[2]) - 1]]  # noqa: E731
    with serving(grade) as server:
        keys = [
            "evaluate.mode=direct",
            "evaluate.judge=grader",
            f"evaluate.judge_endpoint={server.url}",
            "evaluate.judge_api_key_env=null",
        ]
        config = config_of(tmp_path, "videosiah", *keys)
        result = run(config, policy, tmp_path / "out")
        assert result is not None
        asked = len(server.calls)
        (file,) = (tmp_path / "out").glob("*/*/videosiah/answers.jsonl")
        file.unlink()
        (file.parent / "results.json").unlink()
        again = run(config, policy, tmp_path / "out")
        assert again is not None and len(server.calls) == asked == 4, "no answer is judged twice"
    values = result["values"]
    assert values["accuracy"] == pytest.approx((1 + 3 * 0.5) / 6) == again["values"]["accuracy"]
    assert [values[f"num_{status}"] for status in ("answered", "unanswered", "judge_error")] == [4, 1, 1]
    assert result["reasons"] == {"empty": 1, "equal_words": 1, "judged": 3, "unreadable": 1}
    assert result["judge_prompt_hash"]


@pytest.mark.parametrize("window", [(0.0, 4.0), (10.0, 14.0), (26.0, 30.0), (3.0, 20.0), (5.0, 28.0), (0.0, 30.0)])
def test_a_swap_avoids_the_asked_window(window: tuple[float, float]) -> None:
    """As many seconds elsewhere in a film of 30 seconds, or as far away as the film allows; the seed chooses."""
    clips = [Clip(f"{name}.mp4", *window, (window[0], window[1] - 1), 28, 28, 1.0) for name in "abcdefgh"]
    shifts = [swap_seconds(clip, 30.0, seed=0) for clip in clips]
    moved = [(window[0] + shift, window[1] + shift) for shift in shifts]
    assert all(start >= -1e-9 and end <= 30 + 1e-9 for start, end in moved)
    if window[1] - window[0] < 12:
        assert all(end <= window[0] + 1e-9 or start >= window[1] - 1e-9 for start, end in moved)
        assert len(set(shifts)) == len(shifts)
        assert swap_seconds(clips[0], 30.0, seed=1) != shifts[0] == swap_seconds(clips[0], 30.0, seed=0)
    else:
        assert len(set(moved)) == 1 and 0.0 in (moved[0][0], 30.0 - moved[0][1])


def test_a_draw_without_a_film_is_refused(tmp_path: Path, films: Films) -> None:
    LAYOUTS["videosiah"][1](tmp_path, films)
    seeds = [seed for seed in range(40) if np.random.default_rng(seed).permutation(7)[0] == 6]
    config = config_of(tmp_path, "videosiah", "evaluate.limit=1", f"seed={seeds[0]}")
    with pytest.raises(UsageError, match="evaluate.limit=1 drew only rows with a missing film"):
        run(config, right_unless(), tmp_path / "out")


@pytest.mark.parametrize(
    ("keys", "sentence"),
    [
        (
            ["evaluate.mode=think", "evaluate.evidence=swap"],
            "evaluate.evidence=swap acts on crops; evaluate.mode=think",
        ),
        (["evaluate.mode=direct", "evaluate.final_answer=true"], "evaluate.final_answer=true acts on crops"),
        (["evaluate.mode=direct", "evaluate.subtitles=window"], "evaluate.subtitles=window acts on crops"),
        (["evaluate.shard=4/3"], "evaluate.shard must be INDEX/COUNT with 1 <= INDEX <= COUNT, such as 1/3, got '4/3'"),
        (
            ["evaluate.judge=m", "evaluate.judge_api_key_env=NO_KEY"],
            "evaluate.judge=m: environment variable NO_KEY holds",
        ),
        (["evaluate.judge=m", "evaluate.judge_endpoint=judge"], "endpoint must be a URL .*; evaluate.judge_endpoint"),
        (["evaluate.tasks=[videosiah, videosiah]"], "evaluate.tasks names a task twice: videosiah, videosiah"),
    ],
)
def test_wrong_keys_are_refused_before_any_row_is_read(keys: list[str], sentence: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=sentence):
        run(config_of(tmp_path, "videosiah", *keys), right_unless(), tmp_path / "out")


@pytest.mark.parametrize("argument", ["tasks=[videomme]", "tasks=[videomne]", "shard=4/3"])
def test_the_command_refuses_before_it_makes_a_folder(
    argument: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError):
        evaluate.main(["tasks=[clueworld]", argument])
    assert list(tmp_path.iterdir()) == []


def test_results_of_other_questions_are_never_overwritten(tmp_path: Path, films: Films) -> None:
    videomme(tmp_path, films, file="test.jsonl")
    config = config_of(tmp_path, "videomme")
    run(config, right_unless(), tmp_path / "out")
    path = tmp_path / "Video-MME/test.jsonl"
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:4]))
    with pytest.raises(UsageError, match="results.json is of other questions of a task videomme"):
        run(config, right_unless(), tmp_path / "out")


@pytest.mark.parametrize("kind", ["all", "window", "covering_frames"])
def test_broken_subtitles_are_errors_of_their_film_only(kind: str, tmp_path: Path, films: Films) -> None:
    videomme(tmp_path, films)
    (tmp_path / "Video-MME/subtitle/ytshort.srt").write_text("no subtitles")
    result = run(config_of(tmp_path, "videomme", f"evaluate.subtitles={kind}"), right_unless(), tmp_path / "out")
    assert result is not None
    assert result["reasons"] == {"letter": 4, "unreadable_film_or_subtitles": 2}
    assert result["values"]["accuracy"] == pytest.approx(4 / 6)
