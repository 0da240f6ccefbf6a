"""What every version of the clue world must keep, whatever its colours, sizes and shares are."""

from __future__ import annotations

import hashlib
from pathlib import Path

import av
import pytest
import torch
from support.tiny_world import FORMAT, LIMITS, tiny_world

from videoseek.samples import clueworld
from videoseek.trajectory.grammar import STRUCTURE_FAULTS
from videoseek.types import Sample
from videoseek.video.decode import decode_clip, probe
from videoseek.video.quotas import overview_clip

TASKS, PERCEPTION = ("train", "heldout"), ("base", "base_heldout")
COUNT = 12


@pytest.fixture(scope="module")
def splits(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[Sample]]:
    folder = tmp_path_factory.mktemp("clueworld")
    return {split: clueworld.load(folder, split, COUNT, seed=0) for split in TASKS + PERCEPTION}


def videos(samples: list[Sample]) -> list[str]:
    return list(dict.fromkeys(sample.video for sample in samples))


def digests(samples: list[Sample]) -> list[str]:
    return [hashlib.sha256(Path(video).read_bytes()).hexdigest() for video in videos(samples)]


def test_each_split_has_its_number_of_samples_with_distinct_ids(splits: dict[str, list[Sample]]) -> None:
    ids = [sample.id for samples in splits.values() for sample in samples]
    assert {len(samples) for samples in splits.values()} == {COUNT}
    assert len(set(ids)) == len(ids)


def test_videos_are_h264_files_that_decode_to_their_end(splits: dict[str, list[Sample]]) -> None:
    for video in videos(splits["train"]) + videos(splits["heldout"]):
        with av.open(video) as container:
            stream = container.streams.video[0]
            assert stream.codec_context.name == "h264"
            assert sum(1 for _ in container.decode(stream)) == probe(video).num_frames
        info = probe(video)
        assert info.duration_seconds == pytest.approx(clueworld.DURATION_SECONDS)
        frames = decode_clip(overview_clip(info, LIMITS)).float()
        assert frames.diff(dim=0).abs().mean() > 1  # something happens


def test_splits_share_no_video(splits: dict[str, list[Sample]]) -> None:
    every = [digest for samples in splits.values() for digest in digests(samples)]
    assert len(set(every)) == len(every)


def told(samples: list[Sample]) -> list[tuple]:
    return [(s.id, s.question, s.options, s.answer, s.kind, s.clues, s.turns, s.window) for s in samples]


def test_a_seed_fixes_everything(splits: dict[str, list[Sample]], tmp_path: Path) -> None:
    again = clueworld.load(tmp_path, "train", COUNT, seed=0)
    other = clueworld.load(tmp_path, "train", COUNT, seed=1)
    assert told(again) == told(splits["train"]) and told(other) != told(again)
    for first, second in zip(videos(splits["train"]), videos(again), strict=True):
        clips = [overview_clip(probe(video), LIMITS) for video in (first, second)]
        assert torch.equal(*map(decode_clip, clips))
    assert not set(digests(other)) & set(digests(again))


@pytest.mark.parametrize("split", TASKS)
def test_questions_have_one_answer_among_their_options(splits: dict[str, list[Sample]], split: str) -> None:
    for sample in splits[split]:
        assert sample.answer in dict(sample.lettered_options)
        assert len(set(sample.options)) == len(sample.options)
        assert sample.kind.startswith("clue_")


@pytest.mark.parametrize("split", TASKS + PERCEPTION)
def test_clues_and_windows_lie_inside_the_video(splits: dict[str, list[Sample]], split: str) -> None:
    for sample in splits[split]:
        duration = probe(sample.video).duration_seconds
        for start, end in [*sample.clues, *([sample.window] if sample.window else [])]:
            assert 0 <= start < end <= duration
        if sample.kind.endswith("_w_tool"):
            assert len(sample.clues) == (2 if "multi" in sample.kind else 1)


