"""The tables of finished runs: one row for runs that differ in their seed only, and runs paired on their questions."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from videoseek.compare import choose_runs, main
from videoseek.config import UsageError
from videoseek.evaluation.metrics import film_interval
from videoseek.evaluation.paired import Verdict, compare_verdicts, mcnemar
from videoseek.trajectory_record import RecordedTurn, TrajectoryRecord
from videoseek.types import Clip, Sample

COLUMNS = ("accuracy", "accuracy_tool", "accuracy_greedy_tool", "clue_iou", "calls_per_episode", "format")


def finished(folder: Path, config: str, accuracy: float, right: str = "", model: str = "sft") -> str:
    """Writes a run. `right` has a mark for each question, + for right; two questions share a film."""
    (folder / "trajectories").mkdir(parents=True)
    (folder / "config.yaml").write_text(f"output_dir: {folder}\nrecipe: {folder.name}\n{config}")
    scores = {f"{column}/{model}": accuracy for column in COLUMNS}
    (folder / "summary.json").write_text(json.dumps({"wall_seconds": len(folder.name), "recipe": folder.name} | scores))
    lines = []
    for index, mark in enumerate(right):
        sample = Sample(f"q{index}", f"f{index // 2}.mp4", "What?", "A", "clue_single_w_tool", ("x", "y"))
        clip = Clip(sample.video, 0.0, 4.0, (1.0, 3.0), 56, 56, 0.5)
        turns = (RecordedTurn("user", "What?", 3), RecordedTurn("assistant", "A", 4))
        rewards = {"accuracy": float(mark == "+")}
        lines.append(TrajectoryRecord(sample, "A", turns, (), (clip,), rewards, (), "answered", 1, ()).to_json())
    if right:
        (folder / f"trajectories/greedy_{model}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return str(folder)


def test_runs_that_differ_in_seed_form_a_row(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    runs = [
        finished(tmp_path / "a", "seed: 1\nsft: {steps: 7, rate: 1}\n", 0.2),
        finished(tmp_path / "b", "seed: 2\nsft: {steps: 7, rate: 1}\n", 0.4),
        finished(tmp_path / "steps=9", "seed: 1\nsft: {steps: 9, rate: 1}\n", 0.5),
    ]
    main(runs)
    header, _, several, one = capsys.readouterr().out.splitlines()[:4]
    assert header.startswith("| sft.steps | model | seeds | accuracy_tool |")
    assert several == f"| 7 | sft | 2 | {' | '.join(['0.300 ± 0.141'] * 5)} |"
    assert one == f"| 9 | sft | 1 | {' | '.join(['0.500'] * 5)} |"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "no folder was given; usage: python -m videoseek.compare"),
        (["--markdown"], "unknown flag '--markdown'"),
        (["/nowhere"], "/nowhere holds no finished run"),
    ],
)
def test_wrong_usage(arguments: list[str], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        main(arguments)


def test_only_finished_runs_with_distinct_seeds_count(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first = finished(tmp_path / "a", "seed: 1\nsft: {steps: 7}\n", 0.2)
    copy = finished(tmp_path / "copy", "seed: 1\nsft: {steps: 7}\n", 0.2)
    other = finished(tmp_path / "other", "seed: 1\nsft: {steps: 7}\n", 0.3)
    aside = finished(tmp_path / "a.old-1", "seed: 2\nsft: {steps: 7}\n", 0.9)
    (tmp_path / "empty").mkdir()
    main([first, copy, other, aside, str(tmp_path / "empty")])
    out, err = capsys.readouterr()
    assert out.splitlines()[2] == f"| sft | 1 | {' | '.join(['0.200'] * 5)} |" and "±" not in out
    assert f"{copy} repeats seed 1 of {first}: it is a copy, with equal scores" in err
    assert f"{other} repeats seed 1 of {first}: but its scores differ" in err
    assert f"{aside} was set aside" in err and "empty holds no finished run (no config.yaml)" in err
    renamed = finished(tmp_path / "renamed", "seed: 5\nsft: {steps: 7}\n", 0.2)
    runs, problems = choose_runs([Path(first), Path(renamed)])
    assert len(runs) == 2 and problems == [f"{renamed} has every score of {first} under another seed; is it a copy?"]
    with pytest.raises(UsageError, match="was set aside by a later run"):
        choose_runs([Path(aside)])


def test_lists_and_models_of_one_run_only_are_shown(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first = finished(tmp_path / "a", "model: m\ndata: {eval: [x, y]}\n", 0.2)
    main([first, finished(tmp_path / "b", "model: n\ndata: {eval: [x]}\n", 0.3, model="final")])
    header, _, *rows = capsys.readouterr().out.splitlines()
    assert header.startswith("| data.eval | start model | model | seeds |")
    assert rows[0].startswith("| x | n | final | 1 |") and rows[1].startswith("| x, y | m | sft | 1 |")


def test_runs_are_paired_on_their_questions(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Seven common questions: one is lost, four are gained; p = 2 * (1 + 5) / 32."""
    first = finished(tmp_path / "first", "seed: 0\nlr: 1\n", 0.2, "+-----+--")
    second = finished(tmp_path / "second", "seed: 0\nlr: 2\n", 0.3, "-++++-+", model="final")
    page = tmp_path / "page.html"
    main([first, second, f"out={page}"])
    out, err = capsys.readouterr()
    changes = [-1.0, 1.0, 1.0, 1.0, 1.0, 0.0, 0.0]
    low, high = film_interval(changes, ["0", "0", "1", "1", "2", "2", "3"])
    name = "second final - first sft"
    row = f"| {name} | 7 | 4 | 2 | 0.714 | 0.286 | +0.429 [{low:+.3f}, {high:+.3f}] | 4 | 1 | 0.375 |"
    assert err == "" and row in out
    assert f"{name}, gained: q1, q2, q3, q4" in out and f"{name}, lost: q0" in out
    text = page.read_text()
    assert text.count('class="whisker"') == 1 and "q1, q2, q3, q4" in text and name in text and "+0.429" in text


