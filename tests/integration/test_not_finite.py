"""A non-finite loss: the run skips and names the step, keeps good weights and goes on, within limits."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from support.commands import ROOT, curve, run, weights

SCRIPT = str(ROOT / "tests/support/not_finite.py")
ALONE = [sys.executable, SCRIPT]
TWO_RANKS = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", SCRIPT]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("stage", "step", "rank", "zero_stage", "launcher"),
    [("sft", 1, 0, 0, ALONE), ("grpo", 0, 1, 2, TWO_RANKS)],
    ids=["sft_alone", "grpo_second_of_two_ranks"],
)
def test_a_step_without_a_finite_loss_is_skipped(
    stage: str, step: int, rank: int, zero_stage: int, launcher: list[str], tiny: list[str], output_dir: Path
) -> None:
    keys = ["stages=[sft,grpo]", "save_every_steps=1", f"deepspeed.stage={zero_stage}", f"output_dir={output_dir}"]
    log = run([stage, str(step), str(rank), *tiny, *keys], launcher=launcher)
    skipped = curve(output_dir, "skipped_steps", "sft") + curve(output_dir, "skipped_steps", "grpo")
    assert sum(skipped) == 1 and curve(output_dir, "skipped_steps", stage)[step] == 1
    (sentence,) = [line for line in log.splitlines() if f"{stage} step {step + 1} is skipped" in line]
    assert "clueworld" in sentence or "train-" in sentence or "rl-" in sentence, "no sample is named"
    for folder in [*output_dir.glob("checkpoint-*"), output_dir / "final"]:
        assert all(bool(torch.isfinite(tensor).all()) for tensor in weights(folder).values()), folder


def test_as_many_skipped_steps_in_a_row_as_allowed_end_the_run(tiny: list[str], output_dir: Path) -> None:
    keys = ["stages=[sft]", "max_skipped_steps=1", "save_every_steps=1", f"output_dir={output_dir}"]
    log = run(["sft", "1", "0", *tiny, *keys], code=1, launcher=ALONE)
    assert "1 steps in a row had no finite loss and gradient" in log.splitlines()[-1]
    assert [folder.name for folder in output_dir.glob("checkpoint-*")] == ["checkpoint-1"], "the last good one stays"
