"""RolloutEngine: episodes as state machines over a sampler.

An episode submits its prompt and receives a turn. Tools answer the turn in a pool of threads. The episode submits the
observation, and so on to its end. An episode goes on as soon as its own turn or observation is there.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from queue import SimpleQueue
from typing import Any

import torch

from videoseek.rollout.clip_features import ClipFeatures
from videoseek.rollout.environment import Environment
from videoseek.rollout.sampler import SampledTurn, Sampler, SamplingSettings, TurnSettings, TurnStop
from videoseek.rollout.sampling import draw_numbers, stream_key
from videoseek.timing import CLOCK
from videoseek.trajectory.builder import EpisodeBuilder
from videoseek.types import Episode, Sample, StopReason
from videoseek.video.errors import VideoError, warn_once

#: Threads for tools. A thread mostly waits for a decode worker.
TOOL_THREADS = 32
#: Episodes under way side by side. The sampler queues the ones without room; a queued episode takes host memory only.
MAX_OPEN_EPISODES = 1024


@dataclass(slots=True)
class _Running:
    """An episode under way. The sampler knows the first `num_known_tokens` tokens and `num_known_clips` clips.

    `seconds` is the model's own time so far. The episode gets the oldest of the tokens' `weight_versions`.
    """

    sequence_id: str
    stream: int
    builder: EpisodeBuilder
    group: list[_Running]
    num_known_tokens: int = 0
    num_known_clips: int = 0
    seconds: float = 0.0
    weight_versions: list[int] = field(default_factory=list)
    stop_reason: StopReason | None = None


#: The next step of an episode, with the finished future of its turn or its tools.
_Transition = Callable[[_Running, Future[Any]], None]


class RolloutEngine:
    """Samples episodes with any sampler.

    `features` is the trainer's table of vision features. `weights` returns the named tensors for a sampler that does
    not share the trainer's weights.
    """

    def __init__(
        self,
        environment: Environment,
        sampler: Sampler,
        features: ClipFeatures,
        weights: Callable[[], Iterable[tuple[str, torch.Tensor]]] = tuple,
    ) -> None:
        self.environment, self.sampler, self.features = environment, sampler, features
        #: Whether the sampler holds weights apart from the trainer's, and can sample while the trainer trains.
        self.has_own_weights = weights is not tuple
        self._weights = weights
        self._weight_version: int | None = None

    def load(self, weight_version: int) -> None:
        """Hands the trainer's weights to the sampler as `weight_version`, unless the sampler has that version."""
        if weight_version != self._weight_version:
            self.sampler.load(self._weights(), weight_version)
            self._weight_version = weight_version

    def rollout(
        self,
        samples: Sequence[Sample],
        samples_per_prompt: int,
        seed: int,
        settings: SamplingSettings,
        *,
        weight_version: int = 0,
        draws: Sequence[int] | None = None,
        on_progress: Callable[[int, int], None] | None = None,
        skip_unreadable: bool = False,
    ) -> list[list[Episode]]:
        """Returns one group of `samples_per_prompt` episodes for each of `samples`.

        `draws` tells the draws of one sample in a round apart (None: `draw_numbers` of `samples`). `on_progress`
        receives the number of finished episodes and of all episodes. Raises VideoError for an unreadable video.
        `skip_unreadable` logs a warning with the video's name instead, and returns an empty group.
        """
        self.load(weight_version)
        draws = draw_numbers([sample.id for sample in samples]) if draws is None else draws
        streams = [
            [stream_key(seed, sample.id, index, draw) for index in range(samples_per_prompt)]
            for sample, draw in zip(samples, draws, strict=True)
        ]
        with ThreadPoolExecutor(TOOL_THREADS, "tools", CLOCK.leave_out_this_thread) as pool:
            rollout = _Rollout(self, settings, pool, skip_unreadable)
            try:
                return rollout.run(samples, streams, on_progress)
            finally:
                pool.shutdown(wait=False, cancel_futures=True)
                for sequence_id in rollout.open:
                    self.sampler.forget(sequence_id)


