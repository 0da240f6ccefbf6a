"""Every set in its released layouts becomes the questions that stand in its files."""

from __future__ import annotations

import builtins
from pathlib import Path
from typing import Any

import pytest
from support.benchmarks import FOUR, LAYOUTS, Films, videomme, write_rows

from videoseek.config import TrainConfig, UsageError
from videoseek.config_merge import load_config
from videoseek.evaluation.tasks import TASKS, find_task
from videoseek.evaluation.tasks.lvbench import time_reference
from videoseek.evaluation.tasks.task import Loaded, multiple_choice, split_options, strip_letters
from videoseek.samples.schema import DataError, RecordError

#: Layout -> letter or text of all keys, and the clues or subtitles of the first question.
KEYS = {
    "videomme": "BBBBBE",
    "videomme_v2": "H" * 12,
    "mlvu_json": "B" * 6,
    "mlvu_flat": "B" * 6,
    "lvbench_meta": "B" * 6,
    "lvbench_flat": "B" * 6,
    "longvideobench_json": "B" * 6,
    "longvideobench_table": "B" * 6,
    "video_holmes": "F" * 7,
}


@pytest.fixture(scope="module")
def films(tmp_path_factory: pytest.TempPathFactory) -> Films:
    return Films(tmp_path_factory.mktemp("films"))


def config_of(root: Path, *keys: str) -> TrainConfig:
    return load_config(["recipe=sft_rl", f"evaluate.data_root={root}", *keys])


def load(layout: str, root: Path, films: Films) -> Loaded:
    task, write, _ = LAYOUTS[layout]
    write(root, films)
    return TASKS[task].load(config_of(root))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_released_layout_is_read_whole(layout: str, tmp_path: Path, films: Films) -> None:
    """The number of questions is counted; a missing film and a broken key are named, and nothing else is lost."""
    loaded = load(layout, tmp_path, films)
    assert len(loaded.questions) == LAYOUTS[layout][2]
    missing = 3 if layout.startswith("lvbench") else 1
    codes = sorted(problem.code for _, problem in loaded.problems)
    broken = "no_answer" if layout == "videosiah" else "bad_key"
    assert codes == sorted([broken] + ["missing_film"] * missing)
    assert len({question.sample.id for question in loaded.questions}) == len(loaded.questions)
    assert all(Path(question.sample.video).is_file() for question in loaded.questions)
    if layout in KEYS:
        assert "".join(question.sample.answer for question in loaded.questions) == KEYS[layout]
    for question in loaded.questions:
        assert not any(option.startswith(("A.", "(A)", "B.")) for option in question.sample.options)
        assert "(A)" not in question.sample.question


def test_groups_are_the_released_ones(tmp_path: Path, films: Films) -> None:
    def groups(layout: str, name: str) -> list[tuple[str, ...]]:
        loaded = load(layout, tmp_path / layout, films)
        return [question.groups[name] for question in loaded.questions]

    assert groups("videomme", "duration") == [(d,) for d in ("short", "medium", "long") for _ in range(2)]
    assert groups("mlvu_json", "task") == [("plotQA",)] * 4 + [("count",)] * 2
    assert groups("mlvu_flat", "task") == [("plotQA",)] * 4 + [("count",)] * 2
    assert groups("lvbench_meta", "category")[1] == ("entity recognition", "reasoning")
    assert groups("longvideobench_json", "duration_group") == [(g,) for g in ("15", "15", "60", "600", "3600", "3600")]
    assert set(groups("videommmu", "track")) == {("Perception",), ("Comprehension",), ("Adaptation",)}
    assert groups("videommmu", "subject")[:2] == [("Art_Theory",), ("Physics",)]
    assert groups("mmvu", "form") == [("choice",)] * 4 + [("open",)] * 2
    assert groups("video_holmes", "type") == [(t,) for t in ("SR", "IMC", "TCI", "TA", "MHR", "PAR", "CTI")]


def test_a_row_without_metadata_has_the_subject_of_its_folder(tmp_path: Path, films: Films) -> None:
    films.put(tmp_path / "videos/Art/0.mp4")
    row = {"id": "1", "video": "videos/Art/0.mp4", "question": "Which?", "question_type": "open-ended", "answer": "x"}
    write_rows(tmp_path / "rows.jsonl", [row])
    (question,) = TASKS["mmvu"].load(config_of(tmp_path)).questions
    assert question.groups["subject"] == ("Art",)


