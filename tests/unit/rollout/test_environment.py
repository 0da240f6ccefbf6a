"""The rules of an episode: when it ends, what it answers, and that replay keeps to them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from support.damaged_video import damaged_copy
from support.tiny_world import LIMITS, MALFORMED, TinyWorld, answer, look, tiny_world

from videoseek.rollout import environment
from videoseek.tools.crop import VideoCrop
from videoseek.types import Call, Clip, Fault, ParsedTurn, StopReason
from videoseek.video.decode import FRAME_CACHE, probe
from videoseek.video.errors import VideoError
from videoseek.video.quotas import crop_clip, overview_clip


@pytest.fixture(scope="module")
def world() -> TinyWorld:
    return tiny_world()


def test_prompt_shows_the_whole_video_or_the_window(world: TinyWorld) -> None:
    sample = world.samples[0]
    info = probe(sample.video)
    assert world.environment.open(sample).clips == [overview_clip(info, LIMITS)]
    part = world.environment.open(replace(sample, window=(4.0, 8.0)))
    assert part.clips == [crop_clip(info, 4.0, 8.0, "medium", LIMITS)]


BOTH = "<think>x</think>\n<answer>A</answer>" + look(4, 8).split("\n")[1]


@pytest.mark.parametrize(
    ("text", "max_turns", "reason", "observed"),
    [
        (answer("A"), 4, StopReason.ANSWERED, False),
        (BOTH, 4, StopReason.ANSWERED, False),
        ("<answer>A</answer>", 4, StopReason.ANSWERED, False),
        (look(4, 8), 4, None, True),
        (look(500, 504), 4, None, True),
        (MALFORMED, 4, None, True),
        ("", 4, None, True),
        (look(4, 8), 1, StopReason.TURN_LIMIT, False),
        (answer("A"), 1, StopReason.ANSWERED, False),
        (MALFORMED, 1, StopReason.NO_CALL_NO_ANSWER, False),
        ("hm", 1, StopReason.NO_CALL_NO_ANSWER, False),
    ],
    ids=["answer", "answer beside a call", "no reasoning", "call", "failed call", "malformed", "empty"]
    + ["call in the last turn", "answer in the last turn", "malformed in the last turn", "prose in the last turn"],
)
def test_environment_responds_to_each_kind_of_turn(
    world: TinyWorld, text: str, max_turns: int, reason: StopReason | None, observed: bool
) -> None:
    environment = replace(world.environment, max_turns=max_turns)
    builder = environment.open(world.samples[0])
    parsed = builder.assistant_text(text)
    before = list(builder.token_ids)
    assert environment.respond(builder, parsed) == reason
    assert builder.token_ids[: len(before)] == before
    assert (len(builder.token_ids) > len(before)) == observed == (len(builder.calls) == 1)


def test_an_oversized_observation_ends_the_episode(world: TinyWorld) -> None:
    def respond(limit: int) -> StopReason | None:
        environment = replace(world.environment, max_context_tokens=limit)
        builder = environment.open(world.samples[0])
        parsed = builder.assistant_text(look(4, 8))
        before = len(builder.token_ids), len(builder.clips), len(builder.turns), len(builder.calls)
        stop = environment.respond(builder, parsed)
        after = len(builder.token_ids), len(builder.clips), len(builder.turns), len(builder.calls)
        assert (stop is None) == (after != before), "an observation that does not fit leaves no trace"
        return stop

    builder = world.environment.open(world.samples[0])
    world.environment.respond(builder, builder.assistant_text(look(4, 8)))
    needed = len(builder.token_ids)
    assert respond(needed + 1) is None
    assert respond(needed) == respond(needed - 1) == StopReason.CONTEXT_FULL


def test_perception_has_one_turn(world: TinyWorld) -> None:
    builder = world.environment.open(replace(world.samples[0], kind="perception"))
    assert world.environment.respond(builder, builder.assistant_text("rows")) == StopReason.ANSWERED


def test_a_call_gives_the_clip_of_its_window(world: TinyWorld) -> None:
    builder = world.environment.open(world.samples[0])
    world.environment.respond(builder, ParsedTurn("x", (Call(4.0, 12.0, "fine"),), None, ()))
    assert builder.clips[1] == crop_clip(probe(world.samples[0].video), 4.0, 12.0, "fine", LIMITS)


def test_replay_is_reference_and_ends_with_its_last_turn(world: TinyWorld) -> None:
    episode = world.replay(0, look(4, 8), look(8, 12))
    assert episode.stop_reason == StopReason.REFERENCE and episode.answer is None
    assert episode.token_ids[-1] == world.vocabulary.im_end and len(episode.calls) == 1
    assert set(episode.rollout_logprobs) == {0.0}
    assert world.replay(0, look(4, 8), answer("B")).answer == "B"


def test_replay_keeps_a_trajectory_longer_than_the_context_of_rollouts(world: TinyWorld) -> None:
    sample = replace(world.samples[0], turns=(look(4, 8), answer("B")))
    short = replace(world.environment, max_context_tokens=8)
    assert short.replay(sample).token_ids == world.environment.replay(sample).token_ids


def test_replay_wants_turns(world: TinyWorld) -> None:
    with pytest.raises(ValueError, match="has no turns to train on"):
        world.replay(0)


@pytest.mark.parametrize(
    ("turns", "said"),
    [
        ((answer("A"), answer("B")), "turn 1 of 2 ends the episode .*: answered"),
        ((look(4, 8), BOTH, answer("B")), "turn 2 of 3 ends the episode .*: answered"),
        ((look(4, 8),) * 4 + (answer("A"),), "turn 4 of 5 ends the episode .*: turn_limit"),
        ((MALFORMED,) * 4 + (answer("A"),), "turn 4 of 5 ends the episode .*: no_call_no_answer"),
    ],
    ids=["answers twice", "answers beside a call", "too many calls", "too many faults"],
)
def test_replay_refuses_what_rollout_could_not_produce(world: TinyWorld, turns: tuple[str, ...], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        world.replay(0, *turns)


def test_unreadable_video_is_named(world: TinyWorld, tmp_path: Path) -> None:
    with pytest.raises(VideoError, match="gone.mp4"):
        world.environment.open(replace(world.samples[0], video=str(tmp_path / "gone.mp4")))


def test_replay_gives_no_observation_for_an_undecodable_crop(world: TinyWorld, tmp_path: Path) -> None:
    """In a rollout the model is told; a recorded answer that was read from such a crop must not be trained on."""
    broken = replace(
        world.samples[0],
        video=damaged_copy(world.samples[0].video, tmp_path / "v.mp4"),
        turns=(look(24, 28), answer("B")),
    )
    builder = world.environment.open(broken)
    assert world.environment.respond(builder, builder.assistant_text(broken.turns[0])) is None
    assert builder.calls[0].fault is not None and builder.calls[0].fault.code == "decode_failed"
    episode = world.environment.replay(broken)
    assert episode.calls[0].fault is None
    with pytest.raises(VideoError, match="cannot be decoded"):
        world.policy().encode(episode.clips[1:])


def test_replay_decodes_nothing(world: TinyWorld) -> None:
    FRAME_CACHE.clear()
    assert len(world.replay(0, look(4, 8), look(8, 12), answer("B")).clips) == 3
    assert len(FRAME_CACHE) == 0


def test_replay_keeps_refusals_by_rule(world: TinyWorld) -> None:
    fault = world.replay(0, look(500, 504), answer("B")).calls[0].fault
    assert fault is not None and fault.code == "window_outside"


def test_replay_raises_for_a_video_that_goes_away(world: TinyWorld, tmp_path: Path) -> None:
    class Leaving(VideoCrop):
        def plan(self, video: str, call: Call) -> Clip | Fault:
            return super().plan(str(tmp_path / "gone.mp4"), call)

    with pytest.raises(VideoError, match="gone.mp4"):
        replace(world.environment, tool=Leaving(LIMITS)).replay(
            replace(world.samples[0], turns=(look(4, 8), answer("B")))
        )


def test_only_clips_with_a_reader_are_prefetched(monkeypatch: pytest.MonkeyPatch) -> None:
    """A turn that answers, or that has no turn after it, runs no call: its clip would fill the cache for nobody."""
    world = tiny_world()
    prefetched: list[Clip] = []
    monkeypatch.setattr(environment, "prefetch", prefetched.extend)
    short = replace(world.environment, max_turns=2)

    builder = short.open(world.samples[0])
    parsed = builder.assistant_text(look(4, 8))
    short.prefetch_calls(builder, parsed)
    assert [(clip.start_seconds, clip.end_seconds) for clip in prefetched] == [(4.0, 8.0)]
    assert short.respond(builder, parsed) is None
    assert builder.clips[1:] == prefetched

    short.prefetch_calls(builder, builder.assistant_text(look(8, 12)))
    builder = short.open(world.samples[0])
    short.prefetch_calls(builder, builder.assistant_text(answer("A")))
    assert len(prefetched) == 1
