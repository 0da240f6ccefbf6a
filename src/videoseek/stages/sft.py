"""Supervised fine-tuning on tool trajectories.

Differs from the public Video-o3 code in that a batch's loss is one mean over all of its trained tokens, however it is
cut into rows and ranks; that several samples share a row; and that TDAM treats the rows that predict a span.
"""

from __future__ import annotations

import time
from collections.abc import Sequence

from videoseek.algorithms.losses import sft_loss
from videoseek.data.order import batch_indices, micro_batches
from videoseek.data.packing import masked_by_tdam, pack_documents
from videoseek.engine import OptimizerSettings, TrainEngine, all_max, all_sum, learning_rate, my_share
from videoseek.runtime import Progress
from videoseek.stages.run import ReplayedEpisodes, StageRun
from videoseek.types import Sample
from videoseek.video.errors import error_metrics


def train_sft(run: StageRun, samples: Sequence[Sample], *, steps: int | None = None) -> TrainEngine:
    """Trains `run.policy` on the trajectories of `samples`; returns the engine that holds the final weights.

    `steps` overrides the recipe's number. Raises DataError when a sample or its video cannot be used.
    """
    settings = run.config.sft
    steps = settings.steps if steps is None else steps
    beta1, beta2 = settings.betas
    engine = run.engine(OptimizerSettings((beta1, beta2), settings.weight_decay, settings.grad_clip))
    packing = run.pack_settings(masked=True)
    episodes = ReplayedEpisodes(samples, run.environment)
    run.policy.train()
    with Progress(run.name, steps, run.first_step) as progress:
        for step in range(run.first_step, steps):
            started = time.perf_counter()
            indices = batch_indices(step, settings.samples_per_step, len(samples), run.config.seed)
            mine = [episodes[indices[i]] for i in my_share(len(indices))]
            rows = micro_batches([len(episode.token_ids) for episode in mine], settings.max_tokens_per_micro_batch)
            num_targets, num_tokens, num_masked = all_sum(
                [
                    sum(sum(episode.loss_mask) for episode in mine),
                    sum(len(episode.token_ids) for episode in mine),
                    sum(packing.tdam_rule != "off" and masked_by_tdam(episode, packing) for episode in mine),
                ],
                run.device,
            )
            num_rows = all_max(len(rows), run.device)
            loss_sum = 0.0
            for index in range(num_rows):
                batch = pack_documents([mine[i] for i in rows[index % len(rows)]], packing).to(run.device)
                logprobs, _ = engine(batch)
                # Every rank runs the same number of rows; one that has fewer repeats a row at weight zero.
                loss = sft_loss(logprobs, int(num_targets)) * float(index < len(rows))
                engine.backward(loss, last=index == num_rows - 1)
                loss_sum += loss.item()
            rate = learning_rate(step, steps, settings.learning_rate, settings.warmup_steps, settings.schedule)
            grad_norm = engine.step(rate)
            (loss_total,) = all_sum([loss_sum], run.device)
            seconds = time.perf_counter() - started
            values = {"loss": loss_total, "grad_norm": grad_norm, "learning_rate": rate, "num_tokens": num_tokens}
            values |= {"tdam/masked_samples": num_masked, "step_time": seconds}
            values |= {"perf/tokens_per_s": num_tokens / seconds}
            run.metrics.write(run.name, step + 1, values | error_metrics())
            progress.update(step + 1, {"loss": loss_total})
            run.save(engine, step + 1)
    return engine
