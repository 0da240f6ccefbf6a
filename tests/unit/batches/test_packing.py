from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from support.tiny_world import TinyWorld, answer, film_episodes, lengths, look, tiny_world, tree_length

from videoseek.batches.micro_batch import plan_micro_batches
from videoseek.batches.packing import masked_by_tdam, pack_documents, pack_groups, pack_rows
from videoseek.batches.positions import mrope_positions
from videoseek.batches.sharing import shared_lengths
from videoseek.types import Episode, Role


@pytest.fixture(scope="module")
def world() -> TinyWorld:
    return tiny_world()


@pytest.fixture(scope="module")
def group(world: TinyWorld) -> list[Episode]:
    turns = [(answer("A"),), (look(0, 8, "fine"), answer("B")), (look(4, 8), look(500, 504), answer("D"))]
    return [world.replay(0, *texts) for texts in turns]


@pytest.fixture(scope="module")
def film(world: TinyWorld) -> list[Episode]:
    return film_episodes(world)


def test_documents_stand_side_by_side(world: TinyWorld) -> None:
    episodes = world.episodes()
    batch = pack_documents(episodes, world.packing)
    assert batch.token_ids.tolist() == [token for episode in episodes for token in episode.token_ids]
    start = 0
    for episode, length in zip(episodes, lengths(episodes), strict=True):
        own, _ = mrope_positions(episode.token_ids, episode.clips, world.vocabulary.video_pad, 2.0)
        assert torch.equal(batch.positions[:, start : start + length], own)
        assert batch.end[start : start + length].tolist() == [start + length] * length
        start += length
    assert len(batch) == start and batch.num_documents == len(episodes)


def test_a_label_stands_one_row_above_its_token(world: TinyWorld) -> None:
    episodes = world.episodes()
    for episode in episodes:
        episode.rollout_logprobs = [-0.01 * i if trained else 0.0 for i, trained in enumerate(episode.loss_mask)]
    batch = pack_documents(episodes, world.packing)
    assert torch.equal(batch.token_ids[batch.label_rows + 1], batch.labels)
    trained = [(e, i) for e, episode in enumerate(episodes) for i, on in enumerate(episode.loss_mask) if on]
    assert batch.label_documents.tolist() == [e for e, _ in trained]
    assert batch.labels.tolist() == [episodes[e].token_ids[i] for e, i in trained]
    torch.testing.assert_close(
        batch.rollout_logprobs, torch.tensor([episodes[e].rollout_logprobs[i] for e, i in trained])
    )


def test_every_vision_row_takes_its_own_feature_once_per_distinct_clip(world: TinyWorld) -> None:
    same = world.replay(1, look(4, 8), look(4, 8), answer("B"))
    batch = pack_documents([same, world.replay(1, look(4, 8), answer("A"))], world.packing)
    assert batch.clips == [same.clips[0], same.clips[1]]
    overview, crop = (clip.num_tokens for clip in batch.clips)
    seen, looked = list(range(overview)), list(range(overview, overview + crop))
    assert batch.feature_rows.tolist() == [*seen, *looked, *looked, *seen, *looked]
    assert (batch.token_ids[batch.vision_rows] == world.vocabulary.video_pad).all()
    assert len(batch.vision_rows) == int((batch.token_ids == world.vocabulary.video_pad).sum())


def test_tree_holds_its_prompt_once(world: TinyWorld, group: list[Episode]) -> None:
    batch = pack_groups([group], world.packing)
    shared = group[0].prompt_length - 1
    assert len(batch) == tree_length(group) == shared + sum(length - shared for length in lengths(group))
    assert batch.token_ids[:shared].tolist() == group[0].token_ids[:shared]
    assert batch.end[:shared].tolist() == [len(batch)] * shared
    start = shared
    for index, episode in enumerate(group):
        stop = start + len(episode.token_ids) - shared
        assert batch.token_ids[start:stop].tolist() == episode.token_ids[shared:]
        assert set(batch.end[start:stop].tolist()) == {stop}
        own, _ = mrope_positions(episode.token_ids, episode.clips, world.vocabulary.video_pad, 2.0)
        assert torch.equal(batch.positions[:, start:stop], own[:, shared:])
        rows = batch.label_rows[batch.label_documents == index]
        assert start <= int(rows.min()) and int(rows.max()) == stop - 2
        assert rows.tolist() == [start + i - shared - 1 for i, on in enumerate(episode.loss_mask) if on]
        start = stop
    assert torch.equal(batch.token_ids[batch.label_rows + 1], batch.labels)
    assert batch.clips == [group[0].clips[0], group[1].clips[1], group[2].clips[1]]


def test_group_of_one_is_a_document(world: TinyWorld, group: list[Episode]) -> None:
    tree, document = pack_groups([group[1:2]], world.packing), pack_documents(group[1:2], world.packing)
    for name in ("token_ids", "positions", "end", "visible", "label_rows", "labels", "vision_rows", "feature_rows"):
        assert torch.equal(getattr(tree, name), getattr(document, name)), name


