"""Supervised fine-tuning on tool trajectories.

Differences from the public Video-o3 code: the loss of a batch is one mean over all trained tokens of all rows and
ranks; several samples share a row; TDAM masks the rows that predict a span.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from functools import partial

import torch

from videoseek.algorithms.losses import Metrics, sft_loss
from videoseek.batches.loader import AheadLoader
from videoseek.batches.micro_batch import PlanAccount, plan_metrics
from videoseek.batches.order import SampleOrder
from videoseek.batches.packing import masked_by_tdam, pack_documents, pack_rows
from videoseek.batches.token_batch import TokenBatch
from videoseek.distributed import all_sum, rank_indices
from videoseek.engine import OptimizerSettings, TrainEngine, learning_rate
from videoseek.rollout.replay import ReplayedEpisodes
from videoseek.runtime import Progress, rank
from videoseek.samples.schema import DataError
from videoseek.stages.stage_run import StageRun
from videoseek.types import Episode, Sample
from videoseek.video.decode import prefetch, read_frames
from videoseek.video.errors import VideoError, warn_once


def train_sft(run: StageRun, samples: Sequence[Sample], *, steps: int | None = None) -> TrainEngine:
    """Trains `run.policy` on the trajectories of `samples`. Returns the engine with the final weights.

    `steps` overrides the recipe's number. Raises DataError or VideoError for an unusable sample or video;
    data.bad_samples=skip logs the sample by name and drops the sample from the step.
    """
    settings = run.config.sft
    steps = settings.steps if steps is None else steps
    beta1, beta2 = settings.betas
    engine = run.engine(OptimizerSettings((beta1, beta2), settings.weight_decay, run.config.grad_clip))
    packing = run.pack_settings(masked=True)
    episodes = ReplayedEpisodes(samples, run.environment)
    order = SampleOrder.of(samples, run.config.seed, by_film=packing.share_films)
    skip_bad = run.config.data.bad_samples == "skip"
    run.policy.train()
    with (
        Progress(run.name, steps, run.first_step) as progress,
        AheadLoader(partial(_load, run, episodes, order)) as loader,
    ):
        for step in range(run.first_step, steps):
            started = time.perf_counter()
            batch = loader.get(step)
            if run.config.video.prefetch and step + 1 < steps:
                loader.start(step + 1)
            rows = [row.to(run.device) for row in pack_rows(batch, settings.max_tokens_per_micro_batch, packing)]
            counts = all_sum(
                [
                    sum(sum(episode.loss_mask) for episode in batch),
                    sum(len(episode.token_ids) for episode in batch),
                    sum(packing.tdam_rule != "off" and masked_by_tdam(episode, packing) for episode in batch),
                    len(rank_indices(settings.samples_per_step)) - len(batch),
                    sum(map(len, rows)),
                ],
                run.device,
            )
            num_targets, num_tokens, num_masked, num_unreadable, num_row_tokens = map(int, counts)
            rate = learning_rate(step, steps, settings.learning_rate, settings.warmup_steps, settings.schedule)
            learnt = {"loss": 0.0, "grad_norm": 0.0}
            if num_targets:  # otherwise every rank is empty and the weights stay
                # A rank without any sample of its own still takes part, with any readable sample.
                filler = rows[0] if rows else pack_documents([_any_readable(episodes)], packing).to(run.device)
                sums = engine.accumulate(rows, partial(_row_loss, engine, num_targets), filler)
                grad_norm = engine.step(rate)
                learnt = sums.metrics | {"grad_norm": grad_norm} | run.check_finite(step, sums, grad_norm)
            seconds = time.perf_counter() - started
            values = learnt | {"learning_rate": rate, "num_tokens": num_tokens}
            values |= {"tdam/masked_samples": num_masked, "step_time": seconds}
            values |= plan_metrics([PlanAccount(num_row_tokens, num_tokens)]) if packing.share_films else {}
            values |= {"data/unreadable_samples": num_unreadable} if skip_bad else {}
            values |= {"perf/tokens_per_s": num_tokens / seconds}
            progress.update(step + 1, {"loss": learnt["loss"]})
            run.end_step(engine, step + 1, values)
    return engine


def _load(run: StageRun, episodes: Sequence[Episode], order: SampleOrder, step: int) -> list[Episode]:
    """Returns this rank's episodes of a step, and starts to decode their clips. See `_readable` for skipping."""
    indices = order.batch(step, run.config.sft.samples_per_step)
    own_indices = [indices[i] for i in rank_indices(len(indices), contiguous=run.config.data.group_by_film)]
    if run.config.data.bad_samples == "skip":
        return list(_readable(episodes, own_indices))
    batch = [episodes[index] for index in own_indices]
    prefetch(clip for episode in batch for clip in episode.clips)
    return batch


def _row_loss(engine: TrainEngine, num_targets: int, row: TokenBatch) -> tuple[torch.Tensor, Metrics]:
    logprobs, _ = engine(row)
    return sft_loss(logprobs, num_targets), {}


def _readable(episodes: Sequence[Episode], indices: Sequence[int]) -> Iterator[Episode]:
    """Yields the episodes of `indices` with a readable video. Logs the other samples by name."""
    opened = []
    for index in indices:
        try:
            opened.append(episodes[index])
        except (DataError, VideoError) as error:
            warn_once(f"passed over: {error}")
    prefetch(clip for episode in opened for clip in episode.clips)  # all workers decode, and the loop below waits
    for episode in opened:
        try:
            for clip in episode.clips:
                read_frames(clip)
        except VideoError as error:
            warn_once(f"passed over: {error}")
            continue
        yield episode


def _any_readable(episodes: Sequence[Episode]) -> Episode:
    """Returns the filler of a rank without readable samples. Raises DataError if no sample is readable."""
    for index in range(len(episodes)):
        for episode in _readable(episodes, [index]):
            return episode
    raise DataError(f"none of the {len(episodes)} samples can be read by rank {rank()}")
