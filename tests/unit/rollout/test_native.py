"""The native engine: the trainer gives sampled tokens the same log-probs, and an episode depends on its key only."""

from __future__ import annotations

import gc
import itertools
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from support.damaged_video import damaged_copy
from support.tiny_world import LIMITS, TinyWorld, memorised, native_engine, row_logits, tiny_world

from videoseek.batches.packing import pack_documents, pack_groups
from videoseek.model import kv_cache
from videoseek.model.policy import Policy
from videoseek.rollout import decode_block, native
from videoseek.rollout.environment import Environment
from videoseek.rollout.native import NativeSampler
from videoseek.rollout.sampler import SamplingSettings, TurnSettings
from videoseek.rollout.sampling import sample_tokens, stream_key, stream_uniforms
from videoseek.tools.crop import VideoCrop
from videoseek.trajectory.builder import EpisodeBuilder
from videoseek.types import Call, Clip, Episode, Fault, ParsedTurn, Sample, StopReason
from videoseek.video.errors import VideoError, warn_once

SETTINGS = SamplingSettings(max_new_tokens_per_turn=24)
GROUP_SIZE = 8


@pytest.fixture(scope="module")
def world() -> TinyWorld:
    return tiny_world()


@pytest.fixture(scope="module")
def groups(world: TinyWorld) -> list[list[Episode]]:
    """Rollouts of trajectories that are remembered well enough to call, and badly enough to stray from them."""
    policy, samples = memorised()
    return native_engine(policy, world.environment).rollout(samples, GROUP_SIZE, 0, SETTINGS)


@pytest.fixture(scope="module")
def episodes(groups: list[list[Episode]]) -> list[Episode]:
    return [episode for group in groups for episode in group]


def test_rollouts_are_varied_enough_to_prove_something(groups: list[list[Episode]], episodes: list[Episode]) -> None:
    assert [len(group) for group in groups] == [GROUP_SIZE] * 4
    assert max(len(episode.calls) for episode in episodes) >= 2
    assert any(len(episode.clips) > 2 for episode in episodes)
    assert any(record.call and record.fault for episode in episodes for record in episode.calls)
    assert any(record.call is None for episode in episodes for record in episode.calls)
    assert any(len({tuple(episode.token_ids) for episode in group}) > 3 for group in groups)
    assert len({episode.stop_reason for episode in episodes}) > 1


@pytest.mark.parametrize("pack", [pack_documents, pack_groups], ids=["documents", "tree"])
def test_rollout_logprobs_are_the_trainers(
    world: TinyWorld, groups: list[list[Episode]], episodes: list[Episode], pack: Callable
) -> None:
    policy, _ = memorised()
    batch = pack(episodes if pack is pack_documents else groups, world.packing)
    with torch.no_grad():
        logprobs, _ = policy(batch)
    assert len(logprobs) == sum(sum(episode.loss_mask) for episode in episodes) > 300
    assert (logprobs - batch.rollout_logprobs).abs().max() < 1e-4
    assert batch.rollout_logprobs.min() < -2  # also tokens that the policy does not know by heart


def test_logprobs_of_an_untrained_model_agree_too(world: TinyWorld) -> None:
    """Also away from temperature 1, at which logits and log-probs are scaled alike."""
    policy = world.policy(seed=3)
    settings = replace(SETTINGS, temperature=0.6, top_p=0.95)
    rolled = native_engine(policy, world.environment).rollout(world.samples[:3], 3, 1, settings)
    batch = pack_groups(rolled, world.packing)
    with torch.no_grad():
        assert (policy(batch, temperature=0.6)[0] - batch.rollout_logprobs).abs().max() < 1e-4


def test_rollout_and_trainer_follow_the_models_position_rule(world: TinyWorld) -> None:
    policy = world.policy(seed=3)
    policy.model.config.position_rule = "hf5"
    rolled = native_engine(policy, world.environment).rollout(world.samples[:3], 3, 1, SETTINGS)
    with torch.no_grad():
        for rule, least, most in (("hf5", 0, 1e-4), ("max_all", 1e-3, 9)):
            batch = pack_groups(rolled, replace(world.packing, position_rule=rule))
            assert least <= (policy(batch)[0] - batch.rollout_logprobs).abs().max() < most, rule


