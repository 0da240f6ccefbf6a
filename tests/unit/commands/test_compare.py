"""The table of finished runs: one row for runs that differ in their seed only."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from videoseek.compare import main
from videoseek.config import UsageError

COLUMNS = ("accuracy", "accuracy_tool", "accuracy_greedy_tool", "clue_iou", "calls_per_episode", "format")


def finished(folder: Path, config: str, accuracy: float) -> str:
    folder.mkdir()
    (folder / "config.yaml").write_text(f"output_dir: {folder}\n{config}")
    (folder / "summary.json").write_text(json.dumps({f"{column}/sft": accuracy for column in COLUMNS}))
    return str(folder)


def test_runs_that_differ_in_seed_form_a_row(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    runs = [
        finished(tmp_path / "a", "seed: 1\nsft: {steps: 7, rate: 1}\n", 0.2),
        finished(tmp_path / "b", "seed: 2\nsft: {steps: 7, rate: 1}\n", 0.4),
        finished(tmp_path / "steps=9", "seed: 1\nsft: {steps: 9, rate: 1}\n", 0.5),
    ]
    main(runs)
    header, _, several, one = capsys.readouterr().out.splitlines()
    assert header.startswith("| sft.steps | model | runs | accuracy_tool |")
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
