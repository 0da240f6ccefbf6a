"""When rollouts are sampled, and with which weights: versions by hand, overlap, errors, and stale groups."""

from __future__ import annotations

from contextlib import closing, nullcontext
from threading import Event, current_thread
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from videoseek.config_merge import load_config
from videoseek.rollout.clip_features import ClipFeatures
from videoseek.stages import rollout_schedule
from videoseek.stages.rollout_schedule import RolloutSchedule
from videoseek.stages.rollouts import Rollouts, drop_stale

STEPS = 5


class Recorder:
    """A run of five steps with a checkpoint after three, and a sampler that only writes down what it is asked for."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, lag: int, has_own_weights: bool = False) -> None:
        self.sampled: list[tuple[int, int]] = []
        self.loaded: list[int] = []
        self.threads: list[str] = []
        self.features = ClipFeatures(None, 1)  # type: ignore[arg-type]
        self.may_sample, self.is_closed = Event(), Event()
        self.may_sample.set()
        config = load_config(["recipe=sft_rl", f"grpo.steps={STEPS}", f"rollout.lag={lag}"])
        run = SimpleNamespace(config=config, environment=None, is_save_due=lambda step: step == 3)
        sampler = SimpleNamespace(
            has_own_weights=has_own_weights,
            features=self.features,
            sampler=SimpleNamespace(close=self.close),
            load=self.loaded.append,
        )
        monkeypatch.setattr(rollout_schedule, "prefetch_prompts", lambda *_: None)
        monkeypatch.setattr(rollout_schedule, "sample_groups", self.sample)
        engine = SimpleNamespace(whole_weights=nullcontext)
        self.schedule = RolloutSchedule(run, engine, sampler, [], [])  # type: ignore[arg-type]

    def sample(self, *_: Any, step: int, weight_version: int, group: object) -> Rollouts:
        self.threads.append(current_thread().name)
        if step > 0:
            assert self.may_sample.wait(20)
            if self.is_closed.is_set():
                raise RuntimeError("the workers are closed")
        self.sampled.append((step, weight_version))
        self.features._features[f"clip {step}"] = torch.zeros(1)  # type: ignore[index]
        episode = SimpleNamespace(clips=[f"clip {step}"], weight_version=weight_version)
        return Rollouts(groups=[[episode]], draws=[0])  # type: ignore[list-item]

    def close(self) -> None:
        self.is_closed.set()
        self.may_sample.set()


@pytest.mark.parametrize("has_own_weights", [False, True])
@pytest.mark.parametrize(("lag", "versions"), [(0, [0, 1, 2, 3, 4]), (1, [0, 0, 1, 3, 3])], ids=["lag 0", "lag 1"])
def test_versions_by_hand(
    monkeypatch: pytest.MonkeyPatch, lag: int, versions: list[int], has_own_weights: bool
) -> None:
    """A checkpoint is written after three steps: the step after it, number 3, is sampled with its weights."""
    recorder = Recorder(monkeypatch, lag, has_own_weights)
    with closing(recorder.schedule) as schedule:
        for step in range(STEPS):
            schedule.get(step)
    assert recorder.sampled == list(enumerate(versions))
    assert recorder.loaded == versions
    beside = lag == 1 and has_own_weights
    assert all((name != current_thread().name) == beside for name in recorder.threads)


def test_the_next_step_is_sampled_while_a_step_trains(monkeypatch: pytest.MonkeyPatch) -> None:
    recorder = Recorder(monkeypatch, lag=1, has_own_weights=True)
    recorder.may_sample.clear()
    with closing(recorder.schedule) as schedule:
        schedule.get(0)
        assert recorder.sampled == [(0, 0)], "step 0 trains here, with step 1 under way"
        recorder.may_sample.set()
        schedule.get(1)
        assert recorder.sampled[:2] == [(0, 0), (1, 0)]


def test_features_of_the_step_to_train_outlive_the_sampling_of_the_next(monkeypatch: pytest.MonkeyPatch) -> None:
    recorder = Recorder(monkeypatch, lag=1)
    with closing(recorder.schedule) as schedule:
        for step, held in enumerate([{"clip 0", "clip 1"}, {"clip 1", "clip 2"}, {"clip 2"}]):
            schedule.get(step)
            assert held <= recorder.features._features.keys() <= held | {"clip 1"}


def test_errors_of_either_side_end_the_other(monkeypatch: pytest.MonkeyPatch) -> None:
    recorder = Recorder(monkeypatch, lag=1, has_own_weights=True)
    recorder.may_sample.clear()
    with pytest.raises(ZeroDivisionError), closing(recorder.schedule) as schedule:
        schedule.get(0)
        raise ZeroDivisionError  # in training: closes the sampler, which ends the thread
    with pytest.raises(RuntimeError, match="the workers are closed"):
        schedule.get(1)
    assert recorder.sampled == [(0, 0)]


def test_stale_groups_are_dropped_and_counted() -> None:
    """A group is as old as its oldest episode."""
    versions = {7: [3, 5], 8: [4, 5], 9: [5, 5]}
    groups = [[SimpleNamespace(weight_version=version) for version in group] for group in versions.values()]
    rollouts = Rollouts(groups=list(groups), draws=list(versions), all_groups=list(groups))  # type: ignore[arg-type]
    drop_stale(rollouts, oldest_version=5 - 1)
    assert (rollouts.draws, rollouts.num_stale) == ([8, 9], 1)
    assert rollouts.groups == groups[1:] and len(rollouts.all_groups) == 3
    drop_stale(rollouts, oldest_version=5)
    assert (rollouts.draws, rollouts.num_stale) == ([9], 1)