class _Rollout:
    """One call of `RolloutEngine.rollout`. Each open episode has one future under way, of its turn or of its tools.

    `events` holds finished futures with the transition of their episode, and `answers` the tools' futures, finished or
    not, for a sampler that wants answers in order.
    """

    def __init__(
        self, engine: RolloutEngine, settings: SamplingSettings, pool: ThreadPoolExecutor, skip_unreadable: bool
    ) -> None:
        self.environment, self.sampler = engine.environment, engine.sampler
        self.settings, self.pool, self.skip_unreadable = settings, pool, skip_unreadable
        self.events: SimpleQueue[tuple[_Transition, _Running, Future[Any]]] = SimpleQueue()
        self.answers: deque[tuple[_Transition, _Running, Future[Any]]] = deque()
        self.open: dict[str, _Running] = {}

    def run(
        self,
        samples: Sequence[Sample],
        streams: Sequence[Sequence[int]],
        on_progress: Callable[[int, int], None] | None,
    ) -> list[list[Episode]]:
        """Runs all episodes to their end. Returns the groups in the order of `samples`."""
        groups: list[list[_Running]] = []
        num_reported, num_opened, total = 0, 0, sum(map(len, streams))
        while True:
            while len(groups) < len(samples) and len(self.open) < MAX_OPEN_EPISODES:
                num_opened += len(streams[len(groups)])
                groups.append(self._open_group(len(groups), samples[len(groups)], streams[len(groups)]))
            if on_progress is not None and num_opened - len(self.open) > num_reported:
                num_reported = num_opened - len(self.open)
                on_progress(num_reported, total)
            if not self.open:
                return [_episodes(group) for group in groups]
            if not self.sampler.work():
                with CLOCK.phase("wait"):
                    self._handle(*self.events.get())
            while not self.events.empty():
                self._handle(*self.events.get())
            while self.answers:
                self._handle(*self.answers.popleft())

    def _open_group(self, number: int, sample: Sample, streams: Sequence[int]) -> list[_Running]:
        group: list[_Running] = []
        try:
            builders = [self.environment.open(sample) for _ in streams]
        except VideoError as error:
            self._pass_over(group, error)
            return group
        for index, (stream, builder) in enumerate(zip(streams, builders, strict=True)):
            group.append(_Running(f"{number}/{index}", stream, builder, group))
        for episode in group:
            self.open[episode.sequence_id] = episode
            self._submit(episode)
        return group

    def _submit(self, episode: _Running) -> None:
        """Sends the new tokens to the sampler and asks for the next turn."""
        builder, settings = episode.builder, self.settings
        num_free = self.environment.max_context_tokens - len(builder.token_ids)
        deadline = settings.deadline_seconds
        num_new = max(1, min(settings.max_new_tokens_per_turn, num_free))
        num_drawn = len(episode.weight_versions)
        seconds = None if deadline is None else max(0.0, deadline - episode.seconds)
        turn = TurnSettings(settings.temperature, settings.top_p, num_new, episode.stream, num_drawn, seconds)
        new_ids = builder.token_ids[episode.num_known_tokens :]
        new_clips = builder.clips[episode.num_known_clips :]
        episode.num_known_tokens, episode.num_known_clips = len(builder.token_ids), len(builder.clips)
        self._then(self._end_turn, episode, self.sampler.submit(episode.sequence_id, new_ids, new_clips, turn))

    def _then(self, transition: _Transition, episode: _Running, future: Future[Any]) -> None:
        future.add_done_callback(lambda done: self.events.put((transition, episode, done)))

    def _handle(self, transition: _Transition, episode: _Running, future: Future[Any]) -> None:
        if episode.sequence_id not in self.open:
            return  # its group has been passed over
        try:
            with CLOCK.phase("tools"):
                transition(episode, future)
        except VideoError as error:
            self._pass_over(episode.group, error)

    def _end_turn(self, episode: _Running, future: Future[SampledTurn]) -> None:
        """Appends the sampled turn. Lets the tools answer the turn, or stops an episode at a limit."""
        turn, builder, environment = future.result(), episode.builder, self.environment
        parsed = builder.assistant_tokens(turn.token_ids, turn.logprobs)
        episode.num_known_tokens = len(builder.token_ids)
        episode.seconds += turn.seconds
        episode.weight_versions += turn.weight_versions
        if turn.stop is not TurnStop.END:
            is_full = len(builder.token_ids) >= environment.max_context_tokens
            limit = StopReason.CONTEXT_FULL if is_full else StopReason.TOKEN_LIMIT
            self._finish(episode, StopReason.DEADLINE if turn.stop is TurnStop.DEADLINE else limit)
            return
        environment.prefetch_calls(builder, parsed)
        answer = partial(self._end_observation, list(builder.token_ids))
        observed = self.pool.submit(environment.respond, builder, parsed)
        if self.sampler.in_order:
            self.answers.append((answer, episode, observed))
        else:
            self._then(answer, episode, observed)

    def _end_observation(self, sampled_ids: list[int], episode: _Running, future: Future[StopReason | None]) -> None:
        """Sends the observation to the sampler, or ends the episode."""
        reason = future.result()
        # The sampler keeps the earlier tokens: training would use tokens unseen by the model.
        if episode.builder.token_ids[: len(sampled_ids)] != sampled_ids:
            raise RuntimeError(f"episode of {episode.builder.sample.id!r}: an observation changed earlier tokens")
        if reason is None:
            self._submit(episode)
        else:
            self._finish(episode, reason)

    def _finish(self, episode: _Running, reason: StopReason) -> None:
        episode.stop_reason = reason
        del self.open[episode.sequence_id]
        self.sampler.forget(episode.sequence_id)

    def _pass_over(self, group: list[_Running], error: VideoError) -> None:
        """Drops the group of an unreadable clip. Raises the error if unreadable videos are not to be skipped."""
        if not self.skip_unreadable:
            raise error
        warn_once(f"passed over: {error}")
        for episode in group:
            if self.open.pop(episode.sequence_id, None) is not None:
                self.sampler.forget(episode.sequence_id)
            episode.stop_reason = None


def _episodes(group: Sequence[_Running]) -> list[Episode]:
    """Returns the episodes of a group, or [] for a group passed over: advantages compare all members."""
    return [e.builder.finish(e.stop_reason, min(e.weight_versions)) for e in group if e.stop_reason is not None]
