"""GRPO on sampled episodes with a verifiable, trajectory-guided reward.

Differs from the textbook (2402.03300) and from the public Video-o3 code in that: there is no reference model unless
`kl_coef` asks for one; with one update a batch the ratio is 1, so no pass for old log-probs is made; episodes that ran
into a limit leave the baseline as well as the loss; groups whose rewards are all equal are sampled anew, within
bounds; a group trains as one tree, its prompt once, or as several where one would be too long; and the loss is
normalised by counts of the whole batch.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

import torch

from videoseek.algorithms.losses import LOSSES, PolicyLossSettings, combine_metrics
from videoseek.config import TrainConfig
from videoseek.data.order import micro_batches
from videoseek.data.packing import PackSettings, pack_groups, tree_length
from videoseek.engine import OptimizerSettings, TrainEngine, all_max, all_sum, deal, gather, learning_rate
from videoseek.model.policy import Policy
from videoseek.rewards.functions import RewardFunction
from videoseek.rollout.native import NativeEngine
from videoseek.runtime import Progress
from videoseek.stages.harvest import Group, ScoredGroup, harvest, harvest_metrics, judge, spare_group
from videoseek.stages.run import StageRun
from videoseek.types import Clip, Sample, TokenBatch
from videoseek.video.errors import error_metrics


def train_grpo(run: StageRun, samples: Sequence[Sample], functions: Sequence[RewardFunction]) -> TrainEngine:
    """Trains `run.policy` on episodes about `samples`; returns the engine that holds the final weights.

    `functions` add to the rule's reward. Raises VideoError when a video cannot be read and RewardFunctionError when
    one of the functions misbehaves.
    """
    settings = run.config.grpo
    reference = run.reference_policy() if settings.kl_coef > 0 else None
    engine = run.engine(OptimizerSettings((0.9, 0.999), settings.weight_decay, settings.grad_clip))
    sampler = run.native_engine()
    learner = _Learner(run.config, engine, sampler, reference)
    packing = run.pack_settings(masked=False)
    run.policy.train()
    with Progress(run.name, settings.steps, run.first_step) as progress:
        for step in range(run.first_step, settings.steps):
            started = time.perf_counter()
            crop = harvest(run, engine, sampler, functions, samples, step)
            values = harvest_metrics(crop, functions, run.device) | {"time/rollout_s": crop.seconds}
            scored = judge(crop.groups, settings.advantage, settings.over_limit)
            shares = [
                _rows(share, settings.max_tokens_per_micro_batch, packing, run.device)
                for share in deal(scored, settings.updates_per_batch)
            ]
            spare = [_Part.of([(group, [0.0])], packing, run.device) for group in spare_group(crop, run.device)]
            values |= learner.update(shares, spare, step)
            values["step_time"] = time.perf_counter() - started
            run.metrics.write(run.name, step + 1, values | error_metrics())
            run.record(f"{run.name}_step_{step + 1:06d}", crop.every)
            progress.update(step + 1, {"reward": values["reward/mean"], "accuracy": values["rewards/accuracy/mean"]})
            run.save(engine, step + 1)
    return engine


@dataclass(slots=True)
class _Part:
    """A packed row of trees, and for each of its labels [N] the advantage and the log-prob before any update."""

    batch: TokenBatch
    advantages: torch.Tensor
    old_logprobs: torch.Tensor | None = None

    @classmethod
    def of(cls, groups: Sequence[ScoredGroup], packing: PackSettings, device: torch.device) -> _Part:
        batch = pack_groups([group for group, _ in groups], packing).to(device)
        by_document = torch.tensor([value for _, values in groups for value in values], device=device)
        return cls(batch, by_document[batch.label_documents])


def _rows(scored: Sequence[ScoredGroup], max_tokens: int, packing: PackSettings, device: torch.device) -> list[_Part]:
    """The groups in rows of at most `max_tokens`, as far as single episodes allow."""
    trees = [tree for group, advantages in scored for tree in _trees(group, advantages, max_tokens)]
    rows = micro_batches([tree_length(group) for group, _ in trees], max_tokens)
    return [_Part.of([trees[i] for i in row], packing, device) for row in rows]


def _trees(group: Group, advantages: Sequence[float], max_tokens: int) -> list[ScoredGroup]:
    """A group cut into trees of at most `max_tokens`, but of one episode at least; each runs the prompt again.

    The gradient is that of the whole group: the loss is a sum over episodes, by counts of the whole batch.
    """
    shared = group[0].prompt_length - 1
    cuts = micro_batches([len(episode.token_ids) - shared for episode in group], max_tokens - shared)
    return [([group[i] for i in cut], [advantages[i] for i in cut]) for cut in cuts]


def _joined(updates: Sequence[dict[str, float]]) -> dict[str, float]:
    """Metrics of a batch from those of the optimizer steps made on it: means, and extremes of extremes."""
    values: dict[str, list[float]] = {}
    for update in updates:
        for name, value in update.items():
            values.setdefault(name, []).append(value)
    joins = {"_min": min, "_max": max}
    return {name: joins.get(name[-4:], fmean)(found) for name, found in values.items()}


@dataclass(slots=True)
class _Learner:
    """The training half of a step."""

    config: TrainConfig
    engine: TrainEngine
    sampler: NativeEngine
    reference: Policy | None

    def update(self, shares: Sequence[Sequence[_Part]], spare: Sequence[_Part], step: int) -> dict[str, float]:
        """One optimizer step on each share of batch `step` (from 0), but for shares that are empty on all ranks.

        `spare` (one part; none if no rank has any) takes part at weight zero where another rank has more rows.
        """
        grpo = self.config.grpo
        if len(shares) > 1:
            with torch.no_grad():
                for part in self._in_step([part for share in shares for part in share], spare):
                    part.old_logprobs, _ = self._logprobs(part)
        updates = []
        for number, parts in enumerate(shares, start=step * len(shares)):
            rate = learning_rate(number, grpo.steps * len(shares), grpo.learning_rate, grpo.warmup_steps, "constant")
            updates.append(self._step(parts, spare, rate))
        return {"loss": 0.0, "grad_norm": 0.0} | _joined(updates)

    def _step(self, parts: Sequence[_Part], spare: Sequence[_Part], rate: float) -> dict[str, float]:
        """One optimizer step and its metrics; none of both when there is nothing to learn from on any rank."""
        device = self.engine.policy.device
        num_tokens, num_documents = all_sum(
            [sum(len(part.batch.labels) for part in parts), sum(part.batch.num_documents for part in parts)], device
        )
        if not num_documents:
            return {}
        settings = self._loss_settings(int(num_tokens), int(num_documents))
        rows = self._in_step(parts, spare)
        sums, metrics = [0.0, 0.0], []
        for index, part in enumerate(rows):
            logprobs, entropy = self._logprobs(part)
            loss, part_metrics = LOSSES[self.config.grpo.loss](
                logprobs,
                logprobs.detach() if part.old_logprobs is None else part.old_logprobs,
                part.advantages,
                part.batch.label_documents,
                settings,
                rollout_logprobs=part.batch.behaviour_logprobs,
                reference_logprobs=self._reference_logprobs(part),
            )
            counts = index < len(parts)
            self.engine.backward(loss * float(counts), last=index == len(rows) - 1)
            if counts:
                sums = [sums[0] + loss.item(), sums[1] + entropy.sum().item()]
                metrics.append({name: value.cpu() for name, value in part_metrics.items()})
        grad_norm = self.engine.step(rate)
        loss_total, entropy_total = all_sum(sums, device)
        values = {"loss": loss_total, "grad_norm": grad_norm, "learning_rate": rate}
        return combine_metrics(gather(metrics)) | values | {"entropy": entropy_total / num_tokens}

    def _in_step(self, parts: Sequence[_Part], spare: Sequence[_Part]) -> list[_Part]:
        """The parts, and the spare one as often as another rank has more: under ZeRO-3 all must call all modules."""
        num_rows = all_max(len(parts), self.engine.policy.device)
        return [*parts, *list(spare) * (num_rows - len(parts))]

    def _loss_settings(self, num_tokens: int, num_documents: int) -> PolicyLossSettings:
        grpo, rollout = self.config.grpo, self.config.rollout
        return PolicyLossSettings(
            num_tokens_global=num_tokens,
            num_documents_global=num_documents,
            clip_low=grpo.clip_low,
            clip_high=grpo.clip_high,
            kl=grpo.kl_kind,
            kl_weight=grpo.kl_coef,
            importance_cap=grpo.importance_cap,
            max_document_tokens=rollout.max_turns * rollout.max_new_tokens_per_turn,
        )

    def _logprobs(self, part: _Part) -> tuple[torch.Tensor, torch.Tensor]:
        """Through the engine; a frozen vision tower's features are those that the rollout already made."""
        features = None
        if self.engine.policy.vision_is_frozen:
            features = torch.cat([self._features(clip) for clip in part.batch.clips])
        return self.engine(part.batch, features, self.config.rollout.temperature)

    def _features(self, clip: Clip) -> torch.Tensor:
        """What the rollout made of a clip. A spare part may be another rank's: at weight zero, zeros do for it."""
        if clip in self.sampler.features:
            return self.sampler.features[clip]
        hidden_size = self.engine.policy.model.config.text_config.hidden_size
        return torch.zeros(clip.num_tokens, hidden_size, device=self.engine.policy.device)

    def _reference_logprobs(self, part: _Part) -> torch.Tensor | None:
        if self.reference is None:
            return None
        with torch.no_grad():
            return self.reference(part.batch, None, self.config.rollout.temperature)[0]
