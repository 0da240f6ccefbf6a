"""Runs a case on several ranks with different work, and writes rank 0's results as JSON.

python -m torch.distributed.run .. unequal_ranks.py CASE ZERO_STAGE FILE
"""

from __future__ import annotations

import faulthandler
import json
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import torch

sys.path.insert(0, str(Path(__file__).parents[1]))
from support.tiny_world import TinyWorld, answer, look, native_engine, tiny_world, tree_length

from videoseek import checkpoint
from videoseek.algorithms.losses import sft_loss
from videoseek.batches.micro_batch import MicroBatch, pack_micro_batch, plan_micro_batches
from videoseek.batches.order import SampleOrder
from videoseek.batches.packing import pack_documents
from videoseek.checkpoint import CheckpointError, CheckpointWriter, TrainerState, complete_checkpoints
from videoseek.config import TrainConfig
from videoseek.config_merge import load_config
from videoseek.distributed import all_sum, barrier, rank_indices, split_minibatches
from videoseek.engine import OptimizerSettings, TrainEngine, end_distributed, learning_rate, start_distributed
from videoseek.model import policy as policy_module
from videoseek.model.attention import install_attention
from videoseek.model.policy import Policy
from videoseek.model.tiny import build_model, tiny_config
from videoseek.rewards.functions import RewardFunction
from videoseek.runtime import rank, world_size
from videoseek.stages.grpo import Objective, join_updates
from videoseek.stages.rollouts import (
    Rollouts,
    filler_group,
    reward_episodes,
    rollout_metrics,
    sample_groups,
    with_advantages,
)
from videoseek.stages.stage_run import StageRun

#: DeepSpeed keeps weights of up to 100,000 elements whole on every rank, and partitions a vocabulary of this size.
LARGE_VOCABULARY = 4096
CPU = torch.device("cpu")


def engine_of(world: TinyWorld, stage: int, seed: int = 0) -> TrainEngine:
    return TrainEngine(large_policy(world, seed).train(), OptimizerSettings(), stage=stage)


def large_policy(world: TinyWorld, seed: int) -> Policy:
    config = tiny_config(world.vocabulary.tokenizer)
    config.text_config.vocab_size = LARGE_VOCABULARY
    config.tie_word_embeddings = config.text_config.tie_word_embeddings = False
    return Policy(install_attention(build_model(config, seed)))


def labels(world: TinyWorld, stage: int) -> dict[str, list[float]]:
    """Makes SFT steps on two rows: a row of many labels, projected in pieces, and a row of few labels."""
    policy_module.PROJECTION_ROWS = 20
    engine = engine_of(world, stage)
    rows = [pack_documents([episode], world.packing) for episode in (world.episodes()[4], world.episodes()[0])]
    assert policy_module.num_projections(len(rows[0].labels)) > policy_module.num_projections(len(rows[1].labels))
    num_labels = sum(len(row.labels) for row in rows)
    values: dict[str, list[float]] = {"loss": [], "grad_norm": []}
    for _ in range(3):
        losses, mine = [], list(rank_indices(len(rows)))
        for index in mine:
            loss = sft_loss(engine(rows[index])[0], num_labels)
            engine.backward(loss, last=index == mine[-1])
            losses.append(loss.item())
        values["loss"] += all_sum([sum(losses)], CPU)
        values["grad_norm"].append(engine.step(1e-3))
    return values


def rows(world: TinyWorld, stage: int, num_updates: int) -> dict[str, list[float]]:
    """Makes GRPO batches of five groups, so two ranks have different numbers of rows."""
    config = TrainConfig()
    grpo = replace(config.grpo, learning_rate=1e-3, warmup_steps=3, kl_coef=0.1, importance_cap=None)
    config = replace(config, grpo=grpo, rollout=replace(config.rollout, max_turns=4, max_new_tokens_per_turn=48))
    engine = engine_of(world, stage)
    reference = large_policy(world, seed=1).requires_grad_(False).eval()
    sampler = native_engine(engine.policy, world.environment)
    objective = Objective(config, engine, sampler, reference)
    groups = [
        [world.replay(index, look(4, 8), answer("A")), world.replay(index, answer("B" * (index % 3)))]
        for index in (0, 1, 8, 2, 3)
    ]
    scored = [(groups[i], [1.0, -0.5 - i]) for i in rank_indices(len(groups))]
    longest = max(tree_length(group) for group in groups)
    filler = pack_micro_batch([(groups[rank()][:1], [0.0])], world.packing, CPU)
    values: dict[str, list[float]] = {}
    for step in range(2):
        minibatches = [
            plan_micro_batches(part, longest, world.packing, CPU)[0]
            for part in split_minibatches(scored, list(rank_indices(len(groups))), num_updates)
        ]
        for name, value in update(objective, minibatches, filler, step).items():
            values.setdefault(name, []).append(value)
    return values


