"""A killed and resumed run ends like an uninterrupted run, bit for bit."""

from __future__ import annotations

import random
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from support.commands import numbers, reached, run, start, stop, summary, weights

from videoseek.checkpoint import complete_checkpoints

#: Every step of the run by stage, as `TINY` sets it.
STEPS = [(stage, step) for stage, steps in (("direct", 7), ("sft", 4), ("grpo", 3)) for step in range(1, steps + 1)]
ENDED_AT = {
    ("direct", 3): signal.SIGKILL,
    ("sft", 1): signal.SIGKILL,
    ("sft", 3): signal.SIGKILL,
    ("grpo", 1): signal.SIGKILL,
    ("grpo", 3): signal.SIGKILL,
}


def assert_same_run(output_dir: Path, uninterrupted: Path) -> None:
    assert [(row["stage"], row["step"]) for row in numbers(output_dir)] == STEPS
    assert numbers(output_dir) == numbers(uninterrupted)
    assert summary(output_dir) == summary(uninterrupted)
    for stage in ("direct", "sft", "grpo", "final"):
        mine, wanted = weights(output_dir / stage), weights(uninterrupted / stage)
        assert mine.keys() == wanted.keys()
        assert all(torch.equal(tensor, wanted[name]) for name, tensor in mine.items()), stage
    state = "last/state/rank-000.safetensors"
    assert (output_dir / state).read_bytes() == (uninterrupted / state).read_bytes()
    assert list(output_dir.rglob("*.partial-ranks*")) == []


def partial_checkpoint(output_dir: Path) -> Callable[[], bool]:
    return lambda: any(output_dir.glob("checkpoint-*.partial-*"))


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_killed_and_resumed_run_is_bit_equal(tiny: list[str], tmp_path: Path) -> None:
    """Kills a run again and again: at fixed steps, at a step drawn anew for each test, and within a save."""
    uninterrupted, output_dir = tmp_path / "uninterrupted", tmp_path / "killed"
    run([*tiny, f"output_dir={uninterrupted}"])
    again = [*tiny, f"output_dir={output_dir}", "resume=auto"]

    seed = random.SystemRandom().randrange(2**32)
    drawn = random.Random(seed).choice(STEPS[:-1])
    print(f"seed {seed}: killed at {drawn} too")  # shown when the test fails
    stop(start(again), partial_checkpoint(output_dir))
    for stage, step in sorted(ENDED_AT.keys() | {drawn}, key=STEPS.index):
        stop(start(again), reached(output_dir, stage, step), ENDED_AT.get((stage, step), signal.SIGKILL))
    assert not (output_dir / "summary.json").exists()
    run(again)
    assert_same_run(output_dir, uninterrupted)

    assert {folder.name for folder in output_dir.glob("checkpoint-*")} == {"checkpoint-11", "checkpoint-13"}
    before = (output_dir / "metrics.jsonl").read_bytes()
    run(again)  # of a finished run: scores and report only
    assert (output_dir / "metrics.jsonl").read_bytes() == before
    assert_same_run(output_dir, uninterrupted)


def test_resume_from_a_folder_goes_back_to_it(tiny: list[str], tmp_path: Path) -> None:
    """The run repeats the steps after the checkpoint, and keeps the stage before the checkpoint."""
    output_dir = tmp_path / "out"
    again = [*tiny, "stages=[sft,grpo]", "grpo.steps=4", "keep_checkpoints=9", f"output_dir={output_dir}"]
    run(again)
    wanted, scores, logged = weights(output_dir / "final"), summary(output_dir), numbers(output_dir)
    sft_made = (output_dir / "sft/model.safetensors").stat().st_mtime_ns
    for stale in ("checkpoint-8", "grpo"):
        (output_dir / stale / "model.safetensors").write_bytes(b"stale")
    (output_dir / "evaluation-grpo.json").write_text("{}")

    run([*again, f"resume={output_dir / 'checkpoint-6'}"])
    assert (output_dir / "sft/model.safetensors").stat().st_mtime_ns == sft_made
    assert all(torch.equal(tensor, wanted[name]) for name, tensor in weights(output_dir / "final").items())
    assert weights(output_dir / "checkpoint-8").keys() == wanted.keys()
    assert (summary(output_dir), numbers(output_dir)) == (scores, logged)


def test_folder_with_a_temporary_name_is_not_a_checkpoint(tmp_path: Path) -> None:
    """A kill between the marker and the renaming leaves a whole folder under a temporary name."""
    for name in (
        "checkpoint-12",
        "checkpoint-4",
        "checkpoint-16.partial-ranks",
        "checkpoint-8.partial-ranks-old",
        "checkpoint-20",
    ):
        (tmp_path / name).mkdir()
        if name != "checkpoint-20":
            (tmp_path / name / "complete").touch()
    assert [folder.name for folder in complete_checkpoints(tmp_path)] == ["checkpoint-4", "checkpoint-12"]