def test_a_field_of_another_type_is_a_problem_of_its_row(tmp_path: Path, films: Films) -> None:
    films.put(tmp_path / "videos/a.mp4")
    row = {"id": "1", "video_path": "a.mp4", "question": "Which?", "candidates": FOUR, "correct_choice": 1}
    row |= {"duration_group": 15, "question_category": "S2E"}
    write_rows(tmp_path / "rows.jsonl", [row, row | {"id": "2", "starting_timestamp_for_subtitles": "soon"}])
    loaded = TASKS["longvideobench"].load(config_of(tmp_path))
    assert [question.sample.id for question in loaded.questions] == ["1"]
    assert [(where, problem.code) for where, problem in loaded.problems] == [("rows-2", "bad_row")]


def test_evidence_and_subtitles_come_along(tmp_path: Path, films: Films) -> None:
    lvbench = load("lvbench_meta", tmp_path / "lv", films).questions
    assert [question.sample.clues for question in lvbench[:3]] == [((4.0, 8.0),), ((2.0, 4.0),), ()]
    long = load("longvideobench_json", tmp_path / "long", films).questions
    assert long[0].clue_frames == (16, 20)
    subtitles = long[0].subtitles
    assert subtitles is not None and (subtitles.start_seconds, subtitles.least_seconds) == (100.0, 1.0)
    assert [question.subtitles is not None for question in long] == [True, True, False, False, False, False]
    grounding = load("charades", tmp_path / "charades", films).questions
    assert [question.sample.clues[0] for question in grounding][3:] == [(4.0, 8.0), (1.0, 2.0), (6.0, 12.0)]
    adaptation = load("videommmu", tmp_path / "mmmu", films).questions
    hinted = ["last frame" in question.hint for question in adaptation]
    assert sum(hinted) == 2
    assert all(hint == ("Adaptation" in q.groups["track"]) for hint, q in zip(hinted, adaptation, strict=True))


def test_both_layouts_of_a_set_give_the_same_questions(tmp_path: Path, films: Films) -> None:
    for one, other in (("lvbench_meta", "lvbench_flat"), ("longvideobench_json", "longvideobench_table")):
        samples = [
            [
                (q.sample.id, q.sample.question, q.sample.options, q.sample.answer, q.sample.clues, q.groups)
                for q in questions
            ]
            for questions in (load(layout, tmp_path / layout, films).questions for layout in (one, other))
        ]
        assert samples[0] == samples[1]


def test_question_only_asks_adaptation_on_the_picture(tmp_path: Path, films: Films) -> None:
    load("videommmu", tmp_path, films)
    loaded = TASKS["videommmu_question_only"].load(config_of(tmp_path))
    assert [Path(q.sample.video).name for q in loaded.questions] == [
        "dev_Art_Theory_1_image.mp4",
        "validation_Physics_2_image.mp4",
    ]


def test_json_lines_serve_as_well_as_parquet(tmp_path: Path, films: Films, monkeypatch: pytest.MonkeyPatch) -> None:
    videomme(tmp_path / "lines", films, file="test.jsonl")
    assert len(TASKS["videomme"].load(config_of(tmp_path / "lines")).questions) == 6
    videomme(tmp_path / "parquet", films)
    real = builtins.__import__

    def without_pyarrow(name: str, *rest: Any) -> Any:
        if name.startswith("pyarrow"):
            raise ImportError(name)
        return real(name, *rest)

    monkeypatch.setattr(builtins, "__import__", without_pyarrow)
    with pytest.raises(DataError, match="needs pyarrow to be read"):
        TASKS["videomme"].load(config_of(tmp_path / "parquet"))


@pytest.mark.parametrize(
    ("key", "answer"),
    [("B", "B"), ("b", "B"), ("(B)", "B"), ("B.", "B"), ("green", "B"), (1, "B"), ("E", None), (4, None), (-1, None)]
    + [("purple", None), ("", None)],
)  # fmt: skip
def test_a_key_is_a_letter_a_text_or_an_index(key: str | int, answer: str | None) -> None:
    if answer is None:
        with pytest.raises(RecordError, match="names no single one of the 4 options"):
            multiple_choice("q", "film.mp4", "Which?", FOUR, key)
    else:
        assert multiple_choice("q", "film.mp4", "Which?", FOUR, key).sample.answer == answer