@pytest.mark.parametrize("split", TASKS)
def test_trajectories_keep_the_grammar_and_end_in_the_answer(splits: dict[str, list[Sample]], split: str) -> None:
    """A call may ask for nonsense, as synthesised ones do; the turn around it is in order."""
    environment = tiny_world().environment
    for sample in splits[split]:
        turns = [FORMAT.parse(text) for text in sample.turns]
        assert turns[-1].answer == sample.answer and not turns[-1].faults and not turns[-1].calls
        for turn in turns[:-1]:
            assert len(turn.calls) + len(turn.faults) == 1 and turn.answer is None
            assert all(item.code not in STRUCTURE_FAULTS for item in turn.faults)
        episode = environment.replay(sample)
        assert len(episode.clips) == 1 + sum(len(turn.calls) for turn in turns)


def test_most_trajectories_look_at_their_clue_and_some_do_not(tmp_path: Path) -> None:
    """Over many questions: most looks meet their clue, and there is something left for RL to mend."""
    samples = [s for s in clueworld.load(tmp_path, "train", 60, seed=3) if s.kind == "clue_single_w_tool"]
    last_looks = [[call for turn in s.turns for call in FORMAT.parse(turn).calls][-1:] for s in samples]
    exact = sum(
        bool(look) and (look[0].start_seconds, look[0].end_seconds) in s.clues
        for s, look in zip(samples, last_looks, strict=True)
    )
    assert len(samples) / 2 < exact < len(samples)


@pytest.mark.parametrize("split", PERCEPTION)
def test_perception_turns_hold_the_answer_and_no_tags(splits: dict[str, list[Sample]], split: str) -> None:
    for sample in splits[split]:
        (text,) = sample.turns
        turn = FORMAT.parse(text)
        assert sample.kind == "perception" and sample.answer in text
        assert turn.answer is None and not turn.calls
        tiny_world().environment.replay(sample)


def test_conversations_cost_few_tokens(splits: dict[str, list[Sample]]) -> None:
    """`phrases` holds what the world says: no conversation falls apart into bytes."""
    vocabulary = tiny_world().vocabulary
    for split in TASKS:
        for sample in splits[split]:
            for text in (sample.question, *sample.turns):
                words = len(text.replace("<", " <").replace(",", " , ").split())
                assert len(vocabulary.encode(text)) <= 2 * words + 4, text


def test_finished_samples_name_files_that_are_there(splits: dict[str, list[Sample]]) -> None:
    for samples in splits.values():
        assert all(Path(video).is_file() for video in videos(samples))


def test_interrupted_generation_is_repeated(tmp_path: Path) -> None:
    def stop(done: int, total: int) -> None:
        if done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        clueworld.prepare(tmp_path, "train", COUNT, 5, stop)
    assert not list(tmp_path.rglob("*.jsonl"))
    progress: list[tuple[int, int]] = []
    path = clueworld.prepare(tmp_path, "train", COUNT, 5, lambda done, total: progress.append((done, total)))
    total = progress[0][1]
    assert progress == [(i + 1, total) for i in range(total)]
    redone, fresh = (clueworld.load(folder, "train", COUNT, 5) for folder in (tmp_path, tmp_path / "new"))
    assert told(redone) == told(fresh)
    assert not list(tmp_path.rglob("*.partial*"))
    assert path.is_file()


def test_a_finished_split_is_not_generated_again(splits: dict[str, list[Sample]]) -> None:
    folder = Path(splits["train"][0].video).parents[2]

    def refuse(done: int, total: int) -> None:
        raise AssertionError("made again")

    assert clueworld.prepare(folder, "train", COUNT, 0, refuse).is_file()


def test_a_failing_encoder_leaves_no_finished_split(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    frames = clueworld._frames

    def break_off(world: clueworld.World, seed: int):
        for index, pixels in enumerate(frames(world, seed)):
            if index == 9:
                raise OSError("no space left")
            yield pixels

    monkeypatch.setattr(clueworld, "_frames", break_off)
    with pytest.raises(OSError, match="no space left"):
        clueworld.prepare(tmp_path, "heldout", 4, 0)
    assert not list(tmp_path.rglob("*.jsonl"))
    monkeypatch.undo()
    for sample in clueworld.load(tmp_path, "heldout", 4, 0):
        assert decode_clip(overview_clip(probe(sample.video), LIMITS)).any()