def update(
    objective: Objective, minibatches: list[list[MicroBatch]], filler: MicroBatch | None, step: int
) -> dict[str, float]:
    """Makes the optimizer steps of a batch in the way of `train_grpo`."""
    grpo, engine = objective.config.grpo, objective.engine
    if len(minibatches) > 1:
        objective.write_old_logprobs([micro for minibatch in minibatches for micro in minibatch], filler)
    updates = []
    for number, minibatch in enumerate(minibatches, start=step * len(minibatches)):
        sums = engine.accumulate(minibatch, objective.loss(*objective.count(minibatch)), filler)
        rate = learning_rate(number, grpo.steps, grpo.learning_rate, grpo.warmup_steps, "constant")
        updates.append(sums.metrics | {"grad_norm": engine.step(rate)})
    return join_updates(updates)


def rewards(world: TinyWorld, _: int) -> dict[str, list[float]]:
    """Applies a user's function for the episode of one rank only, and a function for no episode."""

    def only_multi(kind: list[str], **_: object) -> list[float | None]:
        return [0.5 if name == "clue_multi_w_tool" else None for name in kind]

    functions = [RewardFunction("multi", only_multi), RewardFunction("none", lambda kind, **_: [None] * len(kind))]
    kinds = ("clue_single_w_tool", "clue_multi_w_tool")
    groups = [[world.replay([s.kind for s in world.samples].index(kind), answer("A"))] for kind in kinds]
    config = TrainConfig()
    config = replace(config, prompt=replace(config.prompt, style="brief"))
    start_distributed(CPU)
    rollouts = Rollouts(all_groups=[groups[i] for i in rank_indices(len(groups))])
    reward_episodes(config, functions, [episode for group in rollouts.all_groups for episode in group])
    return {name: [value] for name, value in rollout_metrics(rollouts, functions, CPU).items()}


def unreadable(world: TinyWorld, stage: int) -> dict[str, list[float]]:
    """Makes a batch of two prompts, one with an unreadable video: one of two ranks has no work."""
    config = load_config(
        ["recipe=sft_rl", "data.max_unreadable_share=0.5", "grpo.prompts_per_step=2", "grpo.group_size=2"]
    )
    grpo = replace(config.grpo, max_resample_rounds=0, overlong="keep")
    rollout = replace(config.rollout, max_turns=2, max_new_tokens_per_turn=6)
    config = replace(config, grpo=grpo, rollout=rollout)
    policy = Policy(large_policy(world, seed=0).model, freeze_vision="all")
    engine = TrainEngine(policy.train(), OptimizerSettings(), stage=stage)
    sampler = native_engine(policy, world.environment, keep_features=True)
    samples = [world.samples[0], replace(world.samples[1], video="missing.mp4")]
    run = cast(StageRun, SimpleNamespace(config=config, device=CPU))
    by_ids = RewardFunction("ids", lambda completion_ids, **_: [sum(ids) % 97 for ids in completion_ids])
    rollouts = sample_groups(run, engine, sampler, [by_ids], samples, SampleOrder(len(samples), 0), 0)
    filler_episode = filler_group(rollouts, CPU)
    assert filler_episode is not None and len(filler_episode[0]) == 1
    filler = pack_micro_batch([filler_episode], world.packing, CPU)
    minibatch, _ = plan_micro_batches(with_advantages(rollouts.groups, "grpo", "keep"), 10**6, world.packing, CPU)
    assert len(minibatch) == len(rollouts.all_groups) <= 1
    values = rollout_metrics(rollouts, [by_ids], CPU)
    del values["time/rollout_s"]
    values |= update(Objective(config, engine, sampler, None), [minibatch], filler, 0)
    assert values["rollout/unreadable_prompts"] == 1 and values["grad_norm"] > 0
    return {name: [value] for name, value in values.items()}


def failed_write(world: TinyWorld, stage: int) -> dict[str, list[float]]:
    """Saves a checkpoint while the last rank's disk is full, then another one: all ranks fail together, and go on."""
    output_dir = Path(sys.argv[3]).with_suffix(f".{world_size()}")
    engine = engine_of(world, stage)
    writer, save_file, failures = CheckpointWriter(in_background=True), checkpoint.save_file, []

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    for step in (1, 2):
        checkpoint.save_file = full if step == 1 and rank() == world_size() - 1 else save_file
        state = TrainerState("sft", step, step, 0, world_size())
        writer.save(output_dir, engine, world.vocabulary.tokenizer, output_dir, state, keep=2)
        try:
            writer.wait()
        except CheckpointError:
            failures.append(step)
    barrier()
    assert [folder.name for folder in complete_checkpoints(output_dir)] == ["checkpoint-2"]
    assert len(list((output_dir / "checkpoint-2/state").iterdir())) == (world_size() if stage else 1)
    (num_failures,) = all_sum([len(failures)], CPU)
    return {"failures of a rank": [num_failures / world_size()]}


CASES: dict[str, Callable[[TinyWorld, int], dict[str, list[float]]]] = {
    "labels": labels,
    "one_update": partial(rows, num_updates=1),
    "two_updates": partial(rows, num_updates=2),
    "rewards": rewards,
    "unreadable": unreadable,
    "failed_write": failed_write,
}

if __name__ == "__main__":
    faulthandler.dump_traceback_later(90, exit=True)  # ranks out of step wait for each other without end
    case, stage, file = sys.argv[1:]
    found = CASES[case](tiny_world(), int(stage))
    if rank() == 0:
        Path(file).write_text(json.dumps(found))
    end_distributed()
