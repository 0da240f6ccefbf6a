"""The GPU script's bookkeeping, without a GPU: rows survive a kill, limits hold, results answer the goals."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from kernel_bench import measure, report, suite
from kernel_bench.contestants import Contestant, ours
from kernel_bench.measure import interleave
from kernel_bench.recording import run_steps
from videoseek_kernels.impl.hopper.forward import CANDIDATES as HOPPER_CANDIDATES
from videoseek_kernels.impl.hopper.forward import TILES
from videoseek_kernels.impl.triton.launch import CANDIDATES, TileConfig, tile_config

KERNELS = Path(__file__).parents[2] / "kernels"


def python(code: str, *arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", code, *arguments],
        env=os.environ | {"PYTHONPATH": str(KERNELS)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def wait_for(path: Path, num_rows: int) -> dict:
    """The file's content once its first step holds that many rows; a file that is not whole raises here."""
    for _ in range(2400):
        if path.exists():
            results = json.loads(path.read_text())
            if len(results["steps"]["first"]) >= num_rows:
                return results
        time.sleep(0.05)
    raise TimeoutError(path)


def test_rows_survive_a_kill(tmp_path: Path) -> None:
    code = """
import pathlib, sys, time
from kernel_bench.recording import run_steps
from videoseek_kernels.impl.triton.launch import CANDIDATES, TileConfig, tile_config
def first():
    for number in range(3):
        yield {"number": number}
    time.sleep(600)
run_steps({"first": first}, {"device": "none"}, pathlib.Path(sys.argv[1]))
"""
    path = tmp_path / "results" / "run.json"
    process = python(code, str(path))
    wait_for(path, 3)
    process.send_signal(signal.SIGKILL)
    process.wait()
    results = json.loads(path.read_text())
    assert results["steps"] == {"first": [{"number": 0}, {"number": 1}, {"number": 2}]}
    assert results["finished"] == [] and results["failures"] == {}
    assert [file.name for file in path.parent.iterdir()] == ["run.json"]


def test_steps_after_a_failed_one_still_run(tmp_path: Path) -> None:
    def raises() -> Iterator[dict]:
        yield {"case": 1}
        raise ValueError("broken")

    def has_a_failed_row() -> Iterator[dict]:
        yield {"case": 2, "failed": "over budget"}

    path = tmp_path / "run.json"
    steps = {"raises": raises, "row": has_a_failed_row, "last": lambda: iter([{"case": 3}])}
    assert not run_steps(steps, {}, path)
    results = json.loads(path.read_text())
    assert results["steps"]["raises"] == [{"case": 1}] and results["steps"]["last"] == [{"case": 3}]
    assert "ValueError: broken" in results["failures"]["raises"] and "1 of 1 rows" in results["failures"]["row"]
    assert results["finished"] == ["row", "last"]
    assert run_steps({"last": steps["last"]}, {}, None)


def test_an_error_of_one_mask_does_not_stop_the_next() -> None:
    def rows() -> Iterator[dict]:
        yield {"ms": 1}
        raise RuntimeError("out of memory\nmore")

    told = list(suite.guarded(rows(), {"mask": "turns"}))
    assert told == [{"ms": 1}, {"mask": "turns", "failed": "RuntimeError: out of memory"}]


def test_a_command_past_its_limit_is_killed_with_its_children(tmp_path: Path) -> None:
    marker = tmp_path / "alive"
    child = f"import time\ntime.sleep(3)\nopen({str(marker)!r}, 'w').close()"
    code = (
        "import os, run_on_gpu as r, sys\n"
        f"child = [sys.executable, '-c', {child!r}]\n"
        "parent = [sys.executable, '-c', f'import subprocess\\nsubprocess.run({child!r})']\n"
        "print(r.run_in_time(parent, dict(os.environ), 1))\n"
        "print(r.run_in_time([sys.executable, '-c', 'print(\"=== ERROR SUMMARY: 0 errors\")'], dict(os.environ), 60))\n"
        "print(r.run_in_time([sys.executable, '-c', 'raise SystemExit(3)'], dict(os.environ), 60))\n"
    )
    said, _ = python(code).communicate()
    timed_out, fine, bad = said.splitlines()[-3:]
    assert "not done after 1 s" in timed_out
    assert fine == "{'result': 'ERROR SUMMARY: 0 errors'}"
    assert "'failed': 'exit code 3" in bad
    time.sleep(3)
    assert not marker.exists()


