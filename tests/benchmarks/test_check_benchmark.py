"""`pytest --benchmark`: how long the check of many records takes when it opens no video."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from videoseek.trajectory.formats import FORMATS
from videoseek.types import Call

NUM_RECORDS, NUM_VIDEOS = 100_000, 10_000
MAX_SECONDS = 60.0
ROOT = Path(__file__).parents[2]
SOURCES = os.pathsep.join([str(ROOT / "src"), str(ROOT / "kernels")])


@pytest.mark.benchmark
def test_metadata_of_many_records(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fmt = FORMATS["grounding"]()
    thought = "The overview shows a person at the counter; the label on the box is too small to read from here. " * 4
    turns = [fmt.render_turn(thought, Call(start, start + 4.0, "medium"), None) for start in (2.0, 9.0)]
    turns.append(fmt.render_turn(thought, None, "A"))
    (tmp_path / "videos").mkdir()
    for index in range(NUM_VIDEOS):
        (tmp_path / f"videos/{index}.mp4").touch()
    with (tmp_path / "data.jsonl").open("w") as out:
        for index in range(NUM_RECORDS):
            record = {"id": f"r{index}", "video": f"videos/{index % NUM_VIDEOS}.mp4", "kind": "clue_multi_w_tool"}
            record |= {"question": f"What does label {index} say?", "options": ["Oslo", "Rome"], "answer": "A"}
            out.write(json.dumps(record | {"clues": [[2, 6], [9, 13]], "turns": turns}) + "\n")
    command = [sys.executable, "-m", "videoseek.data", "check", "data.jsonl", "metadata_only=true", "need_turns=true"]
    started = time.perf_counter()
    done = subprocess.run(
        command, cwd=tmp_path, env=os.environ | {"PYTHONPATH": SOURCES}, capture_output=True, text=True
    )
    seconds = time.perf_counter() - started
    size = (tmp_path / "data.jsonl").stat().st_size / 2**20
    with capsys.disabled():
        print(f"\ncheck metadata_only=true: {NUM_RECORDS:,} records, {size:.0f} MiB, in {seconds:.1f} s")
    assert done.returncode == 0, done.stderr
    assert f"{NUM_RECORDS} records of 1 files, {NUM_VIDEOS} videos: 0 errors, 0 warnings" in done.stdout
    assert seconds < MAX_SECONDS
