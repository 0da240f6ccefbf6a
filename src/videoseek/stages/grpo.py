"""GRPO on sampled episodes with a verifiable, trajectory-guided reward.

Differences from the textbook (2402.03300) and from the public Video-o3 code: only `kl_coef` > 0 loads a reference
model. A batch with one update skips the pass for old log-probs: the probability ratio is 1. Overlong episodes leave the
baseline and the loss. Dynamic sampling replaces groups of equal rewards. A group trains as one packed tree with one
copy of the prompt, and `data.group_by_film` joins the groups about one film. Counts of the whole batch normalise the
loss.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from statistics import fmean

import torch

from videoseek.algorithms.losses import LOSSES, LossInputs, Metrics, PolicyLossSettings
from videoseek.batches.loader import AheadLoader
from videoseek.batches.micro_batch import MicroBatch, pack_micro_batch, plan_metrics, plan_micro_batches
from videoseek.batches.order import SampleOrder
from videoseek.config import TrainConfig
from videoseek.distributed import all_sum, split_minibatches
from videoseek.engine import OptimizerSettings, TrainEngine, learning_rate
from videoseek.model.policy import Policy
from videoseek.rewards.functions import RewardFunction
from videoseek.rollout.engine import RolloutEngine
from videoseek.runtime import Progress
from videoseek.stages.rollouts import filler_group, prefetch_prompts, rollout_metrics, sample_groups, with_advantages
from videoseek.stages.stage_run import StageRun
from videoseek.types import Clip, Sample


def train_grpo(run: StageRun, samples: Sequence[Sample], functions: Sequence[RewardFunction]) -> TrainEngine:
    """Trains `run.policy` on episodes about `samples`. Returns the engine with the final weights.

    `functions` add to the rule's reward. Raises VideoError for an unreadable video, and RewardFunctionError for a
    function that misbehaves.
    """
    grpo = run.config.grpo
    reference = run.reference_policy() if grpo.kl_coef > 0 else None
    engine = run.engine(OptimizerSettings((0.9, 0.999), grpo.weight_decay, run.config.grad_clip))
    sampler = run.rollout_engine()
    objective = Objective(run.config, engine, sampler, reference)
    packing = run.pack_settings(masked=False)
    run.policy.train()
    order = SampleOrder.of(samples, run.config.seed, by_film=run.config.data.group_by_film)
    loader = AheadLoader(partial(prefetch_prompts, run.environment, run.config, samples, order))
    with closing(sampler.sampler), loader, Progress(run.name, grpo.steps, run.first_step) as progress:
        for step in range(run.first_step, grpo.steps):
            started = time.perf_counter()
            loader.get(step)
            rollouts = sample_groups(run, engine, sampler, functions, samples, order, step)
            if run.config.video.prefetch and step + 1 < grpo.steps:
                loader.start(step + 1)
            groups = with_advantages(rollouts.groups, grpo.advantage, grpo.overlong)
            plans = [
                plan_micro_batches(part, grpo.max_tokens_per_micro_batch, packing, run.device)
                for part in split_minibatches(groups, rollouts.draws, grpo.updates_per_batch)
            ]
            minibatches = [minibatch for minibatch, _ in plans]
            objective.encode_received(minibatches)
            filler_episode = filler_group(rollouts, run.device)
            filler = pack_micro_batch([filler_episode], packing, run.device) if filler_episode else None
            if len(minibatches) > 1:
                objective.write_old_logprobs([micro for minibatch in minibatches for micro in minibatch], filler)
            updates = []
            for update, minibatch in enumerate(minibatches, start=step * len(minibatches)):
                num_tokens, num_documents = objective.count(minibatch)
                if num_documents == 0:
                    continue  # dynamic sampling left every rank empty
                sums = engine.accumulate(minibatch, objective.loss(num_tokens, num_documents), filler)
                num_updates = grpo.steps * len(minibatches)
                rate = learning_rate(update, num_updates, grpo.learning_rate, grpo.warmup_steps, "constant")
                grad_norm = engine.step(rate)
                skipped = run.check_finite(step, sums, grad_norm)
                updates.append(sums.metrics | skipped | {"grad_norm": grad_norm, "learning_rate": rate})
            values = {"loss": 0.0, "grad_norm": 0.0} | join_updates(updates)
            values |= plan_metrics([account for _, account in plans])
            values |= rollout_metrics(rollouts, functions, run.device)
            values["step_time"] = time.perf_counter() - started
            run.record(f"{run.name}_step_{step + 1:06d}", rollouts.all_groups)
            shown = {"reward": "reward/mean", "accuracy": "rewards/accuracy/mean", "tokens saved": "plan/saving"}
            progress.update(step + 1, {name: values[key] for name, key in shown.items()})
            run.end_step(engine, step + 1, values)
    return engine


def join_updates(updates: Sequence[dict[str, float]]) -> dict[str, float]:
    """Joins the metrics of a batch's optimizer steps: minima of `_min`, maxima of `_max`, means of all others."""
    values: dict[str, list[float]] = {}
    for update in updates:
        for name, value in update.items():
            values.setdefault(name, []).append(value)
    joins = {"_min": min, "_max": max}
    return {name: joins.get(name[-4:], fmean)(numbers) for name, numbers in values.items()}


