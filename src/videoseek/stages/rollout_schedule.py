"""RolloutSchedule: when the rollouts of each step are sampled, and with the weights of which step."""

from __future__ import annotations

import time
from collections.abc import Sequence
from concurrent.futures import Future
from functools import partial
from threading import Thread

from videoseek.batches.loader import AheadLoader
from videoseek.batches.order import SampleOrder
from videoseek.distributed import background_group
from videoseek.engine import TrainEngine
from videoseek.rewards.functions import RewardFunction
from videoseek.rollout.engine import RolloutEngine
from videoseek.stages.rollouts import Rollouts, drop_stale, prefetch_prompts, sample_groups
from videoseek.stages.stage_run import StageRun
from videoseek.timing import CLOCK
from videoseek.types import Sample

#: Limit of waiting, after an error, for a thread that another rank may have left alone in a collective.
_END_SECONDS = 10


class RolloutSchedule:
    """Samples the rollouts of each step. With `rollout.lag=1`, a step's rollouts come from the weights of a step ago.

    A sampler with weights of its own samples the next step in a thread, while this step trains. A sampler on the
    trainer's weights samples the next step first, and then this step trains: on one device the two would share the
    device anyway. The step after a checkpoint has no lag, resumed or not: nothing is under way at a checkpoint, and a
    resumed run equals an uninterrupted run.
    """

    def __init__(
        self,
        run: StageRun,
        engine: TrainEngine,
        sampler: RolloutEngine,
        functions: Sequence[RewardFunction],
        samples: Sequence[Sample],
    ) -> None:
        self._run, self._engine, self._sampler = run, engine, sampler
        self._overlaps = run.config.rollout.lag > 0 and sampler.has_own_weights
        order = SampleOrder.of(samples, run.config.seed, by_film=run.config.data.group_by_film)
        group = background_group() if self._overlaps else None
        self._sample_groups = partial(sample_groups, run, sampler, functions, samples, order, group=group)
        self._prompts = AheadLoader(partial(prefetch_prompts, run.environment, run.config, samples, order))
        self._futures: dict[int, Future[Rollouts]] = {}
        self._thread: Thread | None = None

    def get(self, step: int) -> Rollouts:
        """Returns the rollouts of a step, without stale groups, and begins the next step's with `rollout.lag=1`."""
        run, started = self._run, time.perf_counter()
        self._begin(step, weight_version=step)
        with CLOCK.phase("wait"):
            rollouts = self._futures.pop(step).result()
        drop_stale(rollouts, step - run.config.rollout.max_lag)
        if run.config.rollout.lag and step + 1 < run.config.grpo.steps and not run.is_save_due(step + 1):
            self._begin(step + 1, weight_version=step, current=rollouts)
        rollouts.wait_seconds = time.perf_counter() - started
        return rollouts

    def _begin(self, step: int, weight_version: int, current: Rollouts | None = None) -> None:
        """Begins the rollouts of a step with the trainer's weights, unless begun. `current` trains meanwhile."""
        if step in self._futures:
            return
        future = self._futures[step] = Future()
        groups = [] if current is None else current.groups
        # Other features belong to older weights, unless the vision tower is frozen.
        self._sampler.features.clear(keep={clip for group in groups for episode in group for clip in episode.clips})
        with self._engine.whole_weights():
            self._sampler.load(weight_version)
            if not self._overlaps:
                future.set_result(self._sample(step, weight_version))
                return
        self._thread = Thread(target=self._sample_beside, args=(future, step, weight_version), daemon=True)
        self._thread.start()

    def _sample(self, step: int, weight_version: int) -> Rollouts:
        self._prompts.get(step)
        rollouts = self._sample_groups(step=step, weight_version=weight_version)
        if self._run.config.video.prefetch and step + 1 < self._run.config.grpo.steps:
            self._prompts.start(step + 1)
        return rollouts

    def _sample_beside(self, future: Future[Rollouts], step: int, weight_version: int) -> None:
        CLOCK.leave_out_this_thread()
        try:
            future.set_result(self._sample(step, weight_version))
        except Exception as error:  # `get` raises it in the training thread
            future.set_exception(error)

    def close(self) -> None:
        """Closes the sampler and ends what is under way."""
        self._sampler.sampler.close()  # turns under way fail, which ends the thread
        if self._thread is not None:
            self._thread.join(_END_SECONDS)
        self._prompts.__exit__(None, None, None)