@pytest.fixture
def fake_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """Timing without a GPU: a call takes as many milliseconds as it returns."""
    monkeypatch.setattr(measure, "_milliseconds", lambda call, flush: call())
    monkeypatch.setattr(measure, "_peak_bytes", lambda call: call() and 0)
    monkeypatch.setattr(measure, "WARM_UP_SECONDS", 0.0)
    monkeypatch.setattr(measure, "_FLUSH_BYTES", 1)
    empty = torch.empty
    monkeypatch.setattr(torch, "empty", lambda *shape, **options: empty(*shape, **options | {"device": "cpu"}))


def test_a_call_that_raises_leaves_the_others_their_time(fake_clock: None) -> None:
    left = 4

    def tires() -> float:
        nonlocal left
        left -= 1
        if left < 0:
            raise MemoryError("no room")
        return 1.0

    def never() -> float:
        raise TypeError("cannot compile")

    timings, faults = interleave({"steady": lambda: 2.0, "tires": tires, "never": never})
    assert faults == {"tires": "MemoryError: no room", "never": "TypeError: cannot compile"}
    assert list(timings) == ["steady"] and timings["steady"].median_ms == 2.0
    assert timings["steady"].num_samples == measure.MAX_SAMPLES


def test_slow_calls_end_after_their_seconds(fake_clock: None) -> None:
    timings, _ = interleave({"slow": lambda: 400.0})
    assert timings["slow"].num_samples == measure.MIN_SAMPLES