def test_questions_share_their_film_by_hand_count(world: TinyWorld, film: list[Episode]) -> None:
    """One token for each distinct beginning of the prompts, and a branch of its own for each episode."""
    settings = replace(world.packing, share_films=True)
    scored = [(film[i : i + 4], [0.0] * 4) for i in range(0, 12, 4)]
    (row,), account = plan_micro_batches(scored, 10**6, settings, torch.device("cpu"))
    beginnings = {tuple(e.token_ids[:stop]) for e in film for stop in range(1, e.prompt_length)}
    prompts = {tuple(e.token_ids[: e.prompt_length]) for e in film}
    assert len(prompts) == 3 and len(beginnings) < sum(map(len, prompts)) - 2 * film[0].clips[0].num_tokens
    assert len(row.batch) == len(beginnings) + sum(len(e.token_ids) - e.prompt_length + 1 for e in film)
    assert (account.num_tokens, account.num_tokens_apart) == (len(row.batch), sum(lengths(film)))
    assert row.batch.clips.count(film[0].clips[0]) == 1
    # The row that predicts the last token of an episode sees the tokens before, and none of another episode.
    last_rows = [int(row.batch.label_rows[row.batch.label_documents == i].max()) for i in range(12)]
    seen = [row.batch.token_ids[: last + 1][row.batch.end[: last + 1] > last].tolist() for last in last_rows]
    assert sorted(seen) == sorted(episode.token_ids[:-1] for episode in film)


def test_a_film_beyond_the_row_is_cut_and_nothing_is_lost(world: TinyWorld, film: list[Episode]) -> None:
    settings = replace(world.packing, share_films=True)
    scored = [(film[i : i + 4], [float(i), 1.0, 2.0, 3.0]) for i in range(0, 12, 4)]
    rows, account = plan_micro_batches(scored, 150, settings, torch.device("cpu"))
    assert len(rows) > 2 and max(len(row.batch) for row in rows) <= 150
    assert account.num_tokens == sum(len(row.batch) for row in rows) < account.num_tokens_apart
    labels = [token for e in film for token, trained in zip(e.token_ids, e.loss_mask, strict=True) if trained]
    assert sorted(torch.cat([row.batch.labels for row in rows]).tolist()) == sorted(labels)


@pytest.mark.parametrize("share_films", [True, False])
def test_only_neighbours_about_one_film_share_and_only_if_asked(world: TinyWorld, share_films: bool) -> None:
    other = next(i for i, sample in enumerate(world.samples) if sample.video != world.samples[0].video)
    episodes = [world.replay(index, answer("A")) for index in (0, 1, other)]
    (row,) = pack_rows(episodes, 10**6, replace(world.packing, share_films=share_films))
    assert (len(row) < sum(lengths(episodes))) == share_films
    assert row.end[-len(episodes[2].token_ids) :].tolist() == [len(row)] * len(episodes[2].token_ids)
    assert int(row.end[: -len(episodes[2].token_ids)].max()) == len(row) - len(episodes[2].token_ids)


def test_equal_words_about_another_video_are_not_shared(world: TinyWorld, group: list[Episode]) -> None:
    other_video = next(sample.video for sample in world.samples if sample.video != group[0].sample.video)
    moved = world.environment.replay(replace(group[0].sample, video=other_video))
    assert moved.token_ids[: moved.prompt_length] == group[0].token_ids[: group[0].prompt_length]
    assert shared_lengths([group[0], moved, group[1], group[2]]) == [0, 0, 0, group[0].prompt_length - 1]


def test_rows_that_tdam_may_treat_are_not_shared(world: TinyWorld) -> None:
    """Prompts of equal ids share up to the first crop: from there on, masks differ between samples."""
    shown = world.replay(1, look(4, 8), answer("B"))
    first_crop = shown.roles.index(Role.CROP_VIDEO)
    longer = replace(shown, prompt_length=first_crop + 3)
    assert shared_lengths([longer, longer]) == [0, first_crop]
    other_role = replace(longer, roles=[int(Role.SYSTEM), int(Role.QUESTION), *longer.roles[2:]])
    assert shared_lengths([longer, other_role]) == [0, 1]


@pytest.mark.parametrize("pack", [pack_documents, pack_groups])
def test_nothing_to_pack_is_said(world: TinyWorld, pack: object) -> None:
    with pytest.raises(ValueError, match="nothing to pack"):
        pack([], world.packing)


def test_tdam_is_drawn_per_sample_among_those_with_crops(world: TinyWorld, group: list[Episode]) -> None:
    always = replace(world.packing, tdam_rule="spans", tdam_share=1.0)
    assert [masked_by_tdam(episode, always) for episode in group] == [False, True, True]
    half = replace(always, tdam_share=0.5)
    drawn = [masked_by_tdam(replace_id(group[1], f"s{i}"), half) for i in range(400)]
    assert 150 < sum(drawn) < 250
    assert drawn == [masked_by_tdam(replace_id(group[2], f"s{i}"), half) for i in range(400)]
    assert drawn != [masked_by_tdam(replace_id(group[1], f"s{i}"), replace(half, seed=1)) for i in range(400)]


def replace_id(episode: Episode, name: str) -> Episode:
    return replace(episode, sample=replace(episode.sample, id=name))


def test_rule_is_applied_to_the_drawn_documents_only(world: TinyWorld, group: list[Episode]) -> None:
    batch = pack_documents(group, replace(world.packing, tdam_rule="turns", tdam_share=1.0))
    restricted = batch.visible != batch.visible.max()
    first = len(group[0].token_ids)
    assert not restricted[:first].any() and restricted[first:].any()
    roles = torch.tensor([role for episode in group for role in episode.roles])
    assert len(set(batch.key_class[roles == Role.CROP_VIDEO].tolist())) == 1
    assert not pack_documents(group, replace(world.packing, tdam_rule="turns", tdam_share=0.0)).visible.diff().any()


def test_batch_moves_without_its_clips(world: TinyWorld, group: list[Episode]) -> None:
    batch = pack_documents(group, world.packing)
    moved = batch.to(torch.device("cpu"))
    assert moved.clips == batch.clips and torch.equal(moved.positions, batch.positions)
