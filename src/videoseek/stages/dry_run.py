"""The plan of `--dry-run`: runs one batch, and estimates tokens, memory and time of the real run."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from videoseek.batches.order import cut_rows
from videoseek.batches.packing import PackSettings, pack_documents
from videoseek.memory import ModelSizes, memory_line, training_memory
from videoseek.model.load import position_rule, tokens_per_second
from videoseek.rollout.environment import Environment
from videoseek.rollout.replay import ReplayedEpisodes
from videoseek.rollout.setup import load_policy
from videoseek.runtime import world_size
from videoseek.stages.stage_run import RunContext
from videoseek.types import Sample


def _with_turns(sample: Sample, environment: Environment) -> Sample:
    """Returns the sample. A sample without recorded turns gets its answer as the only turn."""
    answer = environment.fmt.render_turn("", None, sample.answer)
    return sample if sample.turns else replace(sample, turns=(answer,))


def dry_run(context: RunContext, source: Path, samples: Sequence[Sample]) -> str:
    """Runs one batch forwards and backwards. Returns the tokens, the memory and the time of the real run, as text."""
    config = context.config
    policy, environment = load_policy(source, config, context.device, freeze_vision=config.sft.freeze_vision)
    model_config = policy.model.config
    settings = PackSettings(
        environment.vocabulary.video_pad, tokens_per_second(model_config), position_rule=position_rule(model_config)
    )
    answered = [_with_turns(sample, environment) for sample in samples[: config.sft.samples_per_step]]
    episodes = list(ReplayedEpisodes(answered, environment))
    lengths = [len(episode.token_ids) for episode in episodes]
    row = cut_rows(lengths, config.sft.max_tokens_per_micro_batch)[0]
    batch = pack_documents([episodes[i] for i in row], settings).to(context.device)
    started = time.perf_counter()
    logprobs, _ = policy(batch)
    (-logprobs.mean()).backward()
    seconds = time.perf_counter() - started
    sizes = ModelSizes.of(policy.model, config.lora)
    memory = {stage: training_memory(sizes, config, stage, world_size()) for stage in config.stages}
    most = max(memory, key=lambda stage: sum(memory[stage].values()))
    per_step = sum(lengths) / len(lengths) * config.sft.samples_per_step
    time_line = f"  time: {seconds:.2f} s for this row"
    if "sft" in config.stages:
        minutes = seconds * per_step / len(batch) * config.sft.steps / 60
        time_line += f", about {minutes:.1f} minutes for the SFT stage on one device like this"
    return "\n".join(
        [
            f"dry run: {len(samples)} samples, {sizes.num_parameters / 1e6:.2f}M parameters, "
            f"{sizes.num_trained(config.sft.freeze_vision) / 1e6:.2f}M trained in SFT",
            f"  tokens: {min(lengths)} to {max(lengths)} a sample, about {per_step:.0f} a step",
            f"  one row: {len(row)} samples, {len(batch)} tokens, {len(batch.labels)} labels, "
            f"loss {-logprobs.mean():.3f}",
            f"  memory: {memory_line(memory[most])} on each of {world_size()} devices in {most}, which takes most",
            time_line,
        ]
    )
