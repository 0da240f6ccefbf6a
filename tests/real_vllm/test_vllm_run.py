"""A run with `rollout.engine=vllm`, from the command to its report."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from support.commands import REWARD, TINY, curve, rows, run

pytestmark = pytest.mark.vllm

TWO_STEPS = [*TINY.split(), "stages=[sft, grpo]", "grpo.steps=2", "seed=3"]


@pytest.mark.parametrize("sync", ["tensors", "disk"])
def test_two_grpo_steps_train_on_vllms_episodes(tmp_path: Path, sync: str) -> None:
    (tmp_path / "reward.py").write_text(REWARD)
    output_dir = tmp_path / "run"
    engine = ["rollout.engine=vllm", f"rollout.vllm_python={os.environ['VIDEOSEEK_VLLM_PYTHON']}"]
    reward = f"reward.functions=[{tmp_path / 'reward.py'}:by_ids]"
    run([*TWO_STEPS, *engine, f"rollout.sync={sync}", reward, f"output_dir={output_dir}"])
    assert [row["step"] for row in rows(output_dir) if row["stage"] == "grpo"] == [1, 2]
    # vLLM's log-probs are the trainer's at both steps, the second with weights that have moved.
    assert max(curve(output_dir, "sampling/logp_diff_max", "grpo")) < 1e-5
    assert max(curve(output_dir, "grad_norm", "grpo")) > 0
    lines = (output_dir / "trajectories/grpo_step_000002.jsonl").read_text().splitlines()
    assert {json.loads(line)["weight_version"] for line in lines} == {1}
    assert (output_dir / "report.html").is_file()
    assert not (output_dir / "weights-rank-000").exists()
