"""Every way in which a worker can fail has a name, and lost workers start again: by scripted peers of the protocol."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import CancelledError, Future
from functools import partial

import numpy as np
import pytest
import torch
from support.fake_worker import IDS, LOGPROBS, TOKEN, FakeWorker, ScriptedPlace
from support.tiny_world import TinyWorld, tiny_world

from videoseek.rollout.sampler import SampledTurn, TurnSettings, TurnStop
from videoseek.rollout.vllm import VllmSampler
from videoseek.serving.client import WorkerError, WorkerLostError
from videoseek.serving.remote import RemoteWorker
from videoseek.wire import Message

SILENCE_SECONDS = 1.0
SETTINGS = TurnSettings(temperature=1.0, top_p=1.0, max_new_tokens=8, stream=5, num_drawn=0)
WEIGHTS = [("a", torch.arange(6.0).reshape(2, 3)), ("b", torch.ones(3, dtype=torch.bfloat16))]


@pytest.fixture(scope="module")
def world() -> TinyWorld:
    return tiny_world()


@pytest.fixture
def open_sampler(world: TinyWorld) -> Callable[..., tuple[VllmSampler, ScriptedPlace]]:
    def expand(ids: list[int]) -> list[int]:
        [clip] = world.environment.open(world.samples[0]).clips
        pad = world.vocabulary.video_pad
        return [token for each in ids for token in ([pad] * clip.num_tokens if each == pad else [each])]

    def open_one(
        *script: str, max_restarts: int = 1, token: str = TOKEN, copy_weights: bool = False
    ) -> tuple[VllmSampler, ScriptedPlace]:
        place = ScriptedPlace(FakeWorker(expand), list(script))
        worker = RemoteWorker(place, token, SILENCE_SECONDS, max_restarts)
        return VllmSampler([worker], world.vocabulary, copy_weights=copy_weights), place

    return open_one


def ask(sampler: VllmSampler, world: TinyWorld, name: str = "0/0") -> SampledTurn:
    builder = world.environment.open(world.samples[0])
    return sampler.submit(name, builder.token_ids, builder.clips, SETTINGS).result(20)


def test_a_turn_carries_ids_logprobs_version_and_stop(world: TinyWorld, open_sampler: Callable) -> None:
    sampler, place = open_sampler("good")
    sampler.load(WEIGHTS, 4)
    turn = ask(sampler, world)
    assert (turn.token_ids, turn.logprobs, turn.weight_versions) == (IDS, LOGPROBS, [4, 4, 4])
    assert (turn.stop, turn.seconds) == (TurnStop.END, 0.5)
    again = sampler.submit("0/0", [3], [], SETTINGS).result(20)
    assert again.token_ids == IDS, "the worker's prompt is ours: old prompt, sampled tokens, observation"
    sampler.forget("0/0")
    sampler.submit("0/1", [3], [], SETTINGS).result(20)
    operations = [header["op"] for header in place.worker.asked]
    assert operations == ["tensor", "tensor", "load", "clip", "turn", "turn", "drop", "turn"], "pixels go once"
    sampler.close()


@pytest.mark.parametrize("fault", ["dies", "hangs", "tears", "babbles"])
def test_a_lost_worker_is_started_again_with_the_weights_and_does_its_turns_again(
    world: TinyWorld, open_sampler: Callable, fault: str, caplog: pytest.LogCaptureFixture
) -> None:
    sampler, place = open_sampler(fault, "good")
    sampler.load(WEIGHTS, 2)
    assert ask(sampler, world).weight_versions == [2, 2, 2]
    assert place.num_starts == 2
    once = ["tensor", "tensor", "load", "clip", "turn"]
    assert [header["op"] for header in place.worker.asked] == once * 2
    assert "is lost" in caplog.text
    sampler.close()


@pytest.mark.parametrize(("copy_weights", "expected"), [(True, [1, 2]), (False, [3, 4])])
def test_a_worker_that_starts_again_while_weights_change_gets_the_version_it_had(
    world: TinyWorld, open_sampler: Callable, copy_weights: bool, expected: list[int]
) -> None:
    sampler, place = open_sampler("good", "good", copy_weights=copy_weights)
    weights = torch.tensor([1.0, 2.0])
    sampler.load([("a", weights)], 2)
    ask(sampler, world)
    weights += 2  # the trainer's optimizer
    sampler._workers[0].connection.close()
    assert ask(sampler, world, "0/1").weight_versions == [2, 2, 2]
    assert [list(sent.view(np.float32)) for sent in place.worker.tensors] == [[1, 2], expected]
    sampler.close()


@pytest.mark.parametrize(
    ("fault", "sentence"),
    [
        ("dies", "closed the connection"),
        ("hangs", "silent for 1 s over 1 requests"),
        ("tears", "ended inside a frame, 90 bytes before the end"),
        ("babbles", "announces a header of 4611686018427387904 bytes"),
    ],
)
def test_without_restarts_the_loss_is_named(
    world: TinyWorld, open_sampler: Callable, fault: str, sentence: str
) -> None:
    sampler, _ = open_sampler(fault, max_restarts=0)
    with pytest.raises(WorkerLostError, match=sentence):
        ask(sampler, world)
    with pytest.raises(WorkerLostError, match="rollout.worker_restarts=0 are used up"):
        ask(sampler, world, "0/1")
    sampler.close()


def test_restarts_are_counted_over_the_run(world: TinyWorld, open_sampler: Callable) -> None:
    sampler, place = open_sampler("dies", "dies", "dies", "good", max_restarts=2)
    with pytest.raises(WorkerLostError, match="rollout.worker_restarts=2 are used up"):
        ask(sampler, world)
    assert place.num_starts == 3
    sampler.close()


@pytest.mark.parametrize(
    ("fault", "sentence"),
    [
        (
            "misreads",
            r"sequence 0/0: vLLM expanded the prompt to 2 tokens, the trainer to \d+; they differ from token 0",
        ),
        ("stale", "sampled with weights of version 3, not of version 4"),
        ("gives_up", "vLLM ended the turn for an unknown reason, 'error'"),
    ],
)
def test_another_prompt_or_version_is_an_error_and_no_reason_to_start_again(
    world: TinyWorld, open_sampler: Callable, fault: str, sentence: str
) -> None:
    sampler, place = open_sampler(fault, "good")
    sampler.load(WEIGHTS, 4)
    with pytest.raises(WorkerError, match=sentence):
        ask(sampler, world)
    assert place.num_starts == 1
    sampler.close()


def test_a_turn_that_is_forgotten_stops_and_is_not_asked_again(world: TinyWorld, open_sampler: Callable) -> None:
    sampler, place = open_sampler("hangs", "good", max_restarts=1)
    builder = world.environment.open(world.samples[0])
    forgotten = sampler.submit("0/0", builder.token_ids, builder.clips, SETTINGS)
    kept = sampler.submit("0/1", [3], [], SETTINGS)
    sampler.forget("0/0")
    assert kept.result(20).token_ids == IDS
    assert isinstance(forgotten.exception(20), CancelledError)
    turns = [header["clips"] for header in place.worker.asked if header["op"] == "turn"]
    assert [len(clips) for clips in turns] == [1, 0], "the hanging worker heard of the first only, the good one of one"
    sampler.close()


def test_a_forgotten_turn_of_a_lost_worker_reaches_no_other_worker(world: TinyWorld, open_sampler: Callable) -> None:
    """The driver forgets a turn while the worker's thread does something else, then the turn is asked again."""
    sampler, place = open_sampler("good")
    ask(sampler, world)
    [worker] = sampler._workers
    forgotten: Future[Message] = Future()
    worker.forget(forgotten)
    worker._ask_later(partial(worker._ask, [4], [], {}), forgotten)
    ask(sampler, world, "0/1")
    turns = [header for header in place.worker.asked if header["op"] == "turn"]
    assert len(turns) == 2, "a turn that nobody can stop would refuse the next weights"
    sampler.close()


def test_work_that_takes_longer_than_the_silence_is_no_fault(world: TinyWorld, open_sampler: Callable) -> None:
    sampler, place = open_sampler("slow", max_restarts=0)
    assert ask(sampler, world).token_ids == IDS
    sampler.close()


@pytest.mark.parametrize(("script", "token"), [("refuses", TOKEN), ("good", "wrong")])
def test_a_wrong_token_is_refused_at_once(world: TinyWorld, open_sampler: Callable, script: str, token: str) -> None:
    sampler, _ = open_sampler(script, token=token)
    with pytest.raises(WorkerError, match="refused the token") as caught:
        ask(sampler, world)
    assert TOKEN not in str(caught.value)


def test_a_worker_that_ends_at_its_start_is_named_with_its_ending(world: TinyWorld) -> None:
    place = ScriptedPlace(FakeWorker(list), ["dies"], ended="exit status 3; its output is in worker.log")
    place.worker.welcome = lambda peer: peer.close()  # type: ignore[method-assign]
    with pytest.raises(WorkerLostError, match="exit status 3; its output is in worker.log"):
        ask(VllmSampler([RemoteWorker(place, TOKEN, 5.0, 3)], world.vocabulary), world)
    assert place.num_starts == 1, "the same start would fail again"
