"""The driver: each episode goes on by itself, limits belong to an episode, and errors leave nothing open."""

from __future__ import annotations

import random
import time
from collections.abc import Iterable, Sequence
from concurrent.futures import Future
from dataclasses import replace
from threading import Event

import pytest
import torch
from support.tiny_world import LIMITS, TinyWorld, answer, look, tiny_world

from videoseek.rollout.clip_features import ClipFeatures
from videoseek.rollout.engine import RolloutEngine
from videoseek.rollout.sampler import SampledTurn, SamplingSettings, TurnSettings, TurnStop
from videoseek.rollout.sampling import stream_key
from videoseek.tools.crop import VideoCrop
from videoseek.types import Call, Clip, Fault, StopReason
from videoseek.video.errors import VideoError

SETTINGS = SamplingSettings(max_new_tokens_per_turn=64)


@pytest.fixture(scope="module")
def world() -> TinyWorld:
    return tiny_world()


class Scripted:
    """Answers the n-th turn of any sequence with the n-th text. Every turn takes `seconds` of the model's time."""

    def __init__(self, world: TinyWorld, texts: Sequence[str], seconds: float = 1.0) -> None:
        self.world, self.texts, self.seconds = world, texts, seconds
        self.submitted: dict[str, list[tuple[list[int], list[Clip], TurnSettings]]] = {}
        self.queue: list[tuple[Future[SampledTurn], SampledTurn]] = []
        self.forgotten: list[str] = []
        self.loaded: list[tuple[list[str], int]] = []
        self.version = 0
        self.in_order = False
        self.order: list[str] = []

    def submit(
        self, sequence_id: str, new_ids: Sequence[int], new_clips: Sequence[Clip], settings: TurnSettings
    ) -> Future[SampledTurn]:
        self.order.append(sequence_id)
        turns = self.submitted.setdefault(sequence_id, [])
        turns.append((list(new_ids), list(new_clips), settings))
        ids = [*self.world.vocabulary.encode(self.texts[len(turns) - 1]), self.world.vocabulary.im_end]
        cut = settings.max_seconds is not None and settings.max_seconds < self.seconds
        stop = TurnStop.DEADLINE if cut else TurnStop.LENGTH if len(ids) > settings.max_new_tokens else TurnStop.END
        ids = ids[:1] if cut else ids[: settings.max_new_tokens]
        future: Future[SampledTurn] = Future()
        turn = SampledTurn(ids, [-1.0] * len(ids), [self.version] * len(ids), stop, self.seconds)
        self.queue.append((future, turn))
        return future

    def work(self) -> bool:
        if not self.queue:
            return False
        future, turn = self.queue.pop(0)
        future.set_result(turn)
        return True

    def forget(self, sequence_id: str) -> None:
        self.forgotten.append(sequence_id)

    def load(self, weights: Iterable[tuple[str, torch.Tensor]], version: int) -> None:
        self.version = version
        self.loaded.append(([name for name, _ in weights], version))

    def close(self) -> None:
        pass


def engine_of(world: TinyWorld, sampler: Scripted, tool: VideoCrop | None = None) -> RolloutEngine:
    environment = replace(world.environment, tool=tool or world.environment.tool)
    weights = lambda: [("lm_head.weight", torch.zeros(1))]  # noqa: E731
    return RolloutEngine(environment, sampler, ClipFeatures(world.policy(), 64), weights)


def test_only_new_tokens_and_clips_are_submitted(world: TinyWorld) -> None:
    sampler = Scripted(world, [look(4, 8), look(500, 504), answer("A")])
    ((episode,),) = engine_of(world, sampler).rollout(world.samples[:1], 1, 3, SETTINGS, weight_version=7)
    ((prompt, overview, first), (observation, crop, second), (fault, none, third)) = sampler.submitted["0/0"]
    sent = [*prompt, *observation, *fault]
    assert sent == [token for token, on in zip(episode.token_ids, episode.loss_mask, strict=True) if not on]
    assert [*overview, *crop] == episode.clips and len(crop) == 1 and none == []
    assert {turn.stream for turn in (first, second, third)} == {stream_key(3, world.samples[0].id, 0)}
    lengths = [turn.end - turn.start for turn in episode.turns if turn.role == "assistant"]
    assert [first.num_drawn, second.num_drawn, third.num_drawn] == [0, lengths[0], sum(lengths[:2])]
    assert episode.stop_reason is StopReason.ANSWERED and episode.weight_version == 7
    assert sampler.loaded == [(["lm_head.weight"], 7)] and sampler.forgotten == ["0/0"]


