"""The native engine: the trainer gives sampled tokens the same log-probs, and an episode depends on its key only."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from support.damaged_video import damaged_copy
from support.tiny_world import TOKENS_PER_SECOND, TinyWorld, memorised, row_logits, tiny_world

from videoseek.batches.packing import pack_documents, pack_groups
from videoseek.model import kv_cache
from videoseek.model.kv_cache import KVCache
from videoseek.model.policy import Policy
from videoseek.rollout import native
from videoseek.rollout.environment import Environment
from videoseek.rollout.native import NativeEngine, SamplingSettings
from videoseek.rollout.sampling import episode_generator, sample_tokens
from videoseek.trajectory.builder import EpisodeBuilder
from videoseek.types import Clip, Episode, ParsedTurn, Sample, StopReason
from videoseek.video.errors import VideoError, warn_once

SETTINGS = SamplingSettings(max_new_tokens_per_turn=24, episodes_per_batch=64)
GROUP_SIZE = 8


@pytest.fixture(scope="module")
def world() -> TinyWorld:
    return tiny_world()


def engine_of(policy: Policy, environment: Environment, **options: int) -> NativeEngine:
    return NativeEngine(policy, environment, TOKENS_PER_SECOND, **options)


@pytest.fixture(scope="module")
def groups(world: TinyWorld) -> list[list[Episode]]:
    """Rollouts of trajectories that are remembered well enough to call, and badly enough to stray from them."""
    policy, samples = memorised()
    return engine_of(policy, world.environment).rollout(samples, GROUP_SIZE, 0, SETTINGS)


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
    rolled = engine_of(policy, world.environment).rollout(world.samples[:3], 3, 1, settings)
    batch = pack_groups(rolled, world.packing)
    with torch.no_grad():
        assert (policy(batch, temperature=0.6)[0] - batch.rollout_logprobs).abs().max() < 1e-4


def test_rollout_and_trainer_follow_the_models_position_rule(world: TinyWorld) -> None:
    policy = world.policy(seed=3)
    policy.model.config.position_rule = "hf5"
    rolled = engine_of(policy, world.environment).rollout(world.samples[:3], 3, 1, SETTINGS)
    with torch.no_grad():
        for rule, least, most in (("hf5", 0, 1e-4), ("max_all", 1e-3, 9)):
            batch = pack_groups(rolled, replace(world.packing, position_rule=rule))
            assert least <= (policy(batch)[0] - batch.rollout_logprobs).abs().max() < most, rule


def test_shared_prompts_give_the_same_episodes(
    world: TinyWorld, groups: list[list[Episode]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a GPU, but with the kernels' reference: several turns, crops, and groups whose members end one by one."""
    monkeypatch.setattr(kv_cache, "choose", lambda _: "triton")
    policy, samples = memorised()
    shared = engine_of(policy, world.environment).rollout(samples, len(groups[0]), 0, SETTINGS)
    for one, other in zip(itertools.chain(*shared), itertools.chain(*groups), strict=True):
        assert one.token_ids == other.token_ids and one.stop_reason is other.stop_reason
        torch.testing.assert_close(
            torch.tensor(one.rollout_logprobs), torch.tensor(other.rollout_logprobs), atol=1e-4, rtol=0
        )


def redrawn(episode: Episode, index: int, policy: Policy, world: TinyWorld) -> list[int]:
    """The tokens that an episode's own stream draws from the trainer's logits, one by one."""
    logits = row_logits(policy, pack_documents([episode], world.packing))
    stream, banned = episode_generator(0, episode.sample.id, index), torch.tensor(world.vocabulary.banned)
    drawn = []
    for row in [position - 1 for position, on in enumerate(episode.loss_mask) if on]:
        uniform = torch.tensor([stream.random()], dtype=torch.float64)
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
    embed = policy.embed

    def recording(token_ids: torch.Tensor, rows: torch.Tensor, features: torch.Tensor) -> torch.Tensor:
        fed.extend(token_ids.tolist())
        return embed(token_ids, rows, features)

    monkeypatch.setattr(policy, "embed", recording)
    for sample in samples:
        fed.clear()
        ((episode,),) = engine_of(policy, world.environment).rollout([sample], 1, 2, SETTINGS)
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
        engine_of(policy, rewriting).rollout(samples, 1, 0, replace(SETTINGS, temperature=0.0))


