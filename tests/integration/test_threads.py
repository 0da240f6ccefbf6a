"""The CPU threads of a run: they sleep while they wait, and a resumed run keeps their number."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

from support.commands import TRAIN, environment


def test_threads_wait_asleep_and_a_resumed_run_keeps_their_number(tiny: list[str], output_dir: Path) -> None:
    variables = environment(OMP_DISPLAY_ENV="verbose")
    del variables["OMP_NUM_THREADS"]

    def train(steps: int, **more: str) -> str:
        own = ["stages=[sft]", f"sft.steps={steps}", "data.eval=[]", "resume=auto", "device=cpu"]
        command = [*TRAIN, *tiny, *own, f"output_dir={output_dir}"]
        done = subprocess.run(command, env=variables | more, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return done.stderr

    said = train(1)
    assert "GOMP_SPINCOUNT = '0'" in said
    env = json.loads((output_dir / "env.json").read_text())
    assert f"CPU threads: {env['threads']}, one for each core" in said
    (output_dir / "env.json").write_text(json.dumps(env | {"threads": 3}))
    assert "CPU threads: 3, as the resumed run had" in train(2)
    assert json.loads((output_dir / "env.json").read_text())["threads"] == 3
    assert "CPU threads: 1, as OMP_NUM_THREADS sets" in train(3, OMP_NUM_THREADS="1")