class WaitingCrop(VideoCrop):
    """A tool whose first call waits until `released` is set."""

    released = Event()
    waiting = Event()

    def run(self, video: str, call: Call) -> Clip | Fault:
        if call.start_seconds == 4.0 and not self.waiting.is_set():
            self.waiting.set()
            assert self.released.wait(60)
        return super().run(video, call)


def test_an_episode_does_not_wait_for_the_tools_of_another(world: TinyWorld) -> None:
    sampler = Scripted(world, [look(4, 8), answer("A")])
    progress: list[int] = []

    def on_progress(done: int, total: int) -> None:
        progress.append(done)
        if done == total - 1:  # all others have finished while one waits for its tool
            WaitingCrop.released.set()

    rolled = engine_of(world, sampler, WaitingCrop(LIMITS)).rollout(
        world.samples[:3], 2, 0, SETTINGS, on_progress=on_progress
    )
    assert progress[-2:] == [5, 6] and [len(group) for group in rolled] == [2, 2, 2]


class UnevenCrop(VideoCrop):
    """A tool that takes a random time."""

    def run(self, video: str, call: Call) -> Clip | Fault:
        time.sleep(random.Random().uniform(0, 0.02))
        return super().run(video, call)


def test_answers_come_in_order_where_the_sampler_needs_it(world: TinyWorld) -> None:
    """The passes of two runs then have equal rows, whatever the tools' times."""
    orders = []
    for _ in range(3):
        sampler = Scripted(world, [look(4, 8), look(8, 12), answer("A")])
        sampler.in_order = True
        engine_of(world, sampler, UnevenCrop(LIMITS)).rollout(world.samples[:4], 4, 0, SETTINGS)
        orders.append(sampler.order)
    assert orders[0] == orders[1] == orders[2] and len(orders[0]) == 48


def test_the_deadline_counts_the_model_time_of_the_episode(world: TinyWorld) -> None:
    sampler = Scripted(world, [look(4, 8), look(8, 12), answer("A")], seconds=2.0)
    settings = replace(SETTINGS, deadline_seconds=5.0)
    ((episode,),) = engine_of(world, sampler).rollout(world.samples[:1], 1, 0, settings)
    assert [turn.max_seconds for *_, turn in sampler.submitted["0/0"]] == [5.0, 3.0, 1.0]
    assert episode.stop_reason is StopReason.DEADLINE and len(episode.clips) == 3


def test_repeated_samples_of_a_round_draw_from_different_streams(world: TinyWorld) -> None:
    sample = world.samples[0]
    sampler = Scripted(world, [answer("A")])
    engine_of(world, sampler).rollout([sample, world.samples[1], sample], 1, 0, SETTINGS)
    streams = [turns[0][2].stream for turns in sampler.submitted.values()]
    assert streams == [
        stream_key(0, sample.id, 0),
        stream_key(0, world.samples[1].id, 0),
        stream_key(0, sample.id, 0, 1),
    ]
    assert len(set(streams)) == 3
    sampler = Scripted(world, [answer("A")])
    engine_of(world, sampler).rollout([sample], 1, 0, SETTINGS, draws=[1])
    assert sampler.submitted["0/0"][0][2].stream == streams[2]


def test_an_error_forgets_every_open_sequence(world: TinyWorld) -> None:
    class Failing(Scripted):
        def work(self) -> bool:
            if len(self.queue) == 1:
                self.queue.pop(0)[0].set_exception(VideoError("timeout", "took too long"))
                return True
            return super().work()

    sampler = Failing(world, [look(4, 8), answer("A")])
    with pytest.raises(VideoError, match="took too long"):
        engine_of(world, sampler).rollout(world.samples[:2], 2, 0, SETTINGS)
    assert sorted(sampler.forgotten) == ["0/0", "0/1", "1/0", "1/1"]