def test_shared_prompts_give_the_same_episodes(
    world: TinyWorld, groups: list[list[Episode]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a GPU, but with the kernels' reference: several turns, crops, and groups whose members end one by one."""
    monkeypatch.setattr(kv_cache, "choose", lambda _: "triton")
    for module in (decode_block, native):
        monkeypatch.setattr(module, "BLOCK_TOKENS", 3)
    policy, samples = memorised()
    shared = native_engine(policy, world.environment, cache_tokens=400).rollout(samples, 3, 0, SETTINGS)
    greedy = replace(SETTINGS, temperature=0.0, top_p=0.9)
    shared += native_engine(policy, world.environment).rollout(samples[:2], 1, 0, greedy)
    monkeypatch.undo()
    copied = [group[:3] for group in groups]
    copied += native_engine(policy, world.environment).rollout(samples[:2], 1, 0, greedy)
    for one, other in zip(itertools.chain(*shared), itertools.chain(*copied), strict=True):
        assert one.token_ids == other.token_ids and one.stop_reason is other.stop_reason
        torch.testing.assert_close(
            torch.tensor(one.rollout_logprobs), torch.tensor(other.rollout_logprobs), atol=1e-4, rtol=0
        )


def redrawn(episode: Episode, index: int, policy: Policy, world: TinyWorld) -> list[int]:
    """The tokens that an episode's own stream draws from the trainer's logits, one by one."""
    logits = row_logits(policy, pack_documents([episode], world.packing))
    rows = [position - 1 for position, on in enumerate(episode.loss_mask) if on]
    stream = torch.from_numpy(stream_uniforms(stream_key(0, episode.sample.id, index), 0, len(rows)))
    banned = torch.tensor(world.vocabulary.banned)
    drawn = []
    for row, uniform in zip(rows, stream.split(1), strict=True):
        drawn.append(int(sample_tokens(logits[row : row + 1], uniform, 1.0, 1.0, banned)[0]))
    return drawn


def test_training_ids_are_those_drawn_from_the_models_distribution(
    world: TinyWorld, groups: list[list[Episode]]
) -> None:
    policy, _ = memorised()
    for group in groups:
        for index, episode in enumerate(group):
            trained = [token for token, on in zip(episode.token_ids, episode.loss_mask, strict=True) if on]
            assert redrawn(episode, index, policy, world) == trained


def test_each_turn_extends_the_sequence_that_the_model_saw(world: TinyWorld, monkeypatch: pytest.MonkeyPatch) -> None:
    """Everything fed to the model, in order, is a prefix of the episode's ids."""
    policy, samples = memorised()
    fed: list[int] = []
    decode = NativeSampler._decode

    def recording(sampler: NativeSampler, token_ids: list[int], *rest: Any) -> torch.Tensor:
        fed.extend(token_ids)
        return decode(sampler, token_ids, *rest)

    monkeypatch.setattr(NativeSampler, "_decode", recording)
    for sample in samples:
        fed.clear()
        ((episode,),) = native_engine(policy, world.environment).rollout([sample], 1, 2, SETTINGS)
        assert fed == episode.token_ids[: len(fed)] and len(fed) >= len(episode.token_ids) - 1


class RewritingEnvironment(Environment):
    """An environment that breaks the rule: its observation edits a sampled token."""

    def respond(self, builder: EpisodeBuilder, parsed: ParsedTurn) -> StopReason | None:
        builder.token_ids[builder.prompt_length] ^= 1
        return Environment.respond(self, builder, parsed)


def test_edited_tokens_are_noticed(world: TinyWorld) -> None:
    policy, samples = memorised()
    rules = world.environment
    rewriting = RewritingEnvironment(rules.vocabulary, rules.fmt, rules.tool, rules.max_turns, rules.max_context_tokens)
    with pytest.raises(RuntimeError, match="an observation changed earlier tokens"):
        native_engine(policy, rewriting).rollout(samples, 1, 0, replace(SETTINGS, temperature=0.0))


@pytest.mark.parametrize("cache_tokens", [None, 600], ids=["all at once", "few at a time"])
def test_an_episode_does_not_depend_on_its_company(
    world: TinyWorld, groups: list[list[Episode]], cache_tokens: int | None
) -> None:
    """Alone, in other orders and among 63 others: the same tokens, and the same log-probs to the last bit."""
    policy, samples = memorised()
    engine = native_engine(policy, world.environment, cache_tokens=cache_tokens)
    crowd = [replace(sample, id=f"{sample.id}-{i}") for i in range(6) for sample in samples[:2]]
    order = [2, 0, 3, 1]
    mixed = [samples[index] for index in order]
    again = engine.rollout(mixed if cache_tokens else [*crowd[:5], *mixed, *crowd[5:]], 4, 0, SETTINGS)
    assert sum(map(len, again)) == (16 if cache_tokens else 64)
    for group, index in zip(again if cache_tokens else again[5:9], order, strict=True):
        for one, other in zip(group, groups[index], strict=False):
            assert one.token_ids == other.token_ids
            assert one.rollout_logprobs == other.rollout_logprobs
    for sample, group in zip(samples[1:3], groups[1:3], strict=True):
        ((alone,),) = engine.rollout([sample], 1, 0, SETTINGS)
        assert alone.token_ids == group[0].token_ids and alone.rollout_logprobs == group[0].rollout_logprobs
    other_seed = engine.rollout(samples[2:3], 3, 1, SETTINGS)
    assert [e.token_ids for e in other_seed[0]] != [e.token_ids for e in groups[2][:3]]


def passes(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The number of tokens of each decoder pass from now on, without padding."""
    sizes: list[int] = []
    decode = NativeSampler._decode
    monkeypatch.setattr(
        NativeSampler, "_decode", lambda self, ids, *rest: sizes.append(len(ids)) or decode(self, ids, *rest)
    )
    return sizes


def test_a_film_and_a_prompt_are_fed_once(world: TinyWorld, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two questions about one film, four episodes each: the film's tokens enter one pass, each question's another."""
    policy, samples = memorised()
    questions = [samples[0], replace(samples[0], id="other", question="Which card is blue?")]
    sizes = passes(monkeypatch)
    settings = replace(SETTINGS, max_new_tokens_per_turn=1)
    rolled = native_engine(policy, world.environment).rollout(questions, 4, 0, settings)
    pad = world.vocabulary.video_pad
    cut = len(rolled[0][0].token_ids) - rolled[0][0].token_ids[::-1].index(pad)
    assert sizes == [cut, sum(group[0].prompt_length - cut for group in rolled)]


def test_the_cache_budget_limits_what_is_open(world: TinyWorld, monkeypatch: pytest.MonkeyPatch) -> None:
    policy, samples = memorised()
    sizes = passes(monkeypatch)
    reserved = native_engine(policy, world.environment).environment.open(samples[0]).prompt_length + 24
    engine = native_engine(policy, world.environment, cache_tokens=3 * reserved)
    engine.rollout(samples[:1], 8, 0, replace(SETTINGS, temperature=0.0))
    few = list(sizes)
    sizes.clear()
    native_engine(policy, world.environment).rollout(samples[:1], 8, 0, replace(SETTINGS, temperature=0.0))
    assert 8 in sizes and len(few) > 2 * len(sizes)
    assert {size for size in few if size < 6} == {1, 2, 3} - ({1, 2} - set(few))


def test_a_film_with_a_queue_holds_up_no_admitted_film(world: TinyWorld) -> None:
    """A late, long question about the first film has no room: the second film, admitted before it, is fed on."""
    policy, samples = memorised()
    engine = native_engine(policy, world.environment, cache_tokens=1200)
    first, second = (engine.environment.open(samples[index]) for index in (0, 3))
    short, long = (TurnSettings(1.0, 1.0, num_tokens, 1, 0) for num_tokens in (8, 700))
    engine.sampler.submit("first", first.token_ids, first.clips, short)
    admitted = engine.sampler.submit("second", second.token_ids, second.clips, short)
    engine.sampler.work()
    engine.sampler.submit("late", first.token_ids, first.clips, long)
    while engine.sampler.work():
        pass
    assert admitted.done()
    engine.sampler.close()


def test_a_film_in_the_cache_is_held_nowhere_else(world: TinyWorld) -> None:
    """Open sequences must not keep the pass's own keys of their prompt alive: a long film takes gigabytes."""
    policy, samples = memorised()
    engine = native_engine(policy, world.environment)
    prompt = engine.environment.open(samples[0])
    engine.sampler.submit("a", prompt.token_ids, prompt.clips, TurnSettings(1.0, 1.0, 8, 1, 0))
    engine.sampler.work()
    engine.sampler.work()
    gc.collect()
    assert not [one for one in gc.get_objects() if type(one) is kv_cache.Tokens]
    engine.sampler.close()


def test_one_temperature_at_a_time(world: TinyWorld) -> None:
    policy, samples = memorised()
    engine = native_engine(policy, world.environment)
    ids = engine.environment.open(samples[0])
    cold, warm = (TurnSettings(temperature, 1.0, 8, 1, 0) for temperature in (0.5, 1.0))
    engine.sampler.submit("a", ids.token_ids, ids.clips, cold)
    with pytest.raises(ValueError, match="need equal temperature and top_p"):
        engine.sampler.submit("b", ids.token_ids, ids.clips, warm)
    with pytest.raises(RuntimeError, match="weights cannot change while 1 sequences are open"):
        engine.sampler.load((), 1)
    engine.sampler.close()
    engine.sampler.load([("lm_head.weight", policy.model.lm_head.weight.detach())], 1)


def test_replayed_text_gives_the_rollouts_ids(world: TinyWorld, episodes: list[Episode]) -> None:
    """Recorded and sampled episodes of one text are one, wherever the model cut its words as the tokenizer does."""
    same = 0
    for episode in episodes:
        texts = episode.assistant_texts()
        trained = [token for token, on in zip(episode.token_ids, episode.loss_mask, strict=True) if on]
        canonical = [token for text in texts for token in (*world.vocabulary.encode(text), world.vocabulary.im_end)]
        if episode.stop_reason != StopReason.ANSWERED or trained != canonical:
            continue
        same += len(episode.clips) > 1
        replayed = world.environment.replay(replace(episode.sample, turns=tuple(texts)))
        for name in ("token_ids", "roles", "turn_kinds", "loss_mask", "clips", "turns", "calls", "answer", "faults"):
            assert getattr(replayed, name) == getattr(episode, name), name
    assert same > 3


def test_greedy_repeats_itself(world: TinyWorld) -> None:
    policy, samples = memorised()
    rolled = native_engine(policy, world.environment).rollout(samples, 2, 0, replace(SETTINGS, temperature=0.0))
    for first, second in rolled:
        assert first.token_ids == second.token_ids
    batch = pack_groups(rolled, world.packing)
    with torch.no_grad():
        assert (policy(batch)[0] - batch.rollout_logprobs).abs().max() < 1e-4


class BiasedPolicy(Policy):
    """Adds 60 to the logits of some tokens."""

    favourites: tuple[int, ...] = ()

    def project(self, hidden: torch.Tensor) -> torch.Tensor:
        logits = super().project(hidden)
        return logits.index_add(1, torch.tensor(self.favourites), torch.full((len(logits), len(self.favourites)), 60.0))


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_vision_tokens_are_never_sampled(world: TinyWorld, temperature: float) -> None:
    policy = BiasedPolicy(world.policy().model)
    policy.favourites = world.vocabulary.banned
    settings = replace(SETTINGS, temperature=temperature)
    for group in native_engine(policy, world.environment).rollout(world.samples[:2], 2, 0, settings):
        for episode in group:
            sampled = {token for token, on in zip(episode.token_ids, episode.loss_mask, strict=True) if on}
            assert sampled and not sampled & set(world.vocabulary.banned)


def test_each_distinct_clip_is_encoded_once(world: TinyWorld, monkeypatch: pytest.MonkeyPatch) -> None:
    policy, samples = memorised()
    encoded: list[Clip] = []
    encode = policy.encode
    monkeypatch.setattr(policy, "encode", lambda clips, least: encoded.extend(clips) or encode(clips, least))
    engine = native_engine(policy, world.environment, keep_features=True)
    rolled = engine.rollout(samples, GROUP_SIZE, 0, SETTINGS)
    distinct = {clip for group in rolled for episode in group for clip in episode.clips}
    shown = sum(len(episode.clips) for group in rolled for episode in group)
    assert len(encoded) == len(set(encoded)) < shown
    assert distinct >= set(encoded)
    engine.rollout(samples, GROUP_SIZE, 0, SETTINGS)
    assert len(encoded) == len(set(encoded))
    engine.features.clear()
    engine.rollout(samples[:1], 1, 0, SETTINGS)
    assert len(encoded) > len(set(encoded))


def test_kept_features_are_those_of_the_vision_tower(world: TinyWorld) -> None:
    policy, samples = memorised()
    engine = native_engine(policy, world.environment, keep_features=True)
    ((episode,),) = engine.rollout(samples[:1], 1, 0, replace(SETTINGS, temperature=0.0))
    overview, crop = episode.clips[:2]
    with torch.no_grad():
        torch.testing.assert_close(engine.features.get(overview), policy.encode([overview]))
    assert len(engine.features.of([overview, crop])) == 2 and len(engine.features) == len(set(episode.clips))
    other = replace(overview, video="other.mp4")
    assert engine.features.get(other) is None


def test_features_are_forgotten_unless_kept(world: TinyWorld) -> None:
    """New weights make new features: an engine that kept old ones would sample from a model that is gone."""
    policy = world.policy(seed=5)
    engine = native_engine(policy, world.environment)
    engine.rollout(world.samples[:1], 2, 0, SETTINGS)
    assert len(engine.features) == 0
    with torch.no_grad():
        policy.model.model.visual.merger.mlp[2].weight.mul_(-1)
    batch = pack_groups(engine.rollout(world.samples[:1], 2, 0, SETTINGS), world.packing)
    with torch.no_grad():
        assert (policy(batch)[0] - batch.rollout_logprobs).abs().max() < 1e-4


def roll_one(world: TinyWorld, index: int, settings: SamplingSettings, **rules: int) -> Episode:
    policy, samples = memorised()
    environment = replace(world.environment, **rules)
    ((episode,),) = native_engine(policy, environment).rollout(
        [samples[index]], 1, 0, replace(settings, temperature=0.0)
    )
    return episode


def num_sampled(episode: Episode) -> int:
    return sum(episode.loss_mask)


def test_an_answer_ends_the_episode(world: TinyWorld) -> None:
    episode = roll_one(world, 3, SETTINGS)
    assert episode.stop_reason == StopReason.ANSWERED and episode.answer == "D"
    assert episode.token_ids[-1] == world.vocabulary.im_end


def test_turn_limit_ends_the_episode(world: TinyWorld) -> None:
    episode = roll_one(world, 0, SETTINGS, max_turns=1)
    assert episode.stop_reason == StopReason.TURN_LIMIT and len(episode.clips) == 1 and not episode.calls


def test_token_limit_is_per_turn(world: TinyWorld) -> None:
    episode = roll_one(world, 0, replace(SETTINGS, max_new_tokens_per_turn=3))
    assert episode.stop_reason == StopReason.TOKEN_LIMIT and num_sampled(episode) == 3
    first_turn = next(turn for turn in roll_one(world, 0, SETTINGS).turns if turn.role == "assistant")
    enough = roll_one(world, 0, replace(SETTINGS, max_new_tokens_per_turn=first_turn.end - first_turn.start))
    assert enough.stop_reason != StopReason.TOKEN_LIMIT and num_sampled(enough) > first_turn.end - first_turn.start


def test_context_limit_ends_an_episode_inside_a_turn(world: TinyWorld) -> None:
    prompt = roll_one(world, 0, SETTINGS).prompt_length
    episode = roll_one(world, 0, SETTINGS, max_context_tokens=prompt + 5)
    assert episode.stop_reason == StopReason.CONTEXT_FULL and len(episode.token_ids) == prompt + 5


def test_context_limit_ends_an_episode_after_an_observation(world: TinyWorld) -> None:
    whole = roll_one(world, 0, SETTINGS)
    first = next(turn for turn in whole.turns if turn.role == "assistant")
    episode = roll_one(world, 0, SETTINGS, max_context_tokens=first.end + 2)
    assert episode.stop_reason == StopReason.CONTEXT_FULL and num_sampled(episode) == first.end - first.start


def test_a_past_deadline_leaves_one_token(world: TinyWorld) -> None:
    episode = roll_one(world, 0, replace(SETTINGS, deadline_seconds=0.0))
    assert episode.stop_reason == StopReason.DEADLINE and num_sampled(episode) == 1


def test_the_deadline_of_an_episode_counts_its_share_of_each_pass(
    world: TinyWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A pass takes a second. The first token comes with the prompt, and two episodes halve the seconds of the rest."""
    policy, samples = memorised()
    clock = itertools.count()
    monkeypatch.setattr(native, "time", SimpleNamespace(perf_counter=lambda: float(next(clock))))
    settings = replace(SETTINGS, temperature=0.0, deadline_seconds=4.0)
    engine = native_engine(policy, world.environment)
    for copies, tokens in ((1, 5), (2, 9)):
        rolled = engine.rollout([samples[0]], copies, 0, settings)
        assert [(e.stop_reason, num_sampled(e)) for e in rolled[0]] == [(StopReason.DEADLINE, tokens)] * copies


class SlowCrop(VideoCrop):
    """A tool that takes 0.1 s."""

    def run(self, video: str, call: Call) -> Clip | Fault:
        time.sleep(0.1)
        return super().run(video, call)


def test_slow_tools_and_company_cut_no_episode(world: TinyWorld) -> None:
    """32 episodes side by side and a slow tool: its seconds add up to the limit, and no episode is near it."""
    policy, samples = memorised()
    environment = replace(world.environment, tool=SlowCrop(LIMITS))
    settings = replace(SETTINGS, temperature=0.0, deadline_seconds=3.0)
    (group,) = native_engine(policy, environment).rollout(samples[:1], 32, 0, settings)
    assert 0.1 * sum(len(episode.calls) for episode in group) > settings.deadline_seconds
    assert {episode.stop_reason for episode in group} == {StopReason.ANSWERED}


def test_every_stop_leaves_an_episode_that_can_be_trained_on(world: TinyWorld) -> None:
    policy, samples = memorised()
    prompt = roll_one(world, 0, SETTINGS).prompt_length
    for settings, rules in [
        (replace(SETTINGS, max_new_tokens_per_turn=2), {}),
        (SETTINGS, {"max_context_tokens": prompt + 7}),
        (replace(SETTINGS, deadline_seconds=0.0), {}),
        (SETTINGS, {"max_turns": 2}),
    ]:
        rolled = native_engine(policy, replace(world.environment, **rules)).rollout(samples, 2, 0, settings)
        batch = pack_groups(rolled, world.packing)
        with torch.no_grad():
            assert (policy(batch)[0] - batch.rollout_logprobs).abs().max() < 1e-4


def test_engine_reports_mode_and_version(world: TinyWorld) -> None:
    policy, samples = memorised()
    policy.train()
    rolled = native_engine(policy, world.environment).rollout(samples, 2, 0, SETTINGS, weight_version=9)
    assert policy.training
    assert {episode.weight_version for group in rolled for episode in group} == {9}
    policy.eval()
    assert native_engine(policy, world.environment).rollout([], 2, 0, SETTINGS) == [] and not policy.training


def test_groups_follow_their_samples(world: TinyWorld) -> None:
    policy, samples = memorised()
    many: list[Sample] = [replace(sample, id=f"{sample.id}-{i}") for i in range(2) for sample in samples]
    rolled = native_engine(policy, world.environment).rollout(many, 3, 0, SETTINGS)
    assert [{episode.sample.id for episode in group} for group in rolled] == [{sample.id} for sample in many]


def test_an_unreadable_video_gives_an_empty_group_and_is_named_once(
    world: TinyWorld, groups: list[list[Episode]], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """One that cannot be opened, and one that opens and cannot be decoded; the others come out as without them."""
    policy, samples = memorised()
    warn_once.cache_clear()
    gone = replace(samples[0], video=str(tmp_path / "gone.mp4"))
    damaged = replace(samples[0], video=damaged_copy(samples[0].video, tmp_path / "damaged.mp4"))
    engine = native_engine(policy, world.environment)
    mixed = [samples[0], gone, damaged, samples[1]]
    for _ in range(2):
        rolled = engine.rollout(mixed, GROUP_SIZE, 0, SETTINGS, skip_unreadable=True)
        assert [len(group) for group in rolled] == [GROUP_SIZE, 0, 0, GROUP_SIZE]
        assert [[e.token_ids for e in group] for group in (rolled[0], rolled[3])] == [
            [e.token_ids for e in group] for group in groups[:2]
        ]
    for name in ("gone.mp4", "damaged.mp4"):
        assert len([record for record in caplog.records if name in record.message]) == 1
    assert engine.rollout([gone, damaged], 2, 0, SETTINGS, skip_unreadable=True) == [[], []]
    for bad in (gone, damaged):
        with pytest.raises(VideoError, match=Path(bad.video).name):
            engine.rollout([samples[0], bad], 2, 0, SETTINGS)


def test_a_crop_that_is_lost_before_it_is_encoded_empties_its_group(
    world: TinyWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The tool could decode it, and where the frame cache is too small, a second decode fails."""
    policy, samples = memorised()
    encode = policy.encode

    def failing(clips: list[Clip], least_tokens: int) -> torch.Tensor:
        if any(clip.start_seconds == 4.0 for clip in clips):  # the first sample's crop alone
            raise VideoError("timeout", "took too long")
        return encode(clips, least_tokens)

    monkeypatch.setattr(policy, "encode", failing)
    greedy = replace(SETTINGS, temperature=0.0)
    rolled = native_engine(policy, world.environment).rollout(samples, 2, 0, greedy, skip_unreadable=True)
    assert [len(group) for group in rolled] == [0, 2, 2, 2]
    with pytest.raises(VideoError, match="took too long"):
        native_engine(policy, world.environment).rollout(samples, 2, 0, greedy)


def test_few_prompts_and_clips_are_fed_at_a_time(
    world: TinyWorld, groups: list[list[Episode]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A limit that every film and prompt exceeds feeds them one by one; what is sampled stays the same."""
    policy, samples = memorised()
    encoded: list[list[Clip]] = []
    encode, sizes = policy.encode, passes(monkeypatch)
    monkeypatch.setattr(policy, "encode", lambda clips, least=0: encoded.append(clips) or encode(clips, least))
    rolled = native_engine(policy, world.environment, max_tokens_per_pass=8).rollout(samples, GROUP_SIZE, 0, SETTINGS)
    longest = max(group[0].prompt_length for group in groups)
    assert max(sizes) < longest + GROUP_SIZE * len(samples)
    assert all(len(clips) <= 1 or sum(clip.num_tokens for clip in clips) <= 8 for clips in encoded)
    assert [e.token_ids for group in rolled for e in group] == [e.token_ids for group in groups for e in group]
    batch = pack_groups(rolled, world.packing)
    with torch.no_grad():
        assert (policy(batch)[0] - batch.rollout_logprobs).abs().max() < 1e-4