def test_a_key_that_fits_two_options_is_refused() -> None:
    """The letter B of one option, and the text of another."""
    with pytest.raises(RecordError, match="names no single one"):
        multiple_choice("q", "film.mp4", "Which?", ["B", "C", "D"], "B")


def test_letters_are_stripped_only_where_all_options_have_their_own() -> None:
    assert strip_letters(["A. red", "B. green"]) == ["red", "green"]
    assert strip_letters(["(A) red", "(B) green"]) == ["red", "green"]
    assert strip_letters(["A. red", "green"]) == ["A. red", "green"]
    assert strip_letters(["A.I. film", "B. cat"]) == ["I. film", "cat"]
    assert strip_letters(["B. Franklin", "A. Lincoln"]) == ["B. Franklin", "A. Lincoln"]


def test_options_inside_a_question() -> None:
    assert split_options("Who?\n(A) I\n(B) you") == ("Who?", ["I", "you"])
    assert split_options("A. Smith sings.\nWho?\nA. I\nB. you") == ("A. Smith sings.\nWho?", ["I", "you"])
    assert split_options("Who is B. Franklin?") == ("Who is B. Franklin?", [])


@pytest.mark.parametrize(
    ("text", "clues"),
    [("02:10-02:20", ((130.0, 140.0),)), ("1:02:03-1:02:05", ((3723.0, 3725.0),)), ("02:20-02:10", ()), ("", ())],
)
def test_time_reference(text: str, clues: tuple[tuple[float, float], ...]) -> None:
    assert time_reference(text) == clues


OWN = """
from videoseek.evaluation.tasks.task import Task, multiple_choice

def read(row):
    film = row.film(row.text("film"), "films")
    return multiple_choice(row.text("id"), film, "Which?", row.values["o"], row.text("k"))

TASK = Task(name="mine", citation="me", files=("mine.jsonl",), read=read)
NUMBER = 3
"""


def test_a_task_of_the_user(tmp_path: Path, films: Films) -> None:
    (tmp_path / "own.py").write_text(OWN)
    films.put(tmp_path / "films/a.mp4")
    write_rows(tmp_path / "mine.jsonl", [{"id": "1", "film": "a", "o": FOUR, "k": "C"}, {"id": "1", "film": "a"}])
    loaded = find_task(f"{tmp_path}/own.py:TASK").load(config_of(tmp_path))
    assert [question.sample.answer for question in loaded.questions] == ["C"]
    assert [problem.code for _, problem in loaded.problems] == ["bad_row"], "a row without options"
    with pytest.raises(UsageError, match=r"own.py:NUMBER is a int, no .*Task"):
        find_task(f"{tmp_path}/own.py:NUMBER")
    with pytest.raises(UsageError, match="there is no file"):
        find_task(f"{tmp_path}/none.py:TASK")


def test_sources_of_data_eval_are_tasks(tmp_path: Path) -> None:
    loaded = find_task("clueworld:6").load(config_of(tmp_path, "seed=3"))
    assert len(loaded.questions) == 6 and loaded.problems == []
    assert {kind for question in loaded.questions for kind in question.groups["kind"]} <= {
        q.sample.kind for q in loaded.questions
    }
    record = '{"id": "%s", "video": "%s", "kind": "clue_single_wo_tool", "question": "?", "answer": "A"}\n'
    film = loaded.questions[0].sample.video
    path = tmp_path / "mine.jsonl"
    path.write_text(record % ("a", film) + record % ("b", f"{film}.gone"))
    loaded = find_task(str(path)).load(config_of(tmp_path, "data.video_root=/"))
    assert [q.sample.id for q in loaded.questions] == ["a"]
    assert [problem.code for _, problem in loaded.problems] == ["missing_film"]


def test_refusals(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"task 'videomne' is none of videomme, .*clueworld"):
        find_task("videomne")
    with pytest.raises(UsageError, match=r"task mlvu needs evaluate.data_root=DIR"):
        TASKS["mlvu"].load(load_config(["recipe=sft_rl"]))
    with pytest.raises(UsageError, match=r"task mlvu: evaluate.data_root '.*' holds none of MLVU/json"):
        TASKS["mlvu"].load(config_of(tmp_path))
    write_rows(tmp_path / "test.jsonl", [{"video_path": "../secret.mp4", "question": "?", "answer": "x"}])
    with pytest.raises(DataError, match=r"none of 1 rows can be asked; test-1: the name '../secret.mp4' leaves"):
        TASKS["videosiah"].load(config_of(tmp_path))
