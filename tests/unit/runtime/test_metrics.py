"""A metrics log that survives kills: every written step stays, and a resumed run repeats none."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from videoseek.config import TrainConfig
from videoseek.metrics import MetricsLog, RunError, read_metrics
from videoseek.trackers import open_trackers

SRC = Path(__file__).parents[3] / "src"
STAGES = ["direct", "sft", "grpo"]


def positions(folder: Path) -> list[tuple[str, int]]:
    return [(row["stage"], row["step"]) for row in read_metrics(folder / "metrics.jsonl")]


def write_steps(log: MetricsLog, stage: str, steps: range) -> None:
    for step in steps:
        log.write(stage, step, {"loss": 1.0 / step})


def test_rows_hold_stage_step_and_numbers(tmp_path: Path) -> None:
    log = MetricsLog(tmp_path, STAGES)
    log.write("sft", 1, {"loss": torch.tensor(0.5), "tokens": 3, "kl": float("nan"), "gap": float("inf")})
    log.close()
    (row,) = read_metrics(tmp_path / "metrics.jsonl")
    assert row == {"stage": "sft", "step": 1, "loss": 0.5, "tokens": 3.0, "kl": None, "gap": None}


def test_a_fresh_run_starts_empty(tmp_path: Path) -> None:
    for _ in range(2):
        log = MetricsLog(tmp_path, STAGES)
        write_steps(log, "sft", range(1, 3))
        log.close()
    assert positions(tmp_path) == [("sft", 1), ("sft", 2)]


@pytest.mark.parametrize(
    ("resume", "kept"),
    [
        (("direct", 0), []),
        (("direct", 2), [("direct", 1), ("direct", 2)]),
        (("sft", 0), [("direct", 1), ("direct", 2)]),
        (("sft", 1), [("direct", 1), ("direct", 2), ("sft", 1)]),
        (("grpo", 9), [("direct", 1), ("direct", 2), ("sft", 1), ("sft", 2), ("grpo", 1)]),
    ],
    ids=str,
)
def test_resume_drops_what_will_be_made_again(
    tmp_path: Path, resume: tuple[str, int], kept: list[tuple[str, int]]
) -> None:
    log = MetricsLog(tmp_path, STAGES)
    write_steps(log, "direct", range(1, 3))
    write_steps(log, "sft", range(1, 3))
    write_steps(log, "grpo", range(1, 2))
    log.close()
    MetricsLog(tmp_path, STAGES, resume).close()
    assert positions(tmp_path) == kept


@pytest.mark.parametrize("tail", [b'{"stage": "sft", "st', b"\xc3", b'{"stage": "sft", "step": 3}'])
def test_a_torn_last_line_is_dropped(tmp_path: Path, tail: bytes) -> None:
    log = MetricsLog(tmp_path, STAGES)
    write_steps(log, "sft", range(1, 3))
    log.close()
    with (tmp_path / "metrics.jsonl").open("ab") as file:
        file.write(tail)
    assert positions(tmp_path) == [("sft", 1), ("sft", 2)]
    log = MetricsLog(tmp_path, STAGES, ("sft", 2))
    write_steps(log, "sft", range(3, 4))
    log.close()
    assert positions(tmp_path) == [("sft", 1), ("sft", 2), ("sft", 3)]


def test_a_broken_line_inside_is_named(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text('{"stage": "sft", "step": 1}\noops\n')
    with pytest.raises(RunError, match=r"metrics\.jsonl line 2 is not JSON"):
        read_metrics(tmp_path / "metrics.jsonl")


def test_missing_log_gives_no_rows(tmp_path: Path) -> None:
    assert read_metrics(tmp_path / "metrics.jsonl") == []


WRITER = """
import itertools, sys
from pathlib import Path
from videoseek.config import TrainConfig
from videoseek.metrics import MetricsLog
log = MetricsLog(Path(sys.argv[1]), ["sft"])
for step in itertools.count(1):
    log.write("sft", step, {"loss": 1.0 / step})
    print(step, flush=True)
"""


def test_kill_loses_no_written_step(tmp_path: Path) -> None:
    command = [sys.executable, "-c", WRITER, str(tmp_path)]
    with subprocess.Popen(command, env={**os.environ, "PYTHONPATH": str(SRC)}, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        told = [int(process.stdout.readline()) for _ in range(20)]
        process.kill()
    steps = [step for _, step in positions(tmp_path)]
    assert len(steps) >= told[-1] == 20
    assert steps == list(range(1, len(steps) + 1))


def test_other_ranks_write_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "1")
    log = MetricsLog(tmp_path, STAGES, trackers=open_trackers(TrainConfig(), tmp_path))
    write_steps(log, "sft", range(1, 3))
    log.close()
    assert list(tmp_path.iterdir()) == []


def test_tensorboard_shows_each_step_once_after_a_resume(tmp_path: Path) -> None:
    config = TrainConfig()
    log = MetricsLog(tmp_path, STAGES, trackers=open_trackers(config, tmp_path))
    write_steps(log, "sft", range(1, 6))
    log.close()
    log = MetricsLog(tmp_path, STAGES, ("sft", 3), open_trackers(config, tmp_path, ("sft", 3)))
    write_steps(log, "sft", range(4, 8))
    write_steps(log, "grpo", range(1, 3))
    log.close()
    shown = {}
    for stage in ("sft", "grpo"):
        events = EventAccumulator(str(tmp_path / "tensorboard" / stage)).Reload()
        shown[stage] = [event.step for event in events.Scalars("loss")]
    assert shown == {"sft": [1, 2, 3, 4, 5, 6, 7], "grpo": [1, 2]}