def test_a_run_is_paired_with_its_own_seed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    names = ("a0", "a1", "b0", "b1")
    main([finished(tmp_path / n, f"seed: {n[1]}\nlr: {n[0]}\n", 0.2, "+-+-") for n in names])
    pairs = [line.split(" | ")[0] for line in capsys.readouterr().out.splitlines() if " - " in line]
    assert pairs == ["| a1 sft - a0 sft", "| b0 sft - a0 sft", "| b1 sft - a1 sft"]


def test_runs_without_greedy_episodes_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    runs = [finished(tmp_path / "a", "lr: 1\n", 0.2, "+"), finished(tmp_path / "b", "lr: 2\n", 0.2)]
    main(runs)
    assert f"{runs[1]}/trajectories/greedy_sft.jsonl is missing" in capsys.readouterr().err
    with pytest.raises(UsageError, match="is not written, since no two runs have a pair"):
        main([*runs, f"out={tmp_path / 'page.html'}"])


def test_a_line_separator_in_a_reply_is_no_end_of_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Trajectories keep such characters as they are."""
    runs = [finished(tmp_path / name, f"lr: {name}\n", 0.2, "+-") for name in "ab"]
    path = tmp_path / "b/trajectories/greedy_sft.jsonl"
    path.write_text(path.read_text().replace("What?", "What\u2028is\x85it?"))
    main(runs)
    assert "no question in common" in capsys.readouterr().err


@pytest.mark.parametrize(("name", "text"), [("summary.json", "{"), ("summary.json", "[]"), ("config.yaml", "a: [")])
def test_a_damaged_run_is_named(name: str, text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    runs = [finished(tmp_path / folder, f"lr: {folder}\n", 0.2) for folder in "ab"]
    (tmp_path / "b" / name).write_text(text)
    main(runs)
    assert f"b/{name} is not of a finished run: " in capsys.readouterr().err


def test_mcnemar_is_the_exact_binomial_test() -> None:
    assert [mcnemar(*counts) for counts in ((0, 0), (1, 1), (1, 5), (5, 1), (0, 6))] == [1, 1, 0.21875, 0.21875, 1 / 32]
    assert mcnemar(400, 600) < 1e-9


def test_questions_of_one_run_only_do_not_count() -> None:
    first = {("a", "?"): Verdict("f", True), ("b", "?"): Verdict("g", True)}
    found = compare_verdicts(first, {("a", "?"): Verdict("f", False), ("b", "other"): Verdict("g", True)})
    assert found is not None and (found.num_questions, found.num_unshared, found.lost) == (1, 2, ["a"])
    assert compare_verdicts(first, {}) is None
