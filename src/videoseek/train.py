"""`python -m videoseek.train recipe=sft_rl`: runs a recipe's stages in order, then scores and reports them.

Reading order of one RL step: `stages/grpo`, `stages/rollouts`, `rollout/native`, `rewards/trajectory_guided`,
`algorithms/losses`.
"""

from __future__ import annotations

import os
import sys

from videoseek.command import parse, run_command
from videoseek.config import TrainConfig, stage_steps

#: Measured seconds per step of the tiny model on two CPU cores, by stage. Other models have no estimate.
_TINY_STEP_SECONDS = {"direct": 0.18, "sft": 0.28, "grpo": 2.8}
_TINY_FIXED_SECONDS = 40.0


def main(arguments: list[str]) -> None:
    options, config = parse(arguments)
    if os.environ.get("RANK", "0") == "0":
        print(describe(config), file=sys.stderr, flush=True)
    # torch, transformers and deepspeed take seconds to import: the banner comes first.
    from videoseek.distributed import choose_accelerator

    choose_accelerator(config.device)
    from videoseek.stages.pipeline import run

    run(config, only_plan=options.dry_run)


def describe(config: TrainConfig) -> str:
    """Returns the stages, the expected time and the output folder, for the user."""
    work = {
        "direct": f"{stage_steps(config, 'direct')} steps of answering without the tool",
        "sft": f"{config.sft.steps} steps of {config.sft.samples_per_step} trajectories",
        "grpo": f"{config.grpo.steps} steps of {config.grpo.prompts_per_step} x {config.grpo.group_size} episodes",
    }
    lines = [f"videoseek: recipe {config.recipe}, model {config.model}"]
    lines += [f"  {number}. {stage}: {work[stage]}" for number, stage in enumerate(config.stages, 1)]
    lines.append(f"  time: {_duration(config)}")
    lines.append(f"  output: {config.output_dir}")
    return "\n".join(lines)


def _duration(config: TrainConfig) -> str:
    if config.model != "tiny":
        return "shown with the progress of each stage, from its first steps on"
    seconds = _TINY_FIXED_SECONDS
    seconds += sum(_TINY_STEP_SECONDS[stage] * stage_steps(config, stage) for stage in config.stages)
    return f"about {max(1, round(seconds / 60))} minutes on two CPU cores"


if __name__ == "__main__":
    raise SystemExit(run_command(main))