def test_an_episode_does_not_depend_on_the_rest_of_its_batch(world: TinyWorld, groups: list[list[Episode]]) -> None:
    """Another order, batch size or group size, or a missing sample: the same tokens for the same key."""
    policy, samples = memorised()
    engine = engine_of(policy, world.environment)
    settings = replace(SETTINGS, episodes_per_batch=6)
    again = engine.rollout([samples[2], samples[0], samples[3]], 3, 0, settings)
    for group, index in zip(again, (2, 0, 3), strict=True):
        assert [e.token_ids for e in group] == [e.token_ids for e in groups[index][:3]]
    other_seed = engine.rollout(samples, 3, 1, settings)
    assert [e.token_ids for e in other_seed[2]] != [e.token_ids for e in groups[2][:3]]


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
    rolled = engine_of(policy, world.environment).rollout(samples, 2, 0, replace(SETTINGS, temperature=0.0))
    for first, second in rolled:
        assert first.token_ids == second.token_ids
    batch = pack_groups(rolled, world.packing)
    with torch.no_grad():
        assert (policy(batch)[0] - batch.rollout_logprobs).abs().max() < 1e-4


class BiasedPolicy(Policy):
    """Adds 60 to the logits of some tokens."""

    favourites: tuple[int, ...] = ()

    def extend(
        self, cache: KVCache, embeddings: torch.Tensor, positions: torch.Tensor, num_valid: torch.Tensor
    ) -> torch.Tensor:
        return (
            super()
            .extend(cache, embeddings, positions, num_valid)
            .index_add(1, torch.tensor(self.favourites), torch.full((len(num_valid), len(self.favourites)), 60.0))
        )


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_vision_tokens_are_never_sampled(world: TinyWorld, temperature: float) -> None:
    policy = BiasedPolicy(world.policy().model)
    policy.favourites = world.vocabulary.banned
    settings = replace(SETTINGS, temperature=temperature)
    for group in engine_of(policy, world.environment).rollout(world.samples[:2], 2, 0, settings):
        for episode in group:
            sampled = {token for token, on in zip(episode.token_ids, episode.loss_mask, strict=True) if on}
            assert sampled and not sampled & set(world.vocabulary.banned)


def test_each_distinct_clip_is_encoded_once(world: TinyWorld, monkeypatch: pytest.MonkeyPatch) -> None:
    policy, samples = memorised()
    encoded: list[Clip] = []
    encode = policy.encode
    monkeypatch.setattr(policy, "encode", lambda clips: encoded.extend(clips) or encode(clips))
    engine = engine_of(policy, world.environment, keep_features=True)
    rolled = engine.rollout(samples, GROUP_SIZE, 0, SETTINGS)
    distinct = {clip for group in rolled for episode in group for clip in episode.clips}
    shown = sum(len(episode.clips) for group in rolled for episode in group)
    assert len(encoded) == len(set(encoded)) == engine.features.num_encoded_clips < shown
    assert distinct >= set(encoded)
    engine.rollout(samples, GROUP_SIZE, 0, SETTINGS)
    assert len(encoded) == len(set(encoded))
    engine.features.clear()
    engine.rollout(samples[:1], 1, 0, SETTINGS)
    assert len(encoded) > len(set(encoded))


def test_kept_features_are_those_of_the_vision_tower(world: TinyWorld) -> None:
    policy, samples = memorised()
    engine = engine_of(policy, world.environment, keep_features=True)
    ((episode,),) = engine.rollout(samples[:1], 1, 0, replace(SETTINGS, temperature=0.0))
    overview, crop = episode.clips[:2]
    with torch.no_grad():
        torch.testing.assert_close(engine.features.get(overview), policy.encode([overview]))
    assert engine.features.has_all([overview, crop]) and len(engine.features) == len(set(episode.clips))
    other = replace(overview, video="other.mp4")
    assert engine.features.get(other) is None and not engine.features.has_all([overview, other])


def test_features_are_forgotten_unless_kept(world: TinyWorld) -> None:
    """New weights make new features: an engine that kept old ones would sample from a model that is gone."""
    policy = world.policy(seed=5)
    engine = engine_of(policy, world.environment)
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
    ((episode,),) = engine_of(policy, environment).rollout([samples[index]], 1, 0, replace(settings, temperature=0.0))
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


def test_deadline_inside_a_turn_stops_only_running_episodes(world: TinyWorld, monkeypatch: pytest.MonkeyPatch) -> None:
    policy, samples = memorised()
    clock = iter(range(10_000))
    monkeypatch.setattr(native, "time", SimpleNamespace(monotonic=lambda: float(next(clock))))
    settings = replace(SETTINGS, temperature=0.0, deadline_seconds=11.5)
    rolled = engine_of(policy, world.environment).rollout([samples[0], samples[3]], 1, 0, settings)
    assert [group[0].stop_reason for group in rolled] == [StopReason.DEADLINE, StopReason.ANSWERED]


def test_every_stop_leaves_an_episode_that_can_be_trained_on(world: TinyWorld) -> None:
    policy, samples = memorised()
    prompt = roll_one(world, 0, SETTINGS).prompt_length
    for settings, rules in [
        (replace(SETTINGS, max_new_tokens_per_turn=2), {}),
        (SETTINGS, {"max_context_tokens": prompt + 7}),
        (replace(SETTINGS, deadline_seconds=0.0), {}),
        (SETTINGS, {"max_turns": 2}),
    ]:
        rolled = engine_of(policy, replace(world.environment, **rules)).rollout(samples, 2, 0, settings)
        batch = pack_groups(rolled, world.packing)
        with torch.no_grad():
            assert (policy(batch)[0] - batch.rollout_logprobs).abs().max() < 1e-4


