"""Tokens that the native sampler feeds, counted: a film once for all its questions, a turn only its new tokens."""

from __future__ import annotations

import math
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import replace

import pytest
import torch
from support.tiny_world import LIMITS, TOKENS_PER_SECOND, TinyWorld, memorised, native_engine, tiny_world

from videoseek.model.policy import Policy
from videoseek.rollout.engine import RolloutEngine
from videoseek.rollout.environment import Environment
from videoseek.rollout.native import NativeSampler
from videoseek.rollout.sampler import SampledTurn, SamplingSettings, TurnSettings
from videoseek.tools.crop import VideoCrop
from videoseek.trajectory.builder import EpisodeBuilder
from videoseek.types import Call, Clip, Episode, ParsedTurn, StopReason

#: An overview of 256 tokens before a question of 24, nearer to a film's proportions than the tiny world's own 8.
TOOL = VideoCrop(replace(LIMITS, overview_tokens=256))
SETTINGS = SamplingSettings(max_new_tokens_per_turn=256)
GREEDY = replace(SETTINGS, temperature=0.0, max_new_tokens_per_turn=64)


class Forgetful(NativeSampler):
    """Keeps nothing cached between turns: each turn prefills the whole episode, as a stateless server does."""

    def __init__(self, policy: Policy, world: TinyWorld) -> None:
        super().__init__(policy, world.vocabulary, TOKENS_PER_SECOND)
        self.known: dict[str, tuple[list[int], list[Clip]]] = {}

    def submit(
        self, sequence_id: str, new_ids: Sequence[int], new_clips: Sequence[Clip], settings: TurnSettings
    ) -> Future[SampledTurn]:
        ids, clips = self.known.setdefault(sequence_id, ([], []))
        if ids:
            self.forget(sequence_id)
        ids += new_ids
        clips += new_clips
        future = super().submit(sequence_id, ids, clips, settings)
        future.add_done_callback(lambda done: ids.extend(done.result().token_ids))
        return future


@pytest.fixture
def fed(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The number of tokens of every pass."""
    counts: list[int] = []
    decode = NativeSampler._decode

    def counted(self: NativeSampler, token_ids: list[int], *arguments: object) -> object:
        counts.append(len(token_ids))
        return decode(self, token_ids, *arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(NativeSampler, "_decode", counted)
    return counts


def texts(groups: Sequence[Sequence[Episode]]) -> list[list[str]]:
    return [episode.assistant_texts() for group in groups for episode in group]


def test_fifteen_questions_about_a_film_feed_the_film_once(fed: list[int]) -> None:
    world, (policy, samples) = tiny_world(), memorised()
    environment = replace(world.environment, tool=TOOL, max_turns=1, max_context_tokens=1024)
    questions = [replace(samples[0], id=str(number), question=f"Card {number}?") for number in range(15)]
    together = native_engine(policy, environment).rollout(questions, 1, 0, GREEDY)
    num_together = sum(fed)
    fed.clear()
    apart = [native_engine(policy, environment).rollout([question], 1, 0, GREEDY)[0] for question in questions]
    assert texts(together) == texts(apart)
    num_sampled = sum(sum(episode.loss_mask) for (episode,) in together)
    assert sum(fed) - num_sampled >= 3 * (num_together - num_sampled)


class FourTurns(Environment):
    """Shows a crop after any of the first three turns."""

    def respond(self, builder: EpisodeBuilder, parsed: ParsedTurn) -> StopReason | None:
        if builder.num_turns == 4:
            return StopReason.ANSWERED
        start = 4.0 * builder.num_turns
        return super().respond(builder, ParsedTurn(None, (Call(start, start + 4.0, "medium"),), None, ()))


def test_a_turn_feeds_only_its_new_tokens(fed: list[int]) -> None:
    world = tiny_world()
    policy = world.policy()
    head, end = policy.model.lm_head, world.vocabulary.im_end
    head.bias = torch.nn.Parameter(torch.zeros(head.weight.shape[0]))
    with torch.no_grad():
        head.bias[end] = math.log(head.weight.shape[0] / 16)  # a turn has about 16 tokens
    rules = world.environment
    environment = FourTurns(world.vocabulary, rules.fmt, TOOL, max_turns=5, max_context_tokens=2048)
    kept = native_engine(policy, environment).rollout(world.samples[:4], 1, 0, SETTINGS)
    num_kept = sum(fed)
    fed.clear()
    sampler = Forgetful(policy, world)
    again = RolloutEngine(environment, sampler, sampler.features).rollout(world.samples[:4], 1, 0, SETTINGS)
    assert texts(kept) == texts(again) and [len(turns) for turns in texts(kept)] == [4] * 4
    assert sum(fed) >= 2 * num_kept