@dataclass(slots=True)
class Objective:
    """Computes the policy loss of a micro-batch under the recipe, and the log-probs for the loss."""

    config: TrainConfig
    engine: TrainEngine
    sampler: RolloutEngine
    reference: Policy | None

    def count(self, minibatch: Sequence[MicroBatch]) -> tuple[int, int]:
        """Returns the trained tokens and episodes of an optimizer step over all ranks, to divide the loss by."""
        own_tokens = sum(len(micro.batch.labels) for micro in minibatch)
        own_documents = sum(micro.batch.num_documents for micro in minibatch)
        num_tokens, num_documents = all_sum([own_tokens, own_documents], self.engine.policy.device)
        return int(num_tokens), int(num_documents)

    def encode_received(self, minibatches: Sequence[Sequence[MicroBatch]]) -> None:
        """Encodes the clips of rows from other ranks, if the vision tower is frozen."""
        if self.engine.policy.vision_is_frozen:
            clips = [clip for minibatch in minibatches for micro in minibatch for clip in micro.batch.clips]
            with self.engine.whole_weights():
                self.sampler.features.encode(clips)

    @torch.no_grad()
    def write_old_logprobs(self, micro_batches: Sequence[MicroBatch], filler: MicroBatch | None) -> None:
        """Writes the log-probs under the weights before the first update into each micro-batch."""
        for micro in self.engine.pad_to_longest_rank(micro_batches, filler):
            micro.old_logprobs, _ = self.logprobs(micro)

    def loss(self, num_tokens: int, num_documents: int) -> Callable[[MicroBatch], tuple[torch.Tensor, Metrics]]:
        """Returns the loss function of one optimizer step with the given counts of trained tokens and episodes."""
        grpo, rollout = self.config.grpo, self.config.rollout
        settings = PolicyLossSettings(
            num_tokens_global=num_tokens,
            num_documents_global=num_documents,
            clip_low=grpo.clip_low,
            clip_high=grpo.clip_high,
            kl=grpo.kl_kind,
            kl_weight=grpo.kl_coef,
            importance_cap=grpo.importance_cap,
            max_document_tokens=rollout.max_turns * rollout.max_new_tokens_per_turn,
        )

        def loss_of(micro: MicroBatch) -> tuple[torch.Tensor, Metrics]:
            logprobs, entropy = self.logprobs(micro)
            inputs = LossInputs(
                logprobs=logprobs,
                old_logprobs=logprobs.detach() if micro.old_logprobs is None else micro.old_logprobs,
                advantages=micro.advantages,
                documents=micro.batch.label_documents,
                rollout_logprobs=micro.batch.rollout_logprobs,
                reference_logprobs=self.reference_logprobs(micro),
            )
            loss, metrics = LOSSES[grpo.loss](inputs, settings)
            return loss, metrics | {"entropy": entropy.sum() / num_tokens}

        return loss_of

    def logprobs(self, micro: MicroBatch) -> tuple[torch.Tensor, torch.Tensor]:
        """Returns the log-prob [N] and the entropy [N] of every label, through the engine.

        A frozen vision tower gives equal features in rollout and update. The update reuses the rollout's features.
        """
        features = None
        if self.engine.policy.vision_is_frozen:
            features = torch.cat([self._features(clip) for clip in micro.batch.clips])
        return self.engine(micro.batch, features, self.config.rollout.temperature)

    def _features(self, clip: Clip) -> torch.Tensor:
        """Returns the rollout's features of a clip, or zeros for the filler of another rank (at weight zero)."""
        features = self.sampler.features.get(clip)
        if features is not None:
            return features
        hidden_size = self.engine.policy.model.config.text_config.hidden_size
        return torch.zeros(clip.num_tokens, hidden_size, device=self.engine.policy.device)

    def reference_logprobs(self, micro: MicroBatch) -> torch.Tensor | None:
        """Returns the log-prob [N] of every label under the reference model, for the KL term, or None."""
        if self.reference is None:
            return None
        with torch.no_grad():
            return self.reference(micro.batch, None, self.config.rollout.temperature)[0]
