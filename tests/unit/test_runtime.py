"""Seeds, devices, the output folder, a metrics log that survives kills, and progress lines."""

from __future__ import annotations

import json
import os
import random
import re
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from videoseek import runtime
from videoseek.config import UsageError
from videoseek.metrics import MetricsLog, RunError, read_metrics
from videoseek.progress import Progress

SRC = Path(__file__).parents[2] / "src"
STAGES = ["direct", "sft", "grpo"]


def positions(folder: Path) -> list[tuple[str, int]]:
    return [(row["stage"], row["step"]) for row in read_metrics(folder / "metrics.jsonl")]


def write_steps(log: MetricsLog, stage: str, steps: range) -> None:
    for step in steps:
        log.write(stage, step, {"loss": 1.0 / step})


def test_seed_repeats_all_three_generators() -> None:
    def draw() -> tuple[float, float, float]:
        runtime.seed_everything(2**40 + 3)
        return random.random(), float(np.random.rand()), float(torch.rand(()))

    assert draw() == draw()


def test_ranks_come_from_the_launcher(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    assert (runtime.rank(), runtime.local_rank(), runtime.world_size()) == (0, 0, 1)
    monkeypatch.setenv("RANK", "9")
    monkeypatch.setenv("LOCAL_RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "16")
    assert (runtime.rank(), runtime.local_rank(), runtime.world_size()) == (9, 1, 16)


@pytest.mark.parametrize(
    ("name", "has_gpu", "device"),
    [("cpu", True, "cpu"), ("auto", False, "cpu"), ("auto", True, "cuda:3"), ("cuda", True, "cuda:3")],
)
def test_device_choice(monkeypatch: pytest.MonkeyPatch, name: str, has_gpu: bool, device: str) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: has_gpu)
    monkeypatch.setenv("LOCAL_RANK", "3")
    assert runtime.choose_device(name) == torch.device(device)


def test_cuda_without_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UsageError, match="device=cuda, but torch sees no GPU"):
        runtime.choose_device("cuda")


def test_dtype_choice() -> None:
    assert runtime.choose_dtype("bfloat16") is torch.bfloat16
    assert runtime.choose_dtype("float32") is torch.float32


def test_output_dir_is_made_and_left_empty(tmp_path: Path) -> None:
    folder = runtime.prepare_output_dir(tmp_path / "a/b")
    assert folder.is_dir()
    assert list(folder.iterdir()) == []


def test_output_dir_that_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("x")
    with pytest.raises(UsageError, match=r"output_dir .*taken cannot be written to"):
        runtime.prepare_output_dir(tmp_path / "taken")


def test_output_dir_that_takes_no_files() -> None:
    with pytest.raises(UsageError, match="output_dir /proc cannot be written to"):
        runtime.prepare_output_dir("/proc")


def test_json_is_replaced_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "summary.json"
    runtime.write_json(path, {"a": 1, "é": [None]})
    assert json.loads(path.read_text(encoding="utf-8")) == {"a": 1, "é": [None]}
    with pytest.raises(ValueError, match="Out of range"):
        runtime.write_json(path, {"a": float("nan")})
    with pytest.raises(TypeError):
        runtime.write_json(path, {"a": object()})
    assert json.loads(path.read_text(encoding="utf-8"))["a"] == 1
    assert [entry.name for entry in tmp_path.iterdir()] == ["summary.json"]


def test_disk_full_keeps_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "summary.json"
    runtime.write_json(path, 1)

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        runtime.write_json(path, 2)
    assert path.read_text() == "1\n"
    assert [entry.name for entry in tmp_path.iterdir()] == ["summary.json"]


def test_environment_report_is_json(tmp_path: Path) -> None:
    report = runtime.environment_report()
    runtime.write_json(tmp_path / "env.json", report)
    assert report["versions"]["torch"] == torch.__version__
    assert report["num_cpus"] >= 1 and report["memory_gib"] > 0
    assert report["revision"] is None or re.fullmatch(r"[0-9a-f]{40}(-dirty)?", report["revision"])


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


def test_no_log_no_rows(tmp_path: Path) -> None:
    assert read_metrics(tmp_path / "metrics.jsonl") == []


WRITER = """
import itertools, sys
from pathlib import Path
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
    log = MetricsLog(tmp_path, STAGES)
    write_steps(log, "sft", range(1, 3))
    log.close()
    assert list(tmp_path.iterdir()) == []


def test_tensorboard_shows_each_step_once_after_a_resume(tmp_path: Path) -> None:
    log = MetricsLog(tmp_path, STAGES)
    write_steps(log, "sft", range(1, 6))
    log.close()
    log = MetricsLog(tmp_path, STAGES, ("sft", 3))
    write_steps(log, "sft", range(4, 8))
    write_steps(log, "grpo", range(1, 3))
    log.close()
    shown = {}
    for stage in ("sft", "grpo"):
        events = EventAccumulator(str(tmp_path / "tensorboard" / stage)).Reload()
        shown[stage] = [event.step for event in events.Scalars("loss")]
    assert shown == {"sft": [1, 2, 3, 4, 5, 6, 7], "grpo": [1, 2]}


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
