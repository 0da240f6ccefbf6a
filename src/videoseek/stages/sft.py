"""Supervised fine-tuning on tool trajectories.

Differs from the public Video-o3 code in that a batch's loss is one mean over all of its trained tokens, however it is
cut into rows and ranks; that several samples share a row; and that TDAM treats the rows that predict a span.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence

from videoseek.algorithms.losses import sft_loss
from videoseek.data.order import batch_indices, micro_batches
from videoseek.data.packing import masked_by_tdam, pack_documents
from videoseek.data.schema import DataError
from videoseek.engine import OptimizerSettings, TrainEngine, all_max, all_sum, learning_rate, my_share
from videoseek.runtime import Progress, rank
from videoseek.stages.run import ReplayedEpisodes, StageRun
from videoseek.types import Episode, Sample
from videoseek.video.decode import read_frames
from videoseek.video.errors import VideoError, error_metrics, name_once


def train_sft(run: StageRun, samples: Sequence[Sample], *, steps: int | None = None) -> TrainEngine:
    """Trains `run.policy` on the trajectories of `samples`; returns the engine that holds the final weights.

    `steps` overrides the recipe's number. Raises DataError or VideoError when a sample or its video cannot be used;
    with data.bad_samples=skip such a sample is named and drops out of its step.
    """
    settings = run.config.sft
    steps = settings.steps if steps is None else steps
    beta1, beta2 = settings.betas
    engine = run.engine(OptimizerSettings((beta1, beta2), settings.weight_decay, settings.grad_clip))
    packing = run.pack_settings(masked=True)
    episodes = ReplayedEpisodes(samples, run.environment)
    skip_bad = run.config.data.bad_samples == "skip"
    run.policy.train()
    with Progress(run.name, steps, run.first_step) as progress:
        for step in range(run.first_step, steps):
            started = time.perf_counter()
            indices = batch_indices(step, settings.samples_per_step, len(samples), run.config.seed)
            share = [indices[i] for i in my_share(len(indices))]
            mine = list(_readable(episodes, share)) if skip_bad else [episodes[index] for index in share]
            rows = micro_batches([len(episode.token_ids) for episode in mine], settings.max_tokens_per_micro_batch)
            num_targets, num_tokens, num_masked, num_unreadable = all_sum(
                [
                    sum(sum(episode.loss_mask) for episode in mine),
                    sum(len(episode.token_ids) for episode in mine),
                    sum(packing.tdam_rule != "off" and masked_by_tdam(episode, packing) for episode in mine),
                    len(share) - len(mine),
                ],
                run.device,
            )
            # Every rank runs the same number of rows; one that has fewer repeats a row at weight zero. Without anything
            # to learn from on any rank, the weights stay as they are.
            num_rows = all_max(len(rows), run.device) if num_targets else 0
            packed = [[mine[i] for i in row] for row in rows]
            if num_rows and not packed:
                packed = [[_any_readable(episodes)]]
            loss_sum = 0.0
            for index in range(num_rows):
                batch = pack_documents(packed[index % len(packed)], packing).to(run.device)
                logprobs, _ = engine(batch)
                loss = sft_loss(logprobs, int(num_targets)) * float(index < len(rows))
                engine.backward(loss, last=index == num_rows - 1)
                loss_sum += loss.item()
            rate = learning_rate(step, steps, settings.learning_rate, settings.warmup_steps, settings.schedule)
            grad_norm = engine.step(rate) if num_rows else 0.0
            (loss_total,) = all_sum([loss_sum], run.device)
            seconds = time.perf_counter() - started
            values = {"loss": loss_total, "grad_norm": grad_norm, "learning_rate": rate, "num_tokens": num_tokens}
            values |= {"tdam/masked_samples": num_masked, "step_time": seconds}
            values |= {"data/unreadable_samples": num_unreadable} if skip_bad else {}
            values |= {"perf/tokens_per_s": num_tokens / seconds}
            run.metrics.write(run.name, step + 1, values | error_metrics())
            progress.update(step + 1, {"loss": loss_total})
            run.save(engine, step + 1)
    return engine


def _readable(episodes: Sequence[Episode], indices: Sequence[int]) -> Iterator[Episode]:
    """Those of `indices` that can be replayed and whose frames can be decoded, now; the others are named."""
    for index in indices:
        try:
            episode = episodes[index]
            for clip in episode.clips:
                read_frames(clip)
        except (DataError, VideoError) as error:
            name_once(f"passed over: {error}")
            continue
        yield episode


def _any_readable(episodes: Sequence[Episode]) -> Episode:
    """What a rank whose own samples all dropped out takes part with, at weight zero."""
    for episode in _readable(episodes, range(len(episodes))):
        return episode
    raise DataError(f"none of the {len(episodes)} samples can be read by rank {rank()}")
