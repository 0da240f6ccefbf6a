"""Progress as lines of a log, as a bar of a terminal, and on one rank only."""

from __future__ import annotations

import time

import pytest

from videoseek.runtime import Progress


def test_progress_without_a_terminal_is_a_few_lines(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    with Progress("sft", total=300, every_seconds=5.0) as progress:
        for step in range(1, 301):
            now[0] += 1.0
            progress.update(step, {"loss": 1 / step})
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 61
    assert lines[0] == "sft 1/300  loss 1  4:59 left"
    assert lines[-1] == "sft 300/300  loss 0.003333  0:00 left"


def test_progress_after_a_resume_reckons_from_there(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    with Progress("grpo", total=40, first_step=30) as progress:
        now[0] = 2.0
        progress.update(31, {"reward": 1.5})
    assert capsys.readouterr().err == "grpo 31/40  reward 1.5  0:18 left\n"


def test_progress_on_a_terminal_is_a_bar(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "100")
    with Progress("sft", total=4) as progress:
        for step in range(1, 5):
            progress.update(step, {"loss": 0.25})
    shown = capsys.readouterr().err
    assert "4/4" in shown and "loss 0.25" in shown and "sft" in shown


def test_progress_of_other_ranks_is_silent(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "1")
    with Progress("sft", total=1) as progress:
        progress.update(1, {})
    assert capsys.readouterr().err == ""
