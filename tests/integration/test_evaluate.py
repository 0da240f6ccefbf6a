"""Scores and asks a model of a finished run with the run's own settings."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
from support.benchmarks import Films, videomme
from support.commands import run, start, stop

from videoseek.config_merge import config_yaml, load_config
from videoseek.files import shipped_folder

EVALUATE = [sys.executable, "-m", "videoseek.evaluate"]
LINE = (
    "id film prompt_hash groups seconds status text extracted reason right stop calls turns tokens new_tokens windows"
)
ASK = [sys.executable, "-m", "videoseek.ask"]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Returns a run's folder with the commands' input: the configuration, and the base in place of final weights."""
    folder = tmp_path_factory.mktemp("run")
    keys = [
        "evaluate.num_questions=4",
        "evaluate.samples=2",
        "data.eval=[clueworld:8]",
        "rollout.max_new_tokens_per_turn=12",
    ]
    config = load_config(["recipe=sft_rl", *keys, f"output_dir={folder}"])
    (folder / "config.yaml").write_text(config_yaml(config))
    (folder / "final").symlink_to(shipped_folder("tiny_base", "data/tiny_base"))
    return folder


def test_evaluate_scores_and_leaves_the_run_as_it_was(finished: Path, output_dir: Path) -> None:
    before = (finished / "config.yaml").read_bytes()
    said = run([f"model={finished / 'final'}", f"output_dir={output_dir}"], launcher=EVALUATE)
    assert f"settings of {finished / 'config.yaml'}" in said
    summary = json.loads((output_dir / "summary.json").read_text())
    assert {"accuracy/final", "accuracy_greedy/final", "clue_iou/final", "chance", "wall_seconds"} <= summary.keys()
    episodes = (output_dir / "trajectories/eval_final.jsonl").read_text().splitlines()
    assert len(episodes) == 4 * 2
    assert "Episodes" in (output_dir / "report.html").read_text()
    assert (finished / "config.yaml").read_bytes() == before
    assert not (finished / "summary.json").exists()

    video = json.loads(episodes[0])["video"]
    page = output_dir / "answer.html"
    asked = [video, "Is a <red> card shown?", "options=[yes, no]", f"model={finished / 'final'}", f"out={page}"]
    said = run(asked, launcher=ASK)
    lines = said.splitlines()
    assert lines[1] == "overview  0.0 to 32.0 s: 16 frames of 28 x 28 px, 8 tokens"
    assert lines[2].startswith("turn 1    ") and lines[-1].startswith("answer    ")
    assert "Is a &lt;red&gt; card shown?" in page.read_text() and "data:image/" in page.read_text()


def test_evaluate_dry_run_checks_and_writes_nothing(finished: Path, output_dir: Path) -> None:
    said = run([f"model={finished / 'final'}", f"output_dir={output_dir}", "--dry-run"], launcher=EVALUATE)
    assert "4 questions are in order" in said
    assert list(output_dir.iterdir()) == []


def test_refusals(finished: Path, output_dir: Path) -> None:
    said = run([f"model={finished}", f"output_dir={output_dir}", "recipe=sft_rl"], code=1, launcher=EVALUATE)
    assert f"videoseek: model {str(finished)!r}: no config.json in" in said
    said = run(["gone.mp4", "Where?", f"model={finished / 'final'}"], code=1, launcher=ASK)
    assert said.splitlines()[-1] == "videoseek: 'gone.mp4' does not exist or cannot be reached."


@pytest.fixture(scope="module")
def benchmarks(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Returns the arguments for Video-MME and the clue world: the tiny model, one turn of twelve tokens."""
    root = tmp_path_factory.mktemp("benchmarks")
    videomme(root, Films(root))
    keys = [f"data_root={root}", "rollout.max_new_tokens_per_turn=12", "rollout.max_turns=2", "limit=4"]
    return ["model=tiny", "recipe=sft_rl", "tasks=[videomme, clueworld:6]", "questions_per_batch=1", *keys]


def answers(output_dir: Path) -> dict[str, list[dict[str, Any]]]:
    """Returns the lines of each task without their times."""
    files = sorted(output_dir.glob("tiny/tool-*/*/answers.jsonl"))
    lines = {path.parent.name: [json.loads(line) for line in path.read_text().splitlines()] for path in files}
    return {task: [{**line, "seconds": 0} for line in of_task] for task, of_task in lines.items()}


def test_benchmarks_by_the_command(benchmarks: list[str], tmp_path: Path) -> None:
    """The papers' rows below the model's own, a call that adds nothing, and a killed run with the same answers."""
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    said = run([*benchmarks, f"output_dir={whole}", "papers=true"], launcher=EVALUATE)
    assert "videomme: 4 of 7 questions" in said and "clueworld_6: 4 of 6 questions" in said
    assert "1  missing_film" in said and "1  bad_key" in said
    assert "| videomme | tool | 4 of 7 | accuracy |" in said and "Video-o3-7B (SFT and RL) | 66.5 | - |" in said
    results = json.loads(next(whole.glob("tiny/tool-*/clueworld_6/results.json")).read_text())
    assert results["settings"]["video"] and results["environment"]["versions"]["torch"]
    assert "tool: 0.5 fps, at most" in results["protocol"] and results["prompt_hash"] in results["protocol"]
    lines = answers(whole)["clueworld_6"]
    assert [set(line) for line in lines] == [{*LINE.split(), "windows", "clue_recall", "clue_iou"}] * 4
    assert all(line["text"] for line in lines)

    before = {path: path.stat().st_mtime_ns for path in whole.rglob("*")}
    said = run([*benchmarks, f"output_dir={whole}"], launcher=EVALUATE)
    assert said.count("questions are answered already; nothing was added") == 2
    assert {path: path.stat().st_mtime_ns for path in whole.rglob("*")} == before

    process = start([*benchmarks, f"output_dir={killed}"], launcher=EVALUATE)
    stop(process, lambda: any(path.stat().st_size for path in killed.glob("tiny/*/videomme/answers.jsonl")))
    run([*benchmarks, f"output_dir={killed}"], launcher=EVALUATE)
    assert answers(killed) == answers(whole)


def test_benchmarks_dry_run_counts_and_asks_nothing(benchmarks: list[str], output_dir: Path) -> None:
    said = run([*benchmarks, f"output_dir={output_dir}", "--dry-run"], launcher=EVALUATE)
    assert "videomme: 4 of 7 questions" in said
    assert list(output_dir.iterdir()) == []
