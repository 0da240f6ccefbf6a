"""Runs with `rollout.lag=1`: the recorded versions, the correction for them, resuming, and several ranks."""

from __future__ import annotations

import json
import signal
from pathlib import Path

import pytest
import torch
from support.commands import TRAIN, TWO_RANKS, curve, numbers, reached, run, start, stop, weights
from support.fake_vllm import interpreter

LAG = ["stages=[sft,grpo]", "rollout.lag=1", "grpo.learning_rate=1e-3"]


def test_three_steps_record_their_versions_and_weigh_the_lagged_tokens(tiny: list[str], tmp_path: Path) -> None:
    run([*tiny, *LAG, "grpo.save_every_steps=0", f"output_dir={tmp_path / 'out'}"])
    out = tmp_path / "out"
    assert curve(out, "rollout/version_gap_mean", "grpo") == curve(out, "rollout/version_gap_max", "grpo") == [0, 1, 1]
    assert curve(out, "rollout/dropped_stale_groups", "grpo") == [0, 0, 0]
    for step, version in ((1, 0), (2, 0), (3, 1)):
        lines = (out / f"trajectories/grpo_step_{step:06d}.jsonl").read_text().splitlines()
        assert {json.loads(line)["weight_version"] for line in lines} == {version}
    # The rollout's log-probs are of older weights than the trainer's from step 2 on.
    first, *lagged = curve(out, "sampling/logp_diff_max", "grpo")
    assert first < 1e-4 < 1e-2 < min(lagged)
    assert min(curve(out, "sampling/is_ratio_max", "grpo")[1:]) > 1.01


@pytest.mark.slow
def test_a_killed_run_ends_bit_equal(tiny: list[str], tmp_path: Path) -> None:
    """The step after a checkpoint has no lag, in the run that goes on as in the run that is resumed."""
    arguments = [*tiny, *LAG, "grpo.steps=5"]
    uninterrupted, killed = tmp_path / "uninterrupted", tmp_path / "killed"
    run([*arguments, f"output_dir={uninterrupted}"])
    assert curve(uninterrupted, "rollout/version_gap_max", "grpo") == [0, 1, 0, 1, 0]
    again = [*arguments, f"output_dir={killed}", "resume=auto"]
    stop(start(again), reached(killed, "grpo", 3), signal.SIGKILL)
    run(again)
    assert numbers(killed) == numbers(uninterrupted)
    wanted = weights(uninterrupted / "final")
    assert all(torch.equal(tensor, wanted[name]) for name, tensor in weights(killed / "final").items())


@pytest.mark.slow
@pytest.mark.thorough
def test_two_ranks_equal_one(tiny: list[str], tmp_path: Path) -> None:
    arguments = [*tiny, *LAG, "grpo.save_every_steps=0"]
    run([*arguments, f"output_dir={tmp_path / 'one'}"])
    run([*arguments, f"output_dir={tmp_path / 'two'}", "deepspeed.stage=3"], launcher=TWO_RANKS)
    for name in ("loss", "reward/mean", "sampling/is_ratio_max", "rollout/version_gap_max"):
        assert curve(tmp_path / "two", name, "grpo") == pytest.approx(curve(tmp_path / "one", name, "grpo"), abs=1e-3)
    wanted = weights(tmp_path / "one/final")
    assert max(float((p - wanted[n]).abs().max()) for n, p in weights(tmp_path / "two/final").items()) < 1e-3


@pytest.mark.slow
@pytest.mark.parametrize(
    "launcher",
    [pytest.param(TRAIN, marks=pytest.mark.thorough, id="one rank"), pytest.param(TWO_RANKS, id="two ranks")],
)
def test_workers_sample_while_the_trainer_trains(launcher: list[str], tiny: list[str], tmp_path: Path) -> None:
    """A stand-in for vLLM takes half a second for each round of turns, which the training hides in part."""
    engine = ["rollout.engine=vllm", f"rollout.vllm_python={interpreter(tmp_path)}", "grpo.save_every_steps=0"]
    engine += ["rollout.vllm_options=[turn_seconds=0.5]", "grpo.max_resample_rounds=1"]
    out = tmp_path / "out"
    run([*tiny, *LAG, *engine, f"output_dir={out}"], launcher=launcher)
    assert curve(out, "rollout/version_gap_max", "grpo") == [0, 1, 1]
    sampling, waiting = curve(out, "time/rollout_s", "grpo"), curve(out, "time/rollout_wait_s", "grpo")
    assert waiting[0] > sampling[0] > 0.5
    assert sum(waiting[1:]) < sum(sampling[1:]), (sampling, waiting)
