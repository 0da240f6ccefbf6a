"""A line of a trajectory file: its form on disk, and back."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from support.tiny_world import TinyWorld, answer, look, tiny_world

from videoseek.pages.run_files import read_trajectories
from videoseek.rollout.trajectories import write_trajectories
from videoseek.trajectory_record import TrajectoryRecord
from videoseek.types import Episode, Fault

#: The fields of a line in their order: other programs read these files.
FIELDS = "id video kind question options answer clues prediction turns calls clips rewards faults stop_reason "
FIELDS += "weight_version token_ids"


@pytest.fixture(scope="module")
def world() -> TinyWorld:
    return tiny_world()


@pytest.fixture
def episode(world: TinyWorld) -> Episode:
    """An executed call, a failed one, and an answer."""
    episode = world.replay(0, look(4, 8), look(500, 504), answer("B"))
    episode.rewards = {"reward": 1.5, "accuracy": 1.0}
    episode.faults = [Fault("bad_tag", "A sentence.")]
    episode.weight_version = 7
    return episode


def test_a_line_holds_the_episode(episode: Episode) -> None:
    line = TrajectoryRecord.from_episode(episode).to_json()
    assert " ".join(line) == FIELDS
    assert line["turns"] == [
        {"role": turn.role, "text": turn.text, "num_tokens": turn.end - turn.start} for turn in episode.turns
    ]
    assert sum(turn["num_tokens"] for turn in line["turns"]) <= len(line["token_ids"])
    assert line["token_ids"] == episode.token_ids
    executed, failed = line["calls"]
    assert executed == {"turn": 0, "start_seconds": 4, "end_seconds": 8, "strategy": "medium", "fault": None}
    assert (failed["turn"], failed["fault"]) == (1, "window_outside")
    assert len(line["clips"]) == 2 and line["clips"][1]["num_tokens"] == episode.clips[1].num_tokens
    assert (line["faults"], line["stop_reason"], line["weight_version"]) == (["bad_tag"], "reference", 7)


def test_a_line_that_was_read_is_written_the_same(episode: Episode) -> None:
    text = json.dumps(TrajectoryRecord.from_episode(episode).to_json())
    record = TrajectoryRecord.from_json(json.loads(text))
    again = json.dumps(record.to_json())
    assert json.loads(again) == json.loads(text)
    assert TrajectoryRecord.from_json(json.loads(again)) == record


def test_an_executed_call_finds_its_clip_again(episode: Episode) -> None:
    record = TrajectoryRecord.from_json(TrajectoryRecord.from_episode(episode).to_json())
    assert record.overview is not None and record.overview.frame_seconds == episode.clips[0].frame_seconds
    executed, failed = record.calls
    assert executed.clip == record.clips[1] and failed.clip is None
    assert record.has_fault and record.is_right


def test_an_unscored_episode_is_not_right(episode: Episode) -> None:
    record = replace(TrajectoryRecord.from_episode(episode), rewards={})
    assert record.accuracy != record.accuracy and not record.is_right


def test_files_are_read_back_without_ids(episode: Episode, tmp_path: Path) -> None:
    write_trajectories(tmp_path, "eval_sft", [[episode, episode], [episode]])
    records = read_trajectories(tmp_path / "trajectories" / "eval_sft.jsonl")
    assert [record.prediction for record in records] == ["B"] * 3
    assert all(record.token_ids == () for record in records)
