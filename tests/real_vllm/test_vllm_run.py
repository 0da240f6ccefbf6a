"""A run with `rollout.engine=vllm`, from the command to its report."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from support.commands import REWARD, TINY, curve, rows, run
from support.ray_cluster import two_nodes

pytestmark = pytest.mark.vllm

VLLM = ["rollout.engine=vllm", f"rollout.vllm_python={os.environ.get('VIDEOSEEK_VLLM_PYTHON')}"]
TWO_STEPS = [*TINY.split(), "stages=[sft, grpo]", "grpo.steps=2", "seed=3"]


@pytest.fixture
def common(tmp_path: Path) -> list[str]:
    (tmp_path / "reward.py").write_text(REWARD)
    return [*TWO_STEPS, *VLLM, f"reward.functions=[{tmp_path / 'reward.py'}:by_ids]"]


@pytest.mark.parametrize("sync", ["tensors", "disk"])
def test_two_grpo_steps_train_on_vllms_episodes(common: list[str], tmp_path: Path, sync: str) -> None:
    output_dir = tmp_path / "run"
    run([*common, f"rollout.sync={sync}", f"output_dir={output_dir}"])
    assert [row["step"] for row in rows(output_dir) if row["stage"] == "grpo"] == [1, 2]
    # vLLM's log-probs are the trainer's at both steps, the second with weights that have moved.
    assert max(curve(output_dir, "sampling/logp_diff_max", "grpo")) < 3e-5
    assert max(curve(output_dir, "grad_norm", "grpo")) > 0
    lines = (output_dir / "trajectories/grpo_step_000002.jsonl").read_text().splitlines()
    assert {json.loads(line)["weight_version"] for line in lines} == {1}
    assert (output_dir / "report.html").is_file()
    assert not (output_dir / "weights-rank-000").exists()


def test_vllm_samples_while_the_trainer_trains(common: list[str], tmp_path: Path) -> None:
    out = tmp_path / "out"
    lag = ["rollout.lag=1", "grpo.steps=4", "grpo.save_every_steps=0", "grpo.learning_rate=1e-3", "grpo.group_size=8"]
    run([*common, *lag, "rollout.max_new_tokens_per_turn=48", f"output_dir={out}"])
    assert curve(out, "rollout/version_gap_max", "grpo") == [0, 1, 1, 1]
    first, *lagged = curve(out, "sampling/logp_diff_max", "grpo")
    assert first < 3e-5 < 1e-3 < max(lagged)
    sampling, waiting = curve(out, "time/rollout_s", "grpo"), curve(out, "time/rollout_wait_s", "grpo")
    print(f"seconds of sampling {sampling}, of waiting for it {waiting}")
    assert sum(waiting[1:]) < sum(sampling[1:])


@pytest.mark.ray
def test_two_vllms_that_ray_places_sample_for_one_trainer(common: list[str], tmp_path: Path) -> None:
    out = tmp_path / "out"
    with two_nodes():
        run([*common, "rollout.placement=ray", "rollout.workers=2", f"output_dir={out}"])
    assert max(curve(out, "sampling/logp_diff_max", "grpo")) < 3e-5
    assert max(curve(out, "grad_norm", "grpo")) > 0
