"""What a run is about to do, in words: the banner at its start, and the plan of `--dry-run`."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

import torch

from videoseek.config import TrainConfig
from videoseek.data.order import micro_batches
from videoseek.data.packing import PackSettings, pack_documents
from videoseek.model.load import tokens_per_second
from videoseek.stages.run import load_policy
from videoseek.types import Sample

#: Seconds a step of the tiny recipe takes on two CPU cores, by stage, measured; other models differ by far too much.
_TINY_STEP_SECONDS = {"direct": 0.15, "sft": 0.25, "grpo": 3.5}
_TINY_FIXED_SECONDS = 75.0


def stage_steps(config: TrainConfig, stage: str) -> int:
    """Optimizer steps of a stage; `direct` takes as many as SFT and GRPO together, to be a fair comparison."""
    steps = {"sft": config.sft.steps, "grpo": config.grpo.steps}
    return steps.get(stage, sum(steps.values()))


def describe(config: TrainConfig, output_dir: Path) -> str:
    """What will run, for how long about, and where its output goes."""
    work = {
        "direct": f"{stage_steps(config, 'direct')} steps of answering without the tool",
        "sft": f"{config.sft.steps} steps of {config.sft.samples_per_step} trajectories",
        "grpo": f"{config.grpo.steps} steps of {config.grpo.prompts_per_step} x {config.grpo.group_size} episodes",
    }
    lines = [f"videoseek: recipe {config.recipe}, model {config.model}"]
    lines += [f"  {number}. {stage}: {work[stage]}" for number, stage in enumerate(config.stages, 1)]
    lines.append(f"  time: {_duration(config)}")
    lines.append(f"  output: {output_dir}")
    return "\n".join(lines)


def _duration(config: TrainConfig) -> str:
    if config.model != "tiny":
        return "shown with the progress of each stage, from its first steps on"
    seconds = _TINY_FIXED_SECONDS
    seconds += sum(_TINY_STEP_SECONDS[stage] * stage_steps(config, stage) for stage in config.stages)
    return f"about {max(1, round(seconds / 60))} minutes on two CPU cores"


def dry_run(
    config: TrainConfig, source: Path, samples: Sequence[Sample], device: torch.device, dtype: torch.dtype
) -> str:
    """Loads one batch and runs it forwards and backwards; tokens, memory and time that the real run would take."""
    policy, environment = load_policy(source, config, device, dtype, freeze_vision=config.sft.freeze_vision)
    settings = PackSettings(environment.vocabulary.video_pad, tokens_per_second(policy.model.config))
    episodes = [environment.replay(sample) for sample in samples[: config.sft.samples_per_step]]
    lengths = [len(episode.token_ids) for episode in episodes]
    row = micro_batches(lengths, config.sft.max_tokens_per_micro_batch)[0]
    batch = pack_documents([episodes[i] for i in row], settings).to(device)
    started = time.perf_counter()
    logprobs, _ = policy(batch)
    (-logprobs.mean()).backward()
    seconds = time.perf_counter() - started
    parameters = sum(parameter.numel() for parameter in policy.parameters())
    trained = sum(parameter.numel() for parameter in policy.parameters() if parameter.requires_grad)
    per_step = sum(lengths) / len(lengths) * config.sft.samples_per_step
    # Weights, gradients and two fp32 moments, plus an fp32 master copy when the weights are in bf16.
    bytes_each = 16 if dtype == torch.bfloat16 else 12
    state_gib = (parameters * logprobs.new_empty(0, dtype=dtype).element_size() + trained * bytes_each) / 2**30
    minutes = seconds * per_step / len(batch) * config.sft.steps / 60
    return "\n".join(
        [
            f"dry run: {len(samples)} SFT samples, {parameters / 1e6:.2f}M parameters, {trained / 1e6:.2f}M trained",
            f"  tokens: {min(lengths)} to {max(lengths)} a sample, about {per_step:.0f} a step",
            f"  one row: {len(row)} samples, {len(batch)} tokens, {len(batch.labels)} labels, "
            f"loss {-logprobs.mean():.3f}",
            f"  memory: {state_gib:.2f} GiB for weights, gradients and optimizer, before ZeRO and activations",
            f"  time: {seconds:.2f} s for this row, about {minutes:.1f} minutes for the SFT stage on one device "
            "like this",
        ]
    )