def test_comparison_yields_a_row_for_every_stage_and_reason(fake_clock: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """A whole comparison on the CPU under a made-up clock: 2 ms forward, 6 ms with backward."""
    inputs, build = suite.random_inputs, suite.build_block_mask
    monkeypatch.setattr(suite, "random_inputs", lambda *arguments: inputs(*arguments[:4]))
    monkeypatch.setattr(suite, "build_block_mask", lambda mask: OnCpu(build(mask)))
    monkeypatch.setattr(suite, "first_calls", lambda *_: {"SDPA segments": 500.0})
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    monkeypatch.setattr(suite, "_call", lambda contestant, inputs, only: lambda: 2.0 if only else 6.0)
    monkeypatch.setattr(suite, "contestants", fake_contestants)
    rows = list(suite.compare(suite.Shape((2, 1), 16, 256), "turns", suite.masks(256)["turns"]))
    by_stage = {(row.get("stage"), row["contestant"]): row for row in rows}
    assert by_stage[None, "Triton"]["failed"] == "RuntimeError: cannot run"
    assert by_stage[None, "FA4 causal"]["not run"] == "not installed"
    assert by_stage["backward", "SDPA segments"]["ms"] == 4.0
    assert by_stage["forward", "SDPA segments"]["first call at a new length ms"] == 500.0
    assert ("forward", "FA3 causal") in by_stage and ("backward", "FA3 causal") not in by_stage
    forward = by_stage["forward", "SDPA segments"]
    assert forward["x SDPA segments"] == 1.0
    assert forward["x FA3 causal"] == pytest.approx(forward["visible share"], abs=1e-3)


class OnCpu:
    """A block mask that `.to("cuda")` leaves where it is."""

    def __init__(self, block_mask: object) -> None:
        self.block_mask = block_mask

    def to(self, device: str) -> object:
        return self.block_mask


def fake_contestants(
    block_mask: object, heads: tuple[int, int], head_dim: int, build_seconds: float, *, tuned: bool, hopper: bool
) -> tuple[list[Contestant], dict[str, str]]:
    def causal(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        return suite.ours(suite.build_block_mask(suite.masks(len(q))["causal"]).to("cpu"))[1].run(q, k, v)

    def broken(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        raise RuntimeError("cannot run")

    yardstick = Contestant("FA3 causal", causal, causal=True, backward=False)
    return [Contestant("Triton", broken), ours(block_mask)[1], yardstick], {"FA4 causal": "not installed"}


def results(date: str, **steps: list[dict]) -> dict:
    return {"environment": {"device": "a GPU", "date": date}, "steps": steps, "finished": list(steps), "failures": {}}


def row(mask: str, stage: str, contestant: str, tflops: float, **ratios: float) -> dict:
    about = {"shape": "28:4 D128 T16384", "mask": mask, "stage": stage, "contestant": contestant}
    return about | {"ms": 1.0, "TFLOP/s": tflops} | ratios


def test_report_answers_the_goals_and_says_what_was_not_measured(tmp_path: Path) -> None:
    old = results(
        "2026-01-01T00:00:00+00:00",
        benchmark=[
            row("causal", "forward", "Triton", 500.0),
            row("turns", "forward", "Triton", 480.0, **{"x FA3 causal": 0.5, "x FlexAttention": 1.5}),
            row("turns", "forward", "Hopper", 588.0),
            row("turns", "forward", "SDPA segments", 600.0, **{"x FA3 causal": 0.97, "x FlexAttention": 1.3}),
            {"shape": "28:4 D128 T16384", "mask": "turns", "contestant": "FA4 causal", "not run": "absent"},
        ],
        decode=[{"case": "copy", "GB/s": 4000}, {"case": "batch 1", "of copy": 0.9}],
    )
    new = results(
        "2026-01-02T00:00:00+00:00",
        benchmark=[row("turns", "forward", "Triton", 490.0, **{"x FA3 causal": 0.75, "x FlexAttention": 1.6})],
        correctness=[{"case": "a", "out": 0.5}, {"case": "b", "out": 2.0, "failed": "over budget"}],
    )
    new["failures"] = {"correctness": "1 of 2 rows failed\n"}
    for name, held in (("old.json", old), ("new.json", new)):
        (tmp_path / name).write_text(json.dumps(held))
    readme, table = tmp_path / "README.md", tmp_path / "measured.md"
    readme.write_text("before\n<!-- measured: begin -->\nold\n<!-- measured: end -->\nafter\n")
    report.write([tmp_path / "new.json", tmp_path / "old.json"], readme, table)
    text = readme.read_text()
    assert text.startswith("before\n") and text.endswith("after\n") and "\nold\n" not in text
    cells = {line.split(" | ")[0].strip("| "): line for line in text.splitlines() if line.startswith("| ")}
    forward = cells["forward >= 0.95 of FA3-class causal, scaled by area"]
    assert "turns T16384 over FA3 causal: Triton 0.75, SDPA segments 0.97 | none |" in forward
    assert cells["forward >= 1.4 x FlexAttention"].endswith("Triton 1.6, SDPA segments 1.3 | Triton |")
    assert "Triton 0.98 | Triton |" in cells["masked against unmasked, per visible pair: >= 0.98"]
    assert "turns T16384: Hopper 1.2 | Hopper |" in cells["Hopper forward >= 1.1 x Triton, or it goes"]
    assert "batch 1: decode 0.9 | decode |" in cells["decode >= 0.85 of copy bandwidth"]
    assert "1 of 2 rows failed" in cells["two-times rule; compute-sanitizer"]
    assert cells["two-times rule; compute-sanitizer"].endswith("| none |")
    unmeasured = [name for name, line in cells.items() if "| not measured |" in line]
    assert len(unmeasured) == 7 and "backward >= 1.8 x FlexAttention" in unmeasured
    assert "FA4 causal" in table.read_text() and "490.0" in table.read_text() and "480.0" not in table.read_text()


def test_the_script_reports_without_a_gpu(tmp_path: Path) -> None:
    """In a copy of its folder, since it writes beside itself."""
    for name in ("run_on_gpu.py", "README.md"):
        (tmp_path / name).write_text((KERNELS / name).read_text())
    held = tmp_path / "made-up.json"
    held.write_text(json.dumps(results("2026-01-01", decode=[{"case": "batch 1", "of copy": 0.5}])))
    (tmp_path / "results").mkdir()
    command = [sys.executable, str(tmp_path / "run_on_gpu.py"), "--report", str(held)]
    subprocess.run(command, check=True, env=os.environ | {"PYTHONPATH": str(KERNELS)})
    text = (tmp_path / "README.md").read_text()
    assert "| batch 1: decode 0.5 | none |" in text and text.count("not measured |") == 12
    assert "On a GPU" in text and (tmp_path / "results" / "measured.md").exists()


def test_the_sweep_tries_the_shipped_tiles() -> None:
    assert TileConfig(*HOPPER_CANDIDATES["forward, Hopper"][0], tma=True) == TILES[128]
    for stage, candidates in CANDIDATES.items():
        assert TileConfig(*candidates[0], tma=True) == tile_config(stage, 90, torch.bfloat16)
        assert len(set(candidates)) == len(candidates)
