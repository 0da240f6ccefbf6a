"""What a run is about to do, in words. Light to import: the banner comes before anything heavy is loaded."""

from __future__ import annotations

from videoseek.config import TrainConfig

#: Seconds a step of the tiny recipe takes on two CPU cores, by stage, measured; other models differ by far too much.
_TINY_STEP_SECONDS = {"direct": 0.18, "sft": 0.28, "grpo": 2.8}
_TINY_FIXED_SECONDS = 40.0


def stage_steps(config: TrainConfig, stage: str) -> int:
    """Optimizer steps of a stage; `direct` takes as many as SFT and GRPO together, to be a fair comparison."""
    steps = {"sft": config.sft.steps, "grpo": config.grpo.steps}
    return steps.get(stage, sum(steps.values()))


def describe(config: TrainConfig) -> str:
    """What will run, for how long about, and where its output goes."""
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
