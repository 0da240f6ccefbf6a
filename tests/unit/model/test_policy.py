"""One policy, one number: packed, unpacked, as a tree, and in transformers' own forward pass."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch
from support.tiny_world import (
    TinyWorld,
    answer,
    assert_same_gradients,
    film_episodes,
    gradients,
    look,
    row_logits,
    tiny_world,
)
from transformers import Qwen2_5_VLForConditionalGeneration

from videoseek.batches.micro_batch import join_films
from videoseek.batches.packing import PackSettings, masked_by_tdam, pack_documents, pack_groups, pack_rows
from videoseek.batches.token_batch import TokenBatch
from videoseek.model import policy as policy_module
from videoseek.model.attention import install_attention
from videoseek.model.policy import Policy
from videoseek.model.tiny import build_model
from videoseek.types import Clip, Episode
from videoseek.video.decode import read_frames
from videoseek.video.patches import patchify

RULES = ("off", "spans", "turns", "isolated")


@pytest.fixture(scope="module")
def world() -> TinyWorld:
    return tiny_world()


@pytest.fixture(scope="module")
def policy(world: TinyWorld) -> Policy:
    return world.policy()


@pytest.fixture(scope="module")
def episodes(world: TinyWorld) -> list[Episode]:
    return world.episodes()


def group_of(world: TinyWorld, index: int) -> list[Episode]:
    """Different episodes of one sample: no call, a failed call, one crop, two crops."""
    return [
        world.replay(index, answer("A")),
        world.replay(index, look(4, 8), answer("B")),
        world.replay(index, look(500, 504), answer("no")),
        world.replay(index, look(0, 12, "fine"), look(4, 8), answer("C")),
    ]


def masked(world: TinyWorld, rule: str) -> PackSettings:
    return replace(world.packing, tdam_rule=rule, tdam_share=1.0)


def stock_logits(model: Qwen2_5_VLForConditionalGeneration, batch: TokenBatch) -> torch.Tensor:
    """Logits [T, vocabulary] of transformers' own forward pass over pixels, under the mask formula written densely."""
    row, key = torch.arange(len(batch))[:, None], torch.arange(len(batch))[None]
    seen = (key <= row) & (row < batch.end[None]) & ((batch.visible[:, None] & batch.key_class[None]) != 0)
    blocked = torch.zeros(seen.shape).masked_fill(~seen, torch.finfo(torch.float32).min)[None, None]
    with torch.no_grad():
        return model(
            input_ids=batch.token_ids[None],
            position_ids=batch.positions[:, None],
            attention_mask={"full_attention": blocked},
            pixel_values_videos=torch.cat([patchify(read_frames(clip)) for clip in batch.clips]),
            video_grid_thw=torch.tensor([clip.grid_thw for clip in batch.clips]),
            use_cache=False,
        ).logits[0]


@pytest.mark.parametrize("rule", RULES)
def test_logits_equal_transformers_own(world: TinyWorld, policy: Policy, episodes: list[Episode], rule: str) -> None:
    stock = build_model(world.config, 0)
    stock.set_attn_implementation("eager")
    stock.load_state_dict(policy.model.state_dict())
    for episode in episodes:
        batch = pack_documents([episode], masked(world, rule))
        torch.testing.assert_close(row_logits(policy, batch), stock_logits(stock, batch), atol=1e-5, rtol=0)


@pytest.mark.parametrize("rule", RULES)
def test_packed_row_equals_its_samples_alone(
    world: TinyWorld, policy: Policy, episodes: list[Episode], rule: str
) -> None:
    settings = masked(world, rule)
    packed = pack_documents(episodes, settings)
    alone = [pack_documents([episode], settings) for episode in episodes]
    logits = torch.cat([row_logits(policy, batch) for batch in alone])
    torch.testing.assert_close(row_logits(policy, packed), logits, atol=1e-5, rtol=0)
    with torch.no_grad():
        logprobs = torch.cat([policy(batch)[0] for batch in alone])
        torch.testing.assert_close(policy(packed)[0], logprobs, atol=1e-5, rtol=0)


def test_packed_gradients_equal_the_sum_of_samples(world: TinyWorld, policy: Policy, episodes: list[Episode]) -> None:
    settings = masked(world, "spans")
    packed = gradients(policy, policy(pack_documents(episodes, settings))[0].sum())
    alone = gradients(policy, sum(policy(pack_documents([episode], settings))[0].sum() for episode in episodes))
    assert any("visual" in name for name in packed) and any("embed_tokens" in name for name in packed)
    assert_same_gradients(packed, alone, 1e-4)