def test_engine_reports_progress_mode_and_version(world: TinyWorld) -> None:
    policy, samples = memorised()
    policy.train()
    progress: list[tuple[int, int]] = []
    rolled = engine_of(policy, world.environment).rollout(
        samples,
        2,
        0,
        replace(SETTINGS, episodes_per_batch=4),
        weight_version=9,
        on_progress=lambda done, total: progress.append((done, total)),
    )
    assert policy.training and progress == [(4, 8), (8, 8)]
    assert {episode.weight_version for group in rolled for episode in group} == {9}
    policy.eval()
    assert engine_of(policy, world.environment).rollout([], 2, 0, SETTINGS) == [] and not policy.training


def test_groups_follow_their_samples(world: TinyWorld) -> None:
    policy, samples = memorised()
    many: list[Sample] = [replace(sample, id=f"{sample.id}-{i}") for i in range(2) for sample in samples]
    rolled = engine_of(policy, world.environment).rollout(many, 3, 0, replace(SETTINGS, episodes_per_batch=7))
    assert [{episode.sample.id for episode in group} for group in rolled] == [{sample.id} for sample in many]


def test_an_unreadable_video_gives_an_empty_group_and_is_named_once(
    world: TinyWorld, groups: list[list[Episode]], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """One that cannot be opened, and one that opens and cannot be decoded; the others come out as without them."""
    policy, samples = memorised()
    warn_once.cache_clear()
    gone = replace(samples[0], video=str(tmp_path / "gone.mp4"))
    damaged = replace(samples[0], video=damaged_copy(samples[0].video, tmp_path / "damaged.mp4"))
    engine = engine_of(policy, world.environment)
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

    def failing(clips: list[Clip]) -> torch.Tensor:
        if any(clip.start_seconds == 4.0 for clip in clips):  # the first sample's crop alone
            raise VideoError("timeout", "took too long")
        return encode(clips)

    monkeypatch.setattr(policy, "encode", failing)
    greedy = replace(SETTINGS, temperature=0.0)
    rolled = engine_of(policy, world.environment).rollout(samples, 2, 0, greedy, skip_unreadable=True)
    assert [len(group) for group in rolled] == [0, 2, 2, 2]
    with pytest.raises(VideoError, match="took too long"):
        engine_of(policy, world.environment).rollout(samples, 2, 0, greedy)


def test_the_deadline_does_not_count_the_prompts(world: TinyWorld, monkeypatch: pytest.MonkeyPatch) -> None:
    """A video that is slow to read takes nothing of the time that its episodes have."""
    policy, samples = memorised()
    clock = [0.0]
    monkeypatch.setattr(native, "time", SimpleNamespace(monotonic=lambda: clock[0]))
    encode = policy.encode

    def slow(clips: list[Clip]) -> torch.Tensor:
        clock[0] += 100.0 if clips and clips[0].start_seconds == 0 and clips[0].end_seconds > 20 else 0.0
        return encode(clips)

    monkeypatch.setattr(policy, "encode", slow)
    settings = replace(SETTINGS, temperature=0.0, deadline_seconds=50.0)
    rolled = engine_of(policy, world.environment).rollout([samples[3]], 1, 0, settings)
    assert clock[0] >= 100 and rolled[0][0].stop_reason == StopReason.ANSWERED


def test_few_prompts_and_clips_are_fed_at_a_time(
    world: TinyWorld, groups: list[list[Episode]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A limit that every prompt exceeds feeds them one by one; what is sampled stays the same."""
    policy, samples = memorised()
    fed: list[int] = []
    encoded: list[list[Clip]] = []
    extend, encode = policy.extend, policy.encode

    def extending(cache: KVCache, embeddings: torch.Tensor, *rest: torch.Tensor) -> torch.Tensor:
        fed.append(embeddings.shape[0] * embeddings.shape[1])
        return extend(cache, embeddings, *rest)

    monkeypatch.setattr(policy, "extend", extending)
    monkeypatch.setattr(policy, "encode", lambda clips: encoded.append(clips) or encode(clips))
    rolled = engine_of(policy, world.environment, max_tokens_per_pass=8).rollout(samples, GROUP_SIZE, 0, SETTINGS)
    assert fed[:4] == [group[0].prompt_length for group in groups]
    assert all(len(clips) <= 1 or sum(clip.num_tokens for clip in clips) <= 8 for clips in encoded)
    assert [e.token_ids for group in rolled for e in group] == [e.token_ids for group in groups for e in group]
    batch = pack_groups(rolled, world.packing)
    with torch.no_grad():
        assert (policy(batch)[0] - batch.rollout_logprobs).abs().max() < 1e-4