@pytest.mark.parametrize("rule", RULES)
def test_tree_equals_its_episodes_as_documents(world: TinyWorld, policy: Policy, rule: str) -> None:
    settings = masked(world, rule)
    groups = [group_of(world, 0), group_of(world, 8)[1:3]]
    tree, documents = pack_groups(groups, settings), pack_documents([*groups[0], *groups[1]], settings)
    assert len(tree) < len(documents)
    assert torch.equal(tree.labels, documents.labels)
    weights = torch.linspace(-1, 1, len(tree.labels))
    (from_tree, entropy), (from_documents, wanted) = policy(tree), policy(documents)
    torch.testing.assert_close(from_tree, from_documents, atol=1e-5, rtol=0)
    torch.testing.assert_close(entropy, wanted, atol=1e-4, rtol=0)
    mine = gradients(policy, (from_tree * weights).sum())
    assert_same_gradients(mine, gradients(policy, (from_documents * weights).sum()), 1e-4)


def rms_norm(module: torch.nn.Module, hidden: torch.Tensor) -> torch.Tensor:
    return module.weight * hidden * torch.rsqrt(hidden.square().mean(-1, keepdim=True) + module.variance_epsilon)


@pytest.mark.parametrize(
    ("rule", "dtype", "tolerance"),
    [("off", torch.float64, 1e-9), ("off", torch.float32, 1e-5), ("spans", torch.float64, 1e-9)],
)
def test_a_film_of_three_questions_equals_its_episodes_apart(
    world: TinyWorld, rule: str, dtype: torch.dtype, tolerance: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As GRPO packs groups (off), and as SFT packs samples of which TDAM masks some (spans)."""
    policy = Policy(install_attention(build_model(world.config, 0).to(dtype)))
    # The model casts logits, angles and norms to fp32.
    monkeypatch.setattr(torch.Tensor, "float", lambda tensor: tensor.to(dtype))
    monkeypatch.setattr(type(policy.model.model.language_model.norm), "forward", rms_norm)
    settings = replace(masked(world, rule), tdam_share=0.5, share_films=True, seed=1)
    film = film_episodes(world)
    if rule == "off":
        ((episodes, _),) = join_films([(film[i : i + 4], [1.0] * 4) for i in (0, 4, 8)])
        batch = pack_groups([episodes], settings)
    else:
        episodes = film[1::4] + film[2::4]
        (batch,) = pack_rows(episodes, 10**6, settings)
        assert 0 < sum(masked_by_tdam(episode, settings) for episode in episodes) < 6
    assert len(batch) < 0.8 * sum(len(episode.token_ids) for episode in episodes)
    encoded: list[Clip] = []
    encode = policy.encode
    monkeypatch.setattr(policy, "encode", lambda clips: encoded.extend(clips) or encode(clips))
    of_tree = policy(batch)[0]
    assert encoded.count(film[0].clips[0]) == 1 and len(encoded) == len(set(encoded)), "a clip is encoded once"
    apart = torch.cat([policy(pack_documents([episode], settings))[0] for episode in episodes])
    torch.testing.assert_close(of_tree, apart, atol=tolerance, rtol=0)
    weights = torch.linspace(-1, 1, len(apart), dtype=dtype)
    mine, wanted = (gradients(policy, (logprobs * weights).sum()) for logprobs in (of_tree, apart))
    assert_same_gradients(mine, wanted, tolerance)


def test_masking_changes_only_rows_that_the_rule_is_for(
    world: TinyWorld, policy: Policy, episodes: list[Episode]
) -> None:
    """Sensitivity: the comparisons above would notice a mask that is not applied."""
    off = row_logits(policy, pack_documents(episodes, masked(world, "off")))
    batch = pack_documents(episodes, masked(world, "spans"))
    gap = (row_logits(policy, batch) - off).abs().amax(-1)
    treated = batch.visible != batch.visible.max()
    assert treated.any() and bool((gap[treated] > 1e-3).all())
    first_treated = [int(treated[a:b].int().argmax()) + a for a, b in documents(batch) if treated[a:b].any()]
    starts = [a for a, b in documents(batch) if treated[a:b].any()]
    for start, first in zip(starts, first_treated, strict=True):
        assert gap[start:first].max() < 1e-5


def documents(batch: TokenBatch) -> Sequence[tuple[int, int]]:
    return list(itertools.pairwise([0, *dict.fromkeys(batch.end.tolist())]))


def test_projection_runs_on_labelled_rows_only(world: TinyWorld, policy: Policy, episodes: list[Episode]) -> None:
    batch = pack_documents(episodes, world.packing)
    projected: list[int] = []
    hook = policy.model.lm_head.register_forward_hook(lambda _, inputs, __: projected.append(inputs[0].shape[0]))
    try:
        policy(batch)
    finally:
        hook.remove()
    assert projected == [len(batch.labels)]
    assert len(batch.labels) == sum(map(sum, (episode.loss_mask for episode in episodes))) < len(batch)


def test_logprobs_and_entropies_are_those_of_the_softmax(
    world: TinyWorld, policy: Policy, episodes: list[Episode]
) -> None:
    batch = pack_documents(episodes[:2], world.packing)
    with torch.no_grad():
        logprobs, entropies = policy(batch, temperature=0.7)
    wanted = torch.distributions.Categorical(logits=row_logits(policy, batch)[batch.label_rows] / 0.7)
    torch.testing.assert_close(logprobs, wanted.log_prob(batch.labels), atol=1e-5, rtol=0)
    torch.testing.assert_close(entropies, wanted.entropy(), atol=1e-4, rtol=0)


def test_projection_in_pieces_changes_nothing(
    world: TinyWorld, policy: Policy, episodes: list[Episode], monkeypatch: pytest.MonkeyPatch
) -> None:
    batch = pack_documents(episodes, world.packing)
    logprobs, entropies = policy(batch)
    whole = gradients(policy, logprobs.sum())
    monkeypatch.setattr(policy_module, "PROJECTION_ROWS", 7)
    pieces, entropies_of_pieces = policy(batch)
    torch.testing.assert_close(pieces, logprobs, atol=1e-6, rtol=0)
    torch.testing.assert_close(entropies_of_pieces, entropies, atol=1e-5, rtol=0)
    assert not entropies_of_pieces.requires_grad
    assert_same_gradients(gradients(policy, pieces.sum()), whole, 1e-5)


@pytest.mark.parametrize("num_labels", [0, 5, 7, 20])
def test_surplus_projections_are_calls_and_nothing_else(
    world: TinyWorld, policy: Policy, monkeypatch: pytest.MonkeyPatch, num_labels: int
) -> None:
    """Calls and recomputation depend on the number agreed on only, so that ranks stay in step with any labels."""
    monkeypatch.setattr(policy_module, "PROJECTION_ROWS", 7)
    hidden = torch.randn(num_labels, world.config.text_config.hidden_size, requires_grad=True)
    labels = torch.arange(num_labels)
    calls: list[int] = []
    hook = policy.model.lm_head.register_forward_hook(lambda _, inputs, __: calls.append(inputs[0].shape[0]))
    try:
        logprobs, _ = policy.label_logprobs(hidden, labels, 1.0, 4)
        (gradient,) = torch.autograd.grad(logprobs.sum(), hidden)
    finally:
        hook.remove()
    wanted = policy.model.lm_head(hidden).log_softmax(-1)[torch.arange(num_labels), labels]
    torch.testing.assert_close(logprobs, wanted)
    torch.testing.assert_close(gradient, torch.autograd.grad(wanted.sum(), hidden)[0])
    assert (len(calls), sum(calls)) == (8, 2 * num_labels)


def test_given_features_are_those_computed_here(world: TinyWorld, policy: Policy, episodes: list[Episode]) -> None:
    batch = pack_documents(episodes, world.packing)
    with torch.no_grad():
        logprobs, _ = policy(batch)
        assert torch.equal(policy(batch, policy.encode(batch.clips))[0], logprobs)
        assert not torch.allclose(policy(batch, torch.zeros_like(policy.encode(batch.clips)))[0], logprobs)


def test_features_of_a_clip_do_not_depend_on_its_company(policy: Policy, episodes: list[Episode]) -> None:
    clips = list(dict.fromkeys(clip for episode in episodes for clip in episode.clips))
    with torch.no_grad():
        together = policy.encode(clips)
        apart = torch.cat([policy.encode([clip]) for clip in clips])
    torch.testing.assert_close(together, apart, atol=1e-5, rtol=0)
    assert len(together) == sum(clip.num_tokens for clip in clips)
    assert policy.encode([]).shape == (0, together.shape[1])


@pytest.mark.parametrize(
    ("freeze", "tower", "merger"), [("none", True, True), ("tower", False, True), ("all", False, False)]
)
def test_frozen_vision_gets_no_gradient(
    world: TinyWorld, episodes: list[Episode], freeze: str, tower: bool, merger: bool
) -> None:
    policy = Policy(install_attention(build_model(world.config, 0)), freeze_vision=freeze)
    grown = set(gradients(policy, policy(pack_documents(episodes[:2], world.packing))[0].sum()))
    assert any(".visual.blocks." in name for name in grown) == tower
    assert any(".visual.merger." in name for name in grown) == merger
    assert any(".language_model.layers." in name for name in grown)


def test_gradient_checkpointing_changes_nothing(world: TinyWorld, episodes: list[Episode]) -> None:
    policy, batch = (
        Policy(install_attention(build_model(world.config, 0))),
        pack_documents(episodes, masked(world, "turns")),
    )
    policy.train()
    plain = gradients(policy, policy(batch)[0].sum())
    policy.model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    assert_same_gradients(gradients(policy, policy(batch)[0].sum()), plain, 1e-5)
